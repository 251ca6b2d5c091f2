"""The answer at the top of the page: sentences and a table of models × conditions, computed from the main metric.

Who is better is worded by the paired comparisons that `evalspec compare` prints: on the same samples, corrected by Holm
over all pairs and conditions of the task. What they leave undecided is said to be undecided, and why.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evalspec.metrics.verdicts import Reason
from evalspec.report.comparisons import Comparison
from evalspec.report.marks import interval, sizes, written
from evalspec.report.results import Estimate, MainMetric, Results
from evalspec.spec.conditions import Condition

Found = Mapping[tuple[str, Condition], Estimate]

MANY = 6
"""Models: of more, a sentence says the range; each one's numbers stand in the table."""


@dataclass(frozen=True)
class AnswerCell:
    """One value of the table; `best` when the paired comparisons find it better than every other model's."""

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
        """Whether any model is better than all others somewhere."""
        return any(cell.best for row in self.rows for cell in row.cells if cell)


def answer_of(results: Results, task: str, comparisons: Sequence[Comparison] = ()) -> Answer | None:
    """The answer to a task, None where no cell has its main metric yet. `comparisons` are those of the run's main
    metrics; without them nothing is said of who is better."""
    found, main = results.main_of(task), results.main.get(task)
    if main is None or not found:
        return None
    ranked = {cell.cell_id for cell in results.cells if _ranks_models(main, cell.condition)}
    compared = [c for c in comparisons if c.family.task == task and not (c.cells and set(c.cells) - ranked)]
    conditions = [c for c in results.conditions(task) if any((m, c) in found for m in results.models)]
    models = tuple(m for m in results.models if any((m, c) in found for c in conditions))
    if any(c.get("retriever") not in (None, "none") for c in conditions):
        sentences = _retrieval_sentences(found, main, models, conditions)
    else:
        sentences = _plain_sentences(found, main, models, conditions)
    if compared:
        sentences.append(_separation(compared))
    groups = [c.params[0] if len(c.params) > 1 else None for c in conditions]
    rows = tuple(
        AnswerRow(
            condition.label,
            tuple(_cell(found.get((model, condition)), main, compared) for model in models),
            at > 0 and groups[at] != groups[at - 1],
        )
        for at, condition in enumerate(conditions)
    )
    return Answer(task, main.words, tuple(sentences), models, rows, sizes(list(found.values())), main.share)


def _ranks_models(main: MainMetric, condition: Condition) -> bool:
    """Whether more of the metric is better there: where the gold passage may be shown, abstaining more is not."""
    return main.name != "abstained" or bool(condition.get("withhold_gold"))


def _retrieval_sentences(
    found: Found, main: MainMetric, models: Sequence[str], conditions: Sequence[Condition]
) -> list[str]:
    """Gold given, nothing given, then what retrievers found: the three numbers that a reader of RAG results needs.

    Conditions in which the gold passage is withheld have a sentence of their own, the first where abstaining is meant.
    """
    withheld = [condition for condition in conditions if condition.get("withhold_gold")]
    sentences = _shown_sentences(found, main, models, [c for c in conditions if c not in withheld])
    if withheld:
        middle = _middle(withheld)
        label = middle.without("withhold_gold").label if len(middle.params) > 1 else "in each ranking"
        said = f"With the gold passage withheld ({label}), {main.words} is {_values(found, main, models, middle)}."
        sentences.insert(0 if main.name == "abstained" else len(sentences), said)
    return sentences


def _shown_sentences(
    found: Found, main: MainMetric, models: Sequence[str], conditions: Sequence[Condition]
) -> list[str]:
    """What the conditions say in which the gold passage may be found."""
    sentences: list[str] = []
    of: dict[str, list[Condition]] = {}
    for condition in conditions:
        of.setdefault(str(condition.get("retriever")), []).append(condition)
    if "oracle" in of:
        middle = _middle(of["oracle"])
        said = _values(found, main, models, middle)
        sentences.append(f"With the gold passage given ({middle.label}), {main.words} is {said}.")
    if "none" in of:
        subject = "it" if sentences else main.words
        without = f"Without passages {subject} is {_values(found, main, models, of['none'][0])}."
        # The two ends of the scale belong together in the lead.
        sentences = [" ".join([*sentences, without])]
    searched = [c for name, group in of.items() if name not in ("none", "oracle") for c in group]
    if searched:
        first = of[str(searched[0].get("retriever"))]
        middle = _middle(first)
        sentences.append(f"With {middle.label}, {main.words} is {_values(found, main, models, middle)}.")
    if len(searched) > 1 and _ranks_models(main, searched[0]):
        tops: list[tuple[float, str]] = []
        for model in models:
            scored = [(found[model, c], c) for c in searched if (model, c) in found]
            if scored:
                top, condition = (max if main.higher_is_better else min)(scored, key=lambda pair: pair[0].value)
                tops.append((top.value, f"{model} {_said(top, main)} ({condition.label})"))
        sentences.append(f"Best with passages that a retriever found: {_enumerated(tops)}.")
    return sentences


