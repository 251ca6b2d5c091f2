"""The hypotheses of a spec, judged: paired tests over the scores in the store, Holm's correction over all of a run's.

A comparison takes the samples of its cells together. A sample that stands at several points of the sweep, or under
several draws of the shots, is one unit (or its cluster is), so that asking it often does not make it count often.
Architectures are compared over their training seeds by `metrics.hierarchy`.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evalspec.errors import EvalspecError
from evalspec.metrics.hierarchy import Hierarchical, Level, compare_architectures
from evalspec.metrics.intervals import Aggregate
from evalspec.metrics.outcome import Score
from evalspec.metrics.paired import Paired, Scores, compare
from evalspec.metrics.registry import METRIC_FUNCTIONS, metric_name
from evalspec.metrics.significance import holm
from evalspec.metrics.verdicts import judge
from evalspec.plan.compile import Plan
from evalspec.spec.hypotheses import Comparison, HypothesisBlock, Point, comparisons
from evalspec.spec.loading import points
from evalspec.spec.meant import meant
from evalspec.spec.needs import metric_of
from evalspec.store import Store
from evalspec.store.scores import ScoreColumns, Scored, read_scores

Row = dict[str, object]

_Side = Sequence[tuple[Hashable, Point, ScoreColumns]]
"""The scores of one side's cells; cells at the same place are held against each other."""

_NOTHING = Aggregate(None, None, None, None, 0)
NOTHING = Paired(_NOTHING, _NOTHING, n=0, only_a=0, only_b=0)
"""What comes of sides that share nothing."""


@dataclass(frozen=True)
class _Judged:
    """One comparison with what it came to."""

    name: str
    block: HypothesisBlock
    comparison: Comparison
    metric: str
    filters: tuple[str, str]
    pair: Paired
    chance: float
    seeds: Hierarchical | None = None
    """Of a comparison of architectures."""


def verdict_rows(store: Store, run_id: str, plan: Plan) -> list[Row]:
    """The rows of the table `verdicts` for the hypotheses of the run's spec."""
    hypotheses = plan.loaded.spec.hypotheses
    if not hypotheses:
        return []
    at = points(plan.cells)
    with store.connect() as connection:
        scores = read_scores(connection, run_id)
    judged = [
        one
        for name, block in hypotheses.items()
        for comparison in comparisons(block, at)
        if (one := _judge(scores, plan, name, block, comparison)) is not None
    ]
    corrected = holm([one.pair.p_value for one in judged])
    return [_row(one, p, len(judged)) for one, p in zip(judged, corrected, strict=True)]


def check_hypotheses(plan: Plan) -> None:
    """Raise EvalspecError, before anything runs, for a claim about architectures by a metric that is no mean."""
    tasks = {cell.cell_id: cell.task for cell in plan.cells}
    for name, block in plan.loaded.spec.hypotheses.items():
        if block.better.architecture is None:
            continue
        for comparison in comparisons(block, points(plan.cells)):
            task = tasks[comparison.pairs[0][0].cell_id]
            metric = metric_of(meant(task, block.metric, stage=block.better.stage, naming=metric_name).metric)
            if METRIC_FUNCTIONS.get(metric).aggregation != "mean":
                said = "is no mean of samples, and architectures are compared by means; name another `metric`"
                raise EvalspecError(f"hypotheses.{name}: `{metric}` {said}")


def _judge(
    scores: Mapping[Scored, ScoreColumns], plan: Plan, name: str, block: HypothesisBlock, comparison: Comparison
) -> _Judged | None:
    """One comparison; None where no cell is of the length that the hypothesis speaks of."""
    pairs = [pair for pair in comparison.pairs if _of_length(plan, block, pair)]
    if not pairs:
        return None
    tasks = {cell.cell_id: cell.task for cell in plan.cells}
    metric = block.metric
    filters: list[str] = []
    found: list[_Side] = []
    for at, side in enumerate((block.better, block.than)):
        taking = meant(tasks[pairs[0][at].cell_id], metric, side.filter, side.stage, naming=metric_name)
        metric = taking.metric
        filters.append(taking.filter)
        taken: list[tuple[Hashable, Point]] = [(place, pair[at]) for place, pair in enumerate(pairs)]
        if block.better.architecture is not None:  # each seed once, at the place of its condition
            taken = list({point.cell_id: (_condition(comparison, point), point) for _, point in taken}.values())
        of_side = ((place, point, Scored(point.cell_id, side.stage, filters[at], metric)) for place, point in taken)
        found.append([(place, point, scores[key]) for place, point, key in of_side if key in scores])
    assert metric is not None
    seeds = None
    if block.better.architecture is None:
        pair = compare(METRIC_FUNCTIONS.get(metric_of(metric)), *(_scores(side) for side in found))
    else:
        seeds = _over_seeds(found[0], found[1], METRIC_FUNCTIONS.get(metric_of(metric)).greatest_difference)
        pair = seeds.pair if seeds else NOTHING
    return _Judged(name, block, comparison, metric, (filters[0], filters[1]), pair, _chance(plan, pairs), seeds)


