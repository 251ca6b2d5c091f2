"""Packs to try kernels on: forests of unequal segments, several states to start from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evalspec.plan.pack import Pack


def random_pack(segments: int, given: int = 3, longest: int = 12, seed: int = 0) -> Pack:
    """Segments of 1 … longest tokens that hang from each other or from given states, a third of them kept."""
    rng = np.random.default_rng(seed)
    lengths, parents, path = [], [], []
    for number in range(segments):
        path = path[: rng.integers(0, len(path) + 1)]
        parents.append(path[-1] if path else -1 - int(rng.integers(given)))
        lengths.append(int(rng.integers(1, longest + 1)))
        path.append(number)
    keep = np.sort(rng.choice(segments, max(1, segments // 3), replace=False)).tolist()
    return Pack.of(lengths, parents, given, keep)


def few_shot(shots: int, questions: int, question: int = 11, choices: int = 4, choice: int = 3) -> Pack:
    """A trunk, questions below it, choices below each question."""
    lengths, parents = [shots], [-1]
    for _ in range(questions):
        parents.append(0)
        lengths.append(question)
        above = len(lengths) - 1
        for _ in range(choices):
            parents.append(above)
            lengths.append(choice)
    return Pack.of(lengths, parents, 1, [0, 1])


def paths(pack: Pack) -> list[tuple[int, list[int]]]:
    """For each segment, the given state that its path begins with and all tokens on the path, its own last."""
    found: list[tuple[int, list[int]]] = []
    for number, above in enumerate(pack.parent.tolist()):
        origin, tokens = found[above] if above >= 0 else (-1 - above, [])
        found.append((origin, [*tokens, *range(int(pack.start[number]), int(pack.stop[number]))]))
    return found


def over_rows(kernel: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., tuple[Tensor, Tensor]]:
    """The same for rows of one length: `along` (b, l, …) are flattened into a pack, y comes back as (b, l, …)."""

    def run(*tensors: Tensor, state: Tensor | None = None, along: tuple[int, ...] = (0, 1, 3, 4)) -> Any:
        rows = (tensors[0].shape[0], tensors[0].shape[1])
        flat = [tensor.flatten(0, 1) if number in along else tensor for number, tensor in enumerate(tensors)]
        y, last = kernel(*flat, pack=Pack.of_rows(*rows), state=state)
        return torch.unflatten(y, 0, rows), last

    return run


PACKS = {
    "one token": Pack.of([1], [-1], 1, [0]),
    "one segment": Pack.of([200], [-1], 1, [0]),
    "rows": Pack.of_rows(3, 20),
    "rows of one": Pack.of_rows(4, 1),
    "a forest": random_pack(40),
    "deep and thin": random_pack(25, longest=2, seed=3),
    "few-shot": few_shot(70, 9),
}
