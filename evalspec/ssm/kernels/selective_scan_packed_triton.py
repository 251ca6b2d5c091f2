"""The selective scan over a pack, and its single step, in Triton for CUDA and ROCm: forward only.

    h_t = exp(Δ_t A) ⊙ h_{t'} + Δ_t B_t x_t        y_t = (C_t · h_t + D x_t) · silu(z_t)        t' before t on its path

One launch a level of segments. A program takes one segment and a block of channels through the segment's tokens, and
begins with its parent's last state, which the level before has written: many children read the one copy.

Glossary: t tokens of the row · e inner channels · n state · m states kept (the pack's `ends`) · b rows
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from evalspec.plan.pack import Pack
from evalspec.ssm.kernels.packed import power_of_two, segments_on

STEPS = 2  # steps whose values are loaded while as many are computed; with four, some GPUs run out of registers
WARPS = 1  # small programs fill the last compute units best
STEP_BLOCK = 32  # channels of a decoding step; with n = 16 that is 512 values of state


@cache
def _kernels() -> Any:
    """Triton is imported here and not above: the CPU build of torch comes without it."""
    import evalspec.ssm.kernels.selective_scan_packed_triton_kernels as kernels

    return kernels


def selective_scan_packed_triton(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    *,
    pack: Pack,
    state: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    steps: int = STEPS,
    warps: int = WARPS,
) -> tuple[Tensor, Tensor]:
    """Run the recurrence along every path of the pack.

    Args: x, delta (t, e) · A (e, n), negative · B, C (t, n) · D (e,) · state (given, e, n), zeros if None · z (t, e),
        whose silu multiplies y · delta_bias (e,): if given, Δ is softplus(delta + delta_bias).
        Rows of x, delta, B, C and z may lie apart (slices of a projection), their values must lie together. A and state
        are read without a copy if their channels are innermost in memory, as in what this function returns.
    Returns: y (t, e) in x's dtype, and the last states of `pack.ends` (m, e, n) in float32.
    """
    segments = segments_on(pack, x.device)
    tokens, channels = x.shape
    n = A.shape[1]
    A = A.float().T.contiguous()  # n, e
    D, bias = D.float().contiguous(), None if delta_bias is None else delta_bias.float().contiguous()
    given = None if state is None else state.float().transpose(1, 2).contiguous()  # given, n, e
    y = x.new_empty(tokens, channels)
    ends = torch.empty(len(pack.ends), n, channels, dtype=torch.float32, device=x.device)
    _rowwise(x, delta, B, C, z)
    block = _lanes(x) * warps
    blocks, first = -(-channels // block), 0
    with torch.cuda.device(x.device):
        for count in segments.levels:
            _kernels().packed_kernel[(count * blocks,)](
                x, delta, A, B, C, D, z, bias, given, y, ends,
                segments.start, segments.length, segments.source, segments.slot, first,
                channels, n, x.stride(0), delta.stride(0), B.stride(0), C.stride(0), 0 if z is None else z.stride(0),
                block, power_of_two(n), steps, channels % block == 0, power_of_two(n) == n, num_warps=warps,
            )  # fmt: skip
            first += count
    return y, ends.transpose(1, 2)


def selective_scan_step_triton(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    *,
    state: Tensor,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    block: int = STEP_BLOCK,
    warps: int = 1,
) -> Tensor:
    """One step of b rows; `state` (b, e, n), of any dtype and strides, is updated in place.

    Args: x, delta (b, e) · A (e, n) · B, C (b, n) · D (e,) · z (b, e) · delta_bias (e,), as above.
    Returns: y (b, e) in x's dtype.
    """
    rows, channels = x.shape
    n = A.shape[1]
    _rowwise(x, delta, B, C, z)
    A = A.float()
    D, bias = D.float().contiguous(), None if delta_bias is None else delta_bias.float().contiguous()
    y = x.new_empty(rows, channels)
    with torch.cuda.device(x.device):
        _kernels().step_kernel[(rows, -(-channels // block))](
            x, delta, A, B, C, D, z, bias, state, y,
            channels, n, x.stride(0), delta.stride(0), B.stride(0), C.stride(0), 0 if z is None else z.stride(0),
            *state.stride(), *A.stride(), block, power_of_two(n), num_warps=warps,
        )  # fmt: skip
    return y


def _rowwise(*tensors: Tensor | None) -> None:
    if any(tensor is not None and tensor.stride(-1) != 1 for tensor in tensors):
        raise ValueError("the values of a row must lie together")


def _lanes(x: Tensor) -> int:
    """Lanes of a warp: 32 on CUDA, 64 on AMD's data-centre GPUs."""
    return int(torch.cuda.get_device_properties(x.device).warp_size) if x.is_cuda else 32
