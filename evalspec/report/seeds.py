"""The architectures of a run whose models say by `seed_of` whose training seeds they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from evalspec.report.data import read_run, rows
from evalspec.spec.differences import resolved

if TYPE_CHECKING:
    import duckdb

MODELS = "SELECT DISTINCT model FROM cells WHERE run_id = $run AND task IS NOT NULL"


@dataclass(frozen=True)
class Seeds:
    """Which models of a run are seeds of which architecture."""

    architectures: Mapping[str, tuple[str, ...]]
    others: tuple[str, ...]
    """Models that are no architecture's seed, and take no part."""

    @property
    def patterns(self) -> dict[str, str]:
        """The same as `--architecture` names them: commas between the models."""
        return {name: ",".join(models) for name, models in self.architectures.items()}

    @property
    def sentence(self) -> str:
        """What a reader is told of it."""
        each = ", ".join(
            f"{name} ({len(models)} seed{'s' * (len(models) != 1)})" for name, models in self.architectures.items()
        )
        left = f" Without {', '.join(self.others)}: no `seed_of`." if self.others else ""
        return f"Architectures, as `seed_of` names them: {each}.{left} Models are compared with --model A=B."


def seeds_of(connection: duckdb.DuckDBPyConnection, run_id: str) -> Seeds | None:
    """The architectures of a run in the order of its spec; None unless there are two, one of which has several seeds.

    One checkpoint each supports a claim about these checkpoints, and there all pairs of models are the answer.
    """
    answered = {row["model"] for row in rows(connection, MODELS, run=run_id)}
    blocks = resolved(read_run(connection, run_id).spec_text).get("models")
    found: dict[str, list[str]] = {}
    others: list[str] = []
    for name, block in blocks.items() if isinstance(blocks, Mapping) else ():
        if name in answered:
            architecture = block.get("seed_of") if isinstance(block, Mapping) else None
            (found.setdefault(str(architecture), []) if architecture is not None else others).append(name)
    if len(found) < 2 or all(len(models) == 1 for models in found.values()):
        return None
    return Seeds({name: tuple(models) for name, models in found.items()}, tuple(others))
