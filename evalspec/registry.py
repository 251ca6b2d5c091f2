"""One kind of registry for everything that a spec calls by name: metrics, retrievers, generators, backends.

Plugins join through entry points: a package that declares, under `[project.entry-points."evalspec.metrics"]`,
`mine = "package:thing"` has `mine` in every spec of that environment.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from evalspec.errors import EvalspecError, suggest

T = TypeVar("T")


class Registry(Generic[T]):
    """Names of one kind of thing. `group` is the entry-point group that plugins use."""

    def __init__(self, kind: str, group: str) -> None:
        self.kind, self.group = kind, group
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """A decorator that enters its object under `name`; a second entry under the same name is an error."""

        def enter(entry: T) -> T:
            if name in self._entries:
                raise EvalspecError(f"two {self.kind}s are called `{name}`; rename one of them")
            self._entries[name] = entry
            return entry

        return enter

    def names(self) -> list[str]:
        """All names, the plugins' too, sorted."""
        return sorted({*self._entries, *(point.name for point in entry_points(group=self.group))})

    def get(self, name: str) -> T:
        """The entry called `name`; raises EvalspecError with the nearest name when there is none."""
        if name not in self._entries:
            for point in entry_points(group=self.group, name=name):
                self._entries[name] = point.load()
                break
            else:
                raise EvalspecError(
                    f"there is no {self.kind} `{name}`.{suggest(name, self.names())} Known: {', '.join(self.names())}"
                )
        return self._entries[name]
