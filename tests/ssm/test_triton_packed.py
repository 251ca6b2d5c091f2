"""The packed Triton kernels equal the references, run on each path of the pack as a sequence of its own.

On a GPU if there is one, else in Triton's interpreter.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import nullcontext

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from evalspec.plan.pack import Pack
from evalspec.ssm.kernels.causal_conv1d import causal_conv1d
from evalspec.ssm.kernels.selective_scan import selective_scan_reference
from evalspec.ssm.kernels.ssd import ssd_reference
from tests.ssm.packs import over_rows

ON_GPU = torch.cuda.is_available()
if not ON_GPU:
    os.environ.setdefault("TRITON_INTERPRET", "1")
pytest.importorskip("triton.language", reason="triton is not installed (CPU builds of torch come without it)")

DEVICE = "cuda" if ON_GPU else "cpu"
DTYPES = [torch.float32, torch.bfloat16]
PRODUCTS = {
    torch.float32: 1e-5,
    torch.bfloat16: 1e-2 if ON_GPU else 2e-2,
}  # the interpreter cuts bfloat16 off, unrounded


@pytest.fixture(autouse=True)
def interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    if not ON_GPU:
        monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())


def random_pack(seed: int, segments: int, longest: int = 20, given: int = 3) -> Pack:
    """Several roots on given states, some of them shared, nested up to four deep; a random half is kept."""
    random = np.random.default_rng(seed)
    length, parent, path = [], [], []
    for number in range(segments):
        del path[random.integers(0, min(len(path), 3) + 1) :]
        parent.append(path[-1] if path else -1 - int(random.integers(given)))
        length.append(int(random.choice([1, 2, 5, random.integers(1, longest + 1)])))
        path.append(number)
    keep = sorted(random.choice(segments, size=segments // 2, replace=False).tolist())
    return Pack.of(length, parent, given, keep)


def paths(pack: Pack) -> Iterator[tuple[int, int, Tensor]]:
    """Each segment, the given state that its path begins with, and the tokens on the path, its own last."""
    for number in range(len(pack.length)):
        tokens: list[int] = []
        at = number
        while at >= 0:
            tokens = [*range(int(pack.start[at]), int(pack.stop[at])), *tokens]
            at = int(pack.parent[at])
        yield number, -1 - at, torch.tensor(tokens, device=DEVICE)


def close(one: Tensor, other: Tensor, loose: float | None = None) -> None:
    """Within 1e-5 of the largest value, or 1e-2 in bfloat16."""
    assert one.shape == other.shape
    assert one.dtype == other.dtype
    loose = loose or (1e-2 if one.dtype == torch.bfloat16 else 1e-5)
    scale = other.float().abs().max().item() or 1.0
    assert bool(one.isfinite().all())
    torch.testing.assert_close(one.float() / scale, other.float() / scale, atol=loose, rtol=0)


def test_a_packs_arrays_are_put_on_the_device_once() -> None:
    from evalspec.ssm.kernels import packed

    pack, device = random_pack(0, 6), torch.device(DEVICE)
    assert packed.segments_on(pack, device) is packed.segments_on(pack, device)
    assert packed.history_on(pack, 3, device) is packed.history_on(pack, 3, device)
    assert packed.history_on(pack, 2, device) is not packed.history_on(pack, 3, device)
    held = len(packed._KEPT)
    del pack
    assert len(packed._KEPT) == held - 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("seed", "channels", "n", "strength"), [(0, 40, 16, 1.0), (1, 7, 5, 1e-4), (2, 33, 4, 100.0), (3, 32, 16, 1.0)]
)
def test_the_scan_equals_the_recurrence_along_every_path(
    seed: int, channels: int, n: int, strength: float, dtype: torch.dtype
) -> None:
    from evalspec.ssm.kernels.selective_scan_packed_triton import selective_scan_packed_triton

    torch.manual_seed(seed)
    pack = random_pack(seed, 9)
    t = pack.tokens
    projection = torch.randn(t, 2 * channels + 2 * n + 3, device=DEVICE).to(dtype)  # slices of it are never copied
    x, z, B, C, _ = projection.split([channels, channels, n, n, 3], dim=1)
    delta = F.softplus(torch.randn(t, channels, device=DEVICE) * 3) * strength
    A, D = -torch.exp(torch.randn(channels, n, device=DEVICE) * 2), torch.randn(channels, device=DEVICE)
    state = torch.randn(pack.given, channels, n, device=DEVICE) if seed != 1 else None
    gate = z if seed != 2 else None
    y, ends = selective_scan_packed_triton(x, delta, A, B, C, D, pack=pack, state=state, z=gate)
    for number, origin, tokens in paths(pack):
        row = [tensor[tokens][None] for tensor in (x.float(), delta, B, C)]
        start = None if state is None else state[origin][None]
        whole, last = over_rows(selective_scan_reference)(row[0], row[1], A, row[2], row[3], D, state=start)
        own = slice(int(pack.start[number]), int(pack.stop[number]))
        expected = whole[0, -int(pack.length[number]) :]
        if gate is not None:
            expected = expected * F.silu(gate[own].float())
        close(y[own], expected.to(dtype))
        if pack.slot[number] >= 0:
            close(ends[pack.slot[number]], last[0])


def test_the_scan_takes_the_step_before_its_softplus() -> None:
    from evalspec.ssm.kernels.selective_scan_packed_triton import selective_scan_packed_triton

    torch.manual_seed(0)
    pack, channels, n = random_pack(4, 5), 10, 4
    t = pack.tokens
    x, raw, bias = torch.randn(t, channels), torch.randn(t, channels) * 12, torch.randn(channels)
    B, C, A, D = torch.randn(t, n), torch.randn(t, n), -torch.rand(channels, n), torch.randn(channels)
    x, raw, bias, B, C, A, D = (tensor.to(DEVICE) for tensor in (x, raw, bias, B, C, A, D))
    fused = selective_scan_packed_triton(x, raw, A, B, C, D, pack=pack, delta_bias=bias)
    plain = selective_scan_packed_triton(x, F.softplus(raw + bias), A, B, C, D, pack=pack)
    close(fused[0], plain[0])
    close(fused[1], plain[1])


def test_a_given_state_in_the_layout_of_the_results_continues_the_pack() -> None:
    from evalspec.ssm.kernels.selective_scan_packed_triton import selective_scan_packed_triton

    torch.manual_seed(0)
    channels, n = 12, 3
    x, delta, B, C = (torch.randn(20, size, device=DEVICE) for size in (channels, channels, n, n))
    A, D = -torch.rand(channels, n, device=DEVICE), torch.randn(channels, device=DEVICE)
    delta = F.softplus(delta)
    whole = selective_scan_packed_triton(x, delta, A, B, C, D, pack=Pack.of_rows(1, 20))
    first = selective_scan_packed_triton(x[:7], delta[:7], A, B[:7], C[:7], D, pack=Pack.of_rows(1, 7))
    rest = Pack.of([13], [-1], 1, [0])
    second = selective_scan_packed_triton(x[7:], delta[7:], A, B[7:], C[7:], D, pack=rest, state=first[1])
    close(torch.cat([first[0], second[0]]), whole[0])
    close(second[1], whole[1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("seed", "channels", "width"), [(0, 40, 4), (1, 130, 3), (2, 5, 2)])
def test_the_convolution_equals_that_of_every_path(seed: int, channels: int, width: int, dtype: torch.dtype) -> None:
    from evalspec.ssm.kernels.causal_conv1d_triton import causal_conv1d_packed_triton

    torch.manual_seed(seed)
    pack = random_pack(seed, 12)
    x = torch.randn(pack.tokens, channels + 3, device=DEVICE).to(dtype)[:, :channels]
    weight, bias = torch.randn(channels, width, device=DEVICE), torch.randn(channels, device=DEVICE)
    state = torch.randn(pack.given, width - 1, channels, device=DEVICE).to(dtype) if seed != 1 else None
    y, window = causal_conv1d_packed_triton(
        x, weight, bias if seed != 2 else None, pack=pack, state=state, silu=seed == 0
    )
    kept = pack.keep.tolist()
    for number, origin, tokens in paths(pack):
        start = None if state is None else state[origin][None]
        offset = bias if seed != 2 else None
        whole, last = over_rows(causal_conv1d)(x[tokens][None].float(), weight, offset, state=start, along=(0,))
        expected = whole[0, -int(pack.length[number]) :]
        own = slice(int(pack.start[number]), int(pack.stop[number]))
        close(y[own], (F.silu(expected) if seed == 0 else expected).to(dtype))
        if number in kept:
            assert torch.equal(window[kept.index(number)], last[0].to(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("channels", "n", "channels_inside"), [(40, 16, False), (33, 5, True)])
@pytest.mark.parametrize("kept", DTYPES)
def test_a_step_of_the_scan_equals_the_recurrence(
    channels: int, n: int, channels_inside: bool, dtype: torch.dtype, kept: torch.dtype
) -> None:
    from evalspec.ssm.kernels.selective_scan_packed_triton import selective_scan_step_triton

    torch.manual_seed(0)
    rows = 3
    projection = torch.randn(rows, 2 * channels + 2 * n, device=DEVICE).to(dtype)
    x, z, B, C = projection.split([channels, channels, n, n], dim=1)
    delta, bias = torch.randn(rows, channels, device=DEVICE), torch.randn(channels, device=DEVICE)
    A, D = -torch.exp(torch.randn(channels, n, device=DEVICE)), torch.randn(channels, device=DEVICE)
    state = torch.randn(rows, channels, n, device=DEVICE).to(kept)
    if channels_inside:
        state = state.transpose(1, 2).contiguous().transpose(1, 2)
    step = F.softplus(delta + bias)
    expected, after = over_rows(selective_scan_reference)(
        x[:, None].float(), step[:, None], A, B[:, None], C[:, None], D, state=state.clone()
    )
    y = selective_scan_step_triton(x, delta, A, B, C, D, state=state, z=z, delta_bias=bias)
    close(y, (expected[:, 0] * F.silu(z.float())).to(dtype))
    close(state, after.to(kept))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("channels", "width", "silu"), [(40, 4, True), (7, 2, False)])
def test_a_step_of_the_convolution_equals_a_sequence_of_one(
    channels: int, width: int, silu: bool, dtype: torch.dtype
) -> None:
    from evalspec.ssm.kernels.causal_conv1d_triton import causal_conv1d_step_triton

    torch.manual_seed(0)
    x = torch.randn(3, channels + 5, device=DEVICE).to(dtype)[:, 5:]
    weight, bias = torch.randn(channels, width, device=DEVICE), torch.randn(channels, device=DEVICE)
    state = torch.randn(3, width - 1, channels, device=DEVICE).to(dtype)
    expected, after = over_rows(causal_conv1d)(x[:, None].float(), weight, bias, state=state, along=(0,))
    y = causal_conv1d_step_triton(x, weight, bias, state=state, silu=silu)
    close(y, (F.silu(expected) if silu else expected)[:, 0].to(dtype))
    assert torch.equal(state, after.to(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [64, 100])
def test_the_norms_equal_their_formulas(size: int, dtype: torch.dtype) -> None:
    from evalspec.ssm.kernels.norms_triton import add_rms_norm_triton, gated_rms_norm_triton

    torch.manual_seed(0)
    both = torch.randn(5, 2 * size, device=DEVICE).to(dtype)
    x, z = both.chunk(2, dim=1)
    weight = torch.randn(size, device=DEVICE)
    close(
        gated_rms_norm_triton(x, z, weight, 1e-5),
        F.rms_norm(x.float() * F.silu(z.float()), (size,), weight, 1e-5).to(dtype),
    )
    for kept in {torch.float32, dtype}:
        residual = torch.randn(5, size, device=DEVICE).to(kept)
        normed, total = add_rms_norm_triton(x, residual, weight, 1e-5)
        close(total, (x.float() + residual.float()).to(kept))
        close(normed, F.rms_norm(total.float(), (size,), weight, 1e-5).to(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("seed", "size", "n", "groups", "chunk", "strength"),
    [(0, 8, 16, 2, 16, 1.0), (1, 20, 5, 1, 32, 1e-4), (2, 5, 20, 4, 16, 100.0), (3, 40, 40, 1, 64, 1.0)],
)
def test_ssd_equals_the_recurrence_along_every_path(
    seed: int, size: int, n: int, groups: int, chunk: int, strength: float, dtype: torch.dtype
) -> None:
    from evalspec.ssm.kernels.ssd_triton import ssd_packed_triton

    torch.manual_seed(seed)
    heads = 4
    pack = random_pack(seed, 9, longest=60)
    t = pack.tokens
    projection = torch.randn(t, heads * size + 2 * groups * n + heads, device=DEVICE).to(dtype)
    x, B, C, raw = projection.split([heads * size, groups * n, groups * n, heads], dim=1)
    x, B, C = x.unflatten(1, (heads, size)), B.unflatten(1, (groups, n)), C.unflatten(1, (groups, n))
    delta = F.softplus(raw.float() * 3) * strength
    A, D = -torch.exp(torch.randn(heads, device=DEVICE) * 2), torch.randn(heads, device=DEVICE)
    state = torch.randn(pack.given, heads, size, n, device=DEVICE) if seed != 1 else None
    y, kept = ssd_packed_triton(x, delta, A, B, C, D, pack=pack, state=state, chunk=chunk)
    assert len(kept) == len(pack.keep)
    for number, origin, tokens in paths(pack):
        row = [tensor[tokens][None] for tensor in (x.float(), delta, B, C)]
        start = None if state is None else state[origin][None]
        whole, last = over_rows(ssd_reference)(row[0], row[1], A, row[2], row[3], D, state=start)
        own = slice(int(pack.start[number]), int(pack.stop[number]))
        close(y[own], whole[0, -int(pack.length[number]) :].to(dtype), PRODUCTS[dtype])
        for place in np.flatnonzero(pack.keep == number).tolist():
            close(kept[place], last[0], PRODUCTS[dtype])


def ssd_inputs(pack: Pack, heads: int, size: int, n: int, groups: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Slices of one projection, as a layer makes them, with decays from hardly any to total."""
    t = pack.tokens
    projection = torch.randn(t, heads * size + 2 * groups * n + heads, device=DEVICE).to(dtype)
    x, B, C, raw = projection.split([heads * size, groups * n, groups * n, heads], dim=1)
    return {
        "x": x.unflatten(1, (heads, size)),
        "delta": F.softplus(raw.float() * 3),
        "A": -torch.exp(torch.randn(heads, device=DEVICE) * 2),
        "B": B.unflatten(1, (groups, n)),
        "C": C.unflatten(1, (groups, n)),
        "D": torch.randn(heads, device=DEVICE),
        "state": torch.randn(pack.given, heads, size, n, device=DEVICE),
    }


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("seed", "size", "n", "groups", "started"), [(0, 8, 16, 2, True), (1, 20, 5, 1, False), (2, 40, 128, 4, True)]
)
def test_serial_ssd_equals_the_recurrence_along_every_path(
    seed: int, size: int, n: int, groups: int, started: bool, dtype: torch.dtype
) -> None:
    from evalspec.ssm.kernels.ssd_serial import ssd_serial_triton

    torch.manual_seed(seed)
    pack = random_pack(seed, 9)
    inputs = ssd_inputs(pack, 4, size, n, groups, dtype)
    if not started:
        del inputs["state"]
    y, kept = ssd_serial_triton(**inputs, pack=pack)
    wide = {name: tensor.float() for name, tensor in inputs.items()}
    expected, after = ssd_reference(**wide, pack=pack)
    close(y, expected.to(dtype))
    close(kept, after)


