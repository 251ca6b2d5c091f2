"""Models compared on the same samples, from the scores in the store: what `evalspec compare` prints and pages word.

A comparison is of two models at one condition of one task, by one metric under one filter; or of two architectures,
each of which is several models trained from different seeds. A *family* for Holm's correction is everything that is
asked of one task, stage, filter and metric.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import combinations
from typing import TYPE_CHECKING, Any

from evalspec.errors import StoreError
from evalspec.metrics.hierarchy import Hierarchical, Level, compare_architectures
from evalspec.metrics.outcome import Score
from evalspec.metrics.paired import Paired, Scores, compare
from evalspec.metrics.registry import METRIC_FUNCTIONS, Metric
from evalspec.metrics.significance import holm
from evalspec.metrics.verdicts import Verdict, judge
from evalspec.report.pairing import Key, Side, Wanted, between, conditions_of, read_sides, within
from evalspec.report.results import PLAIN_FILTERS
from evalspec.spec.conditions import Condition
from evalspec.spec.needs import metric_of
from evalspec.store.scores import ScoreColumns

if TYPE_CHECKING:
    import duckdb

UNDEFINED = Verdict("undecided", "undefined")


@dataclass(frozen=True)
class Family:
    """What Holm's correction is made over."""

    task: str
    stage: str | None
    filter: str | None
    metric: str

    @property
    def measured(self) -> Metric:
        """The metric itself."""
        return METRIC_FUNCTIONS.get(metric_of(self.metric))

    @property
    def label(self) -> str:
        """`exact_match`, or `exact_match (vote5)` where a reader must be told of the stage or the filter."""
        shown = (self.stage, self.filter)
        said = ", ".join(part for part in shown if part and part != "main" and part not in PLAIN_FILTERS)
        return f"{self.metric} ({said})" if said else self.metric


@dataclass(frozen=True)
class Comparison:
    """Two models (or architectures) at one condition, with the verdict on "A is better than B"."""

    family: Family
    condition: Condition
    params: Mapping[str, Any]
    model_a: str
    model_b: str
    pair: Paired
    chance: float
    run_b: str | None = None
    """The run of B where it is not that of A."""
    cells: tuple[str, str] | None = None
    """The cells of A and B; None for architectures, which have several."""
    hierarchical: Hierarchical | None = None
    """Of architectures."""
    p_holm: float | None = None
    compared: int = 1
    """Comparisons in its family."""
    verdict: Verdict = UNDEFINED

    @property
    def hypothesis(self) -> str:
        """The hypothesis in words, which names its row of `verdicts`."""
        b = f"{self.model_b} of run {self.run_b}" if self.run_b else self.model_b
        return f"{self.model_a} is better than {b}: {self.family.label} on {self.family.task}, {self.condition.label}"

    @property
    def better_cell(self) -> str | None:
        """The cell that is better, None where that is undecided."""
        if self.cells is None or self.winner is None:
            return None
        return self.cells[self.verdict.word == "refuted"]

    @property
    def winner(self) -> str | None:
        """The model that is better, None where that is undecided."""
        return {"supported": self.model_a, "refuted": self.model_b}.get(self.verdict.word)


def compare_models(
    connection: duckdb.DuckDBPyConnection, run_id: str, other: str | None = None, wanted: Wanted | None = None
) -> list[Comparison]:
    """All comparisons within a run, or between it (A) and another one (B), in the order of the spec.

    Raises StoreError when a task, metric, filter or model that is asked for is not there.
    """
    wanted = wanted or Wanted()
    sides = read_sides(connection, run_id, wanted)
    others = read_sides(connection, other, wanted) if other else []
    pairs = between(sides, others, wanted.models) if other else within(sides, wanted.models)
    conditions = conditions_of([*sides, *others])
    made = []
    for a, b in pairs:
        for key in a.scores:
            if key in b.scores:
                family, condition = _family(a, key), conditions[a.place]
                pair = _paired(family, a, b, key)
                chance = _chance(family, a)
                cells = (a.cell_id, b.cell_id)
                made.append(Comparison(family, condition, a.params, a.label, b.label, pair, chance, other, cells))
    return judged(made)


