"""mamba-ssm's and causal-conv1d's own ways through a pack, for `benchmarks.kernels` to hold ours against.

None of them knows trees, and each knows something else about unequal sequences; every way here is one that its API
offers, with everything that does not depend on the layer's values (indices, gathering into rows) done before the clock
starts. The quickest way is the one to be compared with.

    rows       sequences of equal length, as they are
    padded     one row a sequence, as long as the longest; Δ is 0 on the padding, so that last states are right
    seq_idx    one row of all tokens, with the number of each token's sequence
    levels     a call a level of the tree, from the states that the level above came to
    paths      one row a path from the root, padded: what is left to a kernel that takes no initial state
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evalspec.plan.pack import Pack

NO_STEP = -100.0  # softplus of it, and of it and any bias, is 0
BLOCKS = (128, 256, 512, 1024, 2048)
"""Tokens that `selective_scan_fn` takes at once, by length; of rows that do not fill them it reads single values."""


@dataclass(frozen=True)
class Way:
    """What a peer runs, and how its result reads as (tokens of the pack, values), which is checked and not timed."""

    name: str
    run: Callable[[], Any]
    y: Callable[[Any], Tensor]


def function_of(module: str, name: str) -> Callable[..., Any] | None:
    """A peer's function; None where the peer is not installed."""
    try:
        return getattr(__import__(module, fromlist=[name]), name)  # type: ignore[no-any-return]
    except ImportError:
        return None


class Rows:
    """Sequences of a pack's tokens as rows of one length: `index` (rows, longest), and what of it is `real`."""

    def __init__(self, sequences: list[np.ndarray], longest: int = 0) -> None:
        longest = max(longest, *map(len, sequences))
        index = np.zeros((len(sequences), longest), np.int64)
        real = np.zeros(index.shape, bool)
        for row, sequence in enumerate(sequences):
            index[row, : len(sequence)], real[row, : len(sequence)] = sequence, True
        self.index, self.real = torch.from_numpy(index).cuda(), torch.from_numpy(real).cuda()

    def of(self, values: Tensor, padding: float = 0.0) -> Tensor:
        """(t, …) → (rows, longest, …)"""
        real = self.real.reshape(*self.real.shape, *[1] * (values.dim() - 1))
        return values[self.index].masked_fill_(~real, padding)

    def back(self, found: Tensor, into: Tensor) -> Tensor:
        """(rows, longest, …) → `into` (t, …), where tokens of several rows are given by the last."""
        into[self.index[self.real]] = found[self.real].to(into.dtype)
        return into


def segments(pack: Pack, numbers: Any) -> list[np.ndarray]:
    """The tokens of some segments."""
    return [np.arange(pack.start[number], pack.stop[number]) for number in numbers]


def paths(pack: Pack) -> list[np.ndarray]:
    """The tokens of each path from a root to a leaf."""
    leaves = sorted(set(range(len(pack.length))) - set(pack.parent.tolist()))
    found = []
    for number in leaves:
        path = []
        while number >= 0:
            path.append(np.arange(pack.start[number], pack.stop[number]))
            number = int(pack.parent[number])
        found.append(np.concatenate(path[::-1]))
    return found


def numbered(pack: Pack) -> Tensor:
    """(1, t) the number of each token's segment."""
    return torch.from_numpy(np.repeat(np.arange(len(pack.length)), pack.length).astype(np.int32)).cuda()[None]


