"""Which scores of a task are meant by a metric's name, a stage and a filter, as hypotheses and published figures say
them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from evalspec.errors import suggest
from evalspec.spec.blocks import MAIN, TaskBlock
from evalspec.spec.metric import MetricBlock
from evalspec.spec.needs import METRICS, metric_of

UNFILTERED = "default"
"""The filter under which scores stand that do not look at a generated answer."""

Naming = Callable[[MetricBlock, int | None], str]
"""The name under which a metric's results are stored, from its block and the retrieval's cut."""


@dataclass(frozen=True)
class Meant:
    """A metric and a filter as the store's keys say them."""

    metric: str
    filter: str


def stored_name(block: MetricBlock, cut: int | None) -> str:
    """As `metrics.metric_name` says it, without importing what computes; a plugin's metric keeps the cut it has."""
    declared = METRICS.get(block.metric)
    return block.cut_at(cut) if declared and declared.at_k else block.label


def meant(
    task: TaskBlock,
    metric: str | None,
    filter: str | None = None,
    stage: str = MAIN,
    *,
    naming: Naming = stored_name,
) -> Meant:
    """A metric is named as stored, without its options or cut where only one is called so, or not at all: the first.
    Without a filter it is the first under which the metric is taken.

    Raises ValueError, written for the author of the spec, where the task has no such stage, metric or filter.
    """
    if stage != MAIN:
        if stage not in task.stages:
            raise ValueError(f"the task has no stage `{stage}`.{_known(stage, task.stages)}")
        task = task.at(stage)
    cut = task.retrieval.cut if task.retrieval else None
    named = {naming(block, cut): block for block in task.metrics}
    name = next(iter(named)) if metric is None else metric
    if name not in named:
        alike = [label for label in named if metric_of(label) == name]
        if not alike:
            raise ValueError(f"`{name}` is not among the task's metrics.{_known(name, named)}")
        if len(alike) > 1:
            raise ValueError(f"`{name}` is measured in several ways; name one: {', '.join(alike)}")
        [name] = alike
    block = named[name]
    declared = METRICS.get(block.metric)
    if task.kind != "generate" or (declared is not None and declared.evidence != "output"):
        if filter not in (None, UNFILTERED):
            raise ValueError(f"`{name}` does not look at a generated answer; leave out the `filter`")
        return Meant(name, UNFILTERED)
    chains = [chain for chain in task.chains if block.filters is None or chain in block.filters]
    if filter is not None and filter not in chains:
        raise ValueError(f"`{name}` is not taken under a filter `{filter}`.{_known(filter, chains)}")
    return Meant(name, filter or chains[0])


def _known(wrong: str, names: Iterable[str]) -> str:
    there = list(names)
    return suggest(wrong, there) or f" There is {', '.join(f'`{name}`' for name in there) or 'none'}."
