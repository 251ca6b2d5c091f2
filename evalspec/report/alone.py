"""What the table `measurements` says of each model running alone, as values and as sentences.

A sentence says that one model is faster, or keeps less, only where the intervals of their medians do not overlap, and
"from a length on" only where that holds at every longer length measured; see `evalspec.metrics.crossover`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evalspec.metrics.crossover import (
    LEAST_LEVEL,
    Crossover,
    Median,
    Quantity,
    crossovers,
    median_interval,
    series_of,
)
from evalspec.metrics.overhead import overheads
from evalspec.report.units import in_seconds

QUERY = """SELECT measurements.*, cells.model, cells.params FROM measurements JOIN cells USING (run_id, cell_id)
WHERE run_id = $run ORDER BY cell_id, kind, length, batch, repeat"""

TITLES: Mapping[Quantity, str] = {"prefill": "Prefill", "decode": "Decoding", "state": "State"}
SAYS: Mapping[Quantity, str] = {"prefill": "is faster", "decode": "is faster", "state": "keeps fewer bytes"}
MOST_MODELS = 4
"""With more models each is compared with the first alone: all pairs would be a page of sentences."""


@dataclass(frozen=True)
class Alone:
    """The measurements of a run. `labels` are its models in the spec's order, with what the sweep changed in them."""

    labels: tuple[str, ...]
    rows: tuple[Mapping[str, Any], ...]
    """Rows of `measurements` that have seconds, each with its `label`."""
    missing: tuple[tuple[str, str, str], ...]
    """(model, what, why) of what could not be measured."""

    @property
    def devices(self) -> tuple[str, ...]:
        """What computed."""
        return tuple(sorted({row["device"] for row in self.rows}))

    @property
    def level(self) -> float:
        """The least chance with which an interval covers its median."""
        found = [median.level for quantity in TITLES for of in self.series(quantity).values() for median in of.values()]
        return min(found, default=0.0)

    @property
    def repeats(self) -> str:
        """`6`, or `4 to 6` in a run that was cut off; `no` where nothing could be measured."""
        counts: dict[tuple[Any, ...], int] = {}
        for row in self.rows:
            key = (row["label"], row["kind"], row["length"], row["batch"])
            counts[key] = counts.get(key, 0) + 1
        found = sorted(set(counts.values()))
        if not found:
            return "no"
        return f"{found[0]}" if len(found) == 1 else f"{found[0]} to {found[-1]}"

    def series(self, quantity: Quantity) -> dict[str, dict[int, Median]]:
        """Model → length → median of one sequence alone."""
        found = series_of(self.rows, quantity)
        return {label: found[label] for label in self.labels if label in found}

    def throughput(self) -> dict[tuple[int, str], dict[int, Median]]:
        """(length, model) → batch → new tokens a second, from prompts to finished answers."""
        values: dict[tuple[int, str], dict[int, list[float]]] = {}
        for row in self.rows:
            if row["kind"] == "throughput":
                of = values.setdefault((row["length"], row["label"]), {})
                of.setdefault(row["batch"], []).append(row["tokens"] / row["seconds"])
        place = {label: at for at, label in enumerate(self.labels)}
        ordered = sorted(values.items(), key=lambda item: (item[0][0], place[item[0][1]]))
        return {key: {batch: median_interval(v) for batch, v in sorted(of.items())} for key, of in ordered}


def alone_of(rows: Sequence[Mapping[str, Any]], labels: Mapping[str, str], order: Sequence[str]) -> Alone | None:
    """The measurements of a run; None if there are none.

    Args: rows of `QUERY` · labels, a cell's id → what its model is called · order, the models as the spec lists them.
    """
    if not rows:
        return None
    known = {model: at for at, model in enumerate(order)}
    cells = {row["cell_id"]: row["model"] for row in rows}
    ordered = sorted(cells, key=lambda cell: (known.get(cells[cell], len(known)), labels[cell]))
    place = {cell: at for at, cell in enumerate(ordered)}
    timed = tuple(
        {**row, "label": labels[row["cell_id"]]}
        for row in sorted(rows, key=lambda row: place[row["cell_id"]])
        if row["seconds"] is not None
    )
    reasons: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["seconds"] is None:
            reasons.setdefault((labels[row["cell_id"]], row["error"] or "no reason is stored"), []).append(row)
    missing = [
        (label, ", ".join(dict.fromkeys(_what(row) for row in of)), reason) for (label, reason), of in reasons.items()
    ]
    return Alone(tuple(dict.fromkeys(labels[cell] for cell in ordered)), timed, tuple(missing))


