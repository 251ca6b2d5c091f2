"""The two RMSNorms around the mixers, each with what comes before it, in one pass over memory: Triton, forward only.

    gated:  y = rms(x silu(z)) w        added:  r' = x + r,  y = rms(r') w        rms(v) = v / √(mean(v²) + ε)

Glossary: t rows · e or d values of a row
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from evalspec.ssm.kernels.packed import power_of_two

_VALUES_A_LANE = 16


@cache
def _kernels() -> Any:
    """Triton is imported here and not above: the CPU build of torch comes without it."""
    import evalspec.ssm.kernels.norms_triton_kernels as kernels

    return kernels


def gated_rms_norm_triton(x: Tensor, z: Tensor, weight: Tensor, eps: float, *, warps: int | None = None) -> Tensor:
    """Mamba-2's norm of x silu(z): x, z (t, e), whose rows may lie apart · weight (e,) → (t, e) in x's dtype."""
    rows, size = x.shape
    block = power_of_two(size)
    y = x.new_empty(rows, size)
    with torch.cuda.device(x.device):
        _kernels().gated_kernel[(rows,)](
            _rowwise(x), _rowwise(z), weight.contiguous(), y, size, x.stride(0), z.stride(0), eps, block,
            num_warps=warps or _warps(block),
        )  # fmt: skip
    return y


def add_rms_norm_triton(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, *, warps: int | None = None
) -> tuple[Tensor, Tensor]:
    """Add to the residual and norm the sum.

    Args: x (t, d) · residual (t, d), whose rows may lie apart · weight (d,).
    Returns: the normed sum (t, d) in x's dtype, and the sum in the residual's.
    """
    rows, size = x.shape
    block = power_of_two(size)
    y, total = x.new_empty(rows, size), residual.new_empty(rows, size)
    with torch.cuda.device(x.device):
        _kernels().add_kernel[(rows,)](
            _rowwise(x), _rowwise(residual), weight.contiguous(), y, total, size, x.stride(0), residual.stride(0), eps,
            block, num_warps=warps or _warps(block),
        )  # fmt: skip
    return y, total


def _rowwise(tensor: Tensor) -> Tensor:
    if tensor.stride(-1) != 1:
        raise ValueError("the values of a row must lie together")
    return tensor


def _warps(block: int) -> int:
    """So many that a lane holds a few values of the row: enough loads on their way, and registers to spare."""
    return max(1, min(16, block // (32 * _VALUES_A_LANE)))
