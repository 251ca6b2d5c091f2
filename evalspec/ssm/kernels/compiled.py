# mypy: disable-error-code="untyped-decorator"
"""The loops that torch has no fast form of on a CPU, compiled by numba: the recurrences of Mamba and of Mamba-2, token
after token, and the filter over time before them.

The recurrences walk the segments of a pack in order, each from its own starting state, in blocks of channels that fit
the nearest cache; threads share the blocks. Compiled on first use, once a machine.

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


@cache
def serial_of(n: int) -> Callable[..., None]:
    """SSD token after token, for a state of n: the scan above, but that a head of p channels has one decay.

    Arguments: x (t, h, p) · delta (t, h) · A · log2 e (h,) · B, C (t, r, n) · D (h,) · start, length, parent, slot (s,)
    of the pack · state (g, h, p, n) · y (t, h, p) and ends (m, h, p, n), which are written.
    """

    @njit(parallel=True, cache=True, fastmath=_REASSOCIATED, error_model="numpy")
    def serial(
        x: Floats, delta: Floats, A: Floats, B: Floats, C: Floats, D: Floats,
        start: Ints, length: Ints, parent: Ints, slot: Ints, state: Floats, y: Floats, ends: Floats,
    ) -> None:  # fmt: skip
        heads, size = x.shape[1], x.shape[2]
        for head in prange(heads):
            group = head * B.shape[1] // heads
            h = np.empty((size, n), np.float32)
            for s in range(len(start)):
                above = parent[s]
                before = ends[slot[above], head] if above >= 0 else state[-1 - above, head]
                for p in range(size):
                    for i in range(n):
                        h[p, i] = before[p, i]
                for t in range(start[s], start[s] + length[s]):
                    b, c, d = B[t, group], C[t, group], delta[t, head]
                    decay = _exp2(d * A[head])
                    for p in range(size):
                        u, states = d * x[t, head, p], h[p]
                        total = np.float32(0.0)
                        for i in range(n):
                            v = decay * states[i] + u * b[i]
                            states[i] = v
                            total += c[i] * v
                        y[t, head, p] = total + D[head] * x[t, head, p]
                if slot[s] >= 0:
                    after = ends[slot[s], head]
                    for p in range(size):
                        for i in range(n):
                            after[p, i] = h[p, i]

    return serial  # type: ignore[no-any-return]


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


convolve: Callable[..., None] = _convolve
