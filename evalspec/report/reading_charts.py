"""Figures of what models do with passages: gold shown and answered or not, and answers beside what a question costs."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt

from evalspec.report.marks import (
    NUMBER_FORMAT,
    NUMBERS,
    SHAPES,
    Figure,
    Point,
    colour,
    metric_axis,
    numbers,
    panelled,
    point,
    sizes,
    tooltip,
)
from evalspec.report.results import GoldUse, Results

# What came of a question, in the order of the bars: the first three have the gold passage in the prompt.
KINDS = (
    ("gold shown, right", "shown_right", "#0072B2"),
    ("gold shown, abstained", "shown_abstained", "#9a9a9a"),
    ("gold shown, wrong", "shown_wrong", "#D55E00"),
    ("no gold, right", "missing_right", "#a9d3ec"),
    ("no gold, abstained", "missing_abstained", "#dcdcdc"),
    ("no gold, wrong", "missing_wrong", "#f5c9a4"),
)


def gold_and_answer(results: Results, task: str, uses: Sequence[GoldUse]) -> Figure | None:
    """Was the gold passage there, and was it used? Shares of each condition's answers, a panel for each model."""
    cells = {cell.cell_id: cell for cell in results.cells if cell.task == task}
    found = {(cells[use.cell_id].model, cells[use.cell_id].condition): use for use in uses if use.cell_id in cells}
    models = [m for m in results.models if any(key[0] == m for key in found)]
    conditions = [c for c in results.conditions(task) if any(key[1] == c for key in found)]
    kinds = [kind for kind in KINDS if any(use.count(kind[1]) for use in found.values())]
    if not found or not any(use.n for use in found.values()):
        return None
    labels = [condition.label for condition in conditions]
    points: list[Point] = []
    table: list[tuple[str | int, ...]] = []
    for condition in conditions:
        for model in models:
            use = found.get((model, condition))
            if use is None or not use.n:
                continue
            table.append((condition.label, model, *(use.count(name) for _, name, _ in kinds), use.n))
            start = 0.0
            for label, name, _ in kinds:
                share = use.count(name) / use.n
                points.append(
                    {"panel": model, "model": model, "condition": condition.label, "kind": label, "start": start,
                     "end": start + share, "said": f"{100 * share:.1f}% ({use.count(name)} of {use.n})"}
                )  # fmt: skip
                start += share
    points = [p for p in points if p["end"] > p["start"]]
    names = [label for label, _, _ in kinds]
    scale = alt.Scale(domain=names, range=[shade for _, _, shade in kinds])
    columns = 3 if len(names) > 4 else len(names)
    legend = alt.Legend(orient="top", direction="horizontal", columns=columns, title=None, symbolType="square")
    share_axis = alt.Axis(format=".0%", values=[0, 0.25, 0.5, 0.75, 1], grid=False)
    x = alt.X("start:Q", title="share of the questions", scale=alt.Scale(domain=[0, 1], nice=False), axis=share_axis)
    y = alt.Y("condition:N", sort=labels, title=None, axis=alt.Axis(labelLimit=230, ticks=False, domain=False))
    tips = [alt.Tooltip(f"{name}:N") for name in ("model", "condition", "kind")] + [
        alt.Tooltip("said:N", title="share")
    ]
    bars = alt.Chart().mark_bar(height={"band": 0.8}).encode(
        x=x, x2="end:Q", y=y, color=alt.Color("kind:N", sort=names, scale=scale, legend=legend), tooltip=tips
    )  # fmt: skip
    metric = next(iter(found.values())).metric.replace("_", " ")
    totals = sorted({use.n for use in found.values()})
    return Figure(
        f"{task}-gold-used",
        "Was the gold passage there, and was it used?",
        f"Each bar is all answers of one condition by {metric}: full colours where a gold passage stood in the prompt, "
        f"pale ones where none did; {' to '.join(f'{n:,}' for n in totals[:: len(totals) - 1 or 1])} answers a bar. "
        "Shares of these answers, no interval.",
        panelled([bars], points, models, "answers with and without the gold passage", height=max(40, 19 * len(labels))),
        len(models),
        ("condition", "model", *names, "answers"),
        tuple(table),
    )


def by_cost(results: Results, task: str) -> Figure | None:
    """The main metric beside the prompt tokens of a question, a panel for each model, a mark for each retriever."""
    main, found = results.main[task], results.main_of(task)
    costs = {cost.cell_id: cost for cost in results.costs}
    priced = {key: e for key, e in found.items() if e.cell_id in costs and e.n and costs[e.cell_id].prompt_tokens}
    retrievers = list(dict.fromkeys(str(c.get("retriever")) for _, c in priced if c.get("retriever") is not None))
    if len(retrievers) < 2 or len(retrievers) > len(SHAPES):
        return None
    models = [m for m in results.models if any(key[0] == m for key in priced)]
    points: list[Point] = []
    table = []
    for (model, condition), e in priced.items():
        cost, retriever = costs[e.cell_id], str(condition.get("retriever"))
        tokens, seconds = cost.prompt_tokens / e.n, cost.seconds / e.n
        paid = f"{tokens:,.0f} tokens of prompt, {cost.computed_tokens / e.n:,.0f} computed, {seconds:.3g} s"
        points.append(
            point(e, main, model)
            | {"panel": model, "tokens": tokens, "retriever": retriever, "condition": condition.label, "paid": paid}
        )
        table.append((condition.label, model, round(tokens, 1), round(cost.computed_tokens / e.n, 1),
                      round(cost.output_tokens / e.n, 2), round(seconds, 4), *numbers(e)))  # fmt: skip
    scale = alt.Scale(domain=retrievers, range=list(SHAPES[: len(retrievers)]))
    legend = alt.Legend(orient="top", direction="horizontal", symbolFillColor="#555", symbolStrokeColor="#555")
    x = alt.X("tokens:Q", title="tokens of a question's prompt", scale=alt.Scale(zero=True, padding=14),
              axis=alt.Axis(grid=False, format=NUMBER_FORMAT, tickCount=5))  # fmt: skip
    y = metric_axis(main)
    mark = alt.Shape("retriever:N", sort=retrievers, title=None, scale=scale, legend=legend)
    tips = [alt.Tooltip("condition:N"), alt.Tooltip("paid:N", title="a question"), *tooltip()]
    base = alt.Chart().encode(x=x, y=y, color=colour(models, legend=False))
    layers = [
        base.mark_line(strokeWidth=1, opacity=0.5).encode(detail="retriever:N"),
        base.mark_point(filled=True, size=58, opacity=0.95).encode(shape=mark, tooltip=tips),
    ]
    return Figure(
        f"{task}-by-cost",
        "What a question costs, and what it buys",
        f"{main.words.capitalize()} against the tokens of a question's prompt, shots included "
        f"({sizes(list(priced.values()))} each). The numbers hold what was computed, shared tokens split among "
        "the conditions that share them, and the seconds: what this run paid, not a comparison of speeds.",
        panelled(layers, points, models, f"{main.words} against tokens of a prompt"),
        len(models),
        ("condition", "model", "prompt tokens", "computed tokens", "output tokens", "seconds", *NUMBERS),
        tuple(table),
    )
