"""From what a model wrote to what is scored: named chains of steps, stored in the column `filter`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from evalspec.registry import Registry


@dataclass(frozen=True)
class Filter:
    """Steps that are applied one after the other, each from text to text."""

    steps: tuple[Callable[[str], str], ...]

    def __call__(self, text: str) -> str:
        """The extracted text; never None, since a filter that finds nothing must say what it found instead."""
        for step in self.steps:
            text = step(text)
        return text


FILTERS: Registry[Filter] = Registry("filter", "evalspec.filters")

FILTERS.register("default")(Filter((str.strip,)))


def extract(text: str | None, name: str = "default") -> str | None:
    """What the filter `name` makes of an output. `default` strips white space at both ends; no output stays none."""
    return None if text is None else FILTERS.get(name)(text)
