"""Attention over a pack equals a dense masked softmax in float64: by its parts, and by the Triton kernel.

The kernel runs on a GPU if there is one, else in Triton's interpreter.
"""

from __future__ import annotations

import os
from contextlib import nullcontext
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from evalspec.execute.backends import tree_attention
from evalspec.execute.backends.tree_attention import attend
from evalspec.execute.backends.tree_layout import FAR, Layout, Scoring, lay_out
from evalspec.plan.pack import Pack

ON_GPU = torch.cuda.is_available()
if not ON_GPU:
    os.environ.setdefault("TRITON_INTERPRET", "1")
DEVICE = "cuda" if ON_GPU else "cpu"
LOOSE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


@dataclass(frozen=True)
class Forest:
    """A pack behind several given states, which share columns: `seen` (t, s + t) says whom each token may attend to."""

    pack: Pack
    layout: Layout
    seen: Tensor
    position: Tensor
    past_position: Tensor


def forest(seed: int, segments: int, longest: int = 30, device: str = "cpu") -> Forest:
    """Given states: none at all, a trunk of 50, two branches of it, and a branch of a branch; in random order."""
    random = np.random.default_rng(seed)
    ranges = [[], [(0, 50)], [(0, 57)], [(0, 50), (57, 90)], [(0, 50), (57, 90), (90, 101)]]
    past_position = np.concatenate([np.arange(57), 50 + np.arange(33), 83 + np.arange(11)])
    length, parent, path = [], [], []
    for number in range(segments):
        del path[random.integers(0, min(len(path), 3) + 1) :]
        parent.append(path[-1] if path else -1 - int(random.integers(len(ranges))))
        length.append(int(random.choice([1, 2, 5, 120, random.integers(1, longest + 1)])))
        path.append(number)
    pack = Pack.of(length, parent, len(ranges), [])
    return placed(pack, ranges, past_position, device)


def placed(pack: Pack, ranges: list[list[tuple[int, int]]], past_position: np.ndarray, device: str) -> Forest:
    before = len(past_position)
    t = np.arange(pack.tokens)
    own = (t[None, :] <= t[:, None]) & (t[:, None] < pack.reach[None, :])
    past = np.zeros((pack.tokens, before), bool)
    for token, state in enumerate(np.repeat(pack.origin, pack.length).tolist()):
        for begin, end in ranges[state]:
            past[token, begin:end] = True
    seen = torch.from_numpy(np.concatenate([past, own], axis=1))
    positions = torch.from_numpy(np.asarray(seen.sum(1) - 1)).to(device)
    past_positions = torch.from_numpy(past_position).to(device)
    layout = lay_out(pack, ranges, positions, past_positions)
    return Forest(pack, layout, seen.to(device), positions, past_positions)


def drawn(
    found: Forest, heads: int, groups: int, size: int, value_size: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor]]:
    """query, keys, values (tokens first in memory) and the past's."""
    device, kv = found.seen.device, heads // groups
    t, s = found.pack.tokens, len(found.past_position)
    row = torch.randn(t, heads * size + kv * (size + value_size), device=device).to(dtype)
    q, k, v = row.split([heads * size, kv * size, kv * value_size], dim=1)
    heads_of = ((q, size), (k, size), (v, value_size))
    query, keys, values = (one.unflatten(1, (-1, d)).transpose(0, 1) for one, d in heads_of)
    past = tuple(torch.randn(kv, s, d, device=device).to(dtype) for d in (size, value_size))
    return 3 * query, keys, values, (past[0], past[1])


