# mypy: disable-error-code="untyped-decorator"
"""The loops that torch has no fast form of on a CPU, compiled by numba: Mamba's scan and its filter over time, and
what lies around the products of Mamba-2's chunks.

The first two walk the segments of a pack in order, each from its own starting state, in blocks of channels that fit the
nearest cache; threads share the blocks. Compiled on first use, once a machine.

Glossary: t tokens · e channels · n state · s segments · g given states · m segments whose last state is needed
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir
from numba import config, int32, njit, prange, types
from numba.extending import intrinsic
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

_CHANNELS = 128  # a block's states and decay rates: 16 KiB at n = 16
_REASSOCIATED = {"reassoc", "contract", "nsz"}  # sums over n may be reordered; NaN and infinity stay what they are


def share_threads() -> None:
    """Use as many threads as torch does."""
    numba.set_num_threads(min(torch.get_num_threads(), int(config.NUMBA_NUM_THREADS)))


@intrinsic
def _bits_as_float(context: Any, bits: Any) -> Any:
    """The float32 that these 32 bits are."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), generate


@njit(inline="always")
def _exp2(x: Any) -> Any:
    """2^x in float32 to 3e-7, for x ≤ 0; the compiler makes vectors of it, as it does not of the library's.

    2^x = 2^r · 2^f with r the nearest integer, put into the exponent's bits, and a polynomial of degree 6 in f.
    """
    x = max(x, np.float32(-126.0))
    r = int32(x - np.float32(0.5))  # truncated towards 0: x is not positive
    f = x - np.float32(r)
    p = np.float32(1.5403530e-4) * f + np.float32(1.3333558e-3)
    p = p * f + np.float32(9.6181291e-3)
    p = p * f + np.float32(5.5504109e-2)
    p = p * f + np.float32(2.4022651e-1)
    p = p * f + np.float32(6.9314718e-1)
    p = p * f + np.float32(1.0)
    return p * _bits_as_float((r + int32(127)) << int32(23))


