"""Figures of long contexts: two swept numbers as a heat map (length × depth), and the loss by position."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import altair as alt

from evalspec.report.marks import (
    MOST_PANELS,
    NUMBER_FORMAT,
    NUMBERS,
    Figure,
    Point,
    axis_title,
    interval_layers,
    numbers,
    panelled,
    sizes,
)
from evalspec.report.results import Cell, Results
from evalspec.report.trained import trained_at, trained_length, trained_rule, trained_words
from evalspec.spec.conditions import Condition, number
from evalspec.spec.needs import metric_of

FEWEST = 3
"""Values of each number from which on a map says more than lines do."""
DEPTH = "depth"


def heat_axes(results: Results, task: str) -> tuple[str, str] | None:
    """The two swept numbers that a map is drawn over, (across, down), where at least two have several values each.

    Down is the depth where it was swept, else the number with fewer values.
    """
    found = [condition for _, condition in results.main_of(task)]
    values: dict[str, set[float]] = {}
    for condition in found:
        for name, value in condition.params:
            if (at := number(value)) is not None:
                values.setdefault(name, set()).add(at)
    several = sorted((name for name in values if len(values[name]) >= FEWEST), key=lambda n: len(values[n]))
    if len(several) < 2:
        return None
    down = DEPTH if DEPTH in several else several[0]
    across = next(name for name in reversed(several) if name != down)
    return across, down


def heat_map(results: Results, task: str) -> Figure | None:
    """The main metric over two numbers, a panel for each model (and for each value of the rest)."""
    main, axes = results.main[task], heat_axes(results, task)
    if axes is None or not main.share:
        return None
    across, down = axes
    drawn: list[Point] = []
    rows = []
    placed = [c for _, c in results.main_of(task) if None not in (number(c.get(across)), number(c.get(down)))]
    several = len({condition.without(across, down).label for condition in placed}) > 1
    estimates = []
    shown: dict[str, dict[Condition, list[Cell]]] = {}
    cell_of = results.cells_of(task)
    for (model, condition), e in sorted(
        results.main_of(task).items(), key=lambda kept: results.models.index(kept[0][0])
    ):
        x, y = number(condition.get(across)), number(condition.get(down))
        if x is None or y is None:
            continue
        panel = f"{model}, {condition.without(across, down).label}" if several else model
        shown.setdefault(panel, {})[condition] = [cell_of[model, condition]]
        estimates.append(e)
        said = f"{100 * e.value:.0f}"
        drawn.append({"panel": panel, "x": f"{x:g}", "y": f"{y:g}", "value": e.value, "said": said, "n": e.n})
        rows.append((panel, f"{x:g}", f"{y:g}", *numbers(e)))
    if not drawn or len(shown) > MOST_PANELS:
        return None

    def places(key: str) -> list[str]:
        return sorted({str(datum[key]) for datum in drawn}, key=float)

    columns = places("x")
    x = alt.X("x:O", title=axis_title(across), sort=columns, axis=alt.Axis(labelAngle=0, ticks=False, domain=False))
    base = (
        alt.Chart()
        .transform_filter("isValid(datum.value)")
        .encode(
            x=x,
            y=alt.Y("y:O", title=down, sort=places("y"), axis=alt.Axis(ticks=False, domain=False)),
        )
    )
    scale = alt.Scale(domain=[0, 1], scheme="blues")
    fill = base.mark_rect(stroke="white", strokeWidth=1).encode(
        color=alt.Color("value:Q", scale=scale, legend=None),
        tooltip=[alt.Tooltip("said:N", title=f"{main.words}, %"), alt.Tooltip("n:Q", title="samples")],
    )
    text = base.mark_text(fontSize=11).encode(
        text="said:N", color=alt.condition("datum.value > 0.55", alt.value("white"), alt.value("#222"))
    )
    layers = [fill, text]
    edges = _edges(shown, across, columns)
    if edges:
        layers.append(trained_rule(alt.X("x:O", sort=columns, bandPosition=0), width=2.5))
    trained = trained_length(cell for conditions in shown.values() for cells in conditions.values() for cell in cells)
    says = f"{main.words} over {across} and {down} for each model"
    return Figure(
        f"{task}-map",
        f"{main.words.capitalize()} over {across} and {down}",
        f"Percent, over {sizes(estimates)} a field; the intervals are in the numbers below."
        f"{trained_words(trained) if edges else ''}",
        panelled(layers, [*drawn, *edges], list(shown), says, height=max(80, 30 * len(places("y")))),
        len(shown),
        ("model", across, down, *NUMBERS),
        tuple(rows),
    )


def _edges(shown: Mapping[str, Mapping[Condition, Sequence[Cell]]], across: str, columns: Sequence[str]) -> list[Point]:
    """Fields have no place between them: the line stands before the first column with prompts of the trained length."""
    found = {panel: trained_at(conditions, across) for panel, conditions in shown.items()}
    return [
        {"panel": panel, "trained": True, "x": next(column for column in columns if float(column) >= at)}
        for panel, at in found.items()
        if at is not None
    ]


def by_position(results: Results, task: str) -> Figure | None:
    """The loss per token against the position in the text: does more context help, and does coherence hold?"""
    cells = {cell.cell_id: cell for cell in results.cells if cell.task == task}
    found = [e for e in results.estimates if e.cell_id in cells and metric_of(e.metric) == "nll" and "@" in e.metric]
    at = {e.metric: int(e.metric.partition("@")[2]) for e in found}
    panels = list(dict.fromkeys(cells[e.cell_id].condition.label for e in found))
    if len(set(at.values())) < FEWEST or len(panels) > MOST_PANELS:
        return None
    models = [model for model in results.models if any(cells[e.cell_id].model == model for e in found)]
    points: list[Point] = []
    rows = []
    for e in sorted(found, key=lambda e: at[e.metric]):
        model, panel = cells[e.cell_id].model, cells[e.cell_id].condition.label
        # The octave k/2 … k is drawn at its geometric middle; the models a little apart, so that bars can be seen.
        middle = at[e.metric] / math.sqrt(2) * 1.03 ** models.index(model)
        low, high = (e.value if edge is None else edge for edge in (e.low, e.high))
        said = f"{e.value:.3f} [{low:.3f}, {high:.3f}]"
        points.append({"model": model, "panel": panel, "x": middle, "value": e.value, "low": low, "high": high,
                       "n": e.n, "said": said})  # fmt: skip
        rows.append((panel, at[e.metric], model, *numbers(e)))
    trained = trained_length(cell for cell in cells.values() if cell.model in models)
    points += [{"panel": panel, "trained": trained} for panel in panels if trained]
    layers = [trained_rule()] if trained else []
    ticks = sorted(set(at.values()))
    x = alt.X(
        "x:Q",
        title="position in the text, in tokens",
        scale=alt.Scale(type="log", nice=False, padding=14),
        axis=alt.Axis(values=ticks, grid=False, format=NUMBER_FORMAT),
    )
    y = alt.Y("value:Q", title="loss per token, nats", scale=alt.Scale(zero=True), axis=alt.Axis(tickCount=5))
    dotted = f" Dotted: the trained length, {trained:,} tokens." if trained else ""
    return Figure(
        f"{task}-position",
        "Loss against the position in the text",
        f"Mean −log p per token of the positions up to each tick, from half of it on; over {sizes(found)}; bars "
        f"are 95% intervals.{dotted}",
        panelled([*layers, *interval_layers(models, x, y, line=True)], points, panels, "loss by position"),
        len(panels),
        ("condition", "position", "model", *NUMBERS),
        tuple(rows),
    )