def dense(
    found: Forest, query: Tensor, keys: Tensor, values: Tensor, past: tuple[Tensor, Tensor], scoring: Scoring
) -> Tensor:
    """The truth, in float64."""
    groups = len(query) // len(keys)
    k, v = (
        torch.cat([before, own], 1).double().repeat_interleave(groups, 0)
        for before, own in zip(past, (keys, values), strict=True)
    )
    scores = query.double() @ k.transpose(1, 2) * scoring.scale
    if scoring.softcap is not None:
        scores = scoring.softcap * torch.tanh(scores / scoring.softcap)
    seen = found.seen
    if scoring.window is not None:
        apart = found.position[:, None] - torch.cat([found.past_position, found.position])
        seen = seen & (apart < scoring.window)
    scores = scores.masked_fill(~seen, -torch.inf)
    if scoring.sinks is not None:
        sinks = scoring.sinks.double()[:, None, None].expand(-1, scores.shape[1], 1)
        return torch.cat([scores, sinks], 2).softmax(2)[:, :, :-1] @ v
    return scores.softmax(2) @ v


def close(one: Tensor, truth: Tensor) -> None:
    assert one.shape == truth.shape
    assert bool(one.isfinite().all())
    error = (one.double() - truth).abs().max() / truth.abs().max()
    assert float(error) <= LOOSE[one.dtype]


SCORINGS = {
    "plain": Scoring(0.2),
    "window": Scoring(0.2, window=20),
    "wide window": Scoring(0.2, window=90),
    "softcap": Scoring(0.3, softcap=3.0),
    "all": Scoring(0.2, window=33, softcap=5.0, sinks=torch.tensor([1.0, -3.0, 0.5, 6.0])),
    "sinks": Scoring(0.1, sinks=torch.tensor([1.0, -3.0, 0.5, 20.0])),
}


@pytest.mark.parametrize("dtype", LOOSE)
@pytest.mark.parametrize("kind", SCORINGS)
@pytest.mark.parametrize(("seed", "groups"), [(0, 1), (1, 2), (2, 4)])
def test_the_parts_equal_a_dense_softmax(seed: int, groups: int, kind: str, dtype: torch.dtype) -> None:
    torch.manual_seed(seed)
    found = forest(seed, 12)
    given = drawn(found, 4, groups, 16, 16, dtype)
    close(attend(*given, found.layout, SCORINGS[kind]), dense(found, *given, SCORINGS[kind]))


@pytest.mark.parametrize("mask", [False, True])
def test_the_plain_form_equals_the_fused_kernel(mask: bool) -> None:
    torch.manual_seed(0)
    query, keys, values = torch.randn(3, 4, 5, 16), torch.randn(3, 2, 7, 16), torch.randn(3, 2, 7, 16)
    bias = torch.zeros(3, 1, 5, 7).masked_fill(torch.rand(3, 1, 5, 7) < 0.3, FAR) if mask else None
    fused = tree_attention.part_of(query, keys, values, Scoring(0.3), mask=bias)
    plain = tree_attention._plain(query, keys, values, Scoring(0.3), bias, False)
    for one, other in zip(fused, plain, strict=True):
        torch.testing.assert_close(one, other)


def by_triton(monkeypatch: pytest.MonkeyPatch, found: Forest, given, scoring: Scoring, cut=None) -> Tensor:  # type: ignore[no-untyped-def]
    pytest.importorskip("triton.language", reason="triton is not installed (CPU builds of torch come without it)")
    from evalspec.execute.backends.tree_attention_triton import tree_attention_triton

    if not ON_GPU:
        monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    if scoring.sinks is not None:
        scoring = replace(scoring, sinks=scoring.sinks.to(DEVICE))
    output = tree_attention_triton(*given, found.layout, scoring, shape=cut)
    close(output, dense(found, *given, scoring))
    return output


