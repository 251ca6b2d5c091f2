"""The building blocks that all figures share: a colour and a mark for each model, intervals, panels, number formats.

A model has one colour and one mark in every figure (Okabe and Ito's palette, safe for colour-blind readers; the shapes
survive a black-and-white print).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import altair as alt

from evalspec.report.results import Estimate, MainMetric

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#666666", "#000000")
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right", "triangle-left")
FONT = "'Source Sans 3','Helvetica Neue',Helvetica,'Liberation Sans',Arial,sans-serif"

MOST_PANELS = 12
NUMBERS = ("value", "low", "high", "samples")

Point = dict[str, Any]


@dataclass(frozen=True)
class Figure:
    """One figure: its Vega-Lite, what a reader needs to read it, and the numbers it draws."""

    name: str
    title: str
    caption: str
    vega_lite: Mapping[str, Any]
    panels: int
    """How many panels share the page's width; 1 for a figure that is not faceted."""
    columns: tuple[str, ...]
    rows: tuple[tuple[str | int | float | None, ...], ...]
    half: bool = False
    """It needs only half of the page's width."""


def style() -> dict[str, Any]:
    """The look of all figures, given to the page once: thin grey axes, no frame, the page's own font."""
    text = {"labelFont": FONT, "titleFont": FONT, "labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal"}
    axis = {
        "labelColor": "#444",
        "titleColor": "#222",
        "domainColor": "#999",
        "tickColor": "#999",
        "gridColor": "#ececec",
    }
    return {
        "background": "white",
        "font": FONT,
        "view": {"stroke": None},
        "axis": {**text, **axis, "titlePadding": 8},
        "legend": {
            **text,
            "labelFontSize": 13,
            "symbolSize": 70,
            "columnPadding": 18,
            "offset": 10,
            "titleColor": "#222",
        },
        "header": {**text, "labelFontSize": 13, "labelFontWeight": 600, "labelColor": "#222", "labelPadding": 6},
        "point": {"strokeWidth": 0},
    }


AXES = {
    "k": "passages in the prompt (k)",
    "gold_at": "place of the gold passage (1 comes first)",
    "n_distractors": "distractors beside the gold passage",
    "n": "entries in the context (n)",
    "length": "length of the context, in words (length)",
    "depth": "depth (0: the beginning of the context, 1: its end)",
}


def axis_title(name: str) -> str:
    """What an axis over a swept number is called."""
    return AXES.get(name, name)


NUMBER_FORMAT = ",.6~r"
"""How axes write numbers. Without a precision, vega takes that of the step between ticks: 128 would read 100."""


def colour(models: Sequence[str], *, legend: bool = True) -> alt.Color:
    """The model's colour, with a legend above the panels that shows colour and shape together."""
    shown = _legend(models) if legend else None
    return alt.Color("model:N", title=None, sort=list(models), scale=_by_model(models, COLOURS), legend=shown)


def shape(models: Sequence[str]) -> alt.Shape:
    """The model's mark."""
    shown = _legend(models)
    return alt.Shape("model:N", title=None, sort=list(models), scale=_by_model(models, SHAPES), legend=shown)