def test_serial_ssd_gives_the_same_bits_however_a_path_is_cut() -> None:
    from evalspec.ssm.kernels.ssd_serial import ssd_serial_triton

    torch.manual_seed(0)
    whole = Pack.of([40], [-1], 1, [0])
    inputs = ssd_inputs(whole, 4, 8, 16, 2, torch.float32)
    expected, last = ssd_serial_triton(**inputs, pack=whole)
    state, begin = inputs.pop("state"), 0
    constants = {name: inputs.pop(name) for name in ("A", "D")}
    for count in (1, 2, 17, 20):
        piece = {name: tensor[begin : begin + count] for name, tensor in inputs.items()}
        y, state = ssd_serial_triton(**piece, **constants, state=state, pack=Pack.of([count], [-1], 1, [0]))
        assert torch.equal(y, expected[begin : begin + count])
        begin += count
    assert torch.equal(state, last)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kept", DTYPES)
def test_a_step_of_ssd_equals_the_recurrence(dtype: torch.dtype, kept: torch.dtype) -> None:
    from evalspec.ssm.kernels.ssd_triton import ssd_step_triton

    torch.manual_seed(0)
    x, B, C = (torch.randn(3, *shape, device=DEVICE).to(dtype) for shape in ((6, 5), (2, 12), (2, 12)))
    delta, A, D = torch.rand(3, 6, device=DEVICE), -torch.rand(6, device=DEVICE), torch.randn(6, device=DEVICE)
    state = torch.randn(3, 6, 5, 12, device=DEVICE).to(kept)
    along = [tensor[:, None] for tensor in (x, delta, B, C)]
    expected, after = over_rows(ssd_reference)(*along[:2], A, *along[2:], D, state=state.clone())
    close(ssd_step_triton(x, delta, A, B, C, D, state=state), expected[:, 0])
    close(state, after.to(kept))
