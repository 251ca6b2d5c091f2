"""Selective scan (S6), the recurrence of Mamba.

    h_t = exp(Δ_t A) ⊙ h_{t−1} + Δ_t B_t x_t        y_t = C_t · h_t + D x_t
                                                                  (arXiv 2312.00752, eq. 2, algorithm 2)

Glossary: b batch · l time · e inner channels (E = expand · d_model) · n state (N)
A position whose Δ is 0 leaves the state as it was: that is how padding is kept out of it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Float32 values of one (steps, b, e, n) block: 1 MiB, so that its five passes stay in the cache.
_BLOCK_ELEMENTS = 1 << 18


def selective_scan_reference(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, *, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Run the recurrence one step at a time, in float32. The fast kernels must equal this.

    Args: x, delta (b, l, e) · A (e, n), negative · B, C (b, l, n) · D (e,) · state (b, e, n), zeros if None.
    Returns: y (b, l, e) in x's dtype, and the state after the last step (b, e, n) in float32.
    """
    u, delta, A, B, C, D = (tensor.float() for tensor in (x, delta, A, B, C, D))
    h = u.new_zeros(u.shape[0], u.shape[2], A.shape[1]) if state is None else state.float()
    outputs = []
    for t in range(u.shape[1]):
        decay = torch.exp(delta[:, t, :, None] * A)  # b, e, n
        h = decay * h + (delta[:, t] * u[:, t])[:, :, None] * B[:, t, None, :]
        outputs.append((h * C[:, t, None, :]).sum(-1) + D * u[:, t])
    y = torch.stack(outputs, dim=1) if outputs else torch.zeros_like(u)
    return y.to(x.dtype), h


def selective_scan_blocked(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, *, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The same, for the CPU and without gradients: a block of steps at a time, each pass over the block one operation.

    Decays, inputs and outputs of a block are computed together while they are in the cache; only h ← decay ⊙ h + input
    stays a loop, of one fused operation a step. No ratio of decays is ever formed, so nothing can overflow.
    """
    u, delta, A, B, C, D = (tensor.float() for tensor in (x, delta, A, B, C, D))
    batch, length, channels = u.shape
    n = A.shape[1]
    # Time first, so that a step's values lie together; channels last, so that the innermost loops are long.
    # Powers of two instead of e: on CPUs torch computes them two to three times faster.
    A = (A.T * math.log2(math.e)).contiguous()  # n, e
    delta_t, inputs_t = delta.transpose(0, 1)[:, :, None], (delta * u).transpose(0, 1)[:, :, None]  # l, b, 1, e
    B_t, C_t = B.transpose(0, 1)[..., None], C.transpose(0, 1)[:, :, None]  # l, b, n, 1 and l, b, 1, n
    h = u.new_zeros(batch, n, channels) if state is None else state.float().transpose(1, 2).contiguous()
    y = u.new_empty(length, batch, 1, channels)
    steps = max(1, min(length, _BLOCK_ELEMENTS // max(1, batch * channels * n)))
    decay, states = u.new_empty(steps, batch, n, channels), u.new_empty(steps, batch, n, channels)
    for start in range(0, length, steps):
        stop = min(start + steps, length)
        size = stop - start
        torch.mul(delta_t[start:stop], A, out=decay[:size]).exp2_()
        torch.mul(inputs_t[start:stop], B_t[start:stop], out=states[:size])
        for decay_t, state_t in zip(decay[:size].unbind(0), states[:size].unbind(0), strict=True):
            h = state_t.addcmul_(decay_t, h)
        torch.matmul(C_t[start:stop], states[:size], out=y[start:stop])
        h = h.clone()  # the block's memory is about to be written again
    result = y[:, :, 0].transpose(0, 1) + D * u
    return result.to(x.dtype), h.transpose(1, 2).contiguous()


def selective_scan(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, *, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The scan by the fastest form that serves: Triton on CUDA and ROCm, blocks on the CPU, steps for its gradients."""
    if x.is_cuda:
        from evalspec.ssm.kernels.selective_scan_triton import selective_scan_triton

        return selective_scan_triton(x, delta, A, B, C, D, state=state)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, delta, A, B, C, D)):
        return selective_scan_reference(x, delta, A, B, C, D, state=state)
    return selective_scan_blocked(x, delta, A, B, C, D, state=state)
