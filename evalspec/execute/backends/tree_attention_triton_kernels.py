# mypy: disable-error-code="no-untyped-def,untyped-decorator"
"""The Triton kernel of attention over a pack; `tree_attention_triton` says what it computes and calls it.

A head's values are taken in two parts, the largest power of two that fits and the rest: 80 are 64 + 16, not 128.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
FAR = tl.constexpr(-1e30)


@triton.jit
def add_product(total, a, b, WIDE: tl.constexpr):
    """total + a b, summed in float32; WIDE: multiplied in float32, too."""
    if WIDE:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, total, input_precision="ieee")


@triton.jit
def load_part(
    at_ptr, row, row_stride, FIRST: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr, ACROSS: tl.constexpr
):  # fmt: skip
    """Values FIRST … FIRST + WIDTH − 1 of these rows, zeros from D on: (row, d), or (d, row) if ACROSS."""
    d = FIRST + tl.arange(0, WIDTH)
    if ACROSS:
        at, d_in = at_ptr + row[None, :] * row_stride + d[:, None], (d < D)[:, None]
    else:
        at, d_in = at_ptr + row[:, None] * row_stride + d[None, :], (d < D)[None, :]
    if FIRST + WIDTH > D:
        found = tl.load(at, mask=d_in, other=0.0)
    else:
        found = tl.load(at)
    return found


@triton.jit
def over_tiles(
    q, q_rest, o, o_rest, top, total, row, row_position, keys_ptr, values_ptr, key_row, value_row, columns,
    seen_ptr, places, item_ptr, first, last, scale, softcap, window,
    D: tl.constexpr, D_MAIN: tl.constexpr, D_REST: tl.constexpr, V: tl.constexpr, V_MAIN: tl.constexpr,
    V_REST: tl.constexpr, COLUMNS: tl.constexpr, MASKED: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Take the listed tiles of columns into a running softmax; MASKED: not all rows see all of their columns.

    With scores x in base 2: `top` is the largest so far (or FAR), total = Σ 2^(x − top), o = Σ 2^(x − top) value.
    """
    c = tl.arange(0, COLUMNS)
    # Nothing is taken out of the loop: what four loops need would together not fit into the registers.
    for item in tl.range(first, last, disable_licm=True):
        begin = tl.load(item_ptr + 2 * item)
        left = columns - begin
        at = c
        if MASKED:
            at = tl.minimum(c, left - 1)  # behind the last column: that one once more, which nobody will see
        k_ptr = keys_ptr + begin.to(tl.int64) * key_row
        v_ptr = values_ptr + begin.to(tl.int64) * value_row
        k = load_part(k_ptr, at, key_row, 0, D_MAIN, D, True)
        x = add_product(tl.zeros((q.shape[0], COLUMNS), tl.float32), q, k, WIDE)
        if D_REST > 0:
            k_rest = load_part(k_ptr, at, key_row, D_MAIN, D_REST, D, True)
            x = add_product(x, q_rest, k_rest, WIDE)
        x *= scale  # log₂ e is in it, unless scores are capped
        if softcap is not None:
            # cap · tanh(x / cap), by an exponential that may overflow: 1 − 2 / (1 + ∞)
            x = softcap * (1.0 - 2.0 / (1.0 + tl.exp2(x * (2.0 * LOG2_E / softcap)))) * LOG2_E
        if MASKED:
            place_ptr = seen_ptr + tl.load(item_ptr + 2 * item + 1) + c
            low = tl.load(place_ptr, mask=c < left, other=0)
            high = tl.load(place_ptr + places, mask=c < left, other=0)
            # low ≤ row < high in one comparison: a row before low is a large number without a sign.
            seen = (row[:, None] - low[None, :]).to(tl.uint32) < (high - low).to(tl.uint32)[None, :]
            if window is not None:
                column_position = tl.load(place_ptr + 2 * places, mask=c < left, other=0)
                seen &= row_position[:, None] - column_position[None, :] < window
            x = tl.where(seen, x, float("-inf"))
        above = tl.maximum(top, tl.max(x, axis=1))
        p = tl.exp2(x - above[:, None])  # `above` is finite also where a row sees nothing yet
        shrink = tl.exp2(top - above)
        total = total * shrink + tl.sum(p, axis=1)
        p = p.to(values_ptr.dtype.element_ty)
        v = load_part(v_ptr, at, value_row, 0, V_MAIN, V, False)
        o = add_product(o * shrink[:, None], p, v, WIDE)
        if V_REST > 0:
            v_rest = load_part(v_ptr, at, value_row, V_MAIN, V_REST, V, False)
            o_rest = add_product(o_rest * shrink[:, None], p, v_rest, WIDE)
        top = above
    return o, o_rest, top, total


