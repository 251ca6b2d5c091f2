"""A pack's arrays and its chunks say what plain definitions over paths say, for any forest of segments."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalspec.plan.pack import Pack

GIVEN = 3


@st.composite
def packs(draw: st.DrawFn) -> Pack:
    """Segments of 1 … 7 tokens that hang from a segment of the path before them or from one of three given states."""
    lengths, parents = [], []
    path: list[int] = []
    for number in range(draw(st.integers(1, 14))):
        path = path[: draw(st.integers(0, len(path)))]
        parents.append(path[-1] if path else -1 - draw(st.integers(0, GIVEN - 1)))
        lengths.append(draw(st.integers(1, 7)))
        path.append(number)
    keep = sorted(draw(st.sets(st.integers(0, len(lengths) - 1))))
    return Pack.of(lengths, parents, GIVEN, keep)


def naive_paths(lengths: list[int], parents: list[int]) -> list[tuple[int, list[int]]]:
    """For each token, the given state that its path begins with and the tokens on it, its own last."""
    ends: list[tuple[int, list[int]]] = []  # of each segment
    found: list[tuple[int, list[int]]] = []
    for length, above in zip(lengths, parents, strict=True):
        origin, before = ends[above] if above >= 0 else (-1 - above, [])
        for _ in range(length):
            before = [*before, len(found)]
            found.append((origin, before))
        ends.append((origin, before))
    return found


def paths_of(pack: Pack) -> list[tuple[int, list[int]]]:
    return naive_paths(pack.length.tolist(), pack.parent.tolist())


def segment_of(pack: Pack) -> list[int]:
    return np.repeat(np.arange(len(pack.length)), pack.length).tolist()


@given(packs())
def test_a_token_is_on_the_path_to_another_exactly_if_reach_says_so(pack: Pack) -> None:
    reach = pack.reach.tolist()
    for t, (_, path) in enumerate(paths_of(pack)):
        assert [s for s in range(pack.tokens) if s <= t < reach[s]] == path


@given(packs())
def test_segments_stand_one_after_the_other_and_know_where_their_paths_begin(pack: Pack) -> None:
    segments = segment_of(pack)
    paths = paths_of(pack)
    assert len(segments) == pack.tokens
    for number in range(len(pack.length)):
        own = [token for token, segment in enumerate(segments) if segment == number]
        assert own == list(range(pack.start[number], pack.stop[number]))
        origin, path = paths[own[-1]]
        assert pack.origin[number] == origin
        assert pack.depth[number] == len({segments[token] for token in path}) - 1
        subtree = [token for token, (_, way) in enumerate(paths) if own[0] in way]
        assert subtree == list(range(own[0], pack.below[number]))


@given(packs())
def test_levels_hold_every_segment_once_and_parents_before_their_children(pack: Pack) -> None:
    fed: set[int] = set()
    for level in pack.levels:
        assert all(above < 0 or above in fed for above in pack.parent[level].tolist())
        assert not fed & set(level.tolist())
        fed |= set(level.tolist())
    assert fed == set(range(len(pack.length)))


@given(packs())
def test_ends_are_the_segments_that_a_child_or_the_caller_needs(pack: Pack) -> None:
    parents, keep = set(pack.parent.tolist()), set(pack.keep.tolist())
    needed = [number for number in range(len(pack.length)) if number in parents or number in keep]
    assert pack.ends.tolist() == needed
    assert pack.slot.tolist() == [needed.index(n) if n in needed else -1 for n in range(len(pack.length))]


@given(packs(), st.integers(0, 5))
def test_history_and_window_are_the_inputs_before_on_the_path(pack: Pack, width: int) -> None:
    slots = GIVEN * width
    history, window = pack.history(width), pack.window(width)
    assert history.shape == (pack.tokens, width)
    assert window.shape == (len(pack.keep), width)

    def last(origin: int, path: list[int]) -> list[int]:
        """The last inputs: what the given state remembers, oldest first, then the path's tokens."""
        inputs = [*range(origin * width, (origin + 1) * width), *(slots + token for token in path)]
        return inputs[len(inputs) - width :]

    paths = paths_of(pack)
    for t, (origin, path) in enumerate(paths):
        assert history[t].tolist() == last(origin, path[:-1])
    for row, number in enumerate(pack.keep.tolist()):
        assert window[row].tolist() == last(*paths[int(pack.stop[number]) - 1])


