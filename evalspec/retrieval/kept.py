"""Arrays kept on disk by content: what an encoder or a cross-encoder made, to be made once.

A file is named by the SHA-256 of the texts, of the model's own files and of the version of what ran it: another text,
other weights or another library give another file. Files are written aside and renamed, so that readers see a whole
file or none, and carry checksums (the zip format's), so that a damaged one is made again.
"""

from __future__ import annotations

import os
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

from evalspec.errors import RetrievalError

Numbers = npt.NDArray[np.float32]


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
