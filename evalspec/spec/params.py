"""Swept parameters as people say them: short names for paths, scalars for values."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

Value = str | int | float | bool | None


def short_names(paths: Iterable[str]) -> dict[str, str]:
    """Each path's shortest ending that no other path shares: `tasks.qa.retrieval.k` → `k`.

    The same key of two tasks keeps the same short name, since a condition belongs to one task.
    """
    distinct = list(dict.fromkeys(paths))
    keys = {path: _below_its_block(path) for path in distinct}
    names = {}
    for path in distinct:
        pieces = keys[path].split(".")
        for size in range(1, len(pieces) + 1):
            name = ".".join(pieces[-size:])
            if all(keys[other] == keys[path] or not f".{keys[other]}".endswith(f".{name}") for other in distinct):
                break
        names[path] = name
    return names


def _below_its_block(path: str) -> str:
    """`tasks.qa.retrieval.k` → `retrieval.k`, `tasks.qa.prompt.shots.n` → `prompt.shots`; other paths as they are."""
    pieces = path.removesuffix(".shots.n").split(".") + (["shots"] if path.endswith(".shots.n") else [])
    return ".".join(pieces[2:]) if pieces[0] == "tasks" and len(pieces) > 2 else path


def scalar(value: Any) -> Value:
    """The value itself where it is a text, a number, a truth value or null; anything else as JSON."""
    return value if value is None or isinstance(value, str | int | float) else json.dumps(value)
