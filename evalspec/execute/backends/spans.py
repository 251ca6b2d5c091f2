"""Spans on their way into a pack, and what they are scored by on the way out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evalspec.execute.protocols import Extended, Span
from evalspec.plan.pack import Pack


def places_within(span: Span, begin: int, stop: int) -> NDArray[np.bool_]:
    """Which of a span's scored places belong to its tokens begin … stop − 1; −1 belongs to the first."""
    places: NDArray[np.bool_] = (span.offsets >= (begin or -1)) & (span.offsets < stop)
    return places


def put_together(span: Span, before: Extended | None, begin: int, stop: int, part: Extended, state: Any) -> Extended:
    """What is known of a span that was fed in parts, once its tokens begin … stop − 1 are."""
    count = len(span.offsets)
    found = before or Extended(None, np.empty(count, np.float32), np.empty(count, np.bool_))
    here = places_within(span, begin, stop)
    found.logprobs[here], found.greedy[here] = part.logprobs, part.greedy
    return Extended(state, found.logprobs, found.greedy)


def lay_out(spans: Sequence[Span]) -> tuple[Pack, list[Any]]:
    """Spans as a pack, and the distinct states from outside that they continue."""
    given: dict[int, int] = {}
    states: list[Any] = []
    parents = []
    for span in spans:
        if isinstance(span.parent, int):
            parents.append(span.parent)
            continue
        if id(span.parent) not in given:
            given[id(span.parent)] = len(states)
            states.append(span.parent)
        parents.append(-1 - given[id(span.parent)])
    keep = [number for number, span in enumerate(spans) if span.keep]
    return Pack.of([len(span.tokens) for span in spans], parents, len(states), keep), states


def read_tokens(pack: Pack, before: Sequence[int]) -> list[int]:
    """How many tokens each segment's path has read at its end; `before` says it of the given states."""
    read: list[int] = []
    for above, length in zip(pack.parent.tolist(), pack.length.tolist(), strict=True):
        read.append(length + (read[above] if above >= 0 else before[-1 - above]))
    return read


def score(
    logits: Tensor, at: NDArray[np.int64], targets: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Natural log-probability (float32) of targets[i] under logits[at[i]], and if it is the first of the likeliest."""
    if not len(targets):
        return np.zeros(0, np.float32), np.zeros(0, np.bool_)
    rows, columns = (torch.from_numpy(numbers).to(logits.device) for numbers in (at, targets))
    logits = logits.float()
    # Not `logsumexp`, whose sums on a GPU are other ones for fewer than 16 rows.
    logprobs = logits.log_softmax(-1)[rows, columns]
    greedy = logits.argmax(-1)[rows] == columns
    return logprobs.cpu().numpy(), greedy.cpu().numpy()