def _legend(models: Sequence[str]) -> alt.Legend:
    fitting = max(1, 900 // (8 * max(map(len, models), default=1) + 40))  # of the page's width, in pixels
    rows = {"columns": fitting} if len(models) > fitting else {}
    return alt.Legend(orient="top", direction="horizontal", symbolOpacity=1, **rows)


def metric_axis(main: MainMetric, channel: type[Any] = alt.Y) -> Any:
    """The axis of the main metric: the whole of 0–100% for a share, so that no figure exaggerates."""
    if main.share:
        return channel("value:Q", title=main.words, scale=share_scale(), axis=share_axis())
    return channel(
        "value:Q", title=main.words, scale=alt.Scale(zero=False), axis=alt.Axis(format=NUMBER_FORMAT, tickCount=5)
    )


def share_scale(lowest: float = 0.0) -> alt.Scale:
    """From `lowest` to 1, with room for a mark that stands on the edge."""
    room = 0.035 * (1 - lowest)
    return alt.Scale(domain=[lowest - room, 1 + room], nice=False)


def share_axis(lowest: float = 0.0) -> alt.Axis:
    """Percentages in steps of a quarter, of a tenth where the axis starts at 50% or later."""
    steps = [at / 4 for at in range(5)] if lowest < 0.5 else [at / 10 for at in range(5, 11)]
    return alt.Axis(format=".0%", values=[at for at in steps if at >= lowest])


def point(estimate: Estimate, main: MainMetric, model: str) -> Point:
    """An estimate as a datum; `said` is what the tooltip shows."""
    low = estimate.value if estimate.low is None else estimate.low
    high = estimate.value if estimate.high is None else estimate.high
    said = f"{written(estimate.value, main)} {interval(estimate, main)}".strip()
    return {"model": model, "value": estimate.value, "low": low, "high": high, "n": estimate.n, "said": said}


def tooltip() -> list[alt.Tooltip]:
    """What a pointer over a mark shows."""
    return [alt.Tooltip("model:N"), alt.Tooltip("said:N", title="value"), alt.Tooltip("n:Q", title="samples")]


def interval_layers(
    models: Sequence[str], x: alt.X, y: alt.Y, *, line: bool, offset: alt.XOffset | None = None
) -> list[Any]:
    """A line where x is a number, bars for the intervals, and the model's mark on top."""
    places: dict[str, Any] = {"x": x} if offset is None else {"x": x, "xOffset": offset}
    base = alt.Chart().transform_filter("isValid(datum.value)").encode(color=colour(models), **places)
    layers = [base.mark_line(strokeWidth=1.6).encode(y=y)] if line else []
    layers.append(base.mark_rule(strokeWidth=1.4, opacity=0.6).encode(y=_renamed(y, "low"), y2="high:Q"))
    layers.append(base.mark_point(filled=True, size=52, opacity=1).encode(y=y, shape=shape(models), tooltip=tooltip()))
    return layers


def panelled(
    layers: Sequence[Any], points: Sequence[Point], panels: Sequence[str], says: str, height: int = 230
) -> dict[str, Any]:
    """The layers once for each panel; the page sets how many stand in a row from its width."""
    data = alt.InlineData(values=list(points))
    if len(panels) == 1:
        return dict(alt.layer(*layers, data=data).properties(height=height, description=says).to_dict())
    header = alt.Header(title=None)
    facet = alt.Facet("panel:N", sort=list(panels), header=header)
    chart = alt.layer(*layers, data=data).properties(height=height).facet(facet=facet, columns=len(panels), spacing=18)
    return dict(chart.resolve_axis(x="independent").properties(description=says).to_dict())


def by_ratio(places: Sequence[float]) -> bool:
    """Whether an axis over these places (in order) is logarithmic: where they double or lie far apart, never with 0.

    Places that double have their nearest neighbours at least twice as far apart, as a share of the axis, by ratio.
    """
    if len(places) < 3 or places[0] <= 0:
        return False
    steps = min(high - low for low, high in pairwise(places)) / (places[-1] - places[0])
    ratios = min(math.log(high / low) for low, high in pairwise(places)) / math.log(places[-1] / places[0])
    return places[-1] / places[0] > 20 or ratios > 2 * steps


def apart(x: float, places: Sequence[float], at: int, of: int, *, log: bool) -> float:
    """x moved a little, so that the marks of several models at one place can all be seen."""
    step = (at - (of - 1) / 2) * 0.018
    if log:
        return float(x * math.exp(step * math.log(places[-1] / places[0])))
    return x + step * ((places[-1] - places[0]) or 1.0)


def place_bins(deepest: int) -> list[tuple[str, int, int]]:
    """Places of a passage as (label, first, last): each of the first three, then ranges that double in width."""
    bins = [(str(at), at, at) for at in range(1, min(deepest, 3) + 1)]
    low, high = 4, 5
    while low <= deepest:
        high = min(high, deepest)
        bins.append((f"{low}–{high}" if high > low else str(low), low, high))
        low, high = high + 1, high * 2
    return bins


def written(value: float, main: MainMetric) -> str:
    """`97.5%` for a share, three digits or whole numbers for anything else."""
    return f"{100 * value:.1f}%" if main.share else _digits(value)


def interval(estimate: Estimate, main: MainMetric) -> str:
    """`[93.0, 99.1]`, in the unit of the value and with a space that does not break; empty without an interval."""
    if estimate.low is None or estimate.high is None:
        return ""
    if main.share:
        return f"[{100 * estimate.low:.1f},\u00a0{100 * estimate.high:.1f}]"
    return f"[{_digits(estimate.low)},\u00a0{_digits(estimate.high)}]"


def sizes(estimates: Sequence[Estimate]) -> str:
    """`120 samples`, `12 to 120 samples` where numbers differ, `20 samples of 9 answers` where each is asked often."""
    often = [round(e.n / e.samples, 1) if e.samples else 1.0 for e in estimates]
    answers = f" of {_range(often)} answers" if max(often, default=1.0) > 1 else ""
    return f"{_range([e.samples for e in estimates])} samples{answers}"


def _range(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:,.10g}" if low == high else f"{low:,.10g} to {high:,.10g}"


def numbers(estimate: Estimate) -> tuple[float | int | None, ...]:
    """The columns `NUMBERS` of a figure's table."""
    low, high = (None if edge is None else round(edge, 4) for edge in (estimate.low, estimate.high))
    return round(estimate.value, 4), low, high, estimate.n


def condition_column(panels: Sequence[str]) -> str:
    """What to call the column that says which panel a number is in."""
    return "condition" if any("=" in panel for panel in panels) else "retriever"


def _digits(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _by_model(models: Sequence[str], values: Sequence[str]) -> alt.Scale:
    return alt.Scale(domain=list(models), range=[values[at % len(values)] for at in range(len(models))])


def _renamed(channel: alt.Y, field: str) -> alt.Y:
    """The same axis and scale for another field of the datum."""
    copied = channel.copy(deep=False)
    copied["shorthand"] = f"{field}:Q"
    return copied
