"""`python -m benchmarks.kernels`: the packed kernels on this GPU, checked, timed, and held against what memory allows.

Each row: the median time, the bytes that the kernel must move at least over that time, that as a share of the rate at
which this GPU copies memory, and mamba-ssm's or causal-conv1d's time for the same where they are installed, in the
quickest of the ways that `benchmarks.kernel_peers` knows, checked too.
`--sweep` times every kernel over its tunable parameters instead, best first.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
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
from evalspec.plan.pack import Pack
from evalspec.ssm.kernels.causal_conv1d import causal_conv1d
from evalspec.ssm.kernels.causal_conv1d_triton import causal_conv1d_packed_triton, causal_conv1d_step_triton
from evalspec.ssm.kernels.norms_triton import add_rms_norm_triton, gated_rms_norm_triton
from evalspec.ssm.kernels.selective_scan import selective_scan_reference
from evalspec.ssm.kernels.selective_scan_packed_triton import selective_scan_packed_triton, selective_scan_step_triton
from evalspec.ssm.kernels.ssd import ssd_reference
from evalspec.ssm.kernels.ssd_triton import ssd_packed_triton, ssd_step_triton

CHANNELS, STATE, WIDTH = 5120, 16, 4  # Mamba-2.8b
HEADS, HEAD, STATE_2 = 80, 64, 128  # Mamba2-2.7b
Result = tuple[Callable[..., Any], int, dict[str, list[Any]], list[Way]]


def packs() -> Iterator[tuple[str, Pack]]:
    """Equal rows; unequal ones; questions with their choices behind one long prefix."""
    random = np.random.default_rng(0)
    yield "8 rows of 2048", Pack.of_rows(8, 2048)
    lengths = random.integers(8, 121, 256).tolist()
    yield f"256 rows of 8-120 ({sum(lengths)})", Pack.of(lengths, (-1 - np.arange(256)).tolist(), 256, range(256))
    length, parent = [1500], [-1]
    for _ in range(100):
        question = len(length)
        length += [int(random.integers(20, 60)), *random.integers(1, 9, 4).tolist()]
        parent += [0, *[question] * 4]
    yield f"1500 + 100 × (question + 4) ({sum(length)})", Pack.of(length, parent, 1, [])


def draw(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(*shape, device="cuda", dtype=torch.float32).to(dtype)


def size(*tensors: Tensor) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def scan(pack: Pack, wide: bool = False) -> Result:
    """The scan with its softplus and its gate, B and C slices of a projection (`wide`: in float32)."""
    t = pack.tokens
    x, z, raw = draw(t, CHANNELS), draw(t, CHANNELS), draw(t, CHANNELS)
    B, C = draw(t, 160 + 2 * STATE, dtype=torch.float32 if wide else torch.bfloat16)[:, 160:].split(STATE, dim=1)
    A = -torch.arange(1, STATE + 1, device="cuda", dtype=torch.float32).repeat(CHANNELS, 1)
    A = A.T.contiguous().T  # as it is kept by whoever calls the kernel often
    D, bias = torch.ones(CHANNELS, device="cuda"), torch.full((CHANNELS,), -4.0, device="cuda")

    def ours(**options: Any) -> Any:
        return selective_scan_packed_triton(x, raw, A, B, C, D, pack=pack, z=z, delta_bias=bias, **options)

    y, ends = ours()
    return (
        ours,
        size(x, z, raw, B, C, y, ends),
        {"steps": [1, 2, 4, 8], "warps": [1, 2, 4]},
        scan_ways(pack, x, raw, A, B, C, D, z, bias),
    )


def conv(pack: Pack) -> Result:
    x = draw(pack.tokens, 2 * CHANNELS)[:, :CHANNELS]
    weight, bias = draw(CHANNELS, WIDTH), draw(CHANNELS)

    def ours(**options: Any) -> Any:
        return causal_conv1d_packed_triton(x, weight, bias, pack=pack, silu=True, **options)

    y, window = ours()
    tunable = {"tokens": [8, 16, 32, 64], "block": [64, 128, 256], "warps": [2, 4, 8]}
    return ours, size(x, y, window), tunable, conv_ways(pack, x, weight, bias)


def ssd(pack: Pack) -> Result:
    t = pack.tokens
    x, B, C = draw(t, HEADS, HEAD), draw(t, 1, STATE_2), draw(t, 1, STATE_2)
    delta = F.softplus(draw(t, HEADS, dtype=torch.float32) - 4)
    A, D = -torch.rand(HEADS, device="cuda") * 15 - 1, torch.ones(HEADS, device="cuda")

    def ours(**options: Any) -> Any:
        return ssd_packed_triton(x, delta, A, B, C, D, pack=pack, **options)

    y, ends = ours()
    tunable = {
        "chunk": [64, 128, 256], "tile": [64, 128], "part": [32, 64],
        "warps": [4, 8], "output_warps": [4, 8], "stages": [1, 2, 3],
    }  # fmt: skip
    return ours, size(x, delta, B, C, y, ends), tunable, ssd_ways(pack, x, delta, A, B, C, D)


def steps(rows: int) -> Iterator[tuple[str, Result]]:
    """One token of each row."""
    x, z, delta, bias = (draw(rows, CHANNELS) for _ in range(4))
    weight, window = draw(CHANNELS, WIDTH), draw(rows, WIDTH - 1, CHANNELS)
    A, D = -torch.rand(CHANNELS, STATE, device="cuda"), torch.ones(CHANNELS, device="cuda")
    B, C, state = draw(rows, STATE), draw(rows, STATE), draw(rows, CHANNELS, STATE, dtype=torch.float32)
    moved = size(x, z, delta, x, state, state)
    yield (
        "scan step",
        (
            lambda **options: selective_scan_step_triton(
                x, delta, A, B, C, D, state=state, z=z, delta_bias=bias[0], **options
            ),
            moved, {"block": [16, 32, 64, 128], "warps": [1, 2, 4]},
            scan_step_ways(x, delta, A, B, C, D, z, bias[0], state),
        ),
    )  # fmt: skip
    yield (
        "conv step",
        (
            lambda **options: causal_conv1d_step_triton(x, weight, bias[0], state=window, silu=True, **options),
            size(x, x, window, window), {"block": [128, 256, 512, 1024], "warps": [1, 2, 4, 8]},
            conv_step_ways(x, weight, bias[0], window),
        ),
    )  # fmt: skip
    values, B_2, C_2 = x.unflatten(1, (HEADS, HEAD)), draw(rows, 1, STATE_2), draw(rows, 1, STATE_2)
    step, A_2, D_2 = delta[:, :HEADS].float().sigmoid(), -torch.rand(HEADS, device="cuda"), D[:HEADS]
    state_2 = draw(rows, HEADS, HEAD, STATE_2, dtype=torch.float32)
    yield (
        "ssd step",
        (
            lambda **options: ssd_step_triton(values, step, A_2, B_2, C_2, D_2, state=state_2, **options),
            size(x, x, state_2, state_2), {"block": [8, 16, 32, 64], "warps": [2, 4, 8]},
            ssd_step_ways(values, step, A_2, B_2, C_2, D_2, state_2),
        ),
    )  # fmt: skip


def norms(rows: int) -> Iterator[tuple[str, Result]]:
    x, z, weight = draw(rows, CHANNELS), draw(rows, CHANNELS), draw(CHANNELS)
    narrow, residual = draw(rows, CHANNELS // 2), draw(rows, CHANNELS // 2, dtype=torch.float32)
    tunable: dict[str, list[Any]] = {"warps": [2, 4, 8, 16]}
    yield (
        "gated norm",
        (
            lambda **options: gated_rms_norm_triton(x, z, weight, 1e-5, **options),
            size(x, z, x), tunable, gated_norm_ways(x, z, weight),
        ),
    )  # fmt: skip
    yield (
        "add and norm",
        (
            lambda **options: add_rms_norm_triton(narrow, residual, weight[: CHANNELS // 2], 1e-5, **options),
            size(narrow, residual, narrow, residual), tunable, add_norm_ways(narrow, residual, weight[: CHANNELS // 2]),
        ),
    )  # fmt: skip


def check() -> None:
    """The kernels equal the references at full width, on rows that fit no block."""
    pack = Pack.of_rows(2, 211)
    for dtype, loose in ((torch.float32, 1e-5), (torch.bfloat16, 1e-2)):
        x, B, C = draw(422, CHANNELS, dtype=dtype), draw(422, STATE_2, dtype=dtype), draw(422, STATE_2, dtype=dtype)
        delta = F.softplus(draw(422, CHANNELS, dtype=torch.float32) * 2 - 3)
        A, D = -torch.rand(CHANNELS, STATE, device="cuda") * 16, torch.randn(CHANNELS, device="cuda")
        weight = draw(CHANNELS, WIDTH, dtype=dtype)
        narrow = B[:, :STATE], C[:, :STATE]
        heads = x.unflatten(1, (HEADS, HEAD)), delta[:, :HEADS], A[:HEADS, 0], B[:, None], C[:, None], D[:HEADS]

        scanned = selective_scan_reference(x, delta, A, *narrow, D, pack=pack)
        dual = ssd_reference(*heads, pack=pack)
        with torch.enable_grad():  # the plain form: without gradients it is the kernel itself
            filtered = causal_conv1d(x, weight, pack=pack)
        pairs = [
            ("scan", selective_scan_packed_triton(x, delta, A, *narrow, D, pack=pack), scanned),
            ("ssd", ssd_packed_triton(*heads, pack=pack), dual),
            ("conv", causal_conv1d_packed_triton(x, weight, pack=pack), filtered),
        ]
        for name, got, expected in pairs:
            for one, other in zip(got, expected, strict=True):
                one, other = one.float().flatten(), other.float().flatten()
                error = float((one - other).abs().max() / other.abs().max())
                print(f"{name:5} {dtype!s:15} largest error {error:.1e} of the largest value")
                assert error <= loose, "a kernel is wrong on this GPU"


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


def milliseconds(function: Callable[[], Any]) -> float:
    import triton.testing

    return float(triton.testing.do_bench(function, return_mode="median"))


def copy_rate() -> float:
    """GB/s, read and written, of a copy from one place of this GPU's memory to another."""
    source, target = (torch.empty(1 << 30, dtype=torch.uint8, device="cuda") for _ in range(2))
    return 2 * source.numel() / milliseconds(lambda: target.copy_(source)) / 1e6


