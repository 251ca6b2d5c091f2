"""The price of a plan before a GPU is touched: tokens, sharing, memory, operations, and a guess of seconds.

Tokens and bytes are exact. Seconds are the operations over the rate at which this machine multiplies matrices (measured
in a fraction of a second), times the share of it that evaluation was seen to reach: an estimate, and named so.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from evalspec.models.card import NATIVE_TYPES, Model
from evalspec.plan.compile import ModelPlan, Plan
from evalspec.plan.forest import alone, tokens_before
from evalspec.plan.measurements import MeasurePlan
from evalspec.plan.notes import notes_of
from evalspec.plan.spread import spread_of
from evalspec.plan.stages import Bound, bounds
from evalspec.spec.conditions import Conditions
from evalspec.tabular import bytes_text, table

DTYPE_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
SHARE_OF_RATE = 0.25
"""Share of the matrix rate that small models reach on a CPU; larger ones reach more."""


@dataclass(frozen=True)
class Price:
    """What one model will cost. Bytes are for one sequence as long as the longest."""

    model: str
    backend: str
    cells: int
    samples: int
    requests: int
    prompt_tokens: int
    distinct_tokens: int
    computed_tokens: int
    """Prompt tokens that will be fed: the distinct ones, or each request's where the backend cannot fork the model."""
    fed_again: str | None
    """Why it cannot."""
    sharing: float
    longest: int
    trained_length: int | None
    truncated: int
    parameters: int | None
    state_bytes: int | None
    kv_bytes: int | None
    flops: int | None
    seconds: float | None
    memory_bytes: int | None
    fits: bool | None


@dataclass(frozen=True)
class Machine:
    """Where the plan would run: operations a second of a matrix product, bytes of free memory, default precision."""

    flops_per_second: float
    free_bytes: int
    dtype: str


@cache
def machine(device: str) -> Machine:
    """Measure the device that a model block names: a GPU through torch where a driver is there, else the CPU."""
    if device != "cpu" and any(Path(path).exists() for path in ("/dev/nvidiactl", "/dev/kfd")):
        import torch

        if torch.cuda.is_available():
            a = torch.randn(4096, 4096, device="cuda", dtype=torch.bfloat16)
            times = []
            for _ in range(4):
                torch.cuda.synchronize()
                began = time.perf_counter()
                a @ a
                torch.cuda.synchronize()
                times.append(time.perf_counter() - began)
            return Machine(2 * 4096**3 / min(times), torch.cuda.mem_get_info()[0], "bfloat16")
    import psutil

    b = np.random.default_rng(0).standard_normal((768, 768), dtype=np.float32)
    times = []
    for _ in range(5):
        began = time.perf_counter()
        b @ b
        times.append(time.perf_counter() - began)
    return Machine(2 * 768**3 / min(times), int(psutil.virtual_memory().available), "float32")


def state_bytes(model: Model, length: int) -> int | None:
    """Bytes of the state (KV cache included) of one sequence of `length` tokens; None for unknown architectures."""
    if model.cost is None:
        return None
    return model.cost.state_bytes(length, DTYPE_BYTES[_dtype(model)], DTYPE_BYTES[model.block.state_dtype])


def _dtype(model: Model) -> str:
    return model.block.dtype if model.block.dtype != "auto" else machine(model.block.device).dtype


def price_of(part: ModelPlan) -> Price:
    """The price of one model's part of a plan."""
    model, forest = part.model, part.forest
    fed = alone(forest) if model.fed_again else forest
    prompt_tokens = sum(sample.prompt_tokens for sample in part.samples)
    longest = max((len(request.tokens) for request in forest.requests), default=0)
    new_tokens = [request.decoding.max_tokens for request in forest.requests if request.decoding]
    cost = model.cost
    flops = kv = parameters = memory = None
    if cost is not None:
        scored = sum(len(request.targets) for request in forest.requests)
        contexts = [len(request.tokens) for request in forest.requests if request.decoding]
        flops = cost.flops(fed.length, tokens_before(fed), scored=scored)
        # The first new token is predicted by the prompt's last position, and the last one is never fed.
        flops += cost.decode_flops(np.asarray(new_tokens) - 1, contexts) if new_tokens else 0
        dtype = DTYPE_BYTES[_dtype(model)]
        kv, parameters = cost.kv_bytes(longest + max(new_tokens, default=0), dtype), cost.parameters
        memory = parameters * dtype + 2 * (state_bytes(model, longest + max(new_tokens, default=0)) or 0)
    return Price(
        model=model.name,
        backend=model.backend,
        cells=len(part.cells),
        samples=len(part.samples),
        requests=sum(len(sample.requests) for sample in part.samples),
        prompt_tokens=prompt_tokens,
        distinct_tokens=forest.distinct_tokens,
        computed_tokens=fed.distinct_tokens,
        fed_again=model.fed_again,
        sharing=prompt_tokens / max(1, forest.distinct_tokens),
        longest=longest,
        trained_length=model.trained_length,
        truncated=sum(sample.truncated_tokens > 0 for sample in part.samples),
        parameters=parameters,
        state_bytes=state_bytes(model, longest + max(new_tokens, default=0)),
        kv_bytes=kv,
        flops=flops,
        seconds=_seconds(model, flops),
        memory_bytes=memory,
        fits=memory < machine(model.block.device).free_bytes if memory is not None else None,
    )


