"""`python -m benchmarks.kernels`: the packed kernels on this GPU, checked, timed, and held against what memory allows.

Each row: the median time, the bytes that the kernel must move at least over that time, that as a share of the rate at
which this GPU copies memory, and mamba-ssm's or causal-conv1d's time for the same where they are installed, in the
quickest of the ways that `benchmarks.kernel_peers` knows, checked too.
`--sweep` times every kernel over its tunable parameters instead, best first.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.kernel_peers import (
    Way,
    add_norm_ways,
    conv_step_ways,
    conv_ways,
    gated_norm_ways,
    scan_step_ways,
    scan_ways,
    ssd_step_ways,
    ssd_ways,
)
from evalspec.doctor.kernel_cases import (
    LARGE,
    Case,
    Draw,
    Outputs,
    conv_case,
    question_forest,
    scan_case,
    size,
    ssd_case,
    step_cases,
    tolerance,
)
from evalspec.doctor.kernel_trials import GPU_SIZE, checks, error_of
from evalspec.doctor.rates import copy_rate, seconds
from evalspec.plan.pack import Pack
from evalspec.ssm.kernels.choice import Kernels, triton_kernels
from evalspec.ssm.kernels.norms_triton import add_rms_norm_triton, gated_rms_norm_triton

Measurable = tuple[Case, list[Way]]


def packs() -> Iterator[tuple[str, Pack]]:
    """Equal rows; unequal ones; questions with their choices behind one long prefix."""
    random = np.random.default_rng(0)
    yield "8 rows of 2048", Pack.of_rows(8, 2048)
    lengths = random.integers(8, 121, 256).tolist()
    yield f"256 rows of 8-120 ({sum(lengths)})", Pack.of(lengths, (-1 - np.arange(256)).tolist(), 256, range(256))
    forest = question_forest(1500, 100)
    yield f"1500 + 100 × (question + 4) ({forest.tokens})", forest


def conv(pack: Pack, on: str, draw: Draw) -> Measurable:
    case = conv_case(pack, on, LARGE, draw, started=False)
    return case, conv_ways(pack, *(case.inputs[name] for name in ("x", "weight", "bias")))


def scan(pack: Pack, on: str, draw: Draw, wide: bool = False) -> Measurable:
    case = scan_case(pack, on, LARGE, draw, started=False, wide=wide)
    names = ("x", "delta", "A", "B", "C", "D", "z", "delta_bias")
    return case, scan_ways(pack, *(case.inputs[name] for name in names))


def ssd(pack: Pack, on: str, draw: Draw) -> Measurable:
    case = ssd_case(pack, on, LARGE, draw, started=False)
    return case, ssd_ways(pack, *(case.inputs[name] for name in ("x", "delta", "A", "B", "C", "D")))


def steps(rows: int, draw: Draw) -> Iterator[Measurable]:
    """One token of each row."""
    conv, scan, ssd = step_cases(rows, LARGE, draw)
    yield conv, conv_step_ways(*(conv.inputs[name] for name in ("x", "weight", "bias", "state")))
    names = ("x", "delta", "A", "B", "C", "D", "z", "delta_bias", "state")
    yield scan, scan_step_ways(*(scan.inputs[name] for name in names))
    yield ssd, ssd_step_ways(*(ssd.inputs[name] for name in ("x", "delta", "A", "B", "C", "D", "state")))


def norms(rows: int, draw: Draw) -> Iterator[Measurable]:
    channels, tunable = LARGE.channels, {"warps": [2, 4, 8, 16]}
    x, z, weight = draw(rows, channels), draw(rows, channels), draw(channels)
    narrow, residual = draw(rows, channels // 2), draw(rows, channels // 2, dtype=torch.float32)

    def gated(_: Kernels, given: dict[str, Any], **options: Any) -> Outputs:
        return (gated_rms_norm_triton(x, z, weight, 1e-5, **options),)

    def added(_: Kernels, given: dict[str, Any], **options: Any) -> Outputs:
        return add_rms_norm_triton(narrow, residual, weight[: channels // 2], 1e-5, **options)

    on, wide = f"{rows} rows", torch.float32
    yield (
        Case("gated norm", on, {}, gated, size(x, z, x), 8.0 * x.numel(), wide, tolerance(x.dtype), tunable),
        gated_norm_ways(x, z, weight),
    )
    moved = size(narrow, residual, narrow, residual)
    yield (
        Case("add and norm", on, {}, added, moved, 5.0 * narrow.numel(), wide, tolerance(x.dtype), tunable),
        add_norm_ways(narrow, residual, weight[: channels // 2]),
    )


def check(device: torch.device) -> None:
    """The kernels equal the references at full width, from given states, on rows that fit no block."""
    for dtype in (torch.float32, torch.bfloat16):
        for case, reference in checks(GPU_SIZE, Draw(device, dtype), "triton"):
            error = error_of(case.run(triton_kernels(), case.fresh()), reference())
            print(f"{case.name:22} {dtype!s:15} largest error {error:.1e} of the largest value")
            assert error <= case.loose, "a kernel is wrong on this GPU"


def checked(ways: list[Way], expected: Tensor) -> Iterator[Way]:
    """Those that run here and come to what ours does: a peer that was asked for something else would be no peer."""
    for way in ways:
        try:
            got = way.y(way.run()).float().flatten()
        except Exception as error:
            print(f"  {way.name}: {type(error).__name__}: {str(error).splitlines()[:1]}")
            continue
        error_size = float((got - expected.float().flatten()).abs().max() / expected.float().abs().max())
        if error_size <= 3e-2:
            yield way
        else:
            print(f"  {way.name}: differs by {error_size:.1e} of the largest value")


def measured(device: torch.device, sweep: bool, only: str) -> None:
    rate = copy_rate(device)
    print(f"{torch.cuda.get_device_name()}: copies {rate / 1e9:,.0f} GB/s (read and written)\n")
    print(f"{'kernel':22} {'on':36} {'ms':>8} {'GB/s':>7} {'of copy':>8} {'peer ms':>8} {'faster':>7}  the peer's way")
    draw, kernels = Draw(device, torch.bfloat16), triton_kernels()

    def cases() -> Iterator[tuple[str, Callable[[], Iterable[Measurable]]]]:
        for shape, pack in packs():
            for name, prepare in (("selective scan", scan), ("convolution", conv), ("SSD", ssd)):
                yield name, lambda prepare=prepare, pack=pack, shape=shape: [prepare(pack, shape, draw)]
            yield "selective scan, B C wide", lambda pack=pack, shape=shape: [scan(pack, shape, draw, wide=True)]
        yield "step", lambda: steps(256, draw)
        yield "norm", lambda: norms(16384, draw)

    for name, prepare in cases():
        if only not in name:
            continue
        for case, ways in prepare():
            given = case.fresh()
            run = partial(case.run, kernels, given)
            if sweep:
                swept(case, run, device)
                continue
            checked_ways = list(checked(ways, case.run(kernels, case.fresh())[0]))
            time = seconds(run, device)
            moved = case.moved / time
            row = f"{case.name:22} {case.on:36} {time * 1e3:8.3f} {moved / 1e9:7,.0f} {moved / rate:8.0%}"
            if checked_ways:
                other, best = min((seconds(way.run, device), way.name) for way in checked_ways)
                row += f" {other * 1e3:8.3f} {other / time:6.2f}×  {best}"
            print(row + (" (B, C in float32)" if "wide" in name else ""), flush=True)


def swept(case: Case, run: Callable[..., Any], device: torch.device) -> None:
    """The five best of all values of a kernel's tunable parameters."""
    found = []
    for values in itertools.product(*case.tunable.values()):
        options = dict(zip(case.tunable, values, strict=True))
        try:
            found.append((seconds(partial(run, **options), device), options))
        except Exception as error:  # too many registers or too much shared memory: no candidate
            print(f"  {case.name} {options}: {type(error).__name__}")
    for time, options in sorted(found, key=lambda pair: pair[0])[:5]:
        moved = case.moved / time / 1e9
        print(f"{case.name:22} {case.on:36} {time * 1e3:8.3f} {moved:7,.0f} {options}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweep", action="store_true", help="time each kernel over its tunable parameters")
    parser.add_argument("--only", default="", help="only kernels whose name contains this")
    chosen = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("no GPU: these kernels are timed on CUDA or ROCm only")
    device = torch.device("cuda", torch.cuda.current_device())
    with torch.inference_mode():
        check(device)
        measured(device, chosen.sweep, chosen.only)


if __name__ == "__main__":
    main()
