"""Figures of answers that are made in steps: votes over more and more repeats, and what later stages came to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import altair as alt
import yaml

from evalspec.report.marks import (
    MOST_PANELS,
    NUMBER_FORMAT,
    NUMBERS,
    Figure,
    Point,
    apart,
    interval_layers,
    metric_axis,
    numbers,
    panelled,
    point,
    sizes,
)
from evalspec.report.results import Estimate, Results
from evalspec.spec.blocks import MAIN
from evalspec.spec.conditions import Condition, number

Found = Mapping[tuple[str, Condition], Estimate]


def by_votes(results: Results, task: str) -> Figure | None:
    """The main metric against the number of votes, a panel a condition. None for fewer than two sizes of a vote."""
    main = results.main[task]
    chains = _written(results, task).get("filters") or {}
    sizes_of = {name: steps[-1]["vote"] for name, steps in chains.items() if steps and "vote" in _last(steps)}
    found = {
        (cell.model, cell.condition, sizes_of[e.filter]): e
        for e in results.estimates
        for cell in results.cells
        if e.cell_id == cell.cell_id and cell.task == task and e.stage == MAIN
        if e.metric == main.name and e.filter in sizes_of
    }
    places = sorted({float(votes) for *_, votes in found})
    panels = list(dict.fromkeys(c.label for c in results.conditions(task) if any(key[1] == c for key in found)))
    if len(places) < 2 or len(panels) > MOST_PANELS:
        return None
    models = [model for model in results.models if any(key[0] == model for key in found)]
    log = places[-1] / places[0] > 5
    points: list[Point] = []
    for (model, condition, votes), e in found.items():
        x = apart(votes, places, models.index(model), len(models), log=log)
        points.append(point(e, main, model) | {"panel": condition.label, "x": x})
    title = "answers that vote"
    x_axis = alt.X(
        "x:Q",
        title=title,
        scale=alt.Scale(nice=False, padding=14, **({"type": "log"} if log else {"zero": False})),
        axis=alt.Axis(values=places, grid=False, format=NUMBER_FORMAT),
    )
    plain = replace(main, filter=None)  # each point has a filter of its own
    words = plain.words
    return Figure(
        f"{task}-by-votes",
        f"{words.capitalize()} of a vote over more and more answers",
        f"The answer that most of a sample's first n repeats came to. {sizes(list(found.values()))} a point; "
        "bars are 95% intervals; models stand slightly apart along x so that all can be seen.",
        panelled(
            interval_layers(models, x_axis, metric_axis(plain), line=True), points, panels, f"{words} against {title}"
        ),
        len(panels),
        ("condition", "votes", "model", *NUMBERS),
        tuple((condition.label, f"{votes:g}", model, *numbers(e)) for (model, condition, votes), e in found.items()),
    )


def by_stage(results: Results, task: str) -> Figure | None:
    """What each later stage came to, in its first metric, beside the task itself; a panel a stage.

    Against the one number that was swept; None where there is no later stage, or not one such number.
    """
    main, names = results.main[task], _swept(results, task)
    stages = _written(results, task).get("stages") or {}
    found: dict[str, Found] = {MAIN: results.main_of(task)}
    for stage, block in stages.items():
        estimates = _first_metric(results, task, stage, block or {})
        if estimates:
            found[stage] = estimates
    if len(found) < 2 or len(names) != 1 or not main.share:
        return None
    [name] = names
    places = sorted({number(c.get(name)) or 0.0 for of_stage in found.values() for _, c in of_stage})
    models = [model for model in results.models if any(key[0] == model for key in found[MAIN])]
    points: list[Point] = []
    rows = []
    for stage, of_stage in found.items():
        for (model, condition), e in of_stage.items():
            at = number(condition.get(name)) or 0.0
            x = apart(at, places, models.index(model), len(models), log=False)
            points.append(point(e, main, model) | {"panel": stage, "x": x})
            rows.append((stage, f"{at:g}", model, *numbers(e)))
    short = name.rpartition(".")[2]
    x_axis = alt.X(
        "x:Q",
        title=short,
        scale=alt.Scale(zero=False, nice=False, padding=14),
        axis=alt.Axis(values=places, grid=False, format=NUMBER_FORMAT),
    )
    every = [e for of_stage in found.values() for e in of_stage.values()]
    plain = replace(main, filter=None)  # each point has a filter of its own
    words = plain.words
    return Figure(
        f"{task}-by-stage",
        f"{words.capitalize()} of each stage against {short}",
        f"{MAIN} is the task itself. {sizes(every)} a point (a stage may leave samples out); bars are 95% "
        "intervals; models stand slightly apart along x so that all can be seen.",
        panelled(
            interval_layers(models, x_axis, metric_axis(plain), line=True),
            points,
            list(found),
            f"{words} of each stage against {short}",
        ),
        len(found),
        ("stage", short, "model", *NUMBERS),
        tuple(rows),
    )


def _swept(results: Results, task: str) -> list[str]:
    """Numbers that differ between the task's conditions."""
    conditions = results.conditions(task)
    names = dict.fromkeys(name for c in conditions for name, value in c.params if number(value) is not None)
    return [name for name in names if len({c.get(name) for c in conditions} - {None}) > 1]


def _first_metric(results: Results, task: str, stage: str, block: Mapping[str, Any]) -> Found:
    """The estimates of a stage's first metric under its first filter, by model and condition."""
    listed = [m if isinstance(m, str) else str(m.get("metric", "")) for m in block.get("metrics") or ()]
    chains = list(block.get("filters") or ()) or ["default"]
    if not listed:
        return {}
    return {
        (cell.model, cell.condition): e
        for e in results.estimates
        for cell in results.cells
        if e.cell_id == cell.cell_id and cell.task == task
        if e.stage == stage and e.metric == listed[0] and e.filter == chains[0]
    }


def _written(results: Results, task: str) -> Mapping[str, Any]:
    """The task as the spec writes it; keys that it extends are those of the task that it names."""
    spec = yaml.safe_load(results.run.spec_text) if results.run.spec_text else None
    tasks = spec.get("tasks") if isinstance(spec, dict) else None
    found: dict[str, Any] = {}
    name: Any = task
    while isinstance(tasks, dict) and isinstance(tasks.get(name), dict):
        found = {**tasks[name], **found}
        name = tasks[name].get("extends")
    return found


def _last(steps: Sequence[Any]) -> Mapping[str, Any]:
    return steps[-1] if isinstance(steps[-1], dict) else {}
