"""A task file of lm-evaluation-harness as values that know where they were written.

It is read as the harness reads it (PyYAML's resolver of YAML 1.1, `include:` chains in which the file's own keys win),
but a `!function` is never looked up: it stays a `Function` that says where it stands.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import chain
from math import isfinite
from pathlib import Path
from typing import Any

import yaml

from evalspec.errors import EvalspecError, Problem, in_a_line
from evalspec.paths import is_file

_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml: the harness ships 14,000 files

MAX_VALUES = 100_000  # most values once aliases are written out: a few lines of aliases can name billions


@dataclass(frozen=True)
class Place:
    """A line of a file, counted from 1."""

    file: Path
    line: int

    def problem(self, message: str) -> Problem:
        """`message` at this line, which is shown."""
        lines = _lines(self.file)
        source = lines[self.line - 1] if self.line <= len(lines) else ""
        start = len(source) - len(source.lstrip())
        return Problem(message, str(self.file), self.line, start + 1, max(1, len(source.strip())), source)


@lru_cache(maxsize=16)
def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


@dataclass(frozen=True)
class Function:
    """Python that a task file names by `!function`."""

    name: str
    place: Place


class HarnessError(EvalspecError):
    """A task of another harness cannot be carried over: everything about it that a spec cannot say."""

    def __init__(self, problems: Sequence[Problem] | str) -> None:
        self.problems = (Problem(problems),) if isinstance(problems, str) else tuple(dict.fromkeys(problems))
        super().__init__("\n".join(str(problem) for problem in self.problems))


@dataclass(frozen=True)
class Config:
    """One task or group: its keys with their values, and where each key was written (an included file, mostly)."""

    path: Path
    values: Mapping[str, Any]
    places: Mapping[str, Place] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    """What to tell of the files: keys that stand twice, of which the harness takes the last."""

    def place(self, key: str) -> Place:
        """Where a key stands; the top of the file where the key stands nowhere."""
        return self.places.get(key, Place(self.path, 1))

    def over(self, values: Mapping[str, Any], places: Mapping[str, Place]) -> Config:
        """This with other keys laid over it, as a group does to its tasks."""
        return replace(self, values={**self.values, **values}, places={**self.places, **places})


class Reader:
    """Reads files with their includes, each file once."""

    def __init__(self) -> None:
        self._known: dict[Path, Config] = {}

    def read(self, path: Path, inside: tuple[Path, ...] = ()) -> Config:
        """The configuration in a file. Raises HarnessError for what is no YAML mapping or includes itself."""
        path = path.resolve()
        if path in inside:
            chain = " → ".join(file.name for file in (*inside[inside.index(path) :], path))
            raise HarnessError([Problem(f"files include each other in a circle: {chain}", str(path))])
        if path not in self._known:
            self._known[path] = self._read(path, (*inside, path))
        return self._known[path]

    def _read(self, path: Path, inside: tuple[Path, ...]) -> Config:
        own, places, notes = _parse(path)
        include = own.pop("include", None)
        place = places.pop("include", Place(path, 1))
        values: dict[str, Any] = {}
        merged: dict[str, Place] = {}
        for name in include if isinstance(include, list) else [include] if include is not None else []:
            if not isinstance(name, str):
                raise HarnessError([place.problem(f"`include` names files, not {name!r}")])
            if not is_file(path.parent / name):
                raise HarnessError([place.problem(f"there is no file {path.parent / name} to include")])
            part = self.read(path.parent / name, inside)
            values |= {key: value for key, value in part.values.items() if key != "task_list"}
            merged |= part.places
            notes += part.notes
        return Config(path, values | own, merged | places, notes)


def _parse(path: Path) -> tuple[dict[str, Any], dict[str, Place], tuple[str, ...]]:
    """The mapping in one file, the line of each of its keys, and what to tell of it."""

    class Loader(_Base):  # type: ignore[misc]  # a class of its own holds the constructor that knows the file
        pass

    def function(loader: Any, node: yaml.Node) -> Function:
        return Function(str(loader.construct_scalar(node)), Place(path, node.start_mark.line + 1))

    Loader.add_constructor("!function", function)
    try:
        loader = Loader(path.read_bytes())
        root = loader.get_single_node()
        if root is not None:
            _count(root, path, (), 0)
        values = loader.construct_document(root) if root is not None else None
    except OSError as error:
        raise HarnessError([Problem(f"cannot be read: {error.strerror or error}", str(path))]) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = Place(path, mark.line + 1 if mark else 1)
        raise HarnessError([place.problem(f"not YAML: {error.problem or error.context}")]) from None
    except yaml.reader.ReaderError as error:
        place = Place(path, path.read_bytes()[: error.position].count(b"\n") + 1)
        raise HarnessError([place.problem(f"not YAML: {error.reason}; save it as UTF-8 text")]) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise HarnessError([Problem(f"not YAML: {in_a_line(error)}", str(path))]) from None
    if not isinstance(values, dict):
        raise HarnessError([Place(path, 1).problem("a task is a mapping of keys to values")])
    keys = [(key.value, key.start_mark.line + 1) for key, _ in root.value if isinstance(key, yaml.ScalarNode)]
    lines = dict(keys)
    twice = tuple(
        f"`{key}` stands twice in {path.name}, on lines {line} and {lines[key]}: the last counts, as in the harness"
        for key, line in keys
        if line != lines[key]
    )
    places = {key: Place(path, lines[key]) for key in values if key in lines}
    return {str(key): value for key, value in values.items()}, places, twice


def _count(node: yaml.Node, path: Path, inside: tuple[yaml.Node, ...], counted: int) -> int:
    """How many values stand under a node with its aliases written out, and that it ends."""
    counted += 1
    if node in inside or counted > MAX_VALUES:
        endless = "this anchor holds an alias to itself, so that it would never end"
        said = endless if node in inside else f"aliases here write out to more than {MAX_VALUES:,} values"
        raise HarnessError([Place(path, node.start_mark.line + 1).problem(said)])
    if not isinstance(node, yaml.ScalarNode):
        for item in chain.from_iterable(node.value) if isinstance(node, yaml.MappingNode) else node.value:
            counted = _count(item, path, (*inside, node), counted)
    return counted


def functions(value: Any) -> list[Function]:
    """Every `!function` within a value."""
    if isinstance(value, Function):
        return [value]
    return [found for item in _inside(value) for found in functions(item)]


def foreign_values(value: Any) -> list[Any]:
    """What YAML can write and a spec cannot say, within a value: dates, bytes, sets, numbers that are not finite."""
    if isinstance(value, Mapping | list):
        return [found for item in _inside(value) for found in foreign_values(item)]
    plain = value is None or isinstance(value, str | int | Function) or (isinstance(value, float) and isfinite(value))
    return [] if plain else [value]


def _inside(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
