"""One kind of registry for everything that a spec calls by name: metrics, retrievers, generators, backends.

Plugins join through entry points: a package that declares, under `[project.entry-points."evalspec.metrics"]`,
`mine = "package:thing"` has `mine` in every spec of that environment. What is wrong with a plugin, and what its code
raises, is a `PluginError` that names it: docs/plugins.md.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Generic, TypeVar

from evalspec.errors import EvalspecError, PluginError, suggest

T = TypeVar("T")
Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class Plugin:
    """An entry that a package brings: what it is, its name in specs, and where it comes from (`package:thing`)."""

    kind: str
    name: str
    value: str

    def error(self, why: str) -> PluginError:
        """An error that says whose fault it is."""
        return PluginError(f"{self.kind} `{self.name}` ({self.value}): {why}")

    @contextmanager
    def running(self) -> Iterator[None]:
        """What the package's code raises within is an error of the plugin, with the line that it came from."""
        try:
            yield
        except EvalspecError:
            raise
        except Exception as error:
            said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            raise self.error(f"{said}{self._place(error)}") from error

    def _place(self, error: Exception) -> str:
        """The last line of the traceback that is the package's own, if any is."""
        source = _source(self.value)
        if source is None:
            return ""
        # A module of its own, or any file of the package that it is in.
        root = source.parent if source.name == "__init__.py" or "." in self.value.partition(":")[0] else source
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if root in (Path(frame.filename), *Path(frame.filename).parents)]
        return "".join(f" ({frame.filename}:{frame.lineno})" for frame in own[-1:])

    def guarded(self, function: Function, check: Callable[[Any], Any] = lambda given: given) -> Function:
        """The package's function; what it raises names the plugin, and `check` has seen what it returns."""
        if not callable(function):
            raise self.error(f"is a {type(function).__name__}, and should be a function")

        @functools.wraps(function)
        def called(*args: Any, **named: Any) -> Any:
            with self.running():
                return check(function(*args, **named))

        return called  # type: ignore[return-value]


class Registry(Generic[T]):
    """Names of one kind of thing. `group` is the entry-point group that plugins use; `adopt` checks what one of them
    brings and gives it as it is used."""

    def __init__(self, kind: str, group: str, adopt: Callable[[T, Plugin], T] = lambda entry, plugin: entry) -> None:
        self.kind, self.group, self._adopt = kind, group, adopt
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
        """The entry called `name`; raises EvalspecError with the nearest name when there is none, PluginError for a
        plugin that cannot be loaded or is no such thing."""
        if name not in self._entries:
            point = _point(self.group, name)
            if point is None:
                raise EvalspecError(
                    f"there is no {self.kind} `{name}`.{suggest(name, self.names())} Known: {', '.join(self.names())}. "
                    "If a package brings it, install that package here"
                )
            plugin = Plugin(self.kind, name, point.value)
            with plugin.running():
                self._entries[name] = self._adopt(point.load(), plugin)
        return self._entries[name]


def _point(group: str, name: str) -> EntryPoint | None:
    return next(iter(entry_points(group=group, name=name)), None)


def _source(value: str) -> Path | None:
    """The file of an entry point's module; None where it has none."""
    try:
        found = importlib.util.find_spec(value.partition(":")[0].strip())
    except (ImportError, ValueError, AttributeError):
        return None
    return Path(found.origin) if found and found.origin and found.has_location else None


def plugin_source(group: str, name: str) -> tuple[str, ...]:
    """What tells two versions of a plugin apart: where it comes from, its package's version, a hash of its module's
    file. Empty for a name that no plugin has."""
    point = _point(group, name)
    if point is None:
        return ()
    source = _source(point.value)
    try:
        digest = hashlib.sha256(source.read_bytes()).hexdigest() if source else ""
    except OSError:
        digest = ""
    return point.value, point.dist.version if point.dist else "", digest
