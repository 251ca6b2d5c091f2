"""What a device can do by itself: how fast it copies its memory and multiplies matrices; and how time is taken.

Shares of these two rates say how good a kernel is on a device that nobody has seen, which seconds do not.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

GPU_COPY, CPU_COPY = 1 << 30, 1 << 27  # bytes, several times any cache
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_CACHE = 256 << 20  # bytes that push everything else out of a GPU's cache


def seconds(function: Callable[[], Any], device: torch.device, *, budget: float = 0.5, most: int = 50) -> float:
    """Time of a call after a warm-up, from as many calls as fit in `budget` seconds (eight at least).

    On a GPU the median by its own clock: its cache is emptied before each call, and calls are queued, so that Python's
    part of a launch is not in them. On a CPU the quickest: what others do there only ever adds.
    """
    times = _times_on_gpu if device.type == "cuda" else _times_on_cpu
    function()
    (first,) = times(function, device, 1)  # the second call: what compiles or tunes itself does so in the first
    found = times(function, device, max(8, min(most, int(budget / max(first, 1e-6)))))
    return median(found) if device.type == "cuda" else min(found)


def _times_on_cpu(function: Callable[[], Any], device: torch.device, count: int) -> list[float]:
    found = []
    for _ in range(count):
        began = time.perf_counter()
        function()
        found.append(time.perf_counter() - began)
    return found


def _times_on_gpu(function: Callable[[], Any], device: torch.device, count: int) -> list[float]:
    event: Any = torch.cuda.Event
    pairs = [(event(enable_timing=True), event(enable_timing=True)) for _ in range(count)]
    with torch.cuda.device(device):
        cache = torch.empty(_CACHE, dtype=torch.uint8, device=device)
        torch.cuda.synchronize(device)
        for begin, end in pairs:
            cache.zero_()
            begin.record()
            function()
            end.record()
        torch.cuda.synchronize(device)
    return [float(begin.elapsed_time(end)) / 1e3 for begin, end in pairs]


def copy_rate(device: torch.device, count: int | None = None) -> float:
    """Bytes a second, read and written, of a copy from one place of the device's memory to another."""
    if count is None:
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 16 * CPU_COPY
        count = min(GPU_COPY if device.type == "cuda" else CPU_COPY, free // 8)
    source, target = (torch.zeros(count, dtype=torch.uint8, device=device) for _ in range(2))
    return 2 * count / seconds(lambda: target.copy_(source), device)


def gemm_rate(device: torch.device, dtype: torch.dtype, size: int | None = None) -> float:
    """Operations a second of a square product. RuntimeError where the device has no such product."""
    if size is None:
        size = (4096 if dtype == torch.float32 else 8192) if device.type == "cuda" else 768
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / seconds(lambda: a @ b, device)


def gemm_rates(device: torch.device, size: int | None = None) -> dict[torch.dtype, float]:
    """By precision, those that the device can. float32 is as torch is set here: without TF32, unless that was asked."""
    found = {}
    for dtype in DTYPES:
        try:
            found[dtype] = gemm_rate(device, dtype, size)
        except RuntimeError:  # "not implemented for 'Half'" on some CPUs, or no memory for it
            continue
    return found
