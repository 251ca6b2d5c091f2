# mypy: disable-error-code="no-untyped-def,untyped-decorator"
"""Triton kernels of SSD over a pack; `ssd_triton` says what they compute and calls them.

What a head needs of each token stands in `scalars` (3, h, t): the log decay in base 2 from the chunk's entry up to the
token, as the sum of two floats, and Δ. Differences of the first are differences of large numbers where decays are
strong; with the second float they keep their digits.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def add_product(total, a, b, kind: tl.constexpr, WIDE: tl.constexpr):
    """total + a b, summed in float32, of factors rounded to this type; WIDE: multiplied in float32 all the same."""
    a, b = a.to(kind), b.to(kind)
    if WIDE:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, total, input_precision="ieee")


@triton.jit
def entry_state(states_ptr, given_ptr, source, step, n_state):
    """Where the state that a chunk hangs from stands, and how much of n can be read there: nothing for zeros."""
    entry_ptr, known = states_ptr + source * step, n_state
    if given_ptr is None:
        known = tl.where(source >= 0, n_state, 0)
    elif source < 0:
        entry_ptr = given_ptr + (-1 - source) * step
    return entry_ptr, known


@triton.jit(do_not_specialize=["tokens", "heads"])
def cumulative_kernel(
    delta_ptr, a_ptr, scalars_ptr, start_ptr, stop_ptr, reach_ptr, tokens, heads, delta_row,
    CHUNK: tl.constexpr, PART: tl.constexpr,
):  # fmt: skip
    """One chunk, one head: log decays summed along paths, each a sum over the tokens that the path holds."""
    chunk = tl.program_id(0) // heads
    head = tl.program_id(0) % heads
    start, stop = tl.load(start_ptr + chunk), tl.load(stop_ptr + chunk)
    t = start + tl.arange(0, CHUNK)
    A = tl.load(a_ptr + head).to(tl.float64) * LOG2_E
    total = tl.zeros((CHUNK,), tl.float64)
    for first in range(0, CHUNK, PART):
        s = start + first + tl.arange(0, PART)
        reach = tl.load(reach_ptr + s, mask=s < stop, other=0)
        delta = tl.load(delta_ptr + s.to(tl.int64) * delta_row + head, mask=s < stop, other=0.0).to(tl.float64)
        on_path = (s[:, None] <= t[None, :]) & (t[None, :] < reach[:, None])  # s, t: a lane sums its own token's
        total += tl.sum(tl.where(on_path, (delta * A)[:, None], 0.0), axis=0)
    high = total.to(tl.float32)
    delta = tl.load(delta_ptr + t.to(tl.int64) * delta_row + head, mask=t < stop, other=0.0)
    at = scalars_ptr + head.to(tl.int64) * tokens + t
    plane = heads.to(tl.int64) * tokens
    tl.store(at, high, mask=t < stop)
    tl.store(at + plane, (total - high.to(tl.float64)).to(tl.float32), mask=t < stop)
    tl.store(at + 2 * plane, delta.to(tl.float32), mask=t < stop)


@triton.jit(do_not_specialize=["first", "tokens", "heads"])
def state_kernel(
    x_ptr, b_ptr, scalars_ptr, given_ptr, states_ptr, start_ptr, source_ptr, reach_ptr,
    port_token_ptr, port_chunk_ptr, chain_port_ptr, chain_start_ptr, chain_stop_ptr, first,
    tokens, heads, heads_a_group, size, n_state, x_row, x_head, b_row, b_group,
    P: tl.constexpr, N: tl.constexpr, PART: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """One run of ports, one head, one (p, n) block: the states behind the ports, each found from the one before."""
    p_blocks, n_blocks = tl.cdiv(size, P), tl.cdiv(n_state, N)
    number = tl.program_id(0)
    n = (number % n_blocks) * N + tl.arange(0, N)
    number = number // n_blocks
    p = (number % p_blocks) * P + tl.arange(0, P)
    number = number // p_blocks
    head = (number % heads).to(tl.int64)
    run = first + number // heads
    p_in, n_in = p < size, n < n_state
    tile = head * size * n_state + p[:, None] * n_state + n[None, :]
    tile_in = p_in[:, None] & n_in[None, :]
    step = heads.to(tl.int64) * size * n_state
    plane = heads.to(tl.int64) * tokens
    scalars_ptr += head * tokens
    x_ptr += head * x_head
    b_ptr += head // heads_a_group * b_group
    run_start, run_stop = tl.load(chain_start_ptr + run), tl.load(chain_stop_ptr + run)
    source = tl.load(source_ptr + tl.load(port_chunk_ptr + tl.load(chain_port_ptr + run_start))).to(tl.int64)
    entry_ptr, known = entry_state(states_ptr, given_ptr, source, step, n_state)
    h = tl.load(entry_ptr + tile, mask=p_in[:, None] & (n[None, :] < known), other=0.0)
    for place in range(run_start, run_stop):
        port = tl.load(chain_port_ptr + place)
        token = tl.load(port_token_ptr + port)
        start = tl.load(start_ptr + tl.load(port_chunk_ptr + port))
        high, low = tl.load(scalars_ptr + token), tl.load(scalars_ptr + plane + token)
        h *= tl.exp2(high + low)
        for begin in range(start, token + 1, PART):
            s = begin + tl.arange(0, PART)
            s_in = s <= token
            on_path = token < tl.load(reach_ptr + s, mask=s_in, other=0)
            exponent = high - tl.load(scalars_ptr + s, mask=s_in, other=0.0)
            exponent += low - tl.load(scalars_ptr + plane + s, mask=s_in, other=0.0)
            delta = tl.load(scalars_ptr + 2 * plane + s, mask=s_in, other=0.0)
            weight = tl.exp2(tl.where(on_path, exponent, float("-inf"))) * delta
            row = s.to(tl.int64)
            x_at, b_at = row[None, :] * x_row + p[:, None], row[:, None] * b_row + n[None, :]
            x = tl.load(x_ptr + x_at, mask=p_in[:, None] & s_in[None, :], other=0.0)
            B = tl.load(b_ptr + b_at, mask=s_in[:, None] & n_in[None, :], other=0.0)
            h = add_product(h, x.to(tl.float32) * weight[None, :], B, x_ptr.dtype.element_ty, WIDE)
        tl.store(states_ptr + port.to(tl.int64) * step + tile, h, mask=tile_in)


@triton.jit
def scores_kernel(
    b_ptr, c_ptr, scores_ptr, start_ptr, stop_ptr, reach_ptr, groups, n_state, b_row, b_group, c_row, c_group,
    TILES: tl.constexpr, Q: tl.constexpr, CHUNK: tl.constexpr,
    N: tl.constexpr, N_PART: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """C · B of Q tokens of a chunk with those before them on their paths, zeros elsewhere: a group's heads share it."""
    tile = tl.program_id(0) % TILES
    group = tl.program_id(0) // TILES % groups
    chunk = tl.program_id(0) // TILES // groups
    start, stop = tl.load(start_ptr + chunk), tl.load(stop_ptr + chunk)
    at_q, at_s = tile * Q + tl.arange(0, Q), tl.arange(0, CHUNK)
    q, s = tl.minimum(start + at_q, stop - 1), tl.minimum(start + at_s, stop - 1)  # cheaper than masks
    b_ptr += group * b_group
    c_ptr += group * c_group
    scores = tl.zeros((Q, CHUNK), tl.float32)
    for first in tl.static_range(0, N, N_PART):
        n = first + tl.arange(0, N_PART)
        n_in = n < n_state
        c_at = q.to(tl.int64)[:, None] * c_row + n[None, :]
        b_at = s.to(tl.int64)[None, :] * b_row + n[:, None]  # transposed: n, s
        C = tl.load(c_ptr + c_at, mask=n_in[None, :], other=0.0)
        B = tl.load(b_ptr + b_at, mask=n_in[:, None], other=0.0)
        scores = add_product(scores, C, B, c_ptr.dtype.element_ty, WIDE)
    reach = tl.load(reach_ptr + s)
    on_path = (at_s[None, :] <= at_q[:, None]) & (start + at_q[:, None] < reach[None, :])
    place = tl.program_id(0) // TILES * CHUNK  # the chunk's and group's first row
    scores_at = scores_ptr + (place.to(tl.int64) + at_q)[:, None] * CHUNK + at_s[None, :]
    tl.store(scores_at, tl.where(on_path, scores, 0.0))


