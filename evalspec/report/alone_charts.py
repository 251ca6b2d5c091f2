"""Figures of each model running alone: prefill, decoding, state, throughput, memory. Intervals are of medians.

Axes are logarithmic where the values span more than a factor of eight: a straight line then is a power of the length,
and the slope its exponent (attention's prefill bends upwards, a scan's does not).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from evalspec.metrics.crossover import Median
from evalspec.report.alone import Alone
from evalspec.report.marks import NUMBER_FORMAT, Figure, Point, colour, panelled, shape
from evalspec.report.units import in_bytes, in_seconds

LENGTH = "context, tokens"
MANY = 8.0
BYTES = "!datum.value ? '0' : datum.value >= 1e9 ? format(datum.value / 1e9, '~r') + ' GB' : datum.value >= 1e6 ? format(datum.value / 1e6, '~r') + ' MB' : format(datum.value / 1e3, '~r') + ' kB'"  # noqa: E501
SECONDS = "!datum.value ? '0' : datum.value >= 1 ? format(datum.value, '~r') + ' s' : datum.value >= 1e-3 ? format(datum.value * 1e3, '~r') + ' ms' : format(datum.value * 1e6, '~r') + ' µs'"  # noqa: E501

Series = Mapping[str, Mapping[int, Median]]


def alone_figures(alone: Alone) -> list[Figure]:
    """The figures that the measurements give, in the order of a reader's questions."""
    drawn = [_prefill(alone), _decode(alone), _state(alone), _memory(alone), _throughput(alone)]
    return [figure for figure in drawn if figure is not None]


def _prefill(alone: Alone) -> Figure | None:
    series = alone.series("prefill")
    rows = [
        (label, length, *_rounded(m), round(length / m.value), m.n)
        for label, of in series.items()
        for length, m in of.items()
    ]
    return _figure(
        alone, series, "prefill", "Prefill: time to the first new token",
        f"One sequence fed from its beginning, up to the prediction of its first new token. {_of(alone)}",
        ("model", "length", "seconds", "low", "high", "tokens/s", "repeats"), rows, SECONDS,
    )  # fmt: skip


def _decode(alone: Alone) -> Figure | None:
    series = alone.series("decode")
    rows = [(label, length, *_rounded(m), m.n) for label, of in series.items() for length, m in of.items()]
    return _figure(
        alone, series, "decode", "Decoding: time for one new token",
        f"Mean over the new tokens of one sequence, after a context of this length. {_of(alone)}",
        ("model", "length", "seconds a token", "low", "high", "repeats"), rows, SECONDS,
    )  # fmt: skip


def _state(alone: Alone) -> Figure | None:
    series = alone.series("state")
    predicted = {
        (row["label"], row["length"]): row["predicted_state_bytes"]
        for row in alone.rows
        if row["predicted_state_bytes"]
    }
    rows = [
        (label, length, round(m.value), predicted.get((label, length)))
        for label, of in series.items()
        for length, m in of.items()
    ]
    line = [
        {"model": label, "x": length, "predicted": float(value)}
        for (label, length), value in sorted(predicted.items())
        if label in series
    ]
    return _figure(
        alone, series, "alone-state", "State or KV cache of one sequence",
        "Marks: bytes that the state was seen to hold, the last hidden vector included. Dashed: the architecture's "
        "formula. Bytes do not vary between repeats.",
        ("model", "length", "bytes measured", "bytes predicted"), rows, BYTES, dashed=line,
    )  # fmt: skip


def _memory(alone: Alone) -> Figure | None:
    added: dict[str, dict[int, list[int]]] = {}
    for row in alone.rows:
        if row["kind"] == "prefill" and row["peak_memory_bytes"] and row["baseline_memory_bytes"]:
            of = added.setdefault(row["label"], {})
            of.setdefault(row["length"], []).append(row["peak_memory_bytes"] - row["baseline_memory_bytes"])
    series = {
        label: {n: Median(max(v), max(v), max(v), len(v), 1.0) for n, v in of.items() if max(v) > 0}
        for label, of in added.items()
    }
    rows = [(label, length, round(m.value)) for label, of in series.items() for length, m in of.items()]
    where = "the process" if any(device.startswith("CPU") for device in alone.devices) else "the GPU"
    return _figure(
        alone, series, "alone-memory", "Memory that prefill adds at its peak",
        f"Most memory of {where} while one sequence is fed, less what was in use before (the weights): activations and "
        "state. The largest over the repeats.",
        ("model", "length", "bytes"), rows, BYTES,
    )  # fmt: skip


