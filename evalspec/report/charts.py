"""The figures that a run's results deserve, chosen from what was swept and measured.

Values that would hide each other are set a little apart along x; the tables under the figures hold the exact ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import altair as alt

from evalspec.report.context_charts import by_position, heat_axes, heat_map
from evalspec.report.marks import (
    MOST_PANELS,
    NUMBER_FORMAT,
    NUMBERS,
    Figure,
    Point,
    apart,
    axis_title,
    by_ratio,
    colour,
    condition_column,
    interval_layers,
    metric_axis,
    numbers,
    panelled,
    point,
    shape,
    sizes,
    tooltip,
)
from evalspec.report.reading_charts import by_cost, gold_and_answer
from evalspec.report.results import Cell, GoldPlace, GoldUse, MainMetric, Results
from evalspec.report.retrieval_charts import by_gold_place, retrieval_and_answer
from evalspec.report.step_charts import by_stage, by_votes
from evalspec.report.trained import trained_lines
from evalspec.spec.conditions import Condition, number


def figures_of(results: Results, task: str, places: Sequence[GoldPlace], uses: Sequence[GoldUse] = ()) -> list[Figure]:
    """All figures of a task; none where it has no answer metric yet."""
    if task not in results.main:
        return []
    numbers = dict.fromkeys(
        name for c in results.conditions(task) for name, value in c.params if number(value) is not None
    )
    swept = [name for name in numbers if len({c.get(name) for c in results.conditions(task)} - {None}) > 1]
    axes = heat_axes(results, task)
    drawn = [heat_map(results, task), by_position(results, task)]
    # What a map shows down its side would be as many panels of lines again.
    drawn += [bynumber(results, task, name) for name in swept if axes is None or name != axes[1]]
    if not any(drawn):
        drawn.append(by_condition(results, task))
    drawn += [by_votes(results, task), by_stage(results, task)]
    drawn += [by_gold_place(results, task, places), gold_and_answer(results, task, uses)]
    drawn += [retrieval_and_answer(results, task), by_cost(results, task)]
    of = f"{task}: " if len(results.main) > 1 else ""
    return [replace(figure, title=of + figure.title) for figure in drawn if figure is not None]


def bynumber(results: Results, task: str, name: str) -> Figure | None:
    """The main metric against a number that was swept (k, shots, length), a panel for each value of the rest.

    Cells that do not set the number (no passages, say) become dashed rules. None if there would be too many panels.
    """
    main, found = results.main[task], results.main_of(task)
    numbered = {key: e for key, e in found.items() if number(key[1].get(name)) is not None}
    rests = _panels(list(dict.fromkeys(condition for _, condition in numbered)), name)
    panels = list(dict.fromkeys(rest.label for group in rests.values() for rest in group))
    if not numbered or len(panels) > MOST_PANELS:
        return None
    models = [m for m in results.models if any(key[0] == m for key in found)]
    places = sorted({number(condition.get(name)) or 0.0 for _, condition in numbered})
    log = by_ratio(places)
    points: list[Point] = []
    table = []
    cell_of = results.cells_of(task)
    shown: dict[str, dict[Condition, list[Cell]]] = {panel: {} for panel in panels}
    for (model, condition), e in numbered.items():
        at = number(condition.get(name)) or 0.0
        moved = apart(at, places, models.index(model), len(models), log=log)
        for panel in (rest.label for rest in rests[condition]):
            points.append(point(e, main, model) | {"panel": panel, "x": moved, "at": at})
            table.append((panel, f"{at:g}", model, *numbers(e)))
            shown[panel].setdefault(condition, []).append(cell_of[model, condition])
    # A reference is one condition; several without the number would be rules that nobody can tell apart.
    rest = {condition for _, condition in found if number(condition.get(name)) is None}
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
    trained = trained_lines(shown, name, colour(models))
    points += trained.points
    axis = alt.Axis(values=places, grid=False, format=NUMBER_FORMAT)
    scale = alt.Scale(nice=False, padding=14, **({"type": "log"} if log else {"zero": False}))
    x = alt.X("x:Q", title=axis_title(name), scale=scale, axis=axis)
    dashed = f" Dashed: {reference.label}." if reference else ""
    return Figure(
        f"{task}-by-{name}",
        f"{main.words.capitalize()} against {axis_title(name)}",
        f"{_each(main)} {sizes(list(numbered.values()))} a point; bars are 95% intervals; "
        f"models stand slightly apart along x so that all can be seen.{dashed}{trained.words}",
        panelled([*layers, *trained.layers, *interval_layers(models, x, metric_axis(main), line=True)], points, panels,
                 f"{main.words} against {name} for each model"),
        len(panels),
        (condition_column(panels), name, "model", *NUMBERS),
        tuple(table),
    )  # fmt: skip


def _panels(conditions: Sequence[Condition], name: str) -> dict[Condition, list[Condition]]:
    """The panels in which each condition stands, as what is left of it without the number.

    Of zero shots nothing else can be said (their sampler, their labels): that one point begins the line of every panel
    that says more, and has none of its own.
    """
    rests = {condition: condition.without(name) for condition in conditions}
    found = {}
    for condition, rest in rests.items():
        alone = [other for other, same in rests.items() if same == rest] == [condition]
        more = [other for other in dict.fromkeys(rests.values()) if set(rest.params) < set(other.params)]
        found[condition] = more if alone and number(condition.get(name)) == 0 and more else [rest]
    return found


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
        f"{_each(main)} {sizes(list(found.values()))} a dot; bars are 95% intervals.",
        chart.properties(height=height, description=f"{main.words} of each condition").to_dict(),
        1,
        ("condition", "model", *NUMBERS),
        tuple((c.label, model, *numbers(e)) for (model, c), e in found.items()),
    )


def _each(main: MainMetric) -> str:
    return "Mean over" if main.share else "Over"
