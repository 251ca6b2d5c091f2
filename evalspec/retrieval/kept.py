"""Arrays kept on disk by content: what an encoder or a cross-encoder made, to be made once.

A file has at most 512 of them, so that little is lost where making them is cut off. It is named by the SHA-256 of the
texts, of the model's own files and of the version of what ran it: another text, other weights or another library give
another file. Files are written aside and renamed, so that readers see a whole
file or none, and carry checksums (the zip format's), so that a damaged one is made again.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from evalspec.errors import RetrievalError
from evalspec.telling import Telling

Numbers = npt.NDArray[np.float32]
Item = TypeVar("Item", str, tuple[str, str])

FILE = 512  # rows


def kept(
    items: Sequence[Item],
    identity: list[str],
    folder: Path | None,
    make: Callable[[Sequence[Item]], Numbers],
    what: str,
) -> Numbers:
    """The rows of numbers of these texts or pairs, read from the folder's files as far as they are there.

    Args: identity, what the numbers depend on beside the items · folder (None: keep nothing) · make, what makes the
        rows of some · what, how it is told how far that is.
    """
    slices = [items[at : at + FILE] for at in range(0, max(1, len(items)), FILE)]
    keys = [hashlib.sha256(json.dumps([identity, some]).encode()).hexdigest() for some in slices]
    paths = [folder / f"{key}.npz" if folder else None for key in keys]
    found = [read(path, len(some)) if path else None for path, some in zip(paths, slices, strict=True)]
    telling = Telling(what, sum(len(some) for some, known in zip(slices, found, strict=True) if known is None))
    for number, (path, some) in enumerate(zip(paths, slices, strict=True)):
        if found[number] is None:
            found[number] = made = make(some)
            if path:
                write(path, made)
            telling.advance(len(some))
    return np.concatenate([numbers for numbers in found if numbers is not None])


def read(path: Path, count: int) -> Numbers | None:
    """The `count` rows of numbers in a file, or None where there is no whole and sound file of them."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            numbers = stored["embeddings"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None  # damaged: whoever asked makes it again and writes over it
    whole = numbers.dtype == np.float32 and numbers.ndim == 2 and len(numbers) == count
    return numbers if whole else None


def write(path: Path, numbers: Numbers) -> None:
    """Write a file aside and rename it. Raises RetrievalError where the folder cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, aside = tempfile.mkstemp(dir=path.parent, suffix=".part")
        try:
            with os.fdopen(descriptor, "wb") as file:
                np.savez(file, embeddings=numbers)  # the array's name in every file there is
            Path(aside).replace(path)
        finally:
            Path(aside).unlink(missing_ok=True)
    except OSError as error:
        raise RetrievalError(
            f"the cache {path.parent} cannot be written: {error.strerror or error}. Free space there, or name another "
            "folder in EVALSPEC_CACHE"
        ) from error