def scan_ways(
    pack: Pack, x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, bias: Tensor
) -> list[Way]:
    """`selective_scan_fn` with softplus and gate; B and C in x's dtype, which is all it takes. Rows are as long as the
    longest, or padded further to whole blocks: more to compute, but quicker to read."""
    function = function_of("mamba_ssm.ops.selective_scan_interface", "selective_scan_fn")
    if not function:
        return []
    several = len(pack.levels) > 1
    sequences = paths(pack) if several else segments(pack, range(len(pack.length)))
    name = "paths" if several else "rows" if pack.rows else "padded"
    ways = [_scan_rows(function, name, Rows(sequences), x, delta, A, B, C, D, z, bias)]
    longest = max(map(len, sequences))
    whole = next((size for size in BLOCKS if longest <= size), -(-longest // BLOCKS[-1]) * BLOCKS[-1])
    if whole > longest:
        rows = Rows(sequences, whole)
        ways.append(_scan_rows(function, f"{name}, whole blocks", rows, x, delta, A, B, C, D, z, bias))
    return ways


def _scan_rows(
    function: Any, name: str, rows: Rows, x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor,
    z: Tensor, bias: Tensor,
) -> Way:  # fmt: skip
    A = A.contiguous()
    u, step, b, c, gate = (
        rows.of(values.to(x.dtype), padding).transpose(1, 2).contiguous()
        for values, padding in ((x, 0.0), (delta, NO_STEP), (B, 0.0), (C, 0.0), (z, 0.0))
    )

    def run() -> Any:
        return function(
            u, step, A, b, c, D, z=gate, delta_bias=bias, delta_softplus=True, return_last_state=True
        )  # fmt: skip

    return Way(name, run, lambda found: rows.back(found[0].transpose(1, 2), torch.empty_like(x)))


def conv_ways(pack: Pack, x: Tensor, weight: Tensor, bias: Tensor) -> list[Way]:
    """`causal_conv1d_fn` with its silu, channels last. A level's initial states are inputs, so all are known before."""
    function = function_of("causal_conv1d", "causal_conv1d_fn")
    if not function:
        return []
    if pack.rows:
        rows = x.unflatten(0, pack.rows).transpose(1, 2)
        return [
            Way(
                "rows",
                lambda: function(rows, weight, bias, activation="silu"),
                lambda found: found.transpose(1, 2).flatten(0, 1),
            )
        ]
    if len(pack.levels) == 1:
        numbers, row = numbered(pack), x.T[None]
        return [
            Way("seq_idx", lambda: function(row, weight, bias, seq_idx=numbers, activation="silu"), lambda y: y[0].T)
        ]
    window = weight.shape[1] - 1
    padded = torch.cat([x.new_zeros(pack.given * window, x.shape[1]), x])
    before = torch.from_numpy(pack.history(window)[pack.start]).cuda()
    levels = []
    for level in pack.levels:
        rows = Rows(segments(pack, level))
        first = padded[before[torch.from_numpy(level).cuda()]]
        levels.append((rows, rows.of(x).transpose(1, 2), first.transpose(1, 2)))

    def run() -> Any:
        return [
            function(values, weight, bias, initial_states=state, activation="silu") for _, values, state in levels
        ]  # fmt: skip

    def y(found: Any) -> Tensor:
        into = torch.empty_like(x, memory_format=torch.contiguous_format)
        for (rows, _, _), part in zip(levels, found, strict=True):
            rows.back(part.transpose(1, 2), into)
        return into

    return [Way("levels", run, y)]


def ssd_ways(pack: Pack, x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> list[Way]:
    """`mamba_chunk_scan_combined`, with the chunk sizes that models and their authors use."""
    function = function_of("mamba_ssm.ops.triton.ssd_combined", "mamba_chunk_scan_combined")
    if not function:
        return []
    ways = []
    for chunk in (64, 128, 256):
        if pack.rows or len(pack.levels) == 1:
            ways.append(_ssd_rows(function, pack, x, delta, A, B, C, D, chunk))
        if not pack.rows:
            several = len(pack.levels) > 1
            ways.append((_ssd_levels if several else _ssd_numbered)(function, pack, x, delta, A, B, C, D, chunk))
    return ways


def _ssd_rows(
    function: Any, pack: Pack, x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, chunk: int
) -> Way:
    rows = Rows(segments(pack, range(len(pack.length))))
    u, step, b, c = (rows.of(values) for values in (x, delta, B, C))
    return Way(
        f"{'rows' if pack.rows else 'padded'}, chunk {chunk}",
        lambda: function(u, step, A, b, c, chunk, D=D, return_final_states=True),
        lambda found: rows.back(found[0], torch.empty_like(x)),
    )


def _ssd_numbered(
    function: Any, pack: Pack, x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, chunk: int
) -> Way:
    numbers = numbered(pack)
    ends = torch.from_numpy(np.concatenate([[0], pack.stop]).astype(np.int32)).cuda()
    u, step, b, c = (values[None] for values in (x, delta, B, C))

    def run() -> Any:
        return function(
            u, step, A, b, c, chunk, D=D, seq_idx=numbers, cu_seqlens=ends, return_varlen_states=True
        )  # fmt: skip

    return Way(f"seq_idx, chunk {chunk}", run, lambda found: found[0][0])


def _ssd_levels(
    function: Any, pack: Pack, x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, chunk: int
) -> Way:
    levels = []
    place = np.zeros(len(pack.length), np.int64)  # of a segment within its level
    for level in pack.levels:
        rows = Rows(segments(pack, level))
        place[level] = np.arange(len(level))
        above = None if pack.parent[level[0]] < 0 else torch.from_numpy(place[pack.parent[level]]).cuda()
        levels.append((rows, above, *(rows.of(values) for values in (x, delta, B, C))))

    def run() -> Any:
        found, states = [], None
        for _, above, u, step, b, c in levels:
            first = None if above is None else states[above]
            y, states = function(u, step, A, b, c, chunk, D=D, initial_states=first, return_final_states=True)
            found.append(y)
        return found

    def y(found: Any) -> Tensor:
        into = torch.empty_like(x)
        for (rows, *_), part in zip(levels, found, strict=True):
            rows.back(part, into)
        return into

    return Way(f"levels, chunk {chunk}", run, y)


def scan_step_ways(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, bias: Tensor, state: Tensor
) -> list[Way]:
    """`selective_state_update` on a state of its own."""
    function = function_of("mamba_ssm.ops.triton.selective_state_update", "selective_state_update")
    if not function:
        return []
    own = state.clone()
    return [Way("", lambda: function(own, x, delta, A, B, C, D, z=z, dt_bias=bias, dt_softplus=True), _itself)]


def ssd_step_ways(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, state: Tensor
) -> list[Way]:  # fmt: skip
    """`selective_state_update` with a step and a decay a head, which it knows by strides of 0."""
    function = function_of("mamba_ssm.ops.triton.selective_state_update", "selective_state_update")
    if not function:
        return []
    heads, head, size = state.shape[1:]
    step = delta[:, :, None].expand(-1, -1, head)
    decay = A[:, None, None].expand(-1, head, size)
    skip = D[:, None].expand(-1, head)
    bias = torch.zeros(heads, device=x.device)[:, None].expand(-1, head)
    own = state.clone()
    return [Way("", lambda: function(own, x, step, decay, B, C, skip, dt_bias=bias), _itself)]


def conv_step_ways(x: Tensor, weight: Tensor, bias: Tensor, state: Tensor) -> list[Way]:
    """`causal_conv1d_update` on a window of its own, channels before time as its authors keep it."""
    function = function_of("causal_conv1d", "causal_conv1d_update")
    if not function:
        return []
    own = state.transpose(1, 2).contiguous()
    return [Way("", lambda: function(x, own, weight, bias, activation="silu"), _itself)]


def gated_norm_ways(x: Tensor, z: Tensor, weight: Tensor) -> list[Way]:
    function = function_of("mamba_ssm.ops.triton.layernorm_gated", "rmsnorm_fn")
    if not function:
        return []
    return [Way("", lambda: function(x, weight, None, z=z, eps=1e-5, norm_before_gate=False), _itself)]


def add_norm_ways(x: Tensor, residual: Tensor, weight: Tensor) -> list[Way]:
    function = function_of("mamba_ssm.ops.triton.layer_norm", "rms_norm_fn")
    if not function:
        return []
    return [
        Way(
            "",
            lambda: function(x, weight, None, residual=residual, eps=1e-5, prenorm=True, residual_in_fp32=True),
            lambda found: found[0],
        )
    ]


def _itself(found: Any) -> Tensor:
    assert isinstance(found, Tensor)
    return found
