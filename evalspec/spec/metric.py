"""The metric block: what is measured, where it is cut, and the name under which it is stored."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from evalspec.spec.base import Block, Misfit, misfits


class MetricBlock(Block):
    """A metric and where it is cut."""

    metric: str
    """Its name."""
    k: int | None = Field(default=None, ge=1)
    """Rank at which a retrieval metric is cut; by default the retrieval's k. For `nll` the position, which it needs."""
    filters: list[str] | None = Field(default=None, min_length=1)
    """The chains of `filters` under which it is taken; by default all of them."""
    literal: bool = False
    """exact_match: compare the texts as they are, but for what `ignore_…` leaves out, and not after SQuAD's
    normalisation. Each `ignore_…` says so by itself."""
    ignore_case: bool = False
    """exact_match: compare them in lower case."""
    ignore_punctuation: bool = False
    """exact_match: compare them without ASCII punctuation."""
    ignore_numbers: bool = False
    """exact_match: compare them without ASCII digits."""
    regexes_to_ignore: list[str] = Field(default_factory=list)
    """exact_match: take out what these regular expressions find, one after the other, before anything else."""

    @model_validator(mode="after")
    def _patterns_are_patterns(self) -> MetricBlock:
        found: list[Misfit] = []
        for index, pattern in enumerate(self.regexes_to_ignore):
            try:
                re.compile(pattern)
            except (re.error, OverflowError, RecursionError) as error:
                found.append((("regexes_to_ignore", index), f"is not a regular expression: {error}"))
        if found:
            raise misfits(found)
        return self

    @property
    def options(self) -> dict[str, Any]:
        """What is said besides the name, the cut and the chains."""
        fields = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: value for name, value in fields.items() if name not in ("metric", "k", "filters") and value}

    @property
    def label(self) -> str:
        """The name under which results are stored: `exact_match(ignore_case)`, and when k is fixed here `recall@3`."""
        shown = [name if value is True else f"{name}={_short(value)}" for name, value in self.options.items()]
        named = f"{self.metric}({','.join(shown)})" if shown else self.metric
        return f"{named}@{self.k}" if self.k else named

    def cut_at(self, k: int | None) -> str:
        """The label of a metric that is cut at a rank: at its own, else at this one."""
        return self.model_copy(update={"k": self.k or k}).label


def _short(value: Any) -> str:
    """A few letters that differ where values do, for a name that people read and type."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:6]


def _metric(value: Any) -> Any:
    if isinstance(value, str):
        found = re.fullmatch(r"(.+?)@(\d+)", value)
        return {"metric": found[1], "k": int(found[2])} if found else {"metric": value}
    return value


Metric = Annotated[MetricBlock, BeforeValidator(_metric)]