@triton.jit(do_not_specialize=["tokens", "heads"])
def output_kernel(
    x_ptr, c_ptr, d_ptr, scalars_ptr, scores_ptr, given_ptr, states_ptr, y_ptr, start_ptr, stop_ptr, source_ptr,
    tokens, heads, heads_a_group, size, n_state, x_row, x_head, c_row, c_group,
    TILES: tl.constexpr, Q: tl.constexpr, CHUNK: tl.constexpr,
    P: tl.constexpr, N: tl.constexpr, N_PART: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """y of Q tokens of a chunk, one head and P of its values: from the chunk's entry, and from the tokens within."""
    head = (tl.program_id(0) % heads).to(tl.int64)
    chunk = tl.program_id(0) // heads // TILES
    tile = tl.program_id(0) // heads % TILES
    start, stop = tl.load(start_ptr + chunk), tl.load(stop_ptr + chunk)
    if start + tile * Q >= stop:
        return
    at_q, at_s = tile * Q + tl.arange(0, Q), tl.arange(0, CHUNK)
    q, s = tl.minimum(start + at_q, stop - 1), tl.minimum(start + at_s, stop - 1)  # cheaper than masks
    p = tl.program_id(1) * P + tl.arange(0, P)
    p_in = p < size
    step = heads.to(tl.int64) * size * n_state
    plane = heads.to(tl.int64) * tokens
    scalars_ptr += head * tokens
    x_ptr += head * x_head
    c_ptr += head // heads_a_group * c_group
    kind: tl.constexpr = x_ptr.dtype.element_ty
    high, low = tl.load(scalars_ptr + q), tl.load(scalars_ptr + plane + q)
    y = tl.zeros((Q, P), tl.float32)
    entry_ptr, known = entry_state(states_ptr, given_ptr, tl.load(source_ptr + chunk).to(tl.int64), step, n_state)
    for first in tl.static_range(0, N, N_PART):
        n = first + tl.arange(0, N_PART)
        n_in = n < n_state
        c_at = q.to(tl.int64)[:, None] * c_row + n[None, :]
        C = tl.load(c_ptr + c_at, mask=n_in[None, :], other=0.0)
        h_at = head * size * n_state + p[None, :] * n_state + n[:, None]  # transposed: n, p
        h = tl.load(entry_ptr + h_at, mask=p_in[None, :] & (n[:, None] < known), other=0.0)
        y = add_product(y, C, h, kind, WIDE)
    y *= tl.exp2(high + low)[:, None]
    high_s, low_s = tl.load(scalars_ptr + s), tl.load(scalars_ptr + plane + s)
    delta = tl.load(scalars_ptr + 2 * plane + s)
    exponent = (high[:, None] - high_s[None, :]) + (low[:, None] - low_s[None, :])
    place = (chunk * (heads // heads_a_group) + head // heads_a_group) * CHUNK  # of its group, as stored
    scores = tl.load(scores_ptr + (place + at_q)[:, None] * CHUNK + at_s[None, :])
    weighted = scores * tl.exp2(tl.minimum(exponent, 0.0)) * delta[None, :]  # decays: none is above 0 on a path
    x = tl.load(x_ptr + s.to(tl.int64)[:, None] * x_row + p[None, :], mask=p_in[None, :], other=0.0)
    y = add_product(y, weighted, x, kind, WIDE)
    x = tl.load(x_ptr + q.to(tl.int64)[:, None] * x_row + p[None, :], mask=p_in[None, :], other=0.0)
    y += tl.load(d_ptr + head) * x.to(tl.float32)
    y_at = y_ptr + (q.to(tl.int64)[:, None] * heads + head) * size + p[None, :]
    tl.store(y_at, y.to(y_ptr.dtype.element_ty), mask=(start + at_q < stop)[:, None] & p_in[None, :])


@triton.jit
def step_kernel(
    x_ptr, delta_ptr, a_ptr, b_ptr, c_ptr, d_ptr, state_ptr, y_ptr,
    heads, heads_a_group, size, n_state, x_row, x_head, delta_row, b_row, b_group, c_row, c_group, state_row,
    P: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """One step of one row, one head and P of its values; the state is read once and written once, where it is."""
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    p = tl.program_id(2) * P + tl.arange(0, P)
    n = tl.arange(0, N)
    p_in, n_in = p < size, n < n_state
    tile_in = p_in[:, None] & n_in[None, :]
    state_at = state_ptr + row * state_row + (head * size + p[:, None]) * n_state + n[None, :]
    h = tl.load(state_at, mask=tile_in, other=0.0).to(tl.float32)
    group = head // heads_a_group
    x = tl.load(x_ptr + row * x_row + head * x_head + p, mask=p_in, other=0.0).to(tl.float32)
    B = tl.load(b_ptr + row * b_row + group * b_group + n, mask=n_in, other=0.0).to(tl.float32)
    C = tl.load(c_ptr + row * c_row + group * c_group + n, mask=n_in, other=0.0).to(tl.float32)
    delta = tl.load(delta_ptr + row * delta_row + head).to(tl.float32)
    decay = tl.exp2(delta * tl.load(a_ptr + head) * LOG2_E)
    h = decay * h + (delta * x)[:, None] * B[None, :]
    y = tl.sum(h * C[None, :], axis=1) + tl.load(d_ptr + head) * x
    tl.store(y_ptr + (row * heads + head) * size + p, y.to(y_ptr.dtype.element_ty), mask=p_in)
    tl.store(state_at, h.to(state_ptr.dtype.element_ty), mask=tile_in)