def compare_seeds(
    connection: duckdb.DuckDBPyConnection, run_id: str, architectures: Mapping[str, str], wanted: Wanted | None = None
) -> tuple[list[Comparison], list[str]]:
    """Architectures compared over their training seeds: `architectures` maps a name to a pattern of model names, each
    model of which is one seed (`mamba: mamba-s*`).

    Returns: the comparisons, and why others are not among them: a metric that is no mean of samples, seeds that have
    no sample in common (of a stage that only some samples reach).
    Raises StoreError when a pattern fits no model, or a model fits two.
    """
    sides = read_sides(connection, run_id, wanted or Wanted())
    member = _members(sides, architectures, run_id)
    conditions = conditions_of(sides)
    groups: dict[tuple[tuple[str, str], Key], dict[str, list[Side]]] = {}
    for side in sides:
        for key in side.scores:
            if side.label in member:
                groups.setdefault((side.place, key), {}).setdefault(member[side.label], []).append(side)
    made, left_out = [], list[str]()
    for (place, key), found in groups.items():
        family = _family(next(iter(found.values()))[0], key)
        if family.measured.aggregation != "mean":
            left_out.append(
                f"`{family.metric}` of task `{family.task}` is no mean of samples: seeds cannot be compared by it"
            )
            continue
        for a, b in combinations([name for name in architectures if name in found], 2):
            first = found[a][0]
            levels_a, clusters_a = _levels(found[a], key)
            levels_b, clusters_b = _levels(found[b], key)
            clusters = None if clusters_a is None or clusters_b is None else {**clusters_a, **clusters_b}
            try:
                greatest = family.measured.greatest_difference
                result = compare_architectures(levels_a, levels_b, clusters, greatest=greatest)
            except ValueError as error:
                where = ", ".join(filter(None, (family.task, family.label, conditions[place].label)))
                left_out.append(f"{where}: {a} and {b} cannot be compared: {error}")
                continue
            pair = result.pair
            chance = _chance(family, first)
            made.append(Comparison(family, conditions[place], first.params, a, b, pair, chance, hierarchical=result))
    return judged(made), list(dict.fromkeys(left_out))


def judged(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The same comparisons with Holm's p-values over their families, and the verdicts."""
    families: dict[Family, list[int]] = {}
    for at, comparison in enumerate(comparisons):
        families.setdefault(comparison.family, []).append(at)
    result = list(comparisons)
    for family, members in families.items():
        corrected = holm([comparisons[at].pair.p_value for at in members])
        for at, p_holm in zip(members, corrected, strict=True):
            verdict = judge(family.measured, comparisons[at].pair, p_holm, comparisons[at].chance)
            result[at] = replace(comparisons[at], p_holm=p_holm, compared=len(members), verdict=verdict)
    return result


def _family(side: Side, key: Key) -> Family:
    stage, filter_, metric = key
    return Family(side.task, stage, filter_, metric)


def _chance(family: Family, side: Side) -> float:
    return side.chance if family.measured.declaration.evidence == "choices" else 0.0


def _paired(family: Family, a: Side, b: Side, key: Key) -> Paired:
    try:
        return compare(family.measured, _scores(a.scores[key]), _scores(b.scores[key]))
    except ValueError as error:
        raise StoreError(f"{family.task}: {a.label} and {b.label} cannot be compared: {error}") from None


def _scores(columns: ScoreColumns) -> Scores:
    scores = [Score(*score) for score in zip(columns.values, columns.weights, columns.parts, strict=True)]
    return Scores(scores, columns.samples, columns.clusters)


def _members(sides: Sequence[Side], architectures: Mapping[str, str], run_id: str) -> dict[str, str]:
    """The architecture of each model; a pattern may be several, with commas between them."""
    member: dict[str, str] = {}
    for name, pattern in architectures.items():
        fitting = {
            side.label
            for side in sides
            for part in pattern.split(",")
            if fnmatchcase(side.label, part) or fnmatchcase(side.model, part)
        }
        if not fitting:
            known = ", ".join(dict.fromkeys(side.label for side in sides))
            raise StoreError(f"no model of run {run_id} is called like `{pattern}` ({name}). It has: {known}")
        for label in fitting & member.keys():
            raise StoreError(f"model `{label}` is in two architectures, {member[label]} and {name}")
        member |= dict.fromkeys(fitting, name)
    return member


def _levels(sides: Sequence[Side], key: Key) -> tuple[list[Level], dict[str, str] | None]:
    """All scores of an architecture with seed, draw and sample, and the samples' clusters where they have some."""
    levels: list[Level] = []
    clusters: dict[str, str] | None = {}
    for side in sides:
        columns = side.scores[key]
        levels += map(Level, [side.label] * len(columns.samples), columns.draws, columns.samples, columns.values)
        if columns.clusters is None or clusters is None:
            clusters = None
        else:
            clusters |= dict(zip(columns.samples, columns.clusters, strict=True))
    return levels, clusters
