# mypy: disable-error-code="no-untyped-def,untyped-decorator"
"""The two Triton kernels of the selective scan; `selective_scan_triton` says what they compute and calls them.

They stand apart because this file imports Triton, which only the GPU builds of torch bring.
Axes: program_id(0) is the batch row, program_id(1) the block of channels; e channels of the block, n state.
The values of the next step are loaded before this step is computed, so that memory latency hides behind arithmetic.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def forward_kernel(
    x_ptr, delta_ptr, a_ptr, b_ptr, c_ptr, d_ptr, state_ptr, y_ptr, final_ptr, states_ptr,
    length, channels, n_state, BLOCK: tl.constexpr, N: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    """y, the last state and, where KEEP, the states of all steps."""
    row = tl.program_id(0).to(tl.int64)
    e = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    n = tl.arange(0, N)
    e_in, n_in = e < channels, n < n_state
    tile = e[:, None] * n_state + n[None, :]
    tile_in = e_in[:, None] & n_in[None, :]
    A = tl.load(a_ptr + tile, mask=tile_in, other=0.0)
    D = tl.load(d_ptr + e, mask=e_in, other=0.0)
    h = tl.load(state_ptr + row * channels * n_state + tile, mask=tile_in, other=0.0)
    at_e = row * length * channels + e
    at_n = row * length * n_state + n
    at_tile = row * length * channels * n_state + tile
    x = tl.load(x_ptr + at_e, mask=e_in, other=0.0).to(tl.float32)
    delta = tl.load(delta_ptr + at_e, mask=e_in, other=0.0).to(tl.float32)
    B = tl.load(b_ptr + at_n, mask=n_in, other=0.0).to(tl.float32)
    C = tl.load(c_ptr + at_n, mask=n_in, other=0.0).to(tl.float32)
    for t in range(length):
        e_more = e < tl.where(t + 1 < length, channels, 0)  # nothing is loaded beyond the last step
        n_more = n < tl.where(t + 1 < length, n_state, 0)
        x_next = tl.load(x_ptr + at_e + channels, mask=e_more, other=0.0).to(tl.float32)
        delta_next = tl.load(delta_ptr + at_e + channels, mask=e_more, other=0.0).to(tl.float32)
        B_next = tl.load(b_ptr + at_n + n_state, mask=n_more, other=0.0).to(tl.float32)
        C_next = tl.load(c_ptr + at_n + n_state, mask=n_more, other=0.0).to(tl.float32)
        h = tl.exp(delta[:, None] * A) * h + (delta * x)[:, None] * B[None, :]
        y = tl.sum(h * C[None, :], axis=1) + D * x
        tl.store(y_ptr + at_e, y.to(y_ptr.dtype.element_ty), mask=e_in)
        if KEEP:
            tl.store(states_ptr + at_tile, h, mask=tile_in)
        x, delta, B, C = x_next, delta_next, B_next, C_next
        at_e += channels
        at_n += n_state
        at_tile += channels * n_state
    tl.store(final_ptr + row * channels * n_state + tile, h, mask=tile_in)


@triton.jit
def backward_kernel(
    dy_ptr, dfinal_ptr, x_ptr, delta_ptr, a_ptr, b_ptr, c_ptr, d_ptr, state_ptr, states_ptr,
    dx_ptr, ddelta_ptr, da_ptr, db_ptr, dc_ptr, dd_ptr, dstate_ptr,
    batch, length, channels, n_state, BLOCK: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """All gradients, from the last step to the first; dB and dC once a block of channels, dA and dD once a row."""
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1).to(tl.int64)
    e = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    n = tl.arange(0, N)
    e_in, n_in = e < channels, n < n_state
    tile = e[:, None] * n_state + n[None, :]
    tile_in = e_in[:, None] & n_in[None, :]
    step = channels * n_state
    A = tl.load(a_ptr + tile, mask=tile_in, other=0.0)
    D = tl.load(d_ptr + e, mask=e_in, other=0.0)
    g = tl.load(dfinal_ptr + row * step + tile, mask=tile_in, other=0.0)
    dA = tl.zeros((BLOCK, N), tl.float32)
    dD = tl.zeros((BLOCK,), tl.float32)
    at_e = (row * length + length - 1) * channels + e
    at_n = (row * length + length - 1) * n_state + n
    at_tile = (row * length + length - 1) * step + tile
    at_partial = ((block * batch + row) * length + length - 1) * n_state + n
    initial = tl.load(state_ptr + row * step + tile, mask=tile_in, other=0.0)
    h = tl.load(states_ptr + at_tile, mask=tile_in, other=0.0)
    x = tl.load(x_ptr + at_e, mask=e_in, other=0.0).to(tl.float32)
    delta = tl.load(delta_ptr + at_e, mask=e_in, other=0.0).to(tl.float32)
    dy = tl.load(dy_ptr + at_e, mask=e_in, other=0.0).to(tl.float32)
    B = tl.load(b_ptr + at_n, mask=n_in, other=0.0).to(tl.float32)
    C = tl.load(c_ptr + at_n, mask=n_in, other=0.0).to(tl.float32)
    for back in range(length):
        e_more = e < tl.where(back + 1 < length, channels, 0)  # nothing is loaded before the first step
        n_more = n < tl.where(back + 1 < length, n_state, 0)
        h_before = tl.load(states_ptr + at_tile - step, mask=e_more[:, None] & n_more[None, :], other=0.0)
        x_next = tl.load(x_ptr + at_e - channels, mask=e_more, other=0.0).to(tl.float32)
        delta_next = tl.load(delta_ptr + at_e - channels, mask=e_more, other=0.0).to(tl.float32)
        dy_next = tl.load(dy_ptr + at_e - channels, mask=e_more, other=0.0).to(tl.float32)
        B_next = tl.load(b_ptr + at_n - n_state, mask=n_more, other=0.0).to(tl.float32)
        C_next = tl.load(c_ptr + at_n - n_state, mask=n_more, other=0.0).to(tl.float32)
        h_before = tl.where(back + 1 < length, h_before, initial)

        g += dy[:, None] * C[None, :]
        decay = tl.exp(delta[:, None] * A)
        through_decay = g * h_before * decay  # ∂loss/∂(Δ A), e, n
        into_inputs = tl.sum(g * B[None, :], axis=1)  # ∂loss/∂(Δ x), e
        dx = delta * into_inputs + D * dy
        ddelta = x * into_inputs + tl.sum(through_decay * A, axis=1)
        tl.store(dx_ptr + at_e, dx.to(dx_ptr.dtype.element_ty), mask=e_in)
        tl.store(ddelta_ptr + at_e, ddelta.to(ddelta_ptr.dtype.element_ty), mask=e_in)
        tl.store(db_ptr + at_partial, tl.sum(g * (delta * x)[:, None], axis=0), mask=n_in)
        tl.store(dc_ptr + at_partial, tl.sum(dy[:, None] * h, axis=0), mask=n_in)
        dA += through_decay * delta[:, None]
        dD += dy * x
        g *= decay

        h, x, delta, dy, B, C = h_before, x_next, delta_next, dy_next, B_next, C_next
        at_e -= channels
        at_n -= n_state
        at_tile -= step
        at_partial -= n_state
    tl.store(dstate_ptr + row * step + tile, g, mask=tile_in)
    tl.store(da_ptr + row * step + tile, dA, mask=tile_in)
    tl.store(dd_ptr + row * channels + e, dD, mask=e_in)
