"""Draws the training sequences with all processor cores into one file of 16-bit numbers, and reads it.

The file holds count × (length + 1) little-endian uint16, row after row: what `mixture.draw_sequence` gives. Models
that read the same file see the same data in the same order.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evalspec.zoo.mixture import draw_sequence

PIECE = 1024  # sequences that a process draws at a time
SHORT = 64  # tokens that a model sees at a time while it is in the first part of the budget
FLAT = 0.25  # part of the budget until which sequences are short and easy
GROWN = 0.55  # part of the budget from which on they are of full size


def difficulty_at(progress: float) -> float:
    """Difficulty after a part of the budget in [0, 1]: a tenth, then growing to 1.

    The flat part gives the circuits that search the context the time to form where there is little to choose from.
    """
    return min(1.0, 0.1 + 0.9 * max(0.0, progress - FLAT) / (GROWN - FLAT))


def draw_piece(start: int, *, seed: str, count: int, length: int) -> NDArray[np.uint16]:
    """Sequences start … start + PIECE − 1 (fewer at the end of the count).

    While sequences are short, a row holds several of SHORT tokens, each of which begins anew, and one more token that
    the last of them predicts.
    """
    rows = []
    for number in range(start, min(start + PIECE, count)):
        difficulty = difficulty_at(number / count)
        if number < short_rows(count):
            parts = [draw_sequence(f"{seed}-short", number * 64 + i, SHORT, difficulty) for i in range(length // SHORT)]
            rows.append(np.concatenate([*parts, parts[0][:1] & 0x7FFF]))
        else:
            rows.append(draw_sequence(seed, number, length, difficulty))
    return np.stack(rows)


def short_rows(count: int) -> int:
    """How many of `count` rows hold short sequences."""
    return int(FLAT * count)


def write_sequences(path: Path, *, seed: str, count: int, length: int, processes: int | None = None) -> None:
    """Draw `count` sequences of `length` tokens into `path`; the name appears when the file is whole."""
    aside = path.with_suffix(".part")
    draw = partial(draw_piece, seed=seed, count=count, length=length)
    with aside.open("wb") as file, ProcessPoolExecutor(processes or os.cpu_count()) as pool:
        for piece in pool.map(draw, range(0, count, PIECE)):
            file.write(piece.astype("<u2").tobytes())
    aside.rename(path)


def read_sequences(path: Path, length: int) -> NDArray[np.uint16]:
    """All sequences of a file: (count, length)."""
    return np.memmap(path, dtype="<u2", mode="r").reshape(-1, length)


def held_out(task: str, count: int, length: int) -> NDArray[np.uint16]:
    """Sequences of one task that no training stream contains, at full difficulty: (count, length)."""
    return np.stack([draw_sequence("held-out", n, length, 1.0, task) for n in range(count)])


def pieces(rows: NDArray[np.uint16], batch: int) -> Iterator[NDArray[np.uint16]]:
    """Whole batches in order; what is left over at the end is not used."""
    for start in range(0, len(rows) - batch + 1, batch):
        yield rows[start : start + batch]
