"""Each fast recurrence equals its reference: any starting state, lengths that fit no block, strong and weak decays."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from evalspec.ssm.kernels import selective_scan as scans
from evalspec.ssm.kernels.causal_conv1d import causal_conv1d
from evalspec.ssm.kernels.selective_scan import selective_scan_blocked, selective_scan_reference
from evalspec.ssm.kernels.ssd import ssd_chunked, ssd_reference, ssd_step

LENGTHS = [1, 2, 7, 64, 65, 200]


def scan_inputs(length: int, dtype: torch.dtype = torch.float32, strength: float = 1.0) -> dict[str, Tensor]:
    """b 3, e 10, n 4, with decays from hardly any to total."""
    torch.manual_seed(length)
    return {
        "x": torch.randn(3, length, 10).to(dtype),
        "delta": F.softplus(torch.randn(3, length, 10) * 3) * strength,
        "A": -torch.exp(torch.randn(10, 4) * 2),
        "B": torch.randn(3, length, 4).to(dtype),
        "C": torch.randn(3, length, 4).to(dtype),
        "D": torch.randn(10),
    }


def ssd_inputs(length: int, dtype: torch.dtype = torch.float32, strength: float = 1.0) -> dict[str, Tensor]:
    """b 3, h 6 in g 2 groups, p 5, n 4."""
    torch.manual_seed(length)
    return {
        "x": torch.randn(3, length, 6, 5).to(dtype),
        "delta": F.softplus(torch.randn(3, length, 6) * 3) * strength,
        "A": -torch.exp(torch.randn(6) * 2),
        "B": torch.randn(3, length, 2, 4).to(dtype),
        "C": torch.randn(3, length, 2, 4).to(dtype),
        "D": torch.randn(6),
    }


def close(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor], tolerance: float = 2e-5) -> None:
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("started", [False, True])
@pytest.mark.parametrize("block", [1, 500, 1 << 18])
def test_the_blocked_scan_equals_the_recurrence(
    length: int, started: bool, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scans, "_BLOCK_ELEMENTS", block)
    inputs = scan_inputs(length)
    state = torch.randn(3, 10, 4) if started else None
    close(selective_scan_blocked(**inputs, state=state), selective_scan_reference(**inputs, state=state))


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("started", [False, True])
@pytest.mark.parametrize("chunk", [1, 16, 64])
def test_chunked_ssd_equals_the_recurrence(length: int, started: bool, chunk: int) -> None:
    inputs = ssd_inputs(length)
    state = torch.randn(3, 6, 5, 4) if started else None
    close(ssd_chunked(**inputs, state=state, chunk=chunk), ssd_reference(**inputs, state=state))


def test_a_decoding_step_of_ssd_equals_the_recurrence() -> None:
    inputs, state = ssd_inputs(1), torch.randn(3, 6, 5, 4)
    before = state.clone()
    close(ssd_step(**inputs, state=state), ssd_reference(**inputs, state=state))
    assert torch.equal(state, before)


@pytest.mark.parametrize("strength", [1e-4, 100.0])
def test_decays_of_any_strength_stay_exact_and_finite(strength: float) -> None:
    """Cumulative log decays reach −10⁶ here: a ratio of their exponentials would be 0 / 0."""
    scan, ssd = scan_inputs(130, strength=strength), ssd_inputs(130, strength=strength)
    one, other = selective_scan_blocked(**scan), selective_scan_reference(**scan)
    scale = float(other[0].abs().max())
    torch.testing.assert_close(one[0] / scale, other[0] / scale, atol=1e-6, rtol=0)
    one, other = ssd_chunked(**ssd), ssd_reference(**ssd)
    scale = float(other[0].abs().max())
    torch.testing.assert_close(one[0] / scale, other[0] / scale, atol=1e-6, rtol=0)


def test_halves_with_a_carried_state_equal_one_pass() -> None:
    for inputs, run in ((scan_inputs(90), selective_scan_blocked), (ssd_inputs(90), ssd_chunked)):
        whole = run(**inputs)
        first = {
            name: tensor[:, :37] if name in ("x", "delta", "B", "C") else tensor for name, tensor in inputs.items()
        }
        second = {
            name: tensor[:, 37:] if name in ("x", "delta", "B", "C") else tensor for name, tensor in inputs.items()
        }
        y1, state = run(**first)
        y2, state = run(**second, state=state)
        close((torch.cat([y1, y2], dim=1), state), whole)


def test_positions_with_no_step_leave_the_state_as_it_was() -> None:
    for inputs, run in ((scan_inputs(20), selective_scan_blocked), (ssd_inputs(20), ssd_chunked)):
        short = {
            name: tensor[:, :11] if name in ("x", "delta", "B", "C") else tensor for name, tensor in inputs.items()
        }
        padded = {**inputs, "delta": inputs["delta"].clone()}
        padded["delta"][:, 11:] = 0.0
        torch.testing.assert_close(run(**padded)[1], run(**short)[1], atol=1e-6, rtol=1e-6)


def test_gradients_of_chunked_ssd_equal_those_of_the_recurrence() -> None:
    weights, grads = (torch.randn(3, 40, 6, 5), torch.randn(3, 6, 5, 4)), []
    for run in (ssd_chunked, ssd_reference):
        inputs = {name: tensor.clone().requires_grad_() for name, tensor in ssd_inputs(40).items()}
        state = torch.ones(3, 6, 5, 4, requires_grad=True)
        y, final = run(**inputs, state=state)
        ((y * weights[0]).sum() + (final * weights[1]).sum()).backward()
        grads.append([inputs[name].grad for name in inputs] + [state.grad])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("width", [2, 4])
def test_the_causal_convolution_equals_torchs_and_continues(width: int) -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(3, 20, 6), torch.randn(6, width), torch.randn(6)
    padded = F.pad(x.transpose(1, 2), (width - 1, 0))
    whole = F.conv1d(padded, weight[:, None], bias, groups=6).transpose(1, 2)
    y, state = causal_conv1d(x, weight, bias)
    torch.testing.assert_close(y, whole)
    torch.testing.assert_close(state, x[:, 20 - width + 1 :])
    y1, state = causal_conv1d(x[:, :1], weight, bias)
    y2, state = causal_conv1d(x[:, 1:], weight, bias, state=state)
    torch.testing.assert_close(torch.cat([y1, y2], dim=1), whole)


def test_the_convolution_keeps_each_rows_own_last_inputs() -> None:
    x, state = torch.randn(4, 8, 5), torch.randn(4, 3, 5)
    _, after = causal_conv1d(x, torch.randn(5, 4), state=state, lengths=torch.tensor([8, 2, 0, 3]))
    past = torch.cat([state, x], dim=1)
    for row, length in enumerate([8, 2, 0, 3]):
        torch.testing.assert_close(after[row], past[row, length : length + 3])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_inputs_are_computed_in_float32(dtype: torch.dtype) -> None:
    inputs = scan_inputs(50, dtype)
    y, state = selective_scan_blocked(**inputs)
    wide, wide_state = selective_scan_reference(**{name: tensor.float() for name, tensor in inputs.items()})
    assert y.dtype == dtype
    assert state.dtype == torch.float32
    torch.testing.assert_close(y.float(), wide, atol=0.05, rtol=0.01)
    torch.testing.assert_close(state, wide_state, atol=1e-4, rtol=1e-4)
