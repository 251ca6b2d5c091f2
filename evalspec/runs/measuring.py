"""`measure:` as rows: what is still missing is timed, committed as it goes, and never taken from another run.

How fast a model was in an earlier run, under other company on the machine, says nothing of this one.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from evalspec.errors import BackendError
from evalspec.execute.backends.memory import release_memory
from evalspec.execute.measuring import Measured, measure
from evalspec.execute.meters import meters_of
from evalspec.execute.opening import close_backend, describe_device, open_backend, threads_for
from evalspec.execute.protocols import Engine
from evalspec.execute.subjects import subject_of
from evalspec.metrics.crossover import crossovers, verdict_rows
from evalspec.plan.measurements import MeasurePlan, Point
from evalspec.plan.price import state_bytes
from evalspec.runs.progress import Progress
from evalspec.runs.scoring import Row
from evalspec.store import RunWriter, Store

COMMIT_SECONDS = 2.0


def still_missing(plan: MeasurePlan, rows: Iterable[Mapping[str, Any]]) -> dict[Point, list[int]]:
    """The repeats of each point that the run's rows do not hold yet; those that failed are tried again."""
    done = {(r["kind"], r["length"], r["batch"], r["repeat"]) for r in rows
            if r["cell_id"] == plan.cell_id and r["error"] is None}  # fmt: skip
    found = {
        point: [n for n in range(plan.measure.repeats) if (point.kind, point.length, point.batch, n) not in done]
        for point in plan.points
    }
    return {point: repeats for point, repeats in found.items() if repeats}


def threads_of(plans: Sequence[MeasurePlan]) -> int:
    """CPU threads for all models of a spec alike, so that what is compared ran alike.

    BackendError for more than this machine has processors: what was timed would be how they wait for each other.
    """
    stated = [plan.measure.threads for plan in plans if plan.measure.threads]
    here = os.cpu_count()
    if stated and here and stated[0] > here:
        raise BackendError(f"`measure.threads: {stated[0]}`: this machine has {here} processor{'s' * (here != 1)}")
    return (
        stated[0]
        if stated
        else int(os.environ.get("OMP_NUM_THREADS") or threads_for(p.model for p in plans if p.points))
    )


def run_measurements(
    plan: MeasurePlan, missing: Mapping[Point, Sequence[int]], threads: int, writer: RunWriter, progress: Progress
) -> int:
    """Time what is missing of one model on so many CPU threads and commit it; returns how many timings were made."""
    name = plan.model.name
    for point, reason in plan.skipped.items():
        progress.say(f"{name}: not measured: {point.kind} at {point.length:,}: {reason}")
    skipped = [_row(plan, Measured(point, 0, error=reason), None) for point, reason in plan.skipped.items()]
    writer.commit({"measurements": skipped})
    if not missing:
        return 0
    count = sum(map(len, missing.values()))
    progress.say(f"{name}: measured alone, {len(missing)} points, {count} timings")
    gc.collect()
    release_memory()
    began = last = time.perf_counter()
    backend = open_backend(plan.model, alone=threads)
    timed, batch = 0, []
    try:
        subject = subject_of(backend)
        torch.set_num_threads(threads)  # after opening, which settles them by the model's size and starts numba's
        device = describe_device(plan.model.block.device)
        for found in measure(
            subject,
            meters_of(subject.gpus, elsewhere=isinstance(backend, Engine)),
            missing,
            vocabulary=len(plan.model.tokenizer.inner),
            new_tokens=plan.measure.new_tokens,
            warmup=plan.measure.warmup,
            seed=plan.measure.seed,
            longest=plan.model.max_length,
            say=lambda text: progress.say(f"{name}: {text}"),
        ):
            timed += found.error is None
            batch.append(_row(plan, found, device))
            if time.perf_counter() - last > COMMIT_SECONDS:
                writer.commit({"measurements": batch})
                batch, last = [], time.perf_counter()
    finally:
        close_backend(backend)
    writer.commit({"measurements": batch})
    progress.say(f"{name}: measured in {time.perf_counter() - began:.1f} s")
    return timed


def speed_verdicts(store: Store, run_id: str) -> list[Row]:
    """Rows of the table `verdicts`: from which length on which model is faster or smaller."""
    cells = {row["cell_id"]: row for row in store.rows("cells", run_id)}
    rows = [{**row, "label": model_label(cells[row["cell_id"]])} for row in store.rows("measurements", run_id)]
    return verdict_rows(crossovers(rows))


def model_label(cell: Mapping[str, Any]) -> str:
    """A model's name, with what the sweep changed about it."""
    params = {path.split(".", 2)[-1]: value for path, value in (cell["params"] or {}).items()}
    return ", ".join([cell["model"], *(f"{name} = {value}" for name, value in params.items())])


def _row(plan: MeasurePlan, found: Measured, device: str | None) -> Row:
    """A row of the table `measurements`."""
    point = found.point
    return {
        "cell_id": plan.cell_id,
        "kind": point.kind,
        "length": point.length,
        "batch": point.batch,
        "repeat": found.repeat,
        "seconds": found.seconds,
        "tokens": found.tokens,
        "peak_memory_bytes": found.peak_memory_bytes,
        "baseline_memory_bytes": found.baseline_memory_bytes,
        "energy_joules": found.energy_joules,
        "state_bytes": found.state_bytes,
        "predicted_state_bytes": state_bytes(plan.model, point.length),
        "device": device,
        "error": found.error,
    }
