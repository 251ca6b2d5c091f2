"""The Triton scan equals the reference, forward and backward: on a GPU if there is one, else in the interpreter."""

from __future__ import annotations

import os
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F

from evalspec.plan.pack import Pack
from evalspec.ssm.kernels.selective_scan import selective_scan_reference

ON_GPU = torch.cuda.is_available()
if not ON_GPU:
    os.environ.setdefault("TRITON_INTERPRET", "1")
pytest.importorskip("triton.language", reason="triton is not installed (CPU builds of torch come without it)")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("length", "channels", "n"), [(7, 40, 16), (1, 8, 4), (5, 33, 5)])
@pytest.mark.parametrize("started", [False, True])
def test_values_and_gradients_equal_the_recurrence(
    length: int, channels: int, n: int, started: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    from evalspec.ssm.kernels.selective_scan_triton import selective_scan_triton

    if not ON_GPU:
        monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    device = "cuda" if ON_GPU else "cpu"
    torch.manual_seed(0)
    drawn = [
        torch.randn(2, length, channels).to(dtype),
        F.softplus(torch.randn(2, length, channels)),
        -torch.exp(torch.randn(channels, n)),
        torch.randn(2, length, n).to(dtype),
        torch.randn(2, length, n).to(dtype),
        torch.randn(channels),
        *([torch.randn(2, channels, n)] if started else []),
    ]
    weights = torch.randn(2, length, channels, device=device), torch.randn(2, channels, n, device=device)
    results = []

    def reference(*inputs: torch.Tensor, state: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        x, delta, A, B, C, D = (tensor.flatten(0, 1) if tensor.ndim == 3 else tensor for tensor in inputs)
        y, final = selective_scan_reference(x, delta, A, B, C, D, pack=Pack.of_rows(2, length), state=state)
        return y.unflatten(0, (2, length)), final

    for run in (selective_scan_triton, reference):
        inputs = [tensor.to(device).requires_grad_() for tensor in map(torch.clone, drawn)]
        y, final = run(*inputs[:6], state=inputs[6] if started else None)
        ((y.float() * weights[0]).sum() + (final * weights[1]).sum()).backward()
        results.append([y, final, *(tensor.grad for tensor in inputs)])
    for one, other in zip(*results, strict=True):
        scale = other.detach().float().abs().max().item() or 1.0
        assert one.dtype == other.dtype
        loose = 1e-2 if one.dtype == torch.bfloat16 else 1e-5
        torch.testing.assert_close(one.float() / scale, other.float() / scale, atol=loose, rtol=0)