@pytest.mark.parametrize("dtype", LOOSE)
@pytest.mark.parametrize(
    ("kind", "groups", "size", "value_size"),
    [
        ("plain", 2, 16, 16),
        ("plain", 1, 80, 80),
        ("window", 4, 40, 40),
        ("wide window", 2, 80, 80),
        ("softcap", 1, 16, 16),
        ("sinks", 4, 96, 96),
        ("all", 2, 80, 80),
    ],
)
def test_the_kernel_equals_a_dense_softmax(
    kind: str, groups: int, size: int, value_size: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    seed = list(SCORINGS).index(kind)
    torch.manual_seed(seed)
    found = forest(seed, 8, device=DEVICE)
    by_triton(monkeypatch, found, drawn(found, 4, groups, size, value_size, dtype), SCORINGS[kind])


@pytest.mark.parametrize("rows", [16, 64])
def test_the_kernel_in_small_tiles(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton.language", reason="triton is not installed (CPU builds of torch come without it)")
    from evalspec.execute.backends.tree_attention_triton import Shape

    for seed, scoring in enumerate(SCORINGS.values()):
        torch.manual_seed(seed)
        found = forest(10 + seed, 7, longest=60, device=DEVICE)
        given = drawn(found, 4, 2, 16, 16, torch.float32)
        by_triton(monkeypatch, found, given, scoring, Shape(rows, 16, 4, 1))


def test_a_pack_without_a_past(monkeypatch: pytest.MonkeyPatch) -> None:
    pack = Pack.of([70, 3, 40, 9], [-1, 0, 0, -1], 1, [])
    found = placed(pack, [[]], np.zeros(0, np.int64), DEVICE)
    query, keys, values, past = drawn(found, 4, 2, 16, 16, torch.float32)
    one = by_triton(monkeypatch, found, (query, keys, values, past), Scoring(0.2))
    from evalspec.execute.backends.tree_attention_triton import tree_attention_triton

    assert torch.equal(one, tree_attention_triton(query, keys, values, None, found.layout, Scoring(0.2)))
    if not ON_GPU:
        close(attend(query, keys, values, None, found.layout, Scoring(0.2)), one.double())


def test_branches_of_a_state_that_stand_apart_need_rounds_and_neighbours_do_not() -> None:
    from evalspec.execute.backends.tree_attention_triton import intervals

    pack = Pack.of([2, 3, 4, 5, 6], [-1, -2, -1, -3, -3], 3, [])
    ranges = [[(0, 10)], [(0, 4), (10, 12)], [(12, 15)]]
    layout = lay_out(pack, ranges, torch.arange(20), torch.arange(15))
    low, high = intervals(layout.rectangles, 15)
    runs = [
        [(int(first), int(last)) for first, last in zip(low[:, column], high[:, column], strict=True)]
        for column in (0, 5, 11, 14)
    ]
    assert runs == [[(0, 9), (0, 0)], [(0, 2), (5, 9)], [(2, 5), (0, 0)], [(9, 20), (0, 0)]]


def test_tiles_are_made_once_and_leave_out_what_nobody_sees() -> None:
    from evalspec.execute.backends.tree_attention_triton import tiles_of

    pack = Pack.of([64] + [64] * 8, [-1] + [0] * 8, 1, [])
    layout = lay_out(pack, [[(0, 64)]], torch.arange(pack.tokens), torch.arange(64))
    tiles = tiles_of(layout, 64, 64, None)
    assert tiles_of(layout, 64, 64, None) is tiles
    assert tiles.tile[:, 1:].diff(dim=1).tolist() == [[1, 0, 1, 1]] * 8 + [[1, 0, 0, 1]]
    assert tiles.item[:, 0].tolist() == [*(c for n in range(1, 9) for c in (0, 0, 64 * n)), 0, 0]


def test_a_heads_size_is_taken_in_two_parts() -> None:
    from evalspec.execute.backends.tree_attention_triton import parts_of

    parts = {
        8: (16, 0),
        16: (16, 0),
        24: (32, 0),
        64: (64, 0),
        80: (64, 16),
        96: (128, 0),
        144: (128, 16),
        160: (256, 0),
        112: (128, 0),
        256: (256, 0),
    }
    assert {size: parts_of(size) for size in parts} == parts
