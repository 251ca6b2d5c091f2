"""Figures of retrieval: answers by the place of the gold passage, and answers beside what the retriever found."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt

from evalspec.metrics.proportions import proportion_interval
from evalspec.report.marks import (
    MOST_PANELS,
    NUMBERS,
    SHAPES,
    Figure,
    Point,
    colour,
    condition_column,
    interval_layers,
    metric_axis,
    numbers,
    panelled,
    place_bins,
    point,
    share_axis,
    share_scale,
    sizes,
    tooltip,
)
from evalspec.report.results import Cell, Estimate, GoldPlace, Results
from evalspec.spec.conditions import number

FEWEST = 5
"""Points of fewer samples are left to the table: their intervals would cover the panel."""


def by_gold_place(results: Results, task: str, places: Sequence[GoldPlace]) -> Figure | None:
    """The main metric by where the gold passage stood in the prompt, at the largest k, a panel for each retriever.

    One k only: at a smaller k the late places do not exist, and a mixture would compare prompts of different length.
    """
    main = results.main[task]
    cells = {cell.cell_id: cell for cell in results.cells if cell.task == task}
    if any(cell.condition.get("gold_at") is not None for cell in cells.values()):
        return None  # the place was swept, and has its own figure
    size = next((n for n in ("n_distractors", "k") if any(c.condition.get(n) for c in cells.values())), "k")
    depth = max((number(cell.condition.get(size)) or 0.0 for cell in cells.values()), default=0.0)
    kept = [
        (cells[p.cell_id], p)
        for p in places
        if p.cell_id in cells and (not depth or cells[p.cell_id].condition.get(size) == depth)
    ]
    deepest = max((p.place or 0 for _, p in kept), default=0)
    if deepest < 2 or not main.share:
        return None
    bins = place_bins(deepest)
    sums: dict[tuple[str, str, str], tuple[int, float]] = {}
    for cell, p in kept:
        label = next((name for name, low, high in bins if low <= (p.place or 0) <= high), "none")
        key = (cell.condition.without(size).label, label, cell.model)
        n, total = sums.get(key, (0, 0.0))
        sums[key] = (n + p.n, total + p.n * p.value)
    estimates = {
        key: Estimate("", main.name, None, total / n, None, *proportion_interval(total / n, n), n)
        for key, (n, total) in sums.items()
    }
    order = [*(name for name, _, _ in bins), "none"]
    seen = {key[0] for key in sums}
    panels = [p for p in dict.fromkeys(c.without(size).label for c in results.conditions(task)) if p in seen]
    models = [m for m in results.models if any(key[2] == m for key in sums)]
    drawn = {key: e for key, e in estimates.items() if e.n >= FEWEST}
    if not drawn or len(panels) > MOST_PANELS:
        return None
    points = [point(e, main, key[2]) | {"panel": key[0], "place": key[1]} for key, e in drawn.items()]
    axis = alt.Axis(labelAngle=0, grid=False, ticks=False)
    x = alt.X("place:N", sort=order, title="place of the gold passage", axis=axis, scale=alt.Scale(domain=order))
    layers = interval_layers(models, x, metric_axis(main), line=False, offset=alt.XOffset("model:N", sort=models))
    listed = sorted(estimates, key=lambda key: (panels.index(key[0]), order.index(key[1]), models.index(key[2])))
    return Figure(
        f"{task}-gold-place",
        "Where the gold passage stands",
        f"{main.words.capitalize()}{f' at {size} = {depth:g}' if depth else ''} by the place of the first gold passage "
        f"among those of the prompt (1 comes first; none: not retrieved); {sizes(list(drawn.values()))} "
        f"a point, bars are 95% mid-p intervals; points of fewer than {FEWEST} samples are only in the numbers.",
        panelled(layers, points, panels, f"{main.words} by the place of the gold passage"),
        len(panels),
        (condition_column(panels), "place", "model", *NUMBERS),
        tuple((*key, *numbers(estimates[key])) for key in listed),
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
        table.append((model, retriever, k, round(recall, 4), *numbers(e)))
    names = list(dict.fromkeys(row[1] for row in table))
    # A scatter may leave out the empty part of its square; both axes leave out the same.
    seen = [value for p in points for value in (p["recall"], p["value"])]
    low = max(floor for floor in (0.0, 0.25, 0.5) if floor <= min(seen))
    points += [{"panel": model, "diagonal": at} for model in models for at in (low, 1)]
    x, across = (
        alt.X(f"{name}:Q", title="recall of the gold passage", scale=share_scale(low), axis=share_axis(low))
        for name in ("recall", "diagonal")
    )
    y, low_y, up = (
        alt.Y(f"{name}:Q", title=main.words, scale=share_scale(low), axis=share_axis(low))
        for name in ("value", "low", "diagonal")
    )
    scale = alt.Scale(domain=names, range=[SHAPES[at % len(SHAPES)] for at in range(len(names))])
    legend = alt.Legend(orient="top", direction="horizontal", symbolFillColor="#555", symbolStrokeColor="#555")
    mark = alt.Shape("retriever:N", sort=names, title=None, scale=scale, legend=legend)
    base = alt.Chart().transform_filter("isValid(datum.recall)").encode(x=x, color=colour(models, legend=False))
    diagonal = alt.Chart().transform_filter("isValid(datum.diagonal)")
    shown = [alt.Tooltip("retriever:N"), alt.Tooltip("k:N"), alt.Tooltip("recall:Q", format=".1%"), *tooltip()]
    layers = [
        diagonal.mark_line(color="#888", strokeDash=[2, 3], strokeWidth=1).encode(x=across, y=up),
        base.mark_line(strokeWidth=1, opacity=0.5).encode(y=y, detail="retriever:N", order="k:Q"),
        base.mark_rule(strokeWidth=1.2, opacity=0.3, clip=True).encode(y=low_y, y2="high:Q"),
        base.mark_point(filled=True, size=58, opacity=0.95).encode(y=y, shape=mark, tooltip=shown),
    ]
    return Figure(
        f"{task}-retrieval-answer",
        "Retrieval quality beside answer quality",
        f"{main.words.capitalize()} against recall, one point for each retriever and k "
        f"({sizes(list(both.values()))} each; bars are 95% intervals). "
        "On the dotted line every passage found is answered, and nothing else is.",
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
