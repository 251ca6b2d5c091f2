"""What a run cost, a model at a time: tokens with and without sharing, seconds, bytes of state.

These figures say what this run cost. They compare no speeds: shared work is split among the cells that use it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import altair as alt

from evalspec.report.marks import Figure, Point, colour, panelled
from evalspec.report.results import Results
from evalspec.report.units import in_bytes

KINDS = (
    ("prompt tokens", "prompt_tokens"),
    ("distinct tokens", "distinct_tokens"),
    ("computed tokens", "computed_tokens"),
)


@dataclass(frozen=True)
class ModelCost:
    """Sums over a model's cells; peaks for bytes."""

    model: str
    cells: int
    prompt_tokens: int
    distinct_tokens: int
    computed_tokens: int
    output_tokens: int
    seconds: float
    peak_memory_bytes: int | None
    state_bytes: int | None

    @property
    def sharing(self) -> float | None:
        """How many times fewer tokens are distinct than prompts hold; None if nothing was distinct."""
        return self.prompt_tokens / self.distinct_tokens if self.distinct_tokens else None

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens fed and generated a second; None where nothing was computed."""
        fed = self.computed_tokens + self.output_tokens
        return fed / self.seconds if self.seconds and self.computed_tokens else None


def model_costs(results: Results) -> list[ModelCost]:
    """The cost of each model, in the order of the spec."""
    cells = {cell.cell_id: cell.model for cell in results.cells}
    summed = []
    for model in results.models:
        of_model = [cost for cost in results.costs if cells.get(cost.cell_id) == model]
        if not of_model:
            continue
        peaks = [cost.peak_memory_bytes for cost in of_model if cost.peak_memory_bytes is not None]
        states = [cost.state_bytes for cost in of_model if cost.state_bytes is not None]
        summed.append(
            ModelCost(
                model,
                len(of_model),
                sum(cost.prompt_tokens for cost in of_model),
                round(sum(cost.distinct_tokens for cost in of_model)),
                round(sum(cost.computed_tokens for cost in of_model)),
                sum(cost.output_tokens for cost in of_model),
                sum(cost.seconds for cost in of_model),
                max(peaks, default=None),
                max(states, default=None),
            )
        )
    return summed


def cost_figures(results: Results) -> list[Figure]:
    """Tokens, seconds and state, where the run recorded them."""
    costs = model_costs(results)
    if not costs:
        return []
    figures = [_tokens(costs)]
    if any(cost.seconds for cost in costs):
        seconds = [
            (
                c.model,
                c.seconds,
                f"{c.seconds:,.1f} s" + (f", {c.tokens_per_second:,.0f} tokens/s" if c.tokens_per_second else ""),
            )
            for c in costs
        ]
        says = "Time in the backend for all cells of a model; what this run cost, not a comparison of speeds."
        figures.append(_bars("seconds", "Seconds of this run", says, "seconds", seconds))
    states = [(c.model, float(c.state_bytes), in_bytes(c.state_bytes)) for c in costs if c.state_bytes]
    if states:
        says = "Bytes that one sequence's state (or KV cache, at its longest) takes, the largest of the model's cells."
        figures.append(_bars("state", "State of one sequence", says, "bytes", states))
    return figures


def _tokens(costs: Sequence[ModelCost]) -> Figure:
    kinds = [label for label, _ in KINDS]
    points: list[Point] = [
        {"panel": c.model, "model": c.model, "kind": label, "tokens": getattr(c, name), "said": f"{getattr(c, name):,}"}
        for c in costs
        for label, name in KINDS
    ]
    models = [c.model for c in costs]
    most = max(p["tokens"] for p in points) or 1
    x = alt.X("tokens:Q", axis=None, scale=alt.Scale(domain=[0, 1.4 * most], nice=False))
    y = alt.Y("kind:N", sort=kinds, title=None, axis=alt.Axis(ticks=False, domain=False))
    base = alt.Chart().encode(x=x, y=y)
    shades = dict(zip(kinds, (0.35, 0.65, 1.0), strict=True))
    points = [p | {"shade": shades[p["kind"]]} for p in points]
    opacity = alt.Opacity("shade:Q", scale=None, legend=None)
    layers = [
        base.mark_bar(height=16).encode(color=colour(models, legend=False), opacity=opacity),
        base.mark_text(align="left", dx=4, color="#333", fontSize=12).encode(text="said:N"),
    ]
    shared = ", ".join(f"{c.sharing:.1f} times for {c.model}" for c in costs if c.sharing)
    return Figure(
        "tokens",
        "Tokens: asked, distinct, computed",
        "Prompt tokens are what a harness without sharing would feed, distinct tokens what must be fed once, computed "
        f"tokens what this run fed (none for reused results). Sharing: {shared or 'none'}. "
        "Sums over all cells, no interval.",
        panelled(layers, points, models, "tokens of each model", height=78),
        len(models),
        ("model", *kinds, "sharing"),
        tuple(
            (c.model, c.prompt_tokens, c.distinct_tokens, c.computed_tokens, c.sharing and round(c.sharing, 2))
            for c in costs
        ),
    )


def _bars(name: str, title: str, says: str, unit: str, values: Sequence[tuple[str, float, str]]) -> Figure:
    """One bar a model with its value written beside it."""
    models = [model for model, _, _ in values]
    points = [{"model": model, "value": value, "said": said} for model, value, said in values]
    most = max(value for _, value, _ in values)
    x = alt.X("value:Q", axis=None, scale=alt.Scale(domain=[0, 1.6 * most], nice=False))
    y = alt.Y("model:N", sort=models, title=None, axis=alt.Axis(ticks=False, domain=False))
    base = alt.Chart(alt.InlineData(values=points)).encode(x=x, y=y)
    chart = alt.layer(
        base.mark_bar(height=16).encode(color=colour(models, legend=False)),
        base.mark_text(align="left", dx=4, color="#333", fontSize=12).encode(text="said:N"),
    ).properties(height=28 * len(values), description=title)
    return Figure(name, title, f"{says} Totals, no interval.", chart.to_dict(), 1, ("model", unit),
                  tuple((model, round(value, 3)) for model, value, _ in values), half=True)  # fmt: skip
