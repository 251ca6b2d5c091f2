# mypy: disable-error-code="no-untyped-def,untyped-decorator"
"""The Triton kernel of SSD token after token; `ssd_serial` says what it computes and calls it."""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit(do_not_specialize=["first"])
def serial_kernel(
    x_ptr, delta_ptr, a_ptr, b_ptr, c_ptr, d_ptr, given_ptr, y_ptr, ends_ptr,
    start_ptr, length_ptr, source_ptr, slot_ptr, first, heads, heads_a_group, size, n_state,
    x_row, x_head, delta_row, b_row, b_group, c_row, c_group,
    P: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """One segment, one head and P of its values: y at its tokens, and its last state if it has a slot among `ends`."""
    segment = first + tl.program_id(0)
    head = tl.program_id(1).to(tl.int64)
    p = tl.program_id(2) * P + tl.arange(0, P)
    n = tl.arange(0, N)
    p_in, n_in = p < size, n < n_state
    tile = (head * size + p[:, None]) * n_state + n[None, :]
    step = heads.to(tl.int64) * size * n_state
    row = tl.load(start_ptr + segment).to(tl.int64)
    length = tl.load(length_ptr + segment)
    source = tl.load(source_ptr + segment).to(tl.int64)
    # By masks and not by branches: one of the two reads nothing.
    of_pack = p_in[:, None] & (n[None, :] < tl.where(source >= 0, n_state, 0))
    h = tl.load(ends_ptr + source * step + tile, mask=of_pack, other=0.0)
    if given_ptr is not None:
        of_given = p_in[:, None] & (n[None, :] < tl.where(source < 0, n_state, 0))
        h += tl.load(given_ptr + (-1 - source) * step + tile, mask=of_given, other=0.0)
    A = tl.load(a_ptr + head) * LOG2_E
    D = tl.load(d_ptr + head)
    x_ptr += row * x_row + head * x_head
    delta_ptr += row * delta_row + head
    b_ptr += row * b_row + head // heads_a_group * b_group
    c_ptr += row * c_row + head // heads_a_group * c_group
    y_ptr += (row * heads + head) * size
    for _ in range(length):
        x = tl.load(x_ptr + p, mask=p_in, other=0.0).to(tl.float32)
        delta = tl.load(delta_ptr).to(tl.float32)
        B = tl.load(b_ptr + n, mask=n_in, other=0.0).to(tl.float32)
        C = tl.load(c_ptr + n, mask=n_in, other=0.0).to(tl.float32)
        h = tl.exp2(delta * A) * h + (delta * x)[:, None] * B[None, :]
        y = tl.sum(h * C[None, :], axis=1) + D * x
        tl.store(y_ptr + p, y.to(y_ptr.dtype.element_ty), mask=p_in)
        x_ptr += x_row
        delta_ptr += delta_row
        b_ptr += b_row
        c_ptr += c_row
        y_ptr += heads * size
    slot = tl.load(slot_ptr + segment).to(tl.int64)
    kept = p_in[:, None] & (n[None, :] < tl.where(slot >= 0, n_state, 0))
    tl.store(ends_ptr + slot * step + tile, h, mask=kept)