def _throughput(alone: Alone) -> Figure | None:
    found = alone.throughput()
    if not found:
        return None
    lengths = list(dict.fromkeys(length for length, _ in found))
    panels = [f"{length:,} tokens of context" for length in lengths]
    points: list[Point] = []
    rows = []
    for (length, label), of in found.items():
        for batch, m in of.items():
            said = f"{m.value:,.0f} tokens/s [{m.low:,.0f}, {m.high:,.0f}]"
            points.append(_point(label, batch, m, said) | {"panel": f"{length:,} tokens of context"})
            rows.append((label, length, batch, round(m.value, 1), round(m.low, 1), round(m.high, 1), m.n))
    y = alt.Y("value:Q", title="new tokens a second", scale=_scale(points), axis=_axis(points, format=NUMBER_FORMAT))
    layers = _layers(alone.labels, _x(points, "sequences at a time"), y)
    return Figure(
        "throughput",
        "Throughput: new tokens a second, from prompts to finished answers",
        f"All sequences of a batch have prompts of this length; their prefill counts. {_of(alone)}",
        panelled(layers, points, panels, "tokens a second against batch size for each model"),
        len(panels),
        ("model", "length", "batch", "tokens/s", "low", "high", "repeats"),
        tuple(rows),
    )


def _figure(
    alone: Alone,
    series: Series,
    name: str,
    title: str,
    caption: str,
    columns: tuple[str, ...],
    rows: Sequence[tuple[Any, ...]],
    labels: str,
    *,
    dashed: Sequence[Point] = (),
) -> Figure | None:
    """Medians against the length, half a page wide; None without any."""
    text = in_bytes if labels == BYTES else in_seconds
    points = [
        _point(
            label, length, m, f"{text(m.value)} [{text(m.low)}, {text(m.high)}]" if m.low < m.high else text(m.value)
        )
        for label, of in series.items()
        for length, m in of.items()
    ]
    if not points:
        return None
    models = [label for label in alone.labels if label in series]
    y = alt.Y("value:Q", title=None, scale=_scale(points), axis=_axis(points, labelExpr=labels))
    x = _x(points, LENGTH)
    layers = _layers(models, x, y, line=not dashed)
    if dashed:
        line = alt.Chart().transform_filter("isValid(datum.predicted)").mark_line(strokeDash=[5, 3], strokeWidth=1.4)
        layers.insert(0, line.encode(x=x, color=colour(models), y=_named(y, "predicted")))
    drawn = panelled(layers, [*points, *dashed], [title], f"{title}, for each model against the context's length")
    return Figure(name, title, caption, drawn, 1, columns, tuple(rows), half=True)


def _layers(models: Sequence[str], x: alt.X, y: alt.Y, *, line: bool = True) -> list[Any]:
    """A line, bars for the intervals and the model's mark."""
    base = alt.Chart().transform_filter("isValid(datum.value)").encode(color=colour(models), x=x)
    tips = [alt.Tooltip("model:N"), alt.Tooltip("x:Q", title="at", format=","), alt.Tooltip("said:N", title="median")]
    layers = [base.mark_line(strokeWidth=1.6).encode(y=y)] if line else []
    layers.append(base.mark_rule(strokeWidth=1.4, opacity=0.6).encode(y=_named(y, "low"), y2="high:Q"))
    layers.append(base.mark_point(filled=True, size=52, opacity=1).encode(y=y, shape=shape(models), tooltip=tips))
    return layers


def _point(label: str, x: int, m: Median, said: str) -> Point:
    return {"model": label, "x": x, "value": m.value, "low": m.low, "high": m.high, "said": said}


def _x(points: Sequence[Point], title: str) -> alt.X:
    places = sorted({point["x"] for point in points})
    scale = alt.Scale(nice=False, padding=14, **({"type": "log"} if len(places) > 1 else {"zero": False}))
    axis = alt.Axis(values=places, grid=False, format=",", labelOverlap="parity")
    return alt.X("x:Q", title=title, scale=scale, axis=axis)


def _scale(points: Sequence[Point]) -> alt.Scale:
    if _logarithmic(points):
        return alt.Scale(type="log", nice=False, padding=10)
    return alt.Scale(zero=True)


def _axis(points: Sequence[Point], **how: Any) -> alt.Axis:
    """Ticks at 1, 2 and 5 of each decade of a logarithmic axis, at 1 alone where there are many decades."""
    low, high = min(point["low"] for point in points), max(point["high"] for point in points)
    if not _logarithmic(points):
        return alt.Axis(tickCount=5, **how)
    steps = (1, 2, 5) if high < 1000 * low else (1,)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return alt.Axis(values=[step * 10.0**decade for decade in decades for step in steps], **how)


def _logarithmic(points: Sequence[Point]) -> bool:
    values = [point["value"] for point in points]
    return bool(max(values) > MANY * min(values))


def _named(channel: alt.Y, field: str) -> alt.Y:
    copied = channel.copy(deep=False)
    copied["shorthand"] = f"{field}:Q"
    return copied


def _rounded(m: Median) -> tuple[float, ...]:
    return tuple(float(f"{value:.4g}") for value in (m.value, m.low, m.high))


def _of(alone: Alone) -> str:
    if alone.repeats == "1":
        return "One timing of each point, which tells no spread."
    return f"Medians of {alone.repeats} repeats; bars are {interval_words(alone)}."


def interval_words(alone: Alone) -> str:
    """What the intervals are: 95 %, or less where there were too few repeats."""
    if alone.level >= 0.95:
        return "95% intervals of the median"
    return f"from the least to the greatest repeat, which encloses the true median with a chance of {alone.level:.1%}"
