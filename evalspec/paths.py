"""Paths as users write them: relative to the project's root, from `~`, or in full.

A name that no file can have, or one in a folder that may not be read, is one that is not there and no traceback.
"""

from __future__ import annotations

from pathlib import Path


def path_from(root: Path, text: str) -> Path:
    """Where `text` leads from `root`; `~` is written out, and stays as it is where nobody has that name."""
    try:
        return root / Path(text).expanduser()
    except RuntimeError:
        return root / text


def is_file(path: Path) -> bool:
    """Like `Path.is_file`, and False where that raises: a name too long, a folder without permission."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def is_folder(path: Path) -> bool:
    """Like `Path.is_dir`, and False where that raises."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False