@given(packs(), st.integers(1, 20))
def test_chunks_cover_the_row_and_each_hangs_from_one_earlier_token_or_given_state(pack: Pack, most: int) -> None:
    chunks = pack.chunks(most)
    assert chunks.start[0] == 0
    assert chunks.stop[-1] == pack.tokens
    assert chunks.start[1:].tolist() == chunks.stop[:-1].tolist()
    sizes = chunks.stop - chunks.start
    assert ((sizes >= 1) & (sizes <= most)).all()
    paths = paths_of(pack)
    for start, stop, entry in zip(*(a.tolist() for a in (chunks.start, chunks.stop, chunks.entry)), strict=True):
        assert -GIVEN <= entry < start
        for t in range(start, stop):
            origin, path = paths[t]
            before = path[-2] if len(path) > 1 else -1 - origin
            assert before == entry or start <= before < t


@given(packs(), st.integers(1, 20))
def test_a_subtree_that_fits_in_a_chunk_is_not_cut(pack: Pack, most: int) -> None:
    chunks = pack.chunks(most)
    inner = chunks.start[1:]
    for begin, end in zip(pack.start, pack.below, strict=True):
        if end - begin <= most:
            assert not ((begin < inner) & (inner < end)).any()


@given(st.integers(1, 5), st.integers(1, 6), st.integers(0, 4))
def test_rows_are_the_forest_of_independent_sequences(count: int, length: int, width: int) -> None:
    rows = Pack.of_rows(count, length)
    forest = Pack.of([length] * count, [-1 - row for row in range(count)], count, list(range(count)))
    for name in ("length", "parent", "keep", "start", "reach", "depth", "origin", "ends", "slot"):
        assert getattr(rows, name).tolist() == getattr(forest, name).tolist()
    assert rows.window(width).tolist() == forest.window(width).tolist()


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(-3, 4)), min_size=1, max_size=5))
def test_only_depth_first_forests_are_packs(segments: list[tuple[int, int]]) -> None:
    """Any list is either refused, or a forest whose every subtree is one stretch of segments."""
    lengths, parents = [length for length, _ in segments], [above for _, above in segments]
    given_states = 2
    right = all(lengths) and all(-given_states <= above < number for number, above in enumerate(parents))
    if right:
        below: dict[int, list[int]] = defaultdict(list)
        for number in range(len(parents)):
            above = number
            while above >= 0:
                below[above].append(number)
                above = parents[above]
        right = all(found == list(range(number, number + len(found))) for number, found in below.items())
    if right:
        assert Pack.of(lengths, parents, given_states, []).tokens == sum(lengths)
    else:
        with pytest.raises(ValueError, match="is empty, or its parent"):
            Pack.of(lengths, parents, given_states, [])


@pytest.mark.parametrize(
    ("lengths", "parents", "given_states"),
    [
        ([2, 0], [-1, 0], 1),  # an empty segment
        ([2], [0], 1),  # its own parent
        ([2, 2], [1, -1], 1),  # a parent behind its child
        ([2], [-2], 1),  # a state that was not given
        ([2, 2, 2], [-1, -1, 0], 1),  # a subtree that was left
    ],
)
def test_wrong_parents_are_refused(lengths: list[int], parents: list[int], given_states: int) -> None:
    with pytest.raises(ValueError, match="segment"):
        Pack.of(lengths, parents, given_states, [])
