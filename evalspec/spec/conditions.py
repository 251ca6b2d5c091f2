"""A point of the sweep as a reader says it: `bm25, k = 5` for a path-to-value mapping.

Plans, tables in a terminal, reports and comparisons all name their conditions here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from evalspec.spec.params import Value, scalar, short_names

_COLUMN = re.compile(r"\{\{ *(\w+) *\}\}")  # a template that is one column

# Retrievers stand in the order of a reader's question: nothing, what is found, what could be found at best.
_RETRIEVERS = ("none", "bm25", "dense", "fusion")


@dataclass(frozen=True)
class Condition:
    """What a cell was swept to: short parameter names with their values, in the order of the spec."""

    params: tuple[tuple[str, Value], ...]

    def get(self, name: str) -> Value:
        """The value of a parameter, None if this condition does not set it."""
        return dict(self.params).get(name)

    def without(self, *names: str) -> Condition:
        """The same condition with some parameters left out."""
        return Condition(tuple((name, value) for name, value in self.params if name not in names))

    @property
    def label(self) -> str:
        """`no passages`, `oracle, k = 5`, `shots = 4` …; `as written` for a spec that sweeps nothing."""
        parts = [_part(name, value) for name, value in self.params]
        return ", ".join(parts) or "as written"

    @property
    def order(self) -> tuple[Any, ...]:
        """Sort key: retrievers in their own order, then numbers by size, then text."""
        return tuple(_rank(name, value) for name, value in self.params)


def condition_of(params: Mapping[str, Any], names: Mapping[str, str]) -> Condition:
    """The condition of a cell's `params`; values that are no scalar are written as JSON."""
    pairs = [(names[path], scalar(value)) for path, value in params.items()]
    return Condition(tuple(sorted(pairs, key=lambda pair: pair[0] != "retriever")))


class Conditions:
    """The conditions of cells that are shown together, so that their short names tell all their parameters apart."""

    def __init__(self, every: Iterable[Mapping[str, Any]]) -> None:
        self._names = short_names(path for params in every for path in params)

    def of(self, params: Mapping[str, Any]) -> Condition:
        """The condition of one of these cells."""
        return condition_of(params, self._names)

    def model(self, name: str, params: Mapping[str, Any]) -> str:
        """A model with what was swept of itself: `mamba`, `mamba, dtype = bfloat16`."""
        return f"{name}, {self.of(params).label}" if params else name


def number(value: Value) -> float | None:
    """The value as a number, None if it is none (a truth value is no number)."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _part(name: str, value: Value) -> str:
    if name == "retriever":
        return "no passages" if value == "none" else str(value)
    if name == "withhold_gold":
        return "gold withheld" if value else "gold left in"
    if name == "same" and isinstance(value, str) and (column := _COLUMN.fullmatch(value.strip())):
        return f"same {column[1]}"
    if isinstance(value, str) and (not value.strip() or value != " ".join(value.split())):
        return f"{name} = {json.dumps(value, ensure_ascii=False)}"  # white space that a label would not show
    return f"{name} = {'–' if value is None else value}"


def _rank(name: str, value: Value) -> tuple[str, int, float, str]:
    if name == "retriever" and isinstance(value, str):
        place = _RETRIEVERS.index(value) if value in _RETRIEVERS else len(_RETRIEVERS) + (value == "oracle")
        return (name, 0, float(place), value)
    if isinstance(value, int | float):
        return (name, 0, float(value), "")
    return (name, 1, 0.0, str(value))