def plan_json(plan: Plan, workers: int | None = None) -> dict[str, Any]:
    """The plan for machines: the contract's keys. Models are priced without later stages, which depend on answers:
    `cells[].stages` has the most that they can come to. `workers` adds what so many of them come to."""
    counted: dict[str, tuple[int, int]] = {}
    later = [bound for part in plan.models for bound in bounds(part)]
    for part in plan.models:
        for sample in part.samples:
            samples, requests = counted.get(sample.cell.cell_id, (0, 0))
            counted[sample.cell.cell_id] = (samples + 1, requests + len(sample.requests))
    return {
        "plan_id": plan.plan_id,
        "spec": plan.loaded.spec.name,
        "cells": [
            {
                "cell_id": cell.cell_id,
                "model": cell.model_name,
                "task": cell.task_name,
                "params": dict(cell.params),
                "samples": counted.get(cell.cell_id, (0, 0))[0],
                "requests": counted.get(cell.cell_id, (0, 0))[1],
                "stages": [
                    {
                        "stage": bound.stage,
                        "samples_at_most": bound.samples,
                        "requests_at_most": bound.requests,
                        "prompt_tokens_at_most": bound.prompt_tokens,
                        "longest_at_most": bound.longest,
                        "new_tokens_at_most": bound.new_tokens,
                    }
                    for bound in later
                    if bound.cell_id == cell.cell_id
                ],
            }
            for cell in plan.cells
        ],
        "models": [
            {
                **asdict(price_of(part)),
                "weights": str(part.model.block.weights),
                "resolved": str(part.model.directory),
                **({"workers": asdict(spread_of(part, workers))} if workers else {}),
            }
            for part in plan.models
        ],
        "measurements": [_measured_json(one) for one in plan.measured],
    }


def _measured_json(plan: MeasurePlan) -> dict[str, Any]:
    """What one model is measured at, running alone: each point with the price of one run of it."""
    return {
        "cell_id": plan.cell_id,
        "model": plan.model.name,
        "params": dict(plan.params),
        "repeats": plan.measure.repeats,
        "timings": plan.rows,
        "flops": plan.all_flops,
        "seconds": _seconds(plan.model, plan.all_flops),
        "points": [
            {
                **asdict(point),
                "tokens": sum(plan.tokens(point)),
                "flops": plan.flops(point),
                "state_bytes": state_bytes(plan.model, point.length),
            }
            for point in plan.points
        ],
        "skipped": [{**asdict(point), "reason": reason} for point, reason in plan.skipped.items()],
    }


def _measured_table(plan: Plan) -> list[str]:
    """The same for people: a line a model, and what is left out."""
    rows = []
    conditions = Conditions(one.params for one in plan.measured)
    for one in plan.measured:
        lengths = sorted({point.length for point in one.points})
        seconds = _seconds(one.model, one.all_flops)
        rows.append(
            (
                conditions.model(one.model.name, one.params),
                len(one.points),
                one.rows,
                f"{lengths[0]:,} to {lengths[-1]:,}" if lengths else None,
                bytes_text(state_bytes(one.model, lengths[-1])) if lengths else None,
                f"{one.all_flops / 1e9:,.0f} GF" if one.all_flops else None,
                None if seconds is None else f"{seconds:,.0f} s",
            )
        )
    columns = ("model", "points", "timings", "context", "state at the longest", "operations", "about")
    reasons: dict[str, list[str]] = {}
    for one in plan.measured:
        for point, reason in one.skipped.items():
            reasons.setdefault(f"{one.model.name}: {reason}", []).append(point.kind)
    notes = [f"not measured, {', '.join(dict.fromkeys(kinds))}: {reason}" for reason, kinds in reasons.items()]
    return ["", table(columns, rows, "measured alone, nothing shared"), *notes] if rows else []


