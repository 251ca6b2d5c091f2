"""The selective scan in Triton, forward and backward, for CUDA and ROCm.

One program takes a batch row and a block of channels through time, its (channels, n) state in registers. For training
the states of all steps are kept in float32, so the backward pass walks back without inverting or recomputing anything:

    g_t = exp(Δ_{t+1} A) ⊙ g_{t+1} + dy_t C_t        (g_t = ∂loss/∂h_t)
    dC_t = Σ_e dy_t h_t      dB_t = Σ_e g_t Δ_t x_t      dx_t = Δ_t Σ_n g_t B_t + D dy_t
    dΔ_t = x_t Σ_n g_t B_t + Σ_n g_t h_{t−1} A exp(Δ_t A)      dA = Σ_t g_t h_{t−1} Δ_t exp(Δ_t A)

The sums over channels (dB, dC) are written once a block and added up later, those over the batch (dA, dD) once a row.
The kernels are custom operators: torch.compile calls them without a break in its graph.

Glossary: b batch · l time · e inner channels · n state · k blocks of channels. Source: arXiv 2312.00752, appendix C.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from evalspec.ssm.kernels.packed import power_of_two

_BLOCK = 32  # channels a program takes; with n = 16 that is 512 values of state, 16 a lane


@cache
def _kernels() -> tuple[Any, Any]:
    """The two kernels. Triton is imported here and not above: the CPU build of torch comes without it."""
    import evalspec.ssm.kernels.selective_scan_triton_kernels as kernels

    return kernels.forward_kernel, kernels.backward_kernel


@torch.library.custom_op("evalspec::selective_scan_forward", mutates_args=())
def _forward(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, state: Tensor, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Run the scan; returns y, the last state, and the states of all steps (empty unless `keep`)."""
    kernel, _ = _kernels()
    batch, length, channels = x.shape
    n = A.shape[1]
    y = torch.empty_like(x)
    final = torch.empty_like(state)
    states = state.new_empty((batch, length, channels, n) if keep else (0,))
    grid = (batch, -(-channels // _BLOCK))
    with torch.cuda.device(x.device):
        kernel[grid](
            x,
            delta,
            A,
            B,
            C,
            D,
            state,
            y,
            final,
            states,
            length,
            channels,
            n,
            _BLOCK,
            power_of_two(n),
            keep,
            num_warps=1,
        )
    return y, final, states


@_forward.register_fake
def _(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, state: Tensor, keep: bool) -> Any:
    batch, length, channels = x.shape
    states = state.new_empty((batch, length, channels, A.shape[1]) if keep else (0,))
    return torch.empty_like(x), torch.empty_like(state), states


@torch.library.custom_op("evalspec::selective_scan_backward", mutates_args=())
def _backward(
    dy: Tensor,
    dfinal: Tensor,
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    state: Tensor,
    states: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, delta, A, B, C, D and the initial state."""
    _, kernel = _kernels()
    batch, length, channels = x.shape
    n = A.shape[1]
    blocks = -(-channels // _BLOCK)
    dx, ddelta, dstate = torch.empty_like(x), torch.empty_like(delta), torch.empty_like(state)
    dA, dD = state.new_empty(batch, channels, n), state.new_empty(batch, channels)
    dB, dC = state.new_empty(blocks, batch, length, n), state.new_empty(blocks, batch, length, n)
    with torch.cuda.device(x.device):
        kernel[(batch, blocks)](
            dy, dfinal, x, delta, A, B, C, D, state, states, dx, ddelta, dA, dB, dC, dD, dstate,
            batch, length, channels, n, _BLOCK, power_of_two(n), num_warps=1,
        )  # fmt: skip
    return dx, ddelta, dA.sum(0), dB.sum(0).to(B.dtype), dC.sum(0).to(C.dtype), dD.sum(0), dstate


@_backward.register_fake
def _(
    dy: Tensor,
    dfinal: Tensor,
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    state: Tensor,
    states: Tensor,
) -> Any:
    return tuple(torch.empty_like(tensor) for tensor in (x, delta, A, B, C, D, state))


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:-1], output[2])


def _gradients(ctx: Any, dy: Tensor | None, dfinal: Tensor | None, dstates: Tensor | None) -> tuple[Tensor | None, ...]:
    x, delta, A, B, C, D, state, states = ctx.saved_tensors
    dy = torch.zeros_like(x) if dy is None else dy.contiguous()
    dfinal = torch.zeros_like(state) if dfinal is None else dfinal.contiguous()
    return *torch.ops.evalspec.selective_scan_backward(dy, dfinal, x, delta, A, B, C, D, state, states), None


torch.library.register_autograd("evalspec::selective_scan_forward", _gradients, setup_context=_keep_for_backward)


def selective_scan_triton(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, *, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The selective scan on the GPU; arguments and results as `selective_scan_reference`, all differentiable."""
    if state is None:
        state = torch.zeros(x.shape[0], x.shape[2], A.shape[1], dtype=torch.float32, device=x.device)
    inputs = tuple(tensor.contiguous() for tensor in (x, delta, A.float(), B, C, D.float(), state.float()))
    keep = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs)
    y, final, _ = torch.ops.evalspec.selective_scan_forward(*inputs, keep)
    return y, final