def _what(row: Mapping[str, Any]) -> str:
    batch = f", batch {row['batch']}" if row["batch"] > 1 else ""
    return f"{row['kind']} at {row['length']:,} tokens{batch}"


def sentences(alone: Alone) -> list[str]:
    """What the measurements say about each pair of models: prefill, decoding, state; then throughput."""
    found = crossovers(alone.rows)
    if len(alone.labels) > MOST_MODELS:
        found = [one for one in found if alone.labels[0] in one.pair]
    said = []
    for quantity, title in TITLES.items():
        series = alone.series(quantity)
        parts = [_compared(one, series) for one in found if one.quantity == quantity]
        if parts:
            said.append(
                f"{title}: {'. '.join(part[0].upper() + part[1:] if at else part for at, part in enumerate(parts))}."
            )
        elif len(series) > 1 and quantity != "state":
            said.append(f"{title}: the models ran on different devices, so their times are not compared.")
    return said + _throughput_said(alone) + _launching_said(alone)


def _compared(one: Crossover, series: Mapping[str, Mapping[int, Median]]) -> str:
    """One pair: from which length on, until where it was the other way round, and by how much at the longest."""
    a, b = one.pair
    longest = one.lengths[-1]
    if one.ahead is None or one.behind is None or one.start is None:
        if one.quantity == "state":
            return f"{a} and {b} keep as many bytes at {longest:,} tokens"
        few = min(series[name][longest].level for name in one.pair) < LEAST_LEVEL
        why = "too few repeats for an interval" if few else "their intervals overlap"
        return f"at {longest:,} tokens, the longest measured, {a} and {b} are not separated ({why})"
    times = series[one.behind][longest].value / series[one.ahead][longest].value
    said = f"{one.ahead} {SAYS[one.quantity]} than {one.behind}"
    if one.start == longest:
        said = f"at {longest:,} tokens{', the longest,' if len(one.lengths) > 1 else ''} {said} ({times:.3g} times)"
    elif one.start == one.lengths[0]:
        said = (
            f"at all {len(one.lengths)} lengths from {one.start:,} tokens on, {said} ({times:.3g} times at {longest:,})"
        )
    else:
        said = f"from {one.start:,} tokens on, {said} ({times:.3g} times at {longest:,})"
    if one.until is not None:
        still = SAYS[one.quantity].replace("is", "is still").replace("keeps", "still keeps")
        return f"{said}; {one.behind} {still} at {one.until:,}"
    below = [length for length in one.lengths if length < one.start]
    return f"{said}; at {below[-1]:,} their intervals overlap" if below else said


def _launching_said(alone: Alone) -> list[str]:
    """Which of these times are no property of a model's architecture."""
    said = []
    for one in overheads(alone.rows):
        longest, shortest = in_seconds(one.at_longest.value), in_seconds(one.at_shortest.value)
        step = f", and a decoding step takes {in_seconds(one.step.value)}" if one.step else ""
        said.append(f"{one.label} reads {one.longest:,} tokens in {longest} and {one.shortest:,} in {shortest}{step}")
    if not said:
        return []
    return [f"Not the architecture: {'; '.join(said)}. So long it takes to launch its operations one by one."]


def _throughput_said(alone: Alone) -> list[str]:
    """New tokens a second at the largest batch that all models were measured at."""
    found = alone.throughput()
    said = []
    for length in dict.fromkeys(length for length, _ in found):
        of = {label: batches for (at, label), batches in found.items() if at == length}
        common = set.intersection(*(set(batches) for batches in of.values()))
        if common and (length == max(at for at, _ in found)):
            batch = max(common)
            parts = [f"{label} {_digits(of[label][batch])}" for label in of]
            size = "one sequence" if batch == 1 else f"{batch} sequences"
            said.append(f"Throughput: {size} of {length:,} tokens at a time, new tokens a second: {', '.join(parts)}.")
    return said


def _digits(median: Median) -> str:
    return f"{median.value:,.0f} [{median.low:,.0f},\u00a0{median.high:,.0f}]"
