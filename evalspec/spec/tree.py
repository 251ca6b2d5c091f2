"""Values that know where they stand: the tree on which including, extending and sweeping work.

Marks travel with the values, so that an error found late (in a cell of the sweep, say) still points at the
characters that the user wrote.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from evalspec.errors import Problem, SpecError

MAX_DEPTH = 64  # deepest nesting: reading and merging recurse, and no spec comes near
TOO_DEEP = f"nested more than {MAX_DEPTH} levels deep"

Location = tuple[str | int, ...]


@dataclass(frozen=True)
class Mark:
    """A place in a file: `line` and `column` count from 1 (0: unknown), `width` characters of `source`, its line."""

    file: str = ""
    line: int = 0
    column: int = 0
    width: int = 1
    source: str = ""

    def problem(self, message: str) -> Problem:
        """`message` at this place."""
        return Problem(message, self.file, self.line, self.column, self.width, self.source)


@dataclass(frozen=True)
class Node:
    """A value, where it stands and where its key stands. `value` is a scalar, a dict or a list of nodes.

    `style` is how a text was written (`'"'`, `"'"`, `|`, `>` or None for plain): a block text starts on the line below.
    """

    value: Any
    mark: Mark
    key: Mark | None = None
    style: str | None = None

    @property
    def is_mapping(self) -> bool:
        """Whether it has keys."""
        return isinstance(self.value, dict)

    @property
    def is_list(self) -> bool:
        """Whether it has items."""
        return isinstance(self.value, list)

    @property
    def place(self) -> Mark:
        """Where to point when the value as a whole is wrong: its key, where it has one."""
        return self.key or self.mark

    def child(self, step: str | int) -> Node | None:
        """The value under a key or at an index, None when there is none."""
        if isinstance(self.value, dict):
            found = self.value.get(step)
            return found if isinstance(found, Node) else None
        if isinstance(self.value, list) and isinstance(step, int) and 0 <= step < len(self.value):
            item = self.value[step]
            assert isinstance(item, Node)
            return item
        return None

    def at(self, *steps: str | int) -> Node | None:
        """The value at a path, None when there is none."""
        node: Node | None = self
        for step in steps:
            node = node.child(step) if node is not None else None
        return node

    def items(self) -> list[tuple[str, Node]]:
        """Keys and values of a mapping; empty for anything else."""
        return list(self.value.items()) if isinstance(self.value, dict) else []

    def plain(self) -> Any:
        """The value without its places: dicts, lists and scalars."""
        if isinstance(self.value, dict):
            return {key: child.plain() for key, child in self.value.items()}
        if isinstance(self.value, list):
            return [child.plain() for child in self.value]
        return self.value

    def walk(self, path: Location = ()) -> Iterator[tuple[Location, Node]]:
        """Every value with its path, parents first."""
        yield path, self
        steps = self.value.items() if isinstance(self.value, dict) else ()
        for step, child in steps:
            yield from child.walk((*path, step))
        if isinstance(self.value, list):
            for index, child in enumerate(self.value):
                yield from child.walk((*path, index))

    def having(self, key: str, child: Node) -> Node:
        """This mapping with one key set."""
        return replace(self, value={**self.value, key: child})


NOWHERE = Mark()


def merge(base: Node, over: Node) -> Node:
    """`base` with `over` laid on it: mappings key by key, anything else replaced. A null takes the key away."""
    if not (base.is_mapping and over.is_mapping):
        return over
    merged = dict(base.value)
    for key, child in over.items():
        if child.value is None:
            merged.pop(key, None)
        else:
            merged[key] = merge(merged[key], child) if key in merged else child
    return Node(merged, over.mark, over.key or base.key)


def elsewhere(node: Node, mark: Mark) -> Node:
    """The same values, all said to stand at `mark`."""
    value = node.value
    if isinstance(value, dict):
        value = {key: elsewhere(child, mark) for key, child in value.items()}
    elif isinstance(value, list):
        value = [elsewhere(child, mark) for child in value]
    return Node(value, mark, mark, node.style)


def from_python(value: Any, depth: int = 0) -> Node:
    """A tree from Python values. Mappings and sequences become dicts and lists; anything else is kept as it is.

    Raises SpecError when it is nested too deeply or holds itself.
    """
    if depth > MAX_DEPTH:
        raise SpecError(TOO_DEEP)
    if isinstance(value, Mapping):
        return Node({str(key): from_python(child, depth + 1) for key, child in value.items()}, NOWHERE)
    if isinstance(value, (list, tuple)):
        return Node([from_python(child, depth + 1) for child in value], NOWHERE)
    return Node(value, NOWHERE)


def kind(value: Any) -> str:
    """What a value is, in plain words: `the text 'five'`, `a list`, `nothing`."""
    if isinstance(value, Node):
        value = value.value
    if value is None:
        return "nothing (null)"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, str):
        return f"the text {value if len(value) <= 40 else value[:37] + '…'!r}"
    if isinstance(value, (dict, list)):
        return "a mapping" if isinstance(value, dict) else "a list"
    return f"a Python {type(value).__name__}"