@cache
def scan_of(n: int) -> Callable[..., None]:
    """The selective scan for a state of n, a constant of the compiled code (its inner loop becomes n / 16 vectors).

    Arguments: x, delta (t, e) · A · log2 e (e, n) · B, C (t, n) · D (e,) · start, length, parent, slot (s,) of the pack
    state (g, e, n) · y (t, e) and ends (m, e, n), which are written.
    """

    @njit(parallel=True, cache=True, fastmath=_REASSOCIATED, error_model="numpy")
    def scan(
        x: Floats, delta: Floats, A: Floats, B: Floats, C: Floats, D: Floats,
        start: Ints, length: Ints, parent: Ints, slot: Ints, state: Floats, y: Floats, ends: Floats,
    ) -> None:  # fmt: skip
        channels = x.shape[1]
        for block in prange(-(-channels // _CHANNELS)):
            first = block * _CHANNELS
            last = min(first + _CHANNELS, channels)
            h = np.empty((_CHANNELS, n), np.float32)
            for s in range(len(start)):
                above = parent[s]
                before = ends[slot[above]] if above >= 0 else state[-1 - above]
                for e in range(first, last):
                    for i in range(n):
                        h[e - first, i] = before[e, i]
                for t in range(start[s], start[s] + length[s]):
                    b, c = B[t], C[t]
                    for e in range(first, last):
                        d = delta[t, e]
                        u = d * x[t, e]
                        rates, states = A[e], h[e - first]
                        total = np.float32(0.0)
                        for i in range(n):
                            v = _exp2(d * rates[i]) * states[i] + u * b[i]
                            states[i] = v
                            total += c[i] * v
                        y[t, e] = total + D[e] * x[t, e]
                if slot[s] >= 0:
                    after = ends[slot[s]]
                    for e in range(first, last):
                        for i in range(n):
                            after[e, i] = h[e - first, i]

    return scan  # type: ignore[no-any-return]


@njit(parallel=True, cache=True, error_model="numpy")
def _convolve(x: Floats, weight: Floats, bias: Floats, history: Ints, state: Floats, y: Floats) -> None:
    """y_t = bias + Σ_k w_k ⊙ input_k, the inputs being those that `Pack.history` names, and x_t itself last.

    Arguments: x (t, e) · weight (K, e) · bias (e,) · history (t, K−1) · state (g · (K−1), e) · y (t, e), written.
    """
    tokens, channels = x.shape
    width, slots = weight.shape[0], state.shape[0]
    for block in prange(-(-tokens // 64)):
        for t in range(block * 64, min(block * 64 + 64, tokens)):
            row, own, w = y[t], x[t], weight[width - 1]
            for e in range(channels):
                row[e] = bias[e] + w[e] * own[e]
            for k in range(width - 1):
                at = history[t, k]
                before = x[at - slots] if at >= slots else state[at]
                w = weight[k]
                for e in range(channels):
                    row[e] += w[e] * before[e]


@njit(parallel=True, cache=True, error_model="numpy")
def _weigh(scores: Floats, cum: NDArray[np.float64], reach: Ints, weighted: Floats) -> None:
    """SSD within chunks: C_q · B_s for every head, times exp(cum_q − cum_s) if s is on the path to q, else 0.

    Arguments: scores (c, r, q, s) · cum (c, h, q), log2 of the decay since the entry · reach (c, s), in positions
    of the chunk · weighted (c, h, q, s), written. The difference is taken in float64: cum may be large, and it small.
    """
    chunks, groups, size, _ = scores.shape
    heads = cum.shape[1]
    for one in prange(chunks * heads):
        c, h = one // heads, one % heads
        decays, ends = cum[c, h], reach[c]
        for q in range(size):
            row, given, here = weighted[c, h, q], scores[c, h * groups // heads, q], decays[q]
            for s in range(q + 1):
                decay = _exp2(np.float32(here - decays[s]))
                row[s] = given[s] * decay if q < ends[s] else np.float32(0.0)
            for s in range(q + 1, size):
                row[s] = np.float32(0.0)


@njit(parallel=True, cache=True, error_model="numpy")
def _spread(u: Floats, step: Floats, token: Ints, size: Ints, value: Floats) -> None:
    """Δ x at each position of each chunk, 0 behind its end: u (t, h, p) · step (t, h) · token (c, q) · size (c,)
    · value (c, h, q, p), written."""
    chunks, heads, longest, width = value.shape
    for one in prange(chunks * heads):
        c, h = one // heads, one % heads
        for q in range(size[c]):
            t = token[c, q]
            row, given, weight = value[c, h, q], u[t, h], step[t, h]
            for p in range(width):
                row[p] = weight * given[p]
        for q in range(size[c], longest):
            for p in range(width):
                value[c, h, q, p] = np.float32(0.0)


@njit(parallel=True, cache=True, error_model="numpy")
def _join(y: Floats, carried: Floats, decay: Floats, token: Ints, chunks: Ints, size: Ints, joined: Floats) -> None:
    """y + decay · carried, back in the tokens' order: y (c, h, q, p) · carried (i, q, h, p), of these chunks (i,) ·
    decay (c, h, q) · token (c, q) · size (c,) · joined (t, h, p), written at the chunks' tokens."""
    heads, width = joined.shape[1], joined.shape[2]
    for i in prange(len(chunks)):
        c = chunks[i]
        for q in range(size[c]):
            t = token[c, q]
            for h in range(heads):
                row, own, given, left = joined[t, h], y[c, h, q], carried[i, q, h], decay[c, h, q]
                for p in range(width):
                    row[p] = own[p] + left * given[p]


convolve: Callable[..., None] = _convolve
weigh: Callable[..., None] = _weigh
spread: Callable[..., None] = _spread
join: Callable[..., None] = _join
