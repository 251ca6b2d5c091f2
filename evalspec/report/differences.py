"""What differs between two runs that are compared: their specs, what answered, and what was asked.

A store may lack any of it (an older one, or one that another program wrote): of that nothing is said.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evalspec.report.data import read_run, rows
from evalspec.report.pairing import LeftOut
from evalspec.report.results import Run
from evalspec.spec.differences import Difference, spec_differences

if TYPE_CHECKING:
    import duckdb

MOST = 20
"""Differences of the specs that a terminal lists; the page and `--json` have all."""
DIGITS = 12
"""Of a hash."""

MODELS = "SELECT model, weights_hash, backend FROM cells WHERE run_id = $run GROUP BY ALL ORDER BY ALL"

PROMPTS = """
SELECT count(*) AS n,
       count(*) FILTER (a.prompt IS DISTINCT FROM b.prompt OR a.target IS DISTINCT FROM b.target) AS changed
FROM (SELECT * FROM samples WHERE run_id = $a) a JOIN (SELECT * FROM samples WHERE run_id = $b) b
  ON a.cell_id = b.cell_id AND a.sample_id = b.sample_id AND a.repeat IS NOT DISTINCT FROM b.repeat
 AND a.draw IS NOT DISTINCT FROM b.draw AND a.stage IS NOT DISTINCT FROM b.stage"""


@dataclass(frozen=True)
class RunDifferences:
    """What two runs, A and B, differ in."""

    spec: tuple[Difference, ...] | None
    """Keys of the resolved specs; None where a stored text is no spec."""
    runs: tuple[Difference, ...]
    """What answered: versions, commit, device, weights and backends of the models that both have."""
    asked: tuple[int, int] | None
    """Where the specs are the same and the plans are not: samples of the same cells, and of those the ones with
    another prompt or right answer."""
    left_out: LeftOut

    @property
    def sentence(self) -> str | None:
        """What there is to say of the specs when no key differs."""
        if self.spec is None or self.spec:
            return None
        if self.asked is None:
            return "The two specs are the same."
        n, changed = self.asked
        if changed:
            return (
                f"The two specs are the same, but {changed:,} of {n:,} samples that both runs have were asked with "
                "another prompt or right answer: a template, the data or the passages changed."
            )
        return (
            f"The two specs are the same and so are the prompts of the {n:,} samples that both runs have, but the "
            "plans are not: `--limit`, the data or a tokenizer changed."
        )

    def lines(self, most: int = MOST) -> list[str]:
        """For a terminal: a line a difference, then what was left out."""
        spec = self.spec or ()
        lines = [*filter(None, [self.sentence]), *(difference.words for difference in spec[:most])]
        if len(spec) > most:
            lines.append(f"… and {len(spec) - most} more keys of the specs")
        return [*lines, *(difference.words for difference in self.runs), *self.left_out.sentences]

    def json(self) -> dict[str, Any]:
        """The same for machines; `spec` is null where it cannot be told."""
        return {
            "spec": None if self.spec is None else [difference.json() for difference in self.spec],
            "runs": [difference.json() for difference in self.runs],
            "asked": None if self.asked is None else dict(zip(("samples", "changed"), self.asked, strict=True)),
            "left_out": vars(self.left_out),
        }


def run_differences(connection: duckdb.DuckDBPyConnection, run_a: str, run_b: str, left_out: LeftOut) -> RunDifferences:
    """What two runs of the store differ in. StoreError if there is no such run."""
    a, b = read_run(connection, run_a), read_run(connection, run_b)
    found = spec_differences(a.spec_text, b.spec_text)
    models = [rows(connection, MODELS, run=run.run_id) for run in (a, b)]
    asked = None
    if found == [] and a.plan_id and b.plan_id and a.plan_id != b.plan_id:
        [counts] = rows(connection, PROMPTS, a=run_a, b=run_b)
        asked = (counts["n"], counts["changed"])
    return RunDifferences(
        None if found is None else tuple(found), tuple(_of_runs(a, b, models[0], models[1])), asked, left_out
    )


def _of_runs(
    a: Run, b: Run, models_a: Sequence[Mapping[str, Any]], models_b: Sequence[Mapping[str, Any]]
) -> Iterator[Difference]:
    both = dict.fromkeys(row["model"] for row in models_a if any(row["model"] == other["model"] for other in models_b))
    for model in both:
        for column, key in (("weights_hash", "weights of"), ("backend", "backend of")):
            values = [_of_model(found, model, column) for found in (models_a, models_b)]
            yield from _known(f"{key} {model}", *values)
    yield from _known("evalspec", a.evalspec_version, b.evalspec_version)
    yield from _known("git commit", _short(a.git_commit), _short(b.git_commit))
    yield from _known("device", a.device, b.device)
    if a.versions and b.versions:  # a package that only one names was not installed for the other
        for name in dict.fromkeys([*a.versions, *b.versions]):
            if a.versions.get(name) != b.versions.get(name):
                yield Difference(name, a.versions.get(name), b.versions.get(name))


def _known(key: str, a: str, b: str) -> Iterator[Difference]:
    """The difference of two values, where both are known."""
    if a and b and a != b:
        yield Difference(key, a, b)


def _of_model(found: Sequence[Mapping[str, Any]], model: str, column: str) -> str:
    """A model's weights or backend; several where the sweep changes them, and none where a cell's are not known."""
    values = [row[column] for row in found if row["model"] == model]
    return "" if None in values else ", ".join(dict.fromkeys(map(_short, values)))


def _short(value: str) -> str:
    """A hash by its first digits (and the `+` of a commit with changes); any other word as it is."""
    digits = value.removesuffix("+")
    if len(digits) < 32 or not all(digit in "0123456789abcdef" for digit in digits):
        return value
    return digits[:DIGITS] + value[len(digits) :]
