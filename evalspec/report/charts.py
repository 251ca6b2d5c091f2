"""The figures that a run's results deserve, chosen from what was swept and measured.

Values that would hide each other are set a little apart along x; the tables under the figures hold the exact ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt

from evalspec.report.conditions import Value
from evalspec.report.marks import (
    SHAPES,
    Figure,
    Point,
    apart,
    colour,
    interval_layers,
    metric_axis,
    panelled,
    place_bins,
    point,
    shape,
    sizes,
    tooltip,
    wilson,
)
from evalspec.report.results import Cell, Estimate, GoldPlace, Results

MOST_PANELS = 12
NUMBERS = ("value", "low", "high", "samples")
AXES = {"k": "passages in the prompt (k)", "n": "shots", "shots": "shots"}


def figures_of(results: Results, task: str, places: Sequence[GoldPlace]) -> list[Figure]:
    """All figures of a task; none where it has no answer metric yet."""
    if task not in results.main:
        return []
    numbers = dict.fromkeys(
        name for c in results.conditions(task) for name, value in c.params if _number(value) is not None
    )
    swept = [name for name in numbers if len({c.get(name) for c in results.conditions(task)} - {None}) > 1]
    drawn = [by_number(results, task, name) for name in swept]
    if not any(drawn):
        drawn.append(by_condition(results, task))
    drawn += [by_gold_place(results, task, places), retrieval_and_answer(results, task)]
    return [figure for figure in drawn if figure is not None]


def by_number(results: Results, task: str, name: str) -> Figure | None:
    """The main metric against a number that was swept (k, shots, length), a panel for each value of the rest.

    Cells that do not set the number (no passages, say) become dashed rules. None if there would be too many panels.
    """
    main, found = results.main[task], results.main_of(task)
    numbered = {key: e for key, e in found.items() if _number(key[1].get(name)) is not None}
    panels = list(dict.fromkeys(condition.without(name).label for _, condition in numbered))
    if not numbered or len(panels) > MOST_PANELS:
        return None
    models = [m for m in results.models if any(key[0] == m for key in found)]
    places = sorted({_number(condition.get(name)) or 0.0 for _, condition in numbered})
    log = places[0] > 0 and places[-1] / places[0] > 20
    points: list[Point] = []
    table = []
    for (model, condition), e in numbered.items():
        at, panel = _number(condition.get(name)) or 0.0, condition.without(name).label
        moved = apart(at, places, models.index(model), len(models), log=log)
        points.append(point(e, main, model) | {"panel": panel, "x": moved, "at": at})
        table.append((panel, f"{at:g}", model, *_numbers(e)))
    # A reference is one condition; several without the number would be rules that nobody can tell apart.
    rest = {condition for _, condition in found if _number(condition.get(name)) is None}
    reference = rest.pop() if len(rest) == 1 else None
    layers = []
    if reference is not None:
        points += [
            {"panel": panel, "model": model, "baseline": found[model, reference].value}
            for panel in panels
            for model in models
            if (model, reference) in found
        ]
        rule = alt.Chart().transform_filter("isValid(datum.baseline)").mark_rule(strokeDash=[4, 3], opacity=0.8)
        layers.append(rule.encode(y="baseline:Q", color=colour(models)))
    axis = alt.Axis(values=places, grid=False, format="~g")
    scale = alt.Scale(type="log" if log else "linear", zero=False, nice=False, padding=14)
    x = alt.X("x:Q", title=AXES.get(name, name), scale=scale, axis=axis)
    dashed = f" Dashed: {reference.label}." if reference else ""
    return Figure(
        f"{task}-by-{name}",
        f"{main.words.capitalize()} against {AXES.get(name, name)}",
        f"Mean over {sizes(list(numbered.values()))} samples a point; bars are 95 % intervals; "
        f"models stand slightly apart along x so that all can be seen.{dashed}",
        panelled([*layers, *interval_layers(models, x, metric_axis(main), line=True)], points, panels,
                 f"{main.words} against {name} for each model"),
        len(panels),
        (_column(panels), name, "model", *NUMBERS),
        tuple(table),
    )  # fmt: skip


def by_condition(results: Results, task: str) -> Figure | None:
    """The main metric of every condition as dots with intervals: for sweeps over names, and for no sweep at all."""
    main, found = results.main[task], results.main_of(task)
    if not found:
        return None
    models = [m for m in results.models if any(key[0] == m for key in found)]
    labels = [condition.label for condition in results.conditions(task)]
    points = [point(e, main, model) | {"condition": c.label} for (model, c), e in found.items()]
    y = alt.Y("condition:N", sort=labels, title=None, axis=alt.Axis(labelLimit=260, ticks=False, domain=False))
    x = metric_axis(main, alt.X)
    base = alt.Chart().encode(color=colour(models), y=y, yOffset=alt.YOffset("model:N", sort=models))
    chart = alt.layer(
        base.mark_rule(strokeWidth=1.4, opacity=0.6).encode(x=alt.X("low:Q", title=main.words), x2="high:Q"),
        base.mark_point(filled=True, size=52, opacity=1).encode(x=x, shape=shape(models), tooltip=tooltip()),
        data=alt.InlineData(values=points),
    )
    height = max(60, (8 + 14 * len(models)) * len(labels))
    return Figure(
        f"{task}-conditions",
        f"{main.words.capitalize()} of each condition",
        f"Mean over {sizes(list(found.values()))} samples a dot; bars are 95 % intervals.",
        chart.properties(height=height, description=f"{main.words} of each condition").to_dict(),
        1,
        ("condition", "model", *NUMBERS),
        tuple((c.label, model, *_numbers(e)) for (model, c), e in found.items()),
    )


def by_gold_place(results: Results, task: str, places: Sequence[GoldPlace]) -> Figure | None:
    """The main metric by where the gold passage stood in the prompt, at the largest k, a panel for each retriever.

    One k only: at a smaller k the late places do not exist, and a mixture would compare prompts of different length.
    """
    main = results.main[task]
    cells = {cell.cell_id: cell for cell in results.cells if cell.task == task}
    depth = max((_number(cell.condition.get("k")) or 0.0 for cell in cells.values()), default=0.0)
    kept = [
        (cells[p.cell_id], p)
        for p in places
        if p.cell_id in cells and (not depth or cells[p.cell_id].condition.get("k") == depth)
    ]
    deepest = max((p.place or 0 for _, p in kept), default=0)
    if deepest < 2 or not main.share:
        return None
    bins = place_bins(deepest)
    sums: dict[tuple[str, str, str], tuple[int, float]] = {}
    for cell, p in kept:
        label = next((name for name, low, high in bins if low <= (p.place or 0) <= high), "none")
        key = (cell.condition.without("k").label, label, cell.model)
        n, total = sums.get(key, (0, 0.0))
        sums[key] = (n + p.n, total + p.n * p.value)
    estimates = {
        key: Estimate("", main.name, None, total / n, None, *wilson(total / n, n), n)
        for key, (n, total) in sums.items()
    }
    order = [*(name for name, _, _ in bins), "none"]
    panels = list(dict.fromkeys(cell.condition.without("k").label for cell, _ in kept))
    if len(panels) > MOST_PANELS:
        return None
    models = [m for m in results.models if any(key[2] == m for key in sums)]
    points = [point(e, main, key[2]) | {"panel": key[0], "place": key[1]} for key, e in estimates.items()]
    axis = alt.Axis(labelAngle=0, grid=False, ticks=False)
    x = alt.X("place:N", sort=order, title="place of the gold passage", axis=axis, scale=alt.Scale(domain=order))
    layers = interval_layers(models, x, metric_axis(main), line=False, offset=alt.XOffset("model:N", sort=models))
    listed = sorted(estimates, key=lambda key: (panels.index(key[0]), order.index(key[1]), models.index(key[2])))
    return Figure(
        f"{task}-gold-place",
        "Where the gold passage stands",
        f"{main.words.capitalize()}{f' at k = {depth:g}' if depth else ''} by the place of the first gold passage among those "
        f"of the prompt (1 comes first; none: not retrieved); {sizes(list(estimates.values()))} samples a point; "
        "bars are 95 % Wilson intervals.",
        panelled(layers, points, panels, f"{main.words} by the place of the gold passage"),
        len(panels),
        (_column(panels), "place", "model", *NUMBERS),
        tuple((*key, *_numbers(estimates[key])) for key in listed),
    )


def retrieval_and_answer(results: Results, task: str) -> Figure | None:
    """Recall of the retriever beside the main metric, a panel for each model; a line joins the k of one retriever."""
    main, found = results.main[task], results.main_of(task)
    recalls = {c.cell_id: r for c in results.cells if (r := _recall(results.estimates, c)) is not None}
    both = {key: e for key, e in found.items() if e.cell_id in recalls}
    models = [m for m in results.models if any(key[0] == m for key in both)]
    if len({recalls[e.cell_id] for e in both.values()}) < 2 or not main.share:
        return None
    points: list[Point] = []
    table = []
    for (model, c), e in both.items():
        recall, retriever, k = recalls[e.cell_id], c.without("k").label, c.get("k")
        points.append(point(e, main, model) | {"panel": model, "recall": recall, "retriever": retriever, "k": k})
        table.append((model, retriever, k, round(recall, 4), *_numbers(e)))
    points += [{"panel": model, "diagonal": at} for model in models for at in (0, 1)]
    names = list(dict.fromkeys(row[1] for row in table))
    axis = alt.Axis(format=".0%", values=[0, 0.25, 0.5, 0.75, 1])
    x = alt.X("recall:Q", title="recall of the gold passage", scale=alt.Scale(domain=[0, 1]), axis=axis)
    scale = alt.Scale(domain=names, range=[SHAPES[at % len(SHAPES)] for at in range(len(names))])
    legend = alt.Legend(orient="top", direction="horizontal", symbolFillColor="#555", symbolStrokeColor="#555")
    mark = alt.Shape("retriever:N", sort=names, title=None, scale=scale, legend=legend)
    base = alt.Chart().transform_filter("isValid(datum.recall)").encode(x=x, color=colour(models, legend=False))
    diagonal = alt.Chart().transform_filter("isValid(datum.diagonal)")
    y = metric_axis(main)
    shown = [alt.Tooltip("retriever:N"), alt.Tooltip("k:N"), alt.Tooltip("recall:Q", format=".1%"), *tooltip()]
    layers = [
        diagonal.mark_line(color="#888", strokeDash=[2, 3], strokeWidth=1).encode(x="diagonal:Q", y="diagonal:Q"),
        base.mark_line(strokeWidth=1, opacity=0.5).encode(y=y, detail="retriever:N", order="k:Q"),
        base.mark_rule(strokeWidth=1.2, opacity=0.4).encode(y="low:Q", y2="high:Q"),
        base.mark_point(filled=True, size=58, opacity=0.95).encode(y=y, shape=mark, tooltip=shown),
    ]
    return Figure(
        f"{task}-retrieval-answer",
        "Retrieval quality beside answer quality",
        f"{main.words.capitalize()} against recall, one point for each retriever and k ({sizes(list(both.values()))} samples each; "
        "bars are 95 % intervals). On the dotted line every passage found is answered, and nothing else is.",
        panelled(layers, points, models, f"{main.words} against recall for each model"),
        len(models),
        ("model", "retriever", "k", "recall", *NUMBERS),
        tuple(table),
    )


def _recall(estimates: Sequence[Estimate], cell: Cell) -> float | None:
    """The cell's recall at its own k where it was measured, else at the largest k that was."""
    of_cell = {e.metric: e.value for e in estimates if e.cell_id == cell.cell_id and e.metric.startswith("recall")}
    own = f"recall@{cell.condition.get('k')}"
    if own in of_cell:
        return of_cell[own]
    largest = max(of_cell, key=lambda metric: int(metric.partition("@")[2] or 0), default=None)
    return None if largest is None else of_cell[largest]


def _number(value: Value) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _numbers(estimate: Estimate) -> tuple[float | int | None, ...]:
    low, high = (None if edge is None else round(edge, 4) for edge in (estimate.low, estimate.high))
    return round(estimate.value, 4), low, high, estimate.n


def _column(panels: Sequence[str]) -> str:
    return "condition" if any("=" in panel for panel in panels) else "retriever"
