"""The causal convolution over a pack, and its single step, in Triton for CUDA and ROCm: forward only.

    y_t = act(bias + Σ_k w_k ⊙ x_{K−1−k steps back from t on its path})        act = silu or nothing

Every token is computed at once: where its last inputs stand is read from `Pack.history`.

Glossary: t tokens of the row · c channels · K width of the filter · k kept segments · b rows
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from evalspec.plan.pack import Pack
from evalspec.ssm.kernels.packed import history_on, window_on

TOKENS, BLOCK, WARPS = 16, 128, 4  # of a program's tile; its inputs, K times over, stay in the nearest cache
STEP_BLOCK = 512


@cache
def _kernels() -> Any:
    """Triton is imported here and not above: the CPU build of torch comes without it."""
    import evalspec.ssm.kernels.causal_conv1d_triton_kernels as kernels

    return kernels


def causal_conv1d_packed_triton(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    pack: Pack,
    state: Tensor | None = None,
    silu: bool = False,
    tokens: int = TOKENS,
    block: int = BLOCK,
    warps: int = WARPS,
) -> tuple[Tensor, Tensor]:
    """Filter each channel along every path of the pack.

    Args: x (t, c), whose rows may lie apart · weight (c, K) · bias (c,) · state (given, K−1, c), zeros if None.
    Returns: y (t, c), and the last K−1 inputs up to the end of each kept segment (k, K−1, c), both in x's dtype.
    """
    if x.stride(-1) != 1:
        raise ValueError("the values of a row must lie together")
    count, channels = x.shape
    width = weight.shape[1]
    bias = None if bias is None else bias.contiguous()
    history, window = history_on(pack, width - 1, x.device), window_on(pack, width - 1, x.device)
    given = None if state is None else state.contiguous()
    slots = pack.given * (width - 1)
    y = x.new_empty(count, channels)
    kept = x.new_empty(len(pack.keep), width - 1, channels)
    blocks = -(-channels // block)
    with torch.cuda.device(x.device):
        _kernels().packed_kernel[(-(-count // tokens), blocks)](
            x, weight.contiguous(), bias, given, history, y, count, channels, slots, x.stride(0),
            width, tokens, block, silu, num_warps=warps,
        )  # fmt: skip
        if window.numel():
            _kernels().window_kernel[(-(-window.numel() // tokens), blocks)](
                x, given, window, kept, window.numel(), channels, slots, x.stride(0), tokens, block, num_warps=warps
            )
    return y, kept


def causal_conv1d_step_triton(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    state: Tensor,
    silu: bool = False,
    block: int = STEP_BLOCK,
    warps: int = 4,
) -> Tensor:
    """One step of b rows; `state` (b, K−1, c), of any dtype, each row's values together, is updated in place.

    Args: x (b, c) · weight (c, K) · bias (c,). Returns: y (b, c) in x's dtype.
    """
    rows, channels = x.shape
    if x.stride(-1) != 1 or (weight.shape[1] > 1 and state.stride()[1:] != (channels, 1)):
        raise ValueError("the values of a row must lie together")
    bias = None if bias is None else bias.contiguous()
    y = x.new_empty(rows, channels)
    with torch.cuda.device(x.device):
        _kernels().step_kernel[(rows, -(-channels // block))](
            x, weight.contiguous(), bias, state, y, channels, x.stride(0), state.stride(0),
            weight.shape[1], block, silu, num_warps=warps,
        )  # fmt: skip
    return y