def _of_length(plan: Plan, block: HypothesisBlock, pair: tuple[Point, Point]) -> bool:
    """Whether the pair's prompts are within, or beyond, the length that both models were trained at."""
    if block.length == "any":
        return True
    trained, longest = _lengths(plan)
    known = [trained[point.cell_id] for point in pair if trained[point.cell_id] is not None]
    if not known:
        return False
    within = max(longest[point.cell_id] for point in pair) <= min(length for length in known if length)
    return within == (block.length == "within")


def _lengths(plan: Plan) -> tuple[Mapping[str, int | None], Mapping[str, int]]:
    """Of each cell: the length that its model was trained at, and its longest sequence up to the answer, in tokens."""
    trained: dict[str, int | None] = {}
    longest: dict[str, int] = {}
    for part in plan.models:
        trained |= {cell.cell_id: part.model.trained_length for cell in part.cells}
        for sample in part.samples:
            fed = max(len(request.tokens) for request in sample.requests)
            longest[sample.cell.cell_id] = max(longest.get(sample.cell.cell_id, 0), fed)
    return trained, longest


def _scores(side: _Side) -> Scores:
    """The scores of some cells; a sample is named by its place too, and clustered by its cluster or itself."""
    scores: list[Score] = []
    samples: list[str] = []
    clusters: list[str] = []
    for place, _, columns in side:
        scores += map(Score, columns.values, columns.weights, columns.parts)
        samples += (f"{place}/{sample}" for sample in columns.samples)
        clusters += columns.clusters or columns.samples
    return Scores(scores, samples, clusters)


def _over_seeds(better: _Side, than: _Side, greatest: float) -> Hierarchical | None:
    """Two architectures over their seeds; None where no sample has scores of all seeds under all draws."""
    clusters: dict[Hashable, Hashable] = {}
    levels: tuple[list[Level], list[Level]] = ([], [])
    for side, found in zip((better, than), levels, strict=True):
        for place, point, columns in side:
            samples = [(place, sample) for sample in columns.samples]
            seeds = [point.axes["model"]] * len(samples)
            found += map(Level, seeds, columns.draws, samples, columns.values)
            clusters |= zip(samples, columns.clusters or columns.samples, strict=True)
    try:
        return compare_architectures(levels[0], levels[1], clusters, greatest=greatest)
    except ValueError:
        return None


def _condition(comparison: Comparison, point: Point) -> str:
    return json.dumps([point.axes.get(axis) for axis in comparison.free])


def _chance(plan: Plan, pairs: Sequence[tuple[Point, Point]]) -> float:
    """What a guess among the choices would get, 0 where answers are generated."""
    cells = {point.cell_id for pair in pairs for point in pair}
    shares = [
        len(sample.draft.gold_choices) / len(sample.draft.choices)
        for part in plan.models
        for sample in part.samples
        if sample.cell.cell_id in cells and sample.draft.choices
    ]
    return sum(shares) / len(shares) if shares else 0.0


def _row(one: _Judged, p_holm: float | None, family: int) -> Row:
    pair, verdict = one.pair, judge(METRIC_FUNCTIONS.get(metric_of(one.metric)), one.pair, p_holm, one.chance)
    each: Mapping[str, Any] = one.comparison.each
    said = ", ".join(f"{axis} = {value}" for axis, value in each.items())
    return {
        "hypothesis": f"{one.name} ({said})" if said else one.name,
        "claim": one.block.claim,
        "task": each.get("task") or one.comparison.pairs[0][0].axes["task"],
        "params": each,
        "model_a": each.get("model") or one.block.better.model or one.block.better.architecture,
        "model_b": each.get("model") or one.block.than.model or one.block.than.architecture,
        "metric": one.metric,
        "stage": one.block.better.stage,
        "filter": " against ".join(dict.fromkeys(one.filters)),
        "statistic": pair.difference,
        "ci_low": pair.ci_low,
        "ci_high": pair.ci_high,
        "verdict": verdict.word,
        "reason": verdict.reason,
        "value_a": pair.a.value,
        "value_b": pair.b.value,
        "p_value": pair.p_value,
        "p_holm": p_holm,
        "method": pair.method,
        "effect_size": pair.effect_size,
        "effect": pair.effect,
        "detectable": pair.detectable,
        "family": family,
        "n": pair.n,
        "units": pair.units,
        "a_ahead": None if one.seeds else pair.a_ahead,
        "b_ahead": None if one.seeds else pair.b_ahead,
        "only_a": None if one.seeds else pair.only_a,
        "only_b": None if one.seeds else pair.only_b,
        "components": dict(one.seeds.components) if one.seeds else None,
    }
