"""SSD token after token, without chunks: no sum depends on where a batch, or a chunk, begins.

    h_t = exp(Δ_t A) h_{t'} + Δ_t x_t B_tᵀ        y_t = h_t C_t + D x_t        t' before t on its path

A segment goes on from its parent's last state, which is float32 wherever it stands. So a path gives the same numbers to
the last bit however it is cut into segments and packs. On a CPU, a compiled loop, it is faster than products of chunks,
which are small there; on a GPU, one Triton launch a level, it is slower.

Glossary: t tokens · h heads · p head size · n state · r groups that share B and C · g given states · k kept segments
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from evalspec.plan.pack import Pack
from evalspec.ssm.kernels.packed import power_of_two, segments_on
from evalspec.ssm.state import kept

WARPS = 4
TILE = 4096  # values of state that a program holds: 32 a lane, or 16 where a wavefront has 64


def ssd_serial(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, *, pack: Pack, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Run the recurrence along every path of the pack, without gradients.

    Args: x (t, h, p) · delta (t, h) · A (h,), negative · B, C (t, r, n), r divides h · D (h,)
        state (g, h, p, n), zeros if None. Rows of x, delta, B and C may lie apart, their values must lie together.
    Returns: y (t, h, p) in x's dtype, and the states after the segments `pack.keep` (k, h, p, n) in float32.
    """
    serial = ssd_serial_triton if x.is_cuda else ssd_serial_compiled
    return serial(x, delta, A, B, C, D, pack=pack, state=state)


def ssd_serial_compiled(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, *, pack: Pack, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The same on a CPU."""
    from evalspec.ssm.kernels.compiled import serial_of, share_threads

    u, delta, B, C, D = (tensor.detach().float().contiguous() for tensor in (x, delta, B, C, D))
    n = B.shape[2]
    given = u.new_zeros(pack.given, *u.shape[1:], n) if state is None else state.float().contiguous()
    y, ends = torch.empty_like(u), u.new_empty(len(pack.ends), *given.shape[1:])
    share_threads()
    rates = (A.detach().float() * math.log2(math.e)).contiguous()
    serial_of(n)(
        *(tensor.numpy() for tensor in (u, delta, rates, B, C, D)),
        *(pack.start, pack.length, pack.parent, pack.slot, given.numpy(), y.numpy(), ends.numpy()),
    )
    return y.to(x.dtype), kept(ends, pack)


def ssd_serial_triton(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, *, pack: Pack, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The same on a GPU."""
    import evalspec.ssm.kernels.ssd_serial_triton_kernels as kernels

    tokens, heads, size = x.shape
    groups, n = B.shape[1:]
    if any(tensor.stride(-1) != 1 for tensor in (x, delta, B, C)):
        raise ValueError("the values of a row must lie together")
    segments = segments_on(pack, x.device)
    A, D = A.float().contiguous(), D.float().contiguous()
    given = None if state is None else state.float().contiguous()
    y = x.new_empty(tokens, heads, size)
    ends = torch.empty(len(pack.ends), heads, size, n, dtype=torch.float32, device=x.device)
    block = min(power_of_two(size), max(1, TILE // power_of_two(n)))
    first = 0
    with torch.cuda.device(x.device):
        for count in segments.levels:
            kernels.serial_kernel[(count, heads, -(-size // block))](
                x, delta, A, B, C, D, given, y, ends,
                segments.start, segments.length, segments.source, segments.slot, first,
                heads, heads // groups, size, n,
                *x.stride()[:2], delta.stride(0), *B.stride()[:2], *C.stride()[:2],
                block, power_of_two(n), num_warps=WARPS,
            )  # fmt: skip
            first += count
    return y, kept(ends, pack)