def _seconds(model: Model, flops: int | None) -> float | None:
    """A guess of seconds from operations and this machine's rate."""
    return None if flops is None else flops / (machine(model.block.device).flops_per_second * SHARE_OF_RATE)


def plan_table(plan: Plan) -> str:
    """The plan for people: conditions, then the price of each model."""
    conditions = Conditions(cell.params for cell in plan.cells)
    lines: dict[tuple[str, str], list[int]] = {}
    per_cell: dict[str, list[int]] = {}
    for part in plan.models:
        for sample in part.samples:
            entry = per_cell.setdefault(sample.cell.cell_id, [0, 0, 0])
            entry[0] += 1
            entry[1] += sample.prompt_tokens
            entry[2] = max(entry[2], max(len(request.tokens) for request in sample.requests))
    for cell in plan.cells:
        key = (cell.task_name, conditions.of(cell.params).label)
        entry, own = lines.setdefault(key, [0, 0, 0, 0]), per_cell.get(cell.cell_id, [0, 0, 0])
        lines[key] = [entry[0] + 1, own[0], entry[2] + own[1], max(entry[3], own[2])]
    cells = table(
        ("task", "condition", "models", "samples each", "prompt tokens", "longest"),
        ((*key, *numbers) for key, numbers in lines.items()),
        f"plan {plan.plan_id}: {plan.loaded.spec.name}, {len(plan.cells)} cells",
    )
    rows = []
    prices = [price_of(part) for part in plan.models]
    for price in prices:
        seconds = None if price.seconds is None else f"{price.seconds:,.0f} s"
        fits = {True: "yes", False: "NO", None: "unknown"}[price.fits]
        rows.append(
            (
                price.model,
                price.backend,
                price.prompt_tokens,
                price.distinct_tokens,
                price.computed_tokens,
                f"{price.sharing:.1f}x",
                bytes_text(price.state_bytes),
                f"{price.flops / 1e9:,.0f} GF" if price.flops else None,
                seconds,
                f"{bytes_text(price.memory_bytes)}, {fits}" if price.memory_bytes else fits,
            )
        )
    columns = (
        "model",
        "backend",
        "prompt tokens",
        "distinct",
        "computed",
        "sharing",
        "state",
        "operations",
        "about",
        "memory, fits",
    )
    notes = []
    for part, price in zip(plan.models, prices, strict=True):
        if price.truncated:
            notes.append(f"{price.model}: {price.truncated:,} prompts do not fit in the model and lose their left end")
        if part.model.served:
            notes.append(
                f"{price.model}: runs on the server at {part.model.block.url}: its weights, memory and time are not "
                "known here, and what it answers is never taken from another run"
            )
        if price.fed_again:
            could = "; `backend: native` could fork it" if part.model.type in NATIVE_TYPES else ""
            notes.append(
                f"{price.model}: each request is fed from its beginning, {price.computed_tokens:,} tokens for "
                f"{price.distinct_tokens:,} distinct ones, since {price.fed_again}{could}"
            )
    notes += notes_of(plan)
    asked = (
        [cells, "", table(columns, rows), *notes] if plan.models else [f"plan {plan.plan_id}: {plan.loaded.spec.name}"]
    )
    return "\n".join([*asked, *_stages_table(plan), *_measured_table(plan)])


def _stages_table(plan: Plan) -> list[str]:
    """Later stages: the most that each can come to, over all models; nothing where there is none."""
    cells = {cell.cell_id: cell for cell in plan.cells}
    conditions = Conditions(cell.params for cell in plan.cells)
    grouped: dict[tuple[str, str, str], list[Bound]] = {}
    for bound in (bound for part in plan.models for bound in bounds(part)):
        cell = cells[bound.cell_id]
        key = (cell.task_name, bound.stage, conditions.of(cell.params).label)
        grouped.setdefault(key, []).append(bound)
    if not grouped:
        return []
    rows = []
    for key, found in grouped.items():
        fed = [bound.prompt_tokens for bound in found]
        prompt = None if None in fed else sum(tokens or 0 for tokens in fed)
        rows.append((*key, len(found), found[0].samples, prompt, sum(bound.new_tokens for bound in found)))
    columns = ("task", "stage", "condition", "models", "samples each", "prompt tokens", "new tokens")
    return ["", table(columns, rows, "later stages, at most (no number: it depends on what the model writes)")]
