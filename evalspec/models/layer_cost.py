"""What one layer costs: bytes of state, floating-point operations, parameters.

    Transformer   2 n_kv d_head T s bytes
    Mamba         E N s + E K s bytes              arXiv 2312.00752
    Mamba-2       E N s + (E + 2 G N) K s bytes    arXiv 2405.21060

Glossary: d d_model · E = expand · d inner channels · N d_state · K width of the convolution · R dt_rank · H heads of
E / H channels · G groups sharing B and C · Q chunk · T tokens · s bytes of a number. A multiplication and an addition
are two operations. *Spans* are tokens fed after a state: arrays of `lengths` and `starts` (tokens the state has seen).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class Layer(Protocol):
    """A residual block with its norms. Equal layers are equal values, so that a model counts each kind once."""

    @property
    def parameters(self) -> int:
        """How many numbers its weights have."""
        ...

    def state_bytes(self, length: int, dtype_bytes: int, ssm_dtype_bytes: int) -> int:
        """Bytes that one sequence of `length` tokens leaves behind."""
        ...

    def flops(self, lengths: Floats, starts: Floats, *, stepwise: bool) -> Floats:
        """Operations of feeding each span, all at once or (`stepwise`) token by token."""
        ...


@dataclass(frozen=True)
class AttentionLayer:
    """Attention and its feed-forward network; grouped-query when kv_heads < heads, gated with three matrices."""

    d_model: int
    heads: int
    kv_heads: int
    head_dim: int
    d_ff: int
    gated: bool
    window: int | None = None
    """Positions that a token attends to, itself included, where attention slides."""
    vectors: int = 0
    """Parameters of biases and norms, which cost no operations worth counting."""
    conv_width: int = 0
    """K of a convolution over queries, keys and values, with its biases, where there is one (mamba_ssm's `MHA`)."""

    @property
    def _convolved(self) -> int:
        return (self.heads + 2 * self.kv_heads) * self.head_dim if self.conv_width else 0

    @property
    def _matrices(self) -> int:
        projections = 2 * self.d_model * (self.heads + self.kv_heads) * self.head_dim
        return projections + (3 if self.gated else 2) * self.d_model * self.d_ff

    @property
    def parameters(self) -> int:
        """The query, key, value, output and feed-forward matrices, the filters, and the vectors."""
        return self._matrices + self._convolved * (self.conv_width + 1) + self.vectors

    def state_bytes(self, length: int, dtype_bytes: int, ssm_dtype_bytes: int) -> int:
        """2 n_kv d_head T s: a key and a value a token, within the window; and what a convolution remembers."""
        kept = length if self.window is None else min(length, self.window)
        return (2 * self.kv_heads * self.head_dim * kept + self._convolved * self.conv_width) * dtype_bytes

    def flops(self, lengths: Floats, starts: Floats, *, stepwise: bool) -> Floats:
        """4d² + 4d n_kv d_head + 4d d_ff (6 if gated) + 4td a token that attends to t positions, for h d_head = d."""
        attended = self._attended(starts + lengths) - self._attended(starts)
        products = self._matrices + self._convolved * self.conv_width
        return 2 * products * lengths + 4 * self.heads * self.head_dim * attended

    def _attended(self, ends: Floats) -> Floats:
        # Σ_{t=1..end} min(t, window)
        full = ends if self.window is None else np.minimum(ends, self.window)
        return full * (full + 1) / 2 + (ends - full) * full


@dataclass(frozen=True)
class FeedForwardLayer:
    """A gated feed-forward network and its norm, behind a state-space layer: three matrices, no state."""

    d_model: int
    d_ff: int

    @property
    def parameters(self) -> int:
        """The three matrices and the norm in front."""
        return 3 * self.d_model * self.d_ff + self.d_model

    def state_bytes(self, length: int, dtype_bytes: int, ssm_dtype_bytes: int) -> int:
        """None."""
        return 0

    def flops(self, lengths: Floats, starts: Floats, *, stepwise: bool) -> Floats:
        """6d d_ff a token."""
        return lengths * float(6 * self.d_model * self.d_ff)


@dataclass(frozen=True)
class MambaLayer:
    """A Mamba block: projection in, convolution, selective scan, gate, projection out."""

    d_model: int
    d_inner: int
    d_state: int
    conv_width: int
    dt_rank: int
    bias: bool = False
    conv_bias: bool = True

    @property
    def parameters(self) -> int:
        """in_proj, conv1d, x_proj, dt_proj (with its bias), A_log, D, out_proj and the norm in front."""
        d, E, N, K, R = self.d_model, self.d_inner, self.d_state, self.conv_width, self.dt_rank
        matrices = 2 * d * E + E * K + E * (R + 2 * N) + R * E + E * N + E * d
        return matrices + E + E + d + self.conv_bias * E + self.bias * (2 * E + d)

    def state_bytes(self, length: int, dtype_bytes: int, ssm_dtype_bytes: int) -> int:
        """E N s + E K s, whatever the length."""
        return self.d_inner * (self.d_state * ssm_dtype_bytes + self.conv_width * dtype_bytes)

    def flops(self, lengths: Floats, starts: Floats, *, stepwise: bool) -> Floats:
        """6dE + 2KE + 2E(R + 2N) + 2RE + 9EN + 6E a token, in a scan as in steps."""
        d, E, N, K, R = self.d_model, self.d_inner, self.d_state, self.conv_width, self.dt_rank
        return lengths * float(6 * d * E + 2 * K * E + 2 * E * (R + 2 * N) + 2 * R * E + 9 * E * N + 6 * E)


@dataclass(frozen=True)
class Mamba2Layer:
    """A Mamba-2 block: one projection in, convolution over x, B and C, SSD, gated norm, projection out."""

    d_model: int
    d_inner: int
    d_state: int
    conv_width: int
    heads: int
    groups: int
    chunk: int
    bias: bool = False
    conv_bias: bool = True

    @property
    def _convolved(self) -> int:
        return self.d_inner + 2 * self.groups * self.d_state

    @property
    def parameters(self) -> int:
        """in_proj, conv1d, dt_bias, A_log, D (one a head), the gated norm, out_proj and the norm in front."""
        d, E, C, H = self.d_model, self.d_inner, self._convolved, self.heads
        matrices = d * (E + C + H) + C * self.conv_width + E * d
        return matrices + 3 * H + E + d + self.conv_bias * C + self.bias * (E + C + H + d)

    def state_bytes(self, length: int, dtype_bytes: int, ssm_dtype_bytes: int) -> int:
        """E N s + (E + 2GN) K s, whatever the length."""
        return self.d_inner * self.d_state * ssm_dtype_bytes + self._convolved * self.conv_width * dtype_bytes

    def flops(self, lengths: Floats, starts: Floats, *, stepwise: bool) -> Floats:
        """2d(2E + 2GN + H) + 2K(E + 2GN) + 6EN + 2Ed + 8E a step; over a span 2QGN + 2QE + 4EN + 2EN/Q replaces 6EN.

        A span shorter than the chunk Q is one chunk of its own length.
        """
        d, E, N, C, H = self.d_model, self.d_inner, self.d_state, self._convolved, self.heads
        outside = 2 * d * (E + C + H) + 2 * self.conv_width * C + 2 * E * d + 8 * E
        Q = np.minimum(lengths, self.chunk)
        spans = 2 * Q * (self.groups * N + E) + 4 * E * N + 2 * E * N / np.maximum(Q, 1)
        return lengths * (outside + (6.0 * E * N if stepwise else spans))
