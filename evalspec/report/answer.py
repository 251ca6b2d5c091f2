"""The answer at the top of the page: sentences and a table of models × conditions, computed from the main metric.

A comparison is worded by intervals only: where two 95% intervals overlap the text says that the run does not
separate the models. (Overlap is the cautious reading; `evalspec compare` has the paired tests.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from evalspec.report.conditions import Condition
from evalspec.report.marks import interval, sizes, written
from evalspec.report.results import Estimate, MainMetric, Results

Found = Mapping[tuple[str, Condition], Estimate]


@dataclass(frozen=True)
class AnswerCell:
    """One value of the table; `best` when it is better than every other model's by intervals that do not overlap."""

    value: str
    interval: str
    best: bool


@dataclass(frozen=True)
class AnswerRow:
    """One condition; `opens` when it is the first of a group, of one retriever say."""

    label: str
    cells: tuple[AnswerCell | None, ...]
    opens: bool


@dataclass(frozen=True)
class Answer:
    """What the page says first about one task."""

    task: str
    metric: str
    sentences: tuple[str, ...]
    models: tuple[str, ...]
    rows: tuple[AnswerRow, ...]
    n: str
    share: bool

    @property
    def separated(self) -> bool:
        """Whether any model stands apart from all others somewhere."""
        return any(cell.best for row in self.rows for cell in row.cells if cell)


def answer_of(results: Results, task: str) -> Answer | None:
    """The answer to a task, None where no cell has its main metric yet."""
    found, main = results.main_of(task), results.main.get(task)
    if main is None or not found:
        return None
    conditions = [c for c in results.conditions(task) if any((m, c) in found for m in results.models)]
    models = tuple(m for m in results.models if any((m, c) in found for c in conditions))
    if any(c.get("retriever") not in (None, "none") for c in conditions):
        sentences = _retrieval_sentences(found, main, models, conditions)
    else:
        sentences = _plain_sentences(found, main, models, conditions)
    if len(models) > 1 and len(conditions) > 1:
        sentences.append(_separation(found, main, models, conditions))
    groups = [c.params[0] if len(c.params) > 1 else None for c in conditions]
    rows = tuple(
        AnswerRow(
            condition.label,
            tuple(_cell(found, main, models, model, condition) for model in models),
            at > 0 and groups[at] != groups[at - 1],
        )
        for at, condition in enumerate(conditions)
    )
    return Answer(task, main.words, tuple(sentences), models, rows, sizes(list(found.values())), main.share)


def better(a: Estimate, b: Estimate, main: MainMetric) -> bool:
    """Whether a is better than b by intervals that do not overlap."""
    if a.low is None or a.high is None or b.low is None or b.high is None:
        return False
    return a.low > b.high if main.higher_is_better else a.high < b.low


def _retrieval_sentences(
    found: Found, main: MainMetric, models: Sequence[str], conditions: Sequence[Condition]
) -> list[str]:
    """Gold given, nothing given, then what retrievers found: the three numbers that a reader of RAG results needs."""
    sentences = []
    of: dict[str, list[Condition]] = {}
    for condition in conditions:
        of.setdefault(str(condition.get("retriever")), []).append(condition)
    if "oracle" in of:
        middle = _middle(of["oracle"])
        said = _values(found, main, models, middle)
        sentences.append(f"With the gold passage given ({middle.label}), {main.words} is {said}.")
    if "none" in of:
        without = f"Without passages it is {_values(found, main, models, of['none'][0])}."
        # The two ends of the scale belong together in the lead.
        sentences = [" ".join([*sentences, without])]
    searched = [c for name, group in of.items() if name not in ("none", "oracle") for c in group]
    if searched:
        first = of[str(searched[0].get("retriever"))]
        middle = _middle(first)
        sentences.append(f"With {middle.label}, it is {_values(found, main, models, middle)}.")
    if len(searched) > 1:
        tops = []
        for model in models:
            scored = [(found[model, c], c) for c in searched if (model, c) in found]
            if scored:
                top, condition = (max if main.higher_is_better else min)(scored, key=lambda pair: pair[0].value)
                tops.append(f"{model} {_said(top, main)} ({condition.label})")
        sentences.append(f"Best with passages that a retriever found: {_listed(tops)}.")
    return sentences


def _plain_sentences(
    found: Found, main: MainMetric, models: Sequence[str], conditions: Sequence[Condition]
) -> list[str]:
    """One condition: its values. Several: each model's best and worst."""
    if len(conditions) == 1:
        verdict = _verdict(found, main, models, conditions[0])
        return [f"{main.words.capitalize()} is {_values(found, main, models, conditions[0])}{verdict}."]
    parts = []
    for model in models:
        scored = [(found[model, c], c) for c in conditions if (model, c) in found]
        low, high = (pick(scored, key=lambda pair: pair[0].value) for pick in (min, max))
        if low[0].value == high[0].value:
            parts.append(f"{model} {_said(low[0], main)} in all of them")
        else:
            ends = (f"{_said(e, main)} ({condition.label})" for e, condition in (low, high))
            parts.append(f"{model} from {' to '.join(ends)}")
    return [f"{main.words.capitalize()} over {len(conditions)} conditions: {_listed(parts)}."]


def _verdict(found: Found, main: MainMetric, models: Sequence[str], condition: Condition) -> str:
    here = {m: found[m, condition] for m in models if (m, condition) in found}
    if len(here) < 2:
        return ""
    clear = [f"{a} above {b}" for a in here for b in here if better(here[a], here[b], main)]
    word = "better than" if not main.higher_is_better else "above"
    if clear:
        return f"; intervals separate {_listed([c.replace('above', word) for c in clear])}"
    return "; the intervals overlap, so this run does not separate the models"


def _separation(found: Found, main: MainMetric, models: Sequence[str], conditions: Sequence[Condition]) -> str:
    """Over all conditions: how often each pair of models is told apart, and who is ahead where it is."""
    told = []
    for a, b in combinations(models, 2):
        pairs = [(found[a, c], found[b, c]) for c in conditions if (a, c) in found and (b, c) in found]
        for first, second, count in (
            (a, b, sum(better(x, y, main) for x, y in pairs)),
            (b, a, sum(better(y, x, main) for x, y in pairs)),
        ):
            if count:
                told.append(f"{first} ahead of {second} in {count}")
    if not told:
        return (
            f"In all {len(conditions)} conditions the models' intervals overlap: "
            "on this metric the run does not separate them."
        )
    return (
        f"Over {len(conditions)} conditions, intervals separate {_listed(told)}; "
        "elsewhere they overlap, and the run does not separate the models."
    )


def _cell(found: Found, main: MainMetric, models: Sequence[str], model: str, condition: Condition) -> AnswerCell | None:
    mine = found.get((model, condition))
    if mine is None:
        return None
    others = [found[m, condition] for m in models if m != model and (m, condition) in found]
    best = bool(others) and all(better(mine, other, main) for other in others)
    return AnswerCell(written(mine.value, main), interval(mine, main), best)


def _values(found: Found, main: MainMetric, models: Sequence[str], condition: Condition) -> str:
    parts = [f"{_said(found[m, condition], main)} for {m}" for m in models if (m, condition) in found]
    return _listed(parts)


def _said(estimate: Estimate, main: MainMetric) -> str:
    return f"{written(estimate.value, main)} {interval(estimate, main)}".strip()


def _middle(conditions: Sequence[Condition]) -> Condition:
    """The condition in the middle of its sweep, neither the easiest nor the hardest."""
    return conditions[len(conditions) // 2]


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
