"""Where a swept number makes prompts longer than what a model was trained at: the dotted line of the figures.

What is swept is rarely a number of tokens (entries, passages, shots), so the place is computed from the tokens that
were really read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

import altair as alt

from evalspec.report.marks import Point
from evalspec.report.results import Cell
from evalspec.spec.conditions import Condition, number

DOTTED = [1, 3]


def trained_length(cells: Iterable[Cell]) -> int | None:
    """The length that the models of these cells were all trained at; None where they differ or it is not known."""
    lengths = {cell.trained_length for cell in cells}
    return lengths.pop() if len(lengths) == 1 else None


def trained_at(cells: Mapping[Condition, Sequence[Cell]], name: str) -> float | None:
    """The value of the swept number `name` at which prompts have the trained length, on the straight line between the
    two nearest values that were run (tokens: the mean over the cells of a value).

    None where the trained length is not known, is not crossed, or prompts do not grow with the number.
    """
    trained = trained_length(cell for group in cells.values() for cell in group)
    tokens: dict[float, list[float]] = {}
    for condition, group in cells.items():
        at = number(condition.get(name))
        for cell in group if at is not None else ():
            if cell.prompt_tokens is not None and at is not None:
                tokens.setdefault(at, []).append(cell.prompt_tokens)
    line = [(at, fmean(tokens[at])) for at in sorted(tokens)]
    if trained is None or any(high[1] <= low[1] for low, high in pairwise(line)):
        return None
    for (left, fewer), (right, more) in pairwise(line):
        if fewer < trained <= more:
            return left + (right - left) * (trained - fewer) / (more - fewer)
    return None


@dataclass(frozen=True)
class Lines:
    """What a figure shows of the trained length: nothing where it is not known, or all prompts are shorter."""

    points: list[Point]
    layers: list[alt.Chart]
    words: str
    """For the caption."""


def trained_lines(panels: Mapping[str, Mapping[Condition, Sequence[Cell]]], name: str, colour: alt.Color) -> Lines:
    """The lines of each panel: one for all models where they were trained at the same length, else each model's own."""
    every = [cell for cells in panels.values() for group in cells.values() for cell in group]
    trained = trained_length(every)
    points: list[Point] = []
    for panel, cells in panels.items():
        if trained is not None:
            points.append({"panel": panel, "trained": trained_at(cells, name)})
            continue
        for model in dict.fromkeys(cell.model for group in cells.values() for cell in group):
            own = {condition: [cell for cell in group if cell.model == model] for condition, group in cells.items()}
            points.append({"panel": panel, "trained": trained_at(own, name), "model": model})
    points = [point for point in points if point["trained"] is not None]
    if points:
        return Lines(points, [trained_rule(colour=None if trained else colour)], trained_words(trained))
    return Lines([], [], _beyond(every, trained))


def trained_rule(x: str | alt.X = "trained:Q", colour: alt.Color | None = None, width: float = 1.6) -> alt.Chart:
    """The line, wherever a datum has `trained`; grey, or in the colour of its model."""
    rule = alt.Chart().transform_filter("isValid(datum.trained)")
    rule = rule.mark_rule(strokeDash=DOTTED, strokeWidth=width, color="#333").encode(x=x)
    return rule if colour is None else rule.encode(color=colour)


def trained_words(trained: int | None) -> str:
    """What a caption says of the lines; `trained` is None where models differ."""
    if trained is None:
        return " Dotted: where a model's prompts reach the length it was trained at."
    return f" Dotted: where prompts reach the trained length, {trained:,} tokens."


def _beyond(cells: Sequence[Cell], trained: int | None) -> str:
    over = [
        cell.trained_length is not None and cell.prompt_tokens is not None and cell.prompt_tokens > cell.trained_length
        for cell in cells
    ]
    if not over or not all(over):
        return ""
    said = f"the trained length, {trained:,} tokens" if trained else "the length that the models were trained at"
    return f" All prompts are longer than {said}."
