"""Selective scan (S6), the recurrence of Mamba.

    h_t = exp(Δ_t A) ⊙ h_{t−1} + Δ_t B_t x_t        y_t = C_t · h_t + D x_t
                                                                  (arXiv 2312.00752, eq. 2, algorithm 2)

where t − 1 is the token before t on its path through a pack: the one beside it, its segment's parent's last, or a state
that was given.

Glossary: t tokens · e inner channels (E = expand · d_model) · n state (N) · g given states
m segments whose last state is needed (`Pack.ends`)
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from evalspec.plan.pack import Pack


def selective_scan_reference(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, *, pack: Pack, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Run the recurrence one step at a time, in float32. The fast kernels must equal this.

    Args: x, delta (t, e) · A (e, n), negative · B, C (t, n) · D (e,) · state (g, e, n), zeros if None.
    Returns: y (t, e) in x's dtype, and the states after the segments `pack.ends` (m, e, n) in float32.
    """
    u, delta, A, B, C, D = (tensor.float() for tensor in (x, delta, A, B, C, D))
    given = u.new_zeros(pack.given, *A.shape) if state is None else state.float()
    last: dict[int, Tensor] = {}
    outputs, places = [], []
    for level in pack.levels:  # segments of one depth, in step; one that has ended goes on with Δ = 0
        h = torch.stack([last[above] if above >= 0 else given[-1 - above] for above in pack.parent[level].tolist()])
        for step in range(int(pack.length[level].max())):
            going = step < pack.length[level]
            at = torch.from_numpy(pack.start[level] + np.minimum(step, pack.length[level] - 1)).to(x.device)
            d = delta[at] * torch.from_numpy(going).to(x.device)[:, None]  # segments, e
            h = torch.exp(d[..., None] * A) * h + (d * u[at])[..., None] * B[at][:, None]
            outputs.append(((h * C[at][:, None]).sum(-1) + D * u[at])[going])
            places.append(at[going])
        last.update(zip(level.tolist(), h, strict=True))
    y = torch.cat(outputs)[torch.cat(places).argsort()]
    return y.to(x.dtype), torch.stack([last[end] for end in pack.ends.tolist()]) if len(pack.ends) else given[:0]


def selective_scan_compiled(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, *, pack: Pack, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The same on a CPU, without gradients, by a compiled loop over channels and time."""
    from evalspec.ssm.kernels.compiled import scan_of, share_threads

    u, delta, B, C, D = (tensor.float().contiguous() for tensor in (x, delta, B, C, D))
    channels, n = A.shape
    given = u.new_zeros(pack.given, channels, n) if state is None else state.float().contiguous()
    y, ends = torch.empty_like(u), u.new_empty(len(pack.ends), channels, n)
    share_threads()
    rates = (A.float() * math.log2(math.e)).contiguous()
    arrays = [tensor.detach().numpy() for tensor in (u, delta, rates, B, C, D)]
    scan_of(n)(
        *arrays, pack.start, pack.length, pack.parent, pack.slot, given.detach().numpy(), y.numpy(), ends.numpy()
    )
    return y.to(x.dtype), ends


def selective_scan(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, *, pack: Pack, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The scan by the form that serves: on a CPU a compiled loop, or steps for gradients; on a GPU Triton's with
    gradients, for rows. (Without gradients a GPU has faster ones: see `choice`.)"""
    gradients = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, delta, A, B, C, D))
    if not x.is_cuda:
        scan = selective_scan_reference if gradients else selective_scan_compiled
        return scan(x, delta, A, B, C, D, pack=pack, state=state)
    if pack.rows is None:
        return selective_scan_reference(x, delta, A, B, C, D, pack=pack, state=state)
    from evalspec.ssm.kernels.selective_scan_triton import selective_scan_triton

    x, delta, B, C = (torch.unflatten(tensor, 0, pack.rows) for tensor in (x, delta, B, C))
    y, final = selective_scan_triton(x, delta, A, B, C, D, state=state)
    return y.flatten(0, 1), final