def _plain_sentences(
    found: Found, main: MainMetric, models: Sequence[str], conditions: Sequence[Condition]
) -> list[str]:
    """One condition: its values. Several: each model's best and worst."""
    if len(conditions) == 1:
        return [f"{main.words.capitalize()} is {_values(found, main, models, conditions[0])}."]
    title = f"{main.words.capitalize()} over {len(conditions)} conditions"
    if len(models) > MANY:
        all_of_them = [(found[m, c].value, f"{_said(found[m, c], main)} ({m}, {c.label})")
                       for m in models for c in conditions if (m, c) in found]  # fmt: skip
        return [f"{title} and {len(models)} models is {_ends(all_of_them)}."]
    parts = []
    for model in models:
        scored = [(found[model, c], c) for c in conditions if (model, c) in found]
        low, high = (pick(scored, key=lambda pair: pair[0].value) for pick in (min, max))
        if low[0].value == high[0].value:
            parts.append(f"{model} {_said(low[0], main)} in all of them")
        else:
            ends = (f"{_said(e, main)} ({condition.label})" for e, condition in (low, high))
            parts.append(f"{model} from {' to '.join(ends)}")
    return [f"{title}: {_listed(parts)}."]


def _separation(compared: Sequence[Comparison]) -> str:
    """Over all conditions: how often each model is better than another, and why the rest is undecided."""
    places = len({c.condition for c in compared})
    told = Counter((c.winner, c.model_b if c.winner == c.model_a else c.model_a) for c in compared if c.winner)
    why = Counter(c.verdict.reason for c in compared if not c.winner)
    where = "On the same samples" if places == 1 else f"On the same samples, over {places} conditions"
    if not told:
        return f"{where}, paired tests leave every comparison undecided ({_reasons(why)})."
    rest = f"; the rest is undecided ({_reasons(why)})" if why else ""
    if len(told) > MANY:
        return f"{where}, paired tests decide {told.total()} of {len(compared)} comparisons{rest}."
    better = [f"{a} better than {b}" + (f" in {count}" if places > 1 else "") for (a, b), count in told.items()]
    return f"{where}, paired tests find {_listed(better)}{rest}."


def _reasons(why: Mapping[Reason | None, int]) -> str:
    return ", ".join(f"{reason} in {count}" for reason, count in sorted(why.items(), key=lambda item: -item[1]))


def _cell(mine: Estimate | None, main: MainMetric, compared: Sequence[Comparison]) -> AnswerCell | None:
    if mine is None:
        return None
    of_model = [c for c in compared if c.cells and mine.cell_id in c.cells]
    best = bool(of_model) and all(c.better_cell == mine.cell_id for c in of_model)
    return AnswerCell(written(mine.value, main), interval(mine, main), best)


def _values(found: Found, main: MainMetric, models: Sequence[str], condition: Condition) -> str:
    here = {model: found[model, condition] for model in models if (model, condition) in found}
    return _enumerated([(estimate.value, f"{_said(estimate, main)} for {model}") for model, estimate in here.items()])


def _said(estimate: Estimate, main: MainMetric) -> str:
    return f"{written(estimate.value, main)} {interval(estimate, main)}".strip()


def _middle(conditions: Sequence[Condition]) -> Condition:
    """The condition in the middle of its sweep, neither the easiest nor the hardest."""
    return conditions[len(conditions) // 2]


def _enumerated(valued: Sequence[tuple[float, str]]) -> str:
    """All of them, or of many the lowest and the highest."""
    return _listed([words for _, words in valued]) if len(valued) <= MANY else _ends(valued)


def _ends(valued: Sequence[tuple[float, str]]) -> str:
    low, high = (pick(valued, key=lambda pair: pair[0]) for pick in (min, max))
    return f"from {low[1]} to {high[1]}"


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