@triton.jit(do_not_specialize=["heads", "tokens", "before", "places"])
def tree_kernel(
    query_ptr, keys_ptr, values_ptr, past_keys_ptr, past_values_ptr, sinks_ptr, output_ptr,
    seen_ptr, item_ptr, tile_ptr, places,
    heads, heads_a_group, tokens, before, scale, softcap, window,
    query_head, query_row, key_head, key_row, value_head, value_row, past_key_head, past_key_row,
    past_value_head, past_value_row, output_head, output_row,
    D: tl.constexpr, D_MAIN: tl.constexpr, D_REST: tl.constexpr, V: tl.constexpr, V_MAIN: tl.constexpr,
    V_REST: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """One tile of rows, one query head, over the tiles of columns that any of its rows sees.

    `tile` (n, 6): a row tile's number, and where in `item` its tiles of columns lie: those of the past that all of its
    rows see, others of the past, those of the pack that all see, others of the pack. `item` (i, 2): a column tile's
    first column, and its place in `seen` (3, places), which says of each column: low, high, position.
    """
    number = tl.program_id(0) // heads
    head = (tl.program_id(0) % heads).to(tl.int64)
    group = head // heads_a_group
    tile_ptr += number * 6
    begin = tl.load(tile_ptr) * ROWS
    r = tl.arange(0, ROWS)
    row, left = begin + r, tokens - begin
    at = tl.minimum(r, left - 1)  # rows behind the last: that one once more; they are not stored
    q_ptr = query_ptr + head * query_head + begin.to(tl.int64) * query_row
    q = load_part(q_ptr, at, query_row, 0, D_MAIN, D, False)
    q_rest = q
    if D_REST > 0:
        q_rest = load_part(q_ptr, at, query_row, D_MAIN, D_REST, D, False)
    o = tl.zeros((ROWS, V_MAIN), tl.float32)
    o_rest = tl.zeros((ROWS, V_REST if V_REST > 0 else 16), tl.float32)
    if sinks_ptr is None:
        top = tl.full((ROWS,), FAR, tl.float32)
        total = tl.zeros((ROWS,), tl.float32)
    else:
        top = tl.full((ROWS,), 0.0, tl.float32) + tl.load(sinks_ptr + head).to(tl.float32) * LOG2_E
        total = tl.full((ROWS,), 1.0, tl.float32)
    row_position = row
    if window is not None:
        # The pack's own columns are the last of all places.
        row_position = tl.load(seen_ptr + 3 * places - tokens + row, mask=r < left, other=0)
    if past_keys_ptr is not None:
        k_ptr, v_ptr = past_keys_ptr + group * past_key_head, past_values_ptr + group * past_value_head
        for masked in tl.static_range(2):
            o, o_rest, top, total = over_tiles(
                q, q_rest, o, o_rest, top, total, row, row_position, k_ptr, v_ptr, past_key_row, past_value_row, before,
                seen_ptr, places, item_ptr, tl.load(tile_ptr + 1 + masked), tl.load(tile_ptr + 2 + masked),
                scale, softcap, window,
                D, D_MAIN, D_REST, V, V_MAIN, V_REST, COLUMNS, masked, WIDE,
            )  # fmt: skip
    k_ptr, v_ptr = keys_ptr + group * key_head, values_ptr + group * value_head
    for masked in tl.static_range(2):
        o, o_rest, top, total = over_tiles(
            q, q_rest, o, o_rest, top, total, row, row_position, k_ptr, v_ptr, key_row, value_row, tokens,
            seen_ptr, places, item_ptr, tl.load(tile_ptr + 3 + masked), tl.load(tile_ptr + 4 + masked),
            scale, softcap, window,
            D, D_MAIN, D_REST, V, V_MAIN, V_REST, COLUMNS, masked, WIDE,
        )  # fmt: skip
    share = 1.0 / tl.where(total > 0, total, 1.0)  # rows behind the last token see nothing
    o *= share[:, None]
    at = output_ptr + head * output_head + begin.to(tl.int64) * output_row + r[:, None] * output_row
    d = tl.arange(0, V_MAIN)[None, :]
    kind = output_ptr.dtype.element_ty
    tl.store(at + d, o.to(kind), mask=(r < left)[:, None] & (d < V))
    if V_REST > 0:
        d = V_MAIN + tl.arange(0, V_REST)[None, :]
        tl.store(at + d, (o_rest * share[:, None]).to(kind), mask=(r < left)[:, None] & (d < V))