def measured(sweep: bool, only: str) -> None:
    rate = copy_rate()
    print(f"{torch.cuda.get_device_name()}: copies {rate:,.0f} GB/s (read and written)\n")
    print(f"{'kernel':14} {'on':36} {'ms':>8} {'GB/s':>7} {'of copy':>8} {'peer ms':>8} {'faster':>7}  the peer's way")

    def cases() -> Iterator[tuple[str, str, Callable[[], Result]]]:
        for shape, pack in packs():
            yield "scan", shape, partial(scan, pack)
            yield "scan, B C wide", shape, partial(scan, pack, wide=True)
            yield "conv", shape, partial(conv, pack)
            yield "ssd", shape, partial(ssd, pack)
        for name, result in itertools.chain(steps(256), norms(16384)):
            yield name, "256 rows" if "step" in name else "16384 rows", lambda result=result: result

    for name, shape, prepare in cases():
        if only not in name:
            continue
        ours, moved, tunable, ways = prepare()
        if not sweep:
            got = ours()
            ways = list(checked(ways, got[0] if isinstance(got, tuple) else got))
            time = milliseconds(ours)
            row = f"{name:14} {shape:36} {time:8.3f} {moved / time / 1e6:7,.0f} {moved / time / 1e6 / rate:8.0%}"
            if ways:
                other, best = min((milliseconds(way.run), way.name) for way in ways)
                row += f" {other:8.3f} {other / time:6.2f}×  {best}"
            print(row, flush=True)
            continue
        found = []
        for values in itertools.product(*tunable.values()):
            options = dict(zip(tunable, values, strict=True))
            try:
                found.append((milliseconds(partial(ours, **options)), options))
            except Exception as error:  # too many registers or too much shared memory: no candidate
                print(f"  {name} {options}: {type(error).__name__}")
        for time, options in sorted(found, key=lambda pair: pair[0])[:5]:
            print(f"{name:14} {shape:36} {time:8.3f} {moved / time / 1e6:7,.0f} {options}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweep", action="store_true", help="time each kernel over its tunable parameters")
    parser.add_argument("--only", default="", help="only kernels whose name contains this")
    chosen = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("no GPU: these kernels are timed on CUDA or ROCm only")
    torch.manual_seed(0)
    check()
    measured(chosen.sweep, chosen.only)


if __name__ == "__main__":
    main()
