# mypy: disable-error-code="no-untyped-def,untyped-decorator"
"""Triton kernels of the packed selective scan; `selective_scan_packed_triton` says what they compute and calls them.

One lane takes one channel and holds its n values of state in registers, so that Σ_n C_n h_n needs no other lane. For
this the (n, e) tiles have channels innermost, and a block is as wide as the program's lanes; Triton must not find
reason to lay a tile out otherwise, hence states and A are stored (n, e) and their alignment is kept from the compiler.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def silu(z):
    """z σ(z)."""
    return z / (1.0 + tl.exp2(-z * LOG2_E))


@triton.jit
def softplus(v):
    """log(1 + eᵛ); with the rounding of 1 + eᵛ divided out, so that small values keep all their digits."""
    u = tl.exp2(v * LOG2_E)
    w = 1.0 + u
    small = tl.where(w == 1.0, u, tl.log2(w) * LN_2 * (u / tl.where(w == 1.0, 1.0, w - 1.0)))
    return tl.where(v > 20.0, v, small)


@triton.jit
def load_channels(x_ptr, delta_ptr, z_ptr, t, last, e, x_row, delta_row, z_row, STEPS: tl.constexpr):
    """x, Δ and z of STEPS steps from t. Behind the last step its own values are read again: cheaper than masks."""
    steps = ()
    for k in tl.static_range(STEPS):
        at = tl.minimum(t + k, last).to(tl.int64)
        x = tl.load(x_ptr + at * x_row + e)
        delta = tl.load(delta_ptr + at * delta_row + e)
        z = x
        if z_ptr is not None:
            z = tl.load(z_ptr + at * z_row + e)
        steps = steps + ((x, delta, z),)  # type: ignore[assignment]  # noqa: RUF005 (Triton unpacks no tuples)
    return steps


@triton.jit
def load_states(b_ptr, c_ptr, t, last, n, n_in, b_row, c_row, EVEN_N: tl.constexpr):
    """B and C of step t, all n of them to every lane."""
    at = tl.minimum(t, last).to(tl.int64)
    if EVEN_N:
        B = tl.load(b_ptr + at * b_row + n)
        C = tl.load(c_ptr + at * c_row + n)
    else:
        B = tl.load(b_ptr + at * b_row + n, mask=n_in, other=0.0)
        C = tl.load(c_ptr + at * c_row + n, mask=n_in, other=0.0)
    return B, C


@triton.jit(do_not_specialize=["first"], do_not_specialize_on_alignment=["a_ptr", "given_ptr", "ends_ptr"])
def packed_kernel(
    x_ptr, delta_ptr, a_ptr, b_ptr, c_ptr, d_ptr, z_ptr, bias_ptr, given_ptr, y_ptr, ends_ptr,
    start_ptr, length_ptr, source_ptr, slot_ptr, first, channels, n_state, x_row, delta_row, b_row, c_row, z_row,
    BLOCK: tl.constexpr, N: tl.constexpr, STEPS: tl.constexpr, EVEN_E: tl.constexpr, EVEN_N: tl.constexpr,
):  # fmt: skip
    """One segment and one block of channels: y at its tokens, and its last state if it has a slot among `ends`."""
    blocks = tl.cdiv(channels, BLOCK)
    segment = first + tl.program_id(0) // blocks
    e = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    n = tl.arange(0, N)
    e_in, n_in = e < channels, n < n_state
    tile = n[:, None] * channels + e[None, :]
    tile_in = n_in[:, None] & e_in[None, :]
    step = n_state * channels
    row = tl.load(start_ptr + segment).to(tl.int64)
    length = tl.load(length_ptr + segment)
    source = tl.load(source_ptr + segment).to(tl.int64)
    last = length - 1
    x_ptr += row * x_row
    delta_ptr += row * delta_row
    b_ptr += row * b_row
    c_ptr += row * c_row
    y_ptr += row * channels
    if z_ptr is not None:
        z_ptr += row * z_row
    e_at = e
    if not EVEN_E:
        e_at = tl.minimum(e, channels - 1)
    steps = load_channels(x_ptr, delta_ptr, z_ptr, 0, last, e_at, x_row, delta_row, z_row, STEPS)
    B, C = load_states(b_ptr, c_ptr, 0, last, n, n_in, b_row, c_row, EVEN_N)
    A = tl.load(a_ptr + tile, mask=tile_in, other=0.0) * LOG2_E
    D = tl.load(d_ptr + e_at)
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + e_at)
    # By masks and not by branches: one of the two reads nothing.
    of_pack = n_in[:, None] & (e[None, :] < tl.where(source >= 0, channels, 0))
    h = tl.load(ends_ptr + source * step + tile, mask=of_pack, other=0.0)
    if given_ptr is not None:
        of_given = n_in[:, None] & (e[None, :] < tl.where(source < 0, channels, 0))
        h += tl.load(given_ptr + (-1 - source) * step + tile, mask=of_given, other=0.0)
    for t in range(0, length, STEPS):
        following = load_channels(x_ptr, delta_ptr, z_ptr, t + STEPS, last, e_at, x_row, delta_row, z_row, STEPS)
        for k in tl.static_range(STEPS):
            # All blocks of channels read the same B and C, from the cache: one step ahead is early enough for them.
            B_next, C_next = load_states(b_ptr, c_ptr, t + k + 1, last, n, n_in, b_row, c_row, EVEN_N)
            x = steps[k][0].to(tl.float32)
            delta = steps[k][1].to(tl.float32)
            if bias_ptr is not None:
                delta = softplus(delta + bias)
            delta = tl.where(t + k <= last, delta, 0.0)  # leaves the state as it was
            h = tl.exp2(delta[None, :] * A) * h + (delta * x)[None, :] * B.to(tl.float32)[:, None]
            y = tl.sum(h * C.to(tl.float32)[:, None], axis=0) + D * x
            if z_ptr is not None:
                y *= silu(steps[k][2].to(tl.float32))
            tl.store(y_ptr + e, y.to(y_ptr.dtype.element_ty), mask=e < tl.where(t + k <= last, channels, 0))
            y_ptr += channels
            B, C = B_next, C_next
        steps = following
    slot = tl.load(slot_ptr + segment).to(tl.int64)  # only now: registers are scarce in the loop
    needed = n_in[:, None] & (e[None, :] < tl.where(slot >= 0, channels, 0))
    tl.store(ends_ptr + slot * step + tile, h, mask=needed)


@triton.jit
def step_kernel(
    x_ptr, delta_ptr, a_ptr, b_ptr, c_ptr, d_ptr, z_ptr, bias_ptr, state_ptr, y_ptr,
    channels, n_state, x_row, delta_row, b_row, c_row, z_row, state_row, state_e, state_n, a_e, a_n,
    BLOCK: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """One step of one row and one block of channels; the state is read once and written once, where it is."""
    row = tl.program_id(0).to(tl.int64)
    e = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    n = tl.arange(0, N)
    e_in, n_in = e < channels, n < n_state
    tile_in = e_in[:, None] & n_in[None, :]
    state_at = state_ptr + row * state_row + e[:, None] * state_e + n[None, :] * state_n
    h = tl.load(state_at, mask=tile_in, other=0.0).to(tl.float32)
    A = tl.load(a_ptr + e[:, None] * a_e + n[None, :] * a_n, mask=tile_in, other=0.0) * LOG2_E
    x = tl.load(x_ptr + row * x_row + e, mask=e_in, other=0.0).to(tl.float32)
    delta = tl.load(delta_ptr + row * delta_row + e, mask=e_in, other=0.0).to(tl.float32)
    B = tl.load(b_ptr + row * b_row + n, mask=n_in, other=0.0).to(tl.float32)
    C = tl.load(c_ptr + row * c_row + n, mask=n_in, other=0.0).to(tl.float32)
    D = tl.load(d_ptr + e, mask=e_in, other=0.0)
    if bias_ptr is not None:
        delta = softplus(delta + tl.load(bias_ptr + e, mask=e_in, other=0.0))
    h = tl.exp2(delta[:, None] * A) * h + (delta * x)[:, None] * B[None, :]
    y = tl.sum(h * C[None, :], axis=1) + D * x
    if z_ptr is not None:
        y *= silu(tl.load(z_ptr + row * z_row + e, mask=e_in, other=0.0).to(tl.float32))
    tl.store(y_ptr + row * channels + e, y.to(y_ptr.dtype.element_ty), mask=e_in)
    tl.store(state_at, h.to(state_ptr.dtype.element_ty), mask=tile_in)
