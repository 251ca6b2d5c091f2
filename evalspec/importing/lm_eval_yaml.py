"""A task file of lm-evaluation-harness as values that know where they were written.

It is read as the harness reads it (PyYAML's resolver of YAML 1.1, `include:` chains in which the file's own keys win),
but a `!function` is never looked up: it stays a `Function` that says where it stands.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from evalspec.errors import EvalspecError, Problem

_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml: the harness ships 14,000 files


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

    def place(self, key: str) -> Place:
        """Where a key stands; the top of the file where the key stands nowhere."""
        return self.places.get(key, Place(self.path, 1))

    def over(self, values: Mapping[str, Any], places: Mapping[str, Place]) -> Config:
        """This with other keys laid over it, as a group does to its tasks."""
        return Config(self.path, {**self.values, **values}, {**self.places, **places})


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
        own, places = _parse(path)
        include = own.pop("include", None)
        place = places.pop("include", Place(path, 1))
        values: dict[str, Any] = {}
        merged: dict[str, Place] = {}
        for name in include if isinstance(include, list) else [include] if include is not None else []:
            if not isinstance(name, str):
                raise HarnessError([place.problem(f"`include` names files, not {name!r}")])
            if not (path.parent / name).is_file():
                raise HarnessError([place.problem(f"there is no file {path.parent / name} to include")])
            part = self.read(path.parent / name, inside)
            values |= {key: value for key, value in part.values.items() if key != "task_list"}
            merged |= part.places
        return Config(path, values | own, merged | places)


def _parse(path: Path) -> tuple[dict[str, Any], dict[str, Place]]:
    """The mapping in one file, and the line of each of its keys."""

    class Loader(_Base):  # type: ignore[misc]  # a class of its own holds the constructor that knows the file
        pass

    def function(loader: Any, node: yaml.Node) -> Function:
        return Function(str(loader.construct_scalar(node)), Place(path, node.start_mark.line + 1))

    Loader.add_constructor("!function", function)
    try:
        loader = Loader(path.read_bytes())
        root = loader.get_single_node()
        values = loader.construct_document(root) if root is not None else None
    except OSError as error:
        raise HarnessError([Problem(f"cannot be read: {error.strerror or error}", str(path))]) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = Place(path, mark.line + 1 if mark else 1)
        raise HarnessError([place.problem(f"not YAML: {error.problem or error.context}")]) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise HarnessError([Problem(f"not YAML: {error}", str(path))]) from None
    if not isinstance(values, dict):
        raise HarnessError([Place(path, 1).problem("a task is a mapping of keys to values")])
    lines = {key.value: Place(path, key.start_mark.line + 1) for key, _ in root.value if hasattr(key, "value")}
    return {str(key): value for key, value in values.items()}, {key: lines[key] for key in values if key in lines}


def functions(value: Any) -> list[Function]:
    """Every `!function` within a value."""
    if isinstance(value, Function):
        return [value]
    inside = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return [found for item in inside for found in functions(item)]
