"""Each fast recurrence equals its mathematics: any starting states, any forest, strong and weak decays."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from evalspec.plan.pack import Pack
from evalspec.ssm.kernels.causal_conv1d import causal_conv1d
from evalspec.ssm.kernels.selective_scan import selective_scan, selective_scan_compiled, selective_scan_reference
from evalspec.ssm.kernels.ssd import ssd, ssd_chunked, ssd_reference
from evalspec.ssm.kernels.ssd_rows import ssd_rows
from evalspec.ssm.kernels.ssd_serial import ssd_serial
from tests.ssm.packs import PACKS, paths, random_pack

ALONG = ("x", "delta", "B", "C")  # tensors with an axis of time
Kernel = Callable[..., tuple[Tensor, Tensor]]


def scan_inputs(pack: Pack, dtype: torch.dtype = torch.float32, strength: float = 1.0) -> dict[str, Tensor]:
    """e 10, n 4, with decays from hardly any to total."""
    torch.manual_seed(pack.tokens)
    length = pack.tokens
    return {
        "x": torch.randn(length, 10).to(dtype),
        "delta": F.softplus(torch.randn(length, 10) * 3) * strength,
        "A": -torch.exp(torch.randn(10, 4) * 2),
        "B": torch.randn(length, 4).to(dtype),
        "C": torch.randn(length, 4).to(dtype),
        "D": torch.randn(10),
        "state": torch.randn(pack.given, 10, 4),
    }


def ssd_inputs(pack: Pack, dtype: torch.dtype = torch.float32, strength: float = 1.0) -> dict[str, Tensor]:
    """h 6 in 2 groups, p 5, n 4."""
    torch.manual_seed(pack.tokens)
    length = pack.tokens
    return {
        "x": torch.randn(length, 6, 5).to(dtype),
        "delta": F.softplus(torch.randn(length, 6) * 3) * strength,
        "A": -torch.exp(torch.randn(6) * 2),
        "B": torch.randn(length, 2, 4).to(dtype),
        "C": torch.randn(length, 2, 4).to(dtype),
        "D": torch.randn(6),
        "state": torch.randn(pack.given, 6, 5, 4),
    }


def mamba(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """h ← exp(ΔA) ⊙ h + Δ B x, y = C · h + D x, along one sequence, in float64."""
    outputs = []
    for t in range(len(x)):
        h = torch.exp(delta[t][:, None] * A) * h + (delta[t] * x[t])[:, None] * B[t]
        outputs.append(h @ C[t] + D * x[t])
    return torch.stack(outputs), h


def mamba2(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """h ← exp(ΔA) h + Δ x Bᵀ, y = h C + D x, a head, along one sequence, in float64."""
    B, C = (tensor.repeat_interleave(x.shape[1] // B.shape[1], dim=1) for tensor in (B, C))
    outputs = []
    for t in range(len(x)):
        h = torch.exp(delta[t] * A)[:, None, None] * h + (delta[t][:, None] * x[t])[..., None] * B[t][:, None]
        outputs.append((h @ C[t][..., None])[..., 0] + D[:, None] * x[t])
    return torch.stack(outputs), h


def along_paths(recurrence: Kernel, inputs: dict[str, Tensor], pack: Pack) -> tuple[Tensor, Tensor]:
    """What a recurrence gives for each token, and its states, every path run by itself from its given state: of Mamba
    those of `pack.ends`, of Mamba-2 those of `pack.keep`."""
    needed = pack.keep if recurrence is mamba2 else pack.ends
    wide = {name: tensor.double() for name, tensor in inputs.items()}
    state = wide.pop("state")
    outputs: dict[int, Tensor] = {}
    states = []
    for number, (origin, tokens) in enumerate(paths(pack)):
        own = {name: tensor[tokens] if name in ALONG else tensor for name, tensor in wide.items()}
        y, h = recurrence(**own, h=state[origin])
        outputs.update(zip(tokens, y, strict=True))
        if number in needed:
            states.append(h)
    none = state[:0]
    return torch.stack([outputs[t] for t in range(pack.tokens)]), torch.stack(states) if states else none


def close(one: tuple[Tensor, Tensor], truth: tuple[Tensor, Tensor], tolerance: float = 1e-5) -> None:
    for ours, theirs in zip(one, truth, strict=True):
        scale = float(theirs.abs().max()) or 1.0 if theirs.numel() else 1.0
        torch.testing.assert_close(ours.double() / scale, theirs.double() / scale, atol=tolerance, rtol=0)


SCANS = [selective_scan_reference, selective_scan_compiled, selective_scan]
SSDS = [ssd_reference, ssd_chunked, ssd_serial]


@pytest.mark.parametrize("name", PACKS)
@pytest.mark.parametrize("kernel", SCANS)
def test_selective_scans_equal_the_recurrence_along_each_path(kernel: Kernel, name: str) -> None:
    inputs = scan_inputs(PACKS[name])
    close(kernel(**inputs, pack=PACKS[name]), along_paths(mamba, inputs, PACKS[name]))


@pytest.mark.parametrize("name", PACKS)
@pytest.mark.parametrize("kernel", SSDS)
def test_ssd_equals_the_recurrence_along_each_path(kernel: Kernel, name: str) -> None:
    inputs = ssd_inputs(PACKS[name])
    close(kernel(**inputs, pack=PACKS[name]), along_paths(mamba2, inputs, PACKS[name]))


@pytest.mark.parametrize("seed", range(20))
def test_any_forest_and_any_chunk_give_the_same(seed: int) -> None:
    pack = random_pack(segments=1 + seed * 3, given=1 + seed % 4, longest=1 + 2 * seed, seed=seed)
    inputs = ssd_inputs(pack)
    truth = along_paths(mamba2, inputs, pack)
    for chunk in (1, 5, 16, 64):
        close(ssd_chunked(**inputs, pack=pack, chunk=chunk), truth)
    inputs = scan_inputs(pack)
    close(selective_scan_compiled(**inputs, pack=pack), along_paths(mamba, inputs, pack))


def test_without_a_state_a_sequence_begins_with_zeros() -> None:
    pack = PACKS["a forest"]
    for inputs, kernels in ((scan_inputs(pack), SCANS), (ssd_inputs(pack), SSDS)):
        nothing = {**inputs, "state": torch.zeros_like(inputs["state"])}
        for kernel in kernels:
            close(kernel(**{**inputs, "state": None}, pack=pack), kernel(**nothing, pack=pack))


@pytest.mark.parametrize("strength", [1e-4, 100.0])
def test_decays_of_any_strength_stay_exact_and_finite(strength: float) -> None:
    """Cumulative log decays reach −10⁶ here: a ratio of their exponentials would be 0 / 0."""
    for pack in (PACKS["one segment"], PACKS["few-shot"]):
        inputs = scan_inputs(pack, strength=strength)
        truth = along_paths(mamba, inputs, pack)
        for kernel in SCANS:
            close(kernel(**inputs, pack=pack), truth, 2e-6)
        inputs = ssd_inputs(pack, strength=strength)
        truth = along_paths(mamba2, inputs, pack)
        for kernel in SSDS:
            close(kernel(**inputs, pack=pack), truth, 2e-6)


@pytest.mark.parametrize("length", [1, 2, 7, 64, 65, 200])
@pytest.mark.parametrize("chunk", [1, 16, 64])
def test_ssd_over_rows_equals_the_recurrence(length: int, chunk: int) -> None:
    pack = Pack.of_rows(3, length)
    inputs = ssd_inputs(pack)
    rows = {k: torch.unflatten(v, 0, pack.rows or ()) if k in ALONG else v for k, v in inputs.items()}
    y, last = ssd_rows(**rows, chunk=chunk)
    close((y.flatten(0, 1), last), along_paths(mamba2, inputs, pack))


@pytest.mark.parametrize(("kernel", "reference"), [(ssd, ssd_reference), (ssd_chunked, ssd_reference)])
def test_gradients_of_ssd_equal_those_of_the_recurrence(kernel: Kernel, reference: Kernel) -> None:
    pack, grads = Pack.of_rows(3, 40), []
    weights = torch.randn(120, 6, 5), torch.randn(3, 6, 5, 4)
    for run in (kernel, reference):
        inputs = {name: tensor.clone().requires_grad_() for name, tensor in ssd_inputs(pack).items()}
        y, final = run(**inputs, pack=pack)
        ((y * weights[0]).sum() + (final * weights[1]).sum()).backward()
        grads.append([tensor.grad for tensor in inputs.values()])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", PACKS)
@pytest.mark.parametrize("width", [1, 2, 4])
@pytest.mark.parametrize("gradients", [False, True])  # the compiled loop serves only where none are asked for
def test_the_causal_convolution_equals_torchs_along_each_path(name: str, width: int, gradients: bool) -> None:
    torch.manual_seed(0)
    pack = PACKS[name]
    x, weight, bias = torch.randn(pack.tokens, 6), torch.randn(6, width), torch.randn(6)
    state = torch.randn(pack.given, width - 1, 6)
    with torch.set_grad_enabled(gradients):
        y, window = causal_conv1d(x, weight, bias, pack=pack, state=state)
    kept = pack.keep.tolist()
    for number, (origin, tokens) in enumerate(paths(pack)):
        past = torch.cat([state[origin], x[tokens]])
        whole = F.conv1d(past.T[None], weight[:, None], bias, groups=6)[0].T
        torch.testing.assert_close(y[tokens], whole, atol=1e-5, rtol=1e-5)
        if number in kept:
            torch.testing.assert_close(window[kept.index(number)], past[len(past) - width + 1 :])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_inputs_are_computed_in_float32(dtype: torch.dtype) -> None:
    pack = PACKS["a forest"]
    for inputs, kernels in ((scan_inputs(pack, dtype), SCANS), (ssd_inputs(pack, dtype), SSDS)):
        truth = kernels[0](**{name: tensor.float() for name, tensor in inputs.items()}, pack=pack)
        for kernel in kernels:
            y, states = kernel(**inputs, pack=pack)
            assert y.dtype == dtype
            assert states.dtype == torch.float32
            close((y, states), truth, 0.01)
            close((truth[0], states), truth, 1e-5)
