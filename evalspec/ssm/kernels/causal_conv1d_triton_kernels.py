# mypy: disable-error-code="no-untyped-def,untyped-decorator"
"""Triton kernels of the causal convolution over a pack; `causal_conv1d_triton` says what they compute and calls them.

Positions are those of `Pack.previous`: the slots of the given states, K − 1 each, and then the row's tokens.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def read_inputs(x_ptr, given_ptr, position, slots, x_row, channels, c, inside):
    """The inputs at these positions, from the row or from a given state; zero states if there are none."""
    of_row = position >= slots
    at = tl.where(of_row, position - slots, 0).to(tl.int64)
    values = tl.load(x_ptr + at[:, None] * x_row + c[None, :], mask=inside & of_row[:, None], other=0.0)
    if given_ptr is not None:
        at = tl.where(of_row, 0, position).to(tl.int64)
        given = tl.load(given_ptr + at[:, None] * channels + c[None, :], mask=inside & ~of_row[:, None], other=0.0)
        values = tl.where(of_row[:, None], values, given.to(values.dtype))
    return values


@triton.jit(do_not_specialize=["tokens", "slots"])
def packed_kernel(
    x_ptr, weight_ptr, bias_ptr, given_ptr, history_ptr, y_ptr, tokens, channels, slots, x_row,
    WIDTH: tl.constexpr, TOKENS: tl.constexpr, BLOCK: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    """y of a block of tokens and a block of channels; the inputs that tokens share come from the cache."""
    t = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    t_in, c_in = t < tokens, c < channels
    inside = t_in[:, None] & c_in[None, :]
    y = tl.zeros((TOKENS, BLOCK), tl.float32)
    if bias_ptr is not None:
        y += tl.load(bias_ptr + c, mask=c_in, other=0.0).to(tl.float32)[None, :]
    for k in tl.static_range(WIDTH - 1):
        position = tl.load(history_ptr + t * (WIDTH - 1) + k, mask=t_in, other=0)
        values = read_inputs(x_ptr, given_ptr, position, slots, x_row, channels, c, inside)
        weight = tl.load(weight_ptr + c * WIDTH + k, mask=c_in, other=0.0).to(tl.float32)
        y += values.to(tl.float32) * weight[None, :]
    weight = tl.load(weight_ptr + c * WIDTH + WIDTH - 1, mask=c_in, other=0.0).to(tl.float32)
    values = tl.load(x_ptr + t.to(tl.int64)[:, None] * x_row + c[None, :], mask=inside, other=0.0)
    y += values.to(tl.float32) * weight[None, :]
    if SILU:
        y = y / (1.0 + tl.exp2(-y * LOG2_E))
    y_at = y_ptr + t.to(tl.int64)[:, None] * channels + c[None, :]
    tl.store(y_at, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows", "slots"])
def window_kernel(
    x_ptr, given_ptr, window_ptr, kept_ptr, rows, channels, slots, x_row,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The inputs at the positions of `window`, row by row."""
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = (r < rows)[:, None] & (c < channels)[None, :]
    position = tl.load(window_ptr + r, mask=r < rows, other=0)
    values = read_inputs(x_ptr, given_ptr, position, slots, x_row, channels, c, inside)
    tl.store(kept_ptr + r.to(tl.int64)[:, None] * channels + c[None, :], values, mask=inside)


@triton.jit
def step_kernel(
    x_ptr, weight_ptr, bias_ptr, window_ptr, y_ptr, channels, x_row, window_row,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    """One step of one row; its window moves on by one input, where it is."""
    row = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    c_in = c < channels
    x = tl.load(x_ptr + row * x_row + c, mask=c_in, other=0.0)
    y = x.to(tl.float32) * tl.load(weight_ptr + c * WIDTH + WIDTH - 1, mask=c_in, other=0.0).to(tl.float32)
    if bias_ptr is not None:
        y += tl.load(bias_ptr + c, mask=c_in, other=0.0).to(tl.float32)
    window_at = window_ptr + row * window_row + c
    for k in tl.static_range(WIDTH - 1):
        value = tl.load(window_at + k * channels, mask=c_in, other=0.0)
        y += value.to(tl.float32) * tl.load(weight_ptr + c * WIDTH + k, mask=c_in, other=0.0).to(tl.float32)
        if k > 0:
            tl.store(window_at + (k - 1) * channels, value, mask=c_in)
    if WIDTH > 1:
        tl.store(window_at + (WIDTH - 2) * channels, x.to(window_ptr.dtype.element_ty), mask=c_in)
    if SILU:
        y = y / (1.0 + tl.exp2(-y * LOG2_E))
    tl.store(y_ptr + row * channels + c, y.to(y_ptr.dtype.element_ty), mask=c_in)
