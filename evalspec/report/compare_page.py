"""The page of a comparison: a forest plot of paired differences with their intervals, and the table behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import altair as alt

from evalspec.report.comparisons import Comparison
from evalspec.report.data import read_run
from evalspec.report.differences import RunDifferences
from evalspec.report.marks import Figure, style
from evalspec.report.page import assets, environment, file_name, write_page
from evalspec.report.units import p_text
from evalspec.report.wording import plain, reading, signed, size, verdict_words

if TYPE_CHECKING:
    import duckdb

COLOURS = {"A is better": "#0072B2", "B is better": "#D55E00", "undecided": "#8a8a8a"}
NUMBERS = ("A is", "B is", "A − B, 95% interval", "verdict", "p (Holm)", "p", "n")
"""Columns of the table after the condition and the models."""
MOST = 20
"""Keys of the specs that differ and are shown before the reader asks for all of them."""


@dataclass(frozen=True)
class Shown:
    """A cell of the table: its text, what it is sorted by where that is a number, and the interval after it."""

    text: str
    is_number: bool = False
    order: str | None = None
    interval: str = ""


def render_comparison(
    connection: duckdb.DuckDBPyConnection,
    run_id: str,
    other: str | None,
    comparisons: Sequence[Comparison],
    folder: Path,
    *,
    said: Sequence[str] = (),
    differences: RunDifferences | None = None,
) -> Path:
    """Write `<folder>/compare-<spec>-<run>[-<other>].html` and return its path. StoreError if there is no such run.

    `said` stands before the reading; `differences` is what the two runs differ in.
    """
    runs = [read_run(connection, name) for name in (run_id, other) if name]
    families = list(dict.fromkeys(c.family for c in comparisons))
    members = [[c for c in comparisons if c.family == family] for family in families]
    figures = [forest_plot(of_one, number) for number, of_one in enumerate(members)]
    page = (
        environment()
        .get_template("compare.html.jinja")
        .render(
            **assets("charts.js", vega=True),
            runs=runs,
            links=[name if (folder / (name := file_name(run))).is_file() else None for run in runs],
            said=said,
            sentences=reading(comparisons),
            differences=differences,
            most=MOST,
            figures=list(zip(figures, map(table_of, members), strict=True)),
            chart_style=style(),
            charts={figure.name: {"spec": figure.vega_lite, "panels": 1} for figure in figures},
        )
    )
    name = "-".join(["compare", file_name(runs[0]).removesuffix(".html"), *([other] if other else [])])
    return write_page(folder / f"{name}.html", page)


def forest_plot(comparisons: Sequence[Comparison], number: int) -> Figure:
    """Differences A − B of one family as dots with intervals, a line a comparison, around the line of no difference."""
    family = comparisons[0].family
    higher = family.measured.declaration.higher_is_better
    several = len({(c.model_a, c.model_b, c.run_b) for c in comparisons}) > 1
    points = []
    for c in comparisons:
        if c.pair.difference is None:
            continue
        pair = f"{c.model_a} − {c.model_b}" if c.model_a != c.model_b else f"{c.model_a}, A − B"
        verdict = {"supported": "A is better", "refuted": "B is better"}.get(c.verdict.word, "undecided")
        low, high = ((c.pair.difference if end is None else end) for end in (c.pair.ci_low, c.pair.ci_high))
        points.append(
            {"pair": pair, "condition": c.condition.label, "value": c.pair.difference, "low": low, "high": high,
             "verdict": verdict, "said": f"{signed(c.pair.difference)} [{signed(low)}, {signed(high)}]",
             "why": verdict_words(c), "n": c.pair.n}
        )  # fmt: skip
    labels = list(dict.fromkeys(c.condition.label for c in comparisons))
    pairs = list(dict.fromkeys(point["pair"] for point in points))
    better = "right" if higher else "left"
    title = f"difference in {family.metric.replace('_', ' ')} (A is better to the {better})"
    x = alt.X("value:Q", title=title, axis=alt.Axis(tickCount=8, format="+.2~f"))
    y = alt.Y(
        "condition:N",
        sort=labels,
        title=None,
        axis=alt.Axis(labelLimit=260, labelPadding=10, ticks=False, domain=False),
    )
    colour = alt.Color(
        "verdict:N",
        title=None,
        scale=alt.Scale(domain=list(COLOURS), range=list(COLOURS.values())),
        legend=alt.Legend(orient="top", direction="horizontal", symbolOpacity=1),
    )
    tips = [alt.Tooltip(f"{name}:N") for name in ("pair", "condition")]
    tips += [alt.Tooltip("said:N", title="difference"), alt.Tooltip("why:N", title="verdict"), alt.Tooltip("n:Q")]
    base = alt.Chart().encode(y=y, color=colour)
    if several:
        base = base.encode(yOffset=alt.YOffset("pair:N", sort=pairs))
    shape = alt.Shape("pair:N", sort=pairs, title=None, legend=alt.Legend(orient="top") if several else None)
    zero = alt.Chart(alt.InlineData(values=[{"zero": 0}])).mark_rule(color="#222", strokeWidth=1).encode(x="zero:Q")
    layers = alt.layer(
        zero,
        base.mark_rule(strokeWidth=1.6, opacity=0.75).encode(x=alt.X("low:Q", title=title), x2="high:Q"),
        base.mark_point(filled=True, size=58, opacity=1).encode(x=x, shape=shape, tooltip=tips),
        data=alt.InlineData(values=points),
    )
    height = max(60, (10 + 15 * max(1, len(pairs))) * len(labels))
    chart = layers.properties(height=height, description=f"paired differences in {family.metric}")
    return Figure(
        f"differences-{number}",
        f"{family.task}: {family.label.replace('_', ' ')}",
        f"{len(comparisons)} paired comparisons on the same samples; bars are 95% intervals of the difference, "
        "not corrected for their number; colours are the verdicts, which are (Holm).",
        chart.to_dict(),
        1,
        (),
        (),
    )


def table_of(comparisons: Sequence[Comparison]) -> tuple[tuple[str, ...], list[list[Shown]]]:
    """The head and the rows of one family's table. Of one model in two runs the name stands once."""
    same = all(c.model_a == c.model_b for c in comparisons)
    rows = []
    for c in comparisons:
        pair = c.pair
        between = "" if pair.ci_low is None else f"[{signed(pair.ci_low)}, {signed(pair.ci_high)}]"
        models = [Shown(c.model_a)] if same else [Shown(c.model_a), Shown(c.model_b)]
        rows.append(
            [Shown(c.condition.label), *models, _number(plain(pair.a.value), pair.a.value),
             _number(plain(pair.b.value), pair.b.value), _number(signed(pair.difference), pair.difference, between),
             Shown(verdict_words(c)), _number(p_text(c.p_holm), c.p_holm), _number(p_text(pair.p_value), pair.p_value),
             _number(size(c), pair.n)]
        )  # fmt: skip
    return ("condition", *(("model",) if same else ("A", "B")), *NUMBERS), rows


def _number(text: str, value: float | None, interval: str = "") -> Shown:
    return Shown(text or "–", True, None if value is None else f"{value:.17g}", interval)
