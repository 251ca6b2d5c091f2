"""What two specs ask differently: the keys whose values are not the same, however each of them is written.

Specs are compared as they are resolved: `extends` and shorthands written out, and a key that only one of them writes
against the other's default. So `shots: 2` and `shots: {n: 2, draws: 1}` differ in nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from evalspec.spec.blocks import Spec
from evalspec.spec.compose import compose
from evalspec.spec.grammar import dotted
from evalspec.spec.source import CORE, parse
from evalspec.spec.tree import Location

WIDTH = 60
"""Characters of a value that a line shows."""
BEFORE = 16
"""Characters that a shortened value shows before the place where it differs."""

_ALONE = re.compile(r"\S(?:[^\n]*\S)?")  # texts that need no quotes in a line of their own, and in a list or a mapping
_WITHIN = re.compile(r"[^\s\-?:,\[\]{}#&*!|>'\"%@`](?:[^\n,\[\]{}#:]*[^\s,\[\]{}#:])?")


@dataclass(frozen=True)
class Difference:
    """One thing that is not the same on both sides, A and B; None where a side has no such thing."""

    key: str
    a: Any
    b: Any

    @property
    def shown(self) -> tuple[str | None, str | None]:
        """Both values as a line shows them: long ones cut, so that what differs about them is seen."""
        write: Callable[[Any], str] = _written
        found = [value for value in (self.a, self.b) if value is not None]
        if all(isinstance(value, str) for value in found):
            write = str if all(map(_ALONE.fullmatch, found)) else _quoted
        a, b = (None if value is None else write(value) for value in (self.a, self.b))
        return _shortened(a, b), _shortened(b, a)

    @property
    def words(self) -> str:
        """`tasks.qa.retrieval.k: 3 → 5`, or `tasks.qa.cluster: only in B, {{ document }}`."""
        a, b = self.shown
        if a is None or b is None:
            return f"{self.key}: only in {'B' if a is None else 'A'}, {b if a is None else a}"
        return f"{self.key}: {a} → {b}"

    def json(self) -> dict[str, Any]:
        """The same for machines, values whole; a side that has no such thing has no key."""
        sides = {"a": self.a, "b": self.b}
        return {"key": self.key, **{side: value for side, value in sides.items() if value is not None}}


def spec_differences(text_a: str, text_b: str) -> list[Difference] | None:
    """What two specs that were run differ in, from their texts as the store keeps them; None where one is no spec.

    A spec that this state of the language no longer takes is compared by its keys as they are written.
    """
    written = [resolved(text) for text in (text_a, text_b)]
    if not all(written):
        return None
    try:
        specs = [Spec.model_validate(keys) for keys in written]
    except ValidationError:
        return differences(*written)
    said, full = ([_dump(spec, exclude_unset=unset) for spec in specs] for unset in (True, False))
    return differences(_filled(said[0], full[0], said[1]), _filled(said[1], full[1], said[0]))


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[Difference]:
    """The keys under which two mappings hold different values, in A's order and then B's.

    A mapping that only one side has is one difference, and so is a list, unless the other's is as long and both hold
    mappings. A null is as good as no value.
    """
    return list(_differences(a, b, ()))


def _differences(a: Any, b: Any, path: Location) -> Iterator[Difference]:
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        for key in dict.fromkeys([*a, *b]):
            yield from _differences(a.get(key), b.get(key), (*path, key))
    elif _are_blocks(a, b):
        for index, (one, other) in enumerate(zip(a, b, strict=True)):
            yield from _differences(one, other, (*path, index))
    elif a != b or isinstance(a, bool) != isinstance(b, bool):
        yield Difference(dotted(path), a, b)


def _are_blocks(a: Any, b: Any) -> bool:
    """Whether two lists are as long and hold mappings, which can be told apart by their keys."""
    if not (isinstance(a, list) and isinstance(b, list)) or len(a) != len(b):
        return False
    return any(isinstance(one, Mapping) and isinstance(other, Mapping) for one, other in zip(a, b, strict=True))


def resolved(text: str) -> dict[str, Any]:
    """The keys of a spec's text with `extends` resolved; empty where it is no spec.

    Nothing is read from the disk: a stored text has what it included in it.
    """
    source = parse(text, "spec")
    if source.tree is None or not source.tree.is_mapping:
        return {}
    own = {key: child for key, child in source.tree.items() if key != "include"}
    composed = compose(replace(source, tree=replace(source.tree, value=own)), Path(), Path())
    return dict(composed.tree.plain())


def _dump(spec: Spec, *, exclude_unset: bool) -> dict[str, Any]:
    return spec.model_dump(mode="json", exclude={"include"}, exclude_unset=exclude_unset)


def _filled(written: Any, full: Any, other: Any) -> Any:
    """What is written, and for keys that only the other side writes the value that they have here all the same."""
    if isinstance(written, Mapping) and isinstance(other, Mapping) and isinstance(full, Mapping):
        keys = [*written, *(key for key in other if key not in written and full.get(key) is not None)]
        return {
            key: _filled(written.get(key, full[key] if key not in written else None), full.get(key), other.get(key))
            for key in keys
        }
    if _are_blocks(written, other) and isinstance(full, list):
        return [_filled(*items) for items in zip(written, full, other, strict=True)]
    return written


def _written(value: Any) -> str:
    """A value in a line, nearly as a spec would write it: a metric that is nothing but its name is that name, and a
    text stands in quotes only where it would else look like something that it is not."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_written(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        names = [item["metric"] if isinstance(item, Mapping) and [*item] == ["metric"] else item for item in value]
        return "[" + ", ".join(map(_written, names)) + "]"
    if isinstance(value, str) and _WITHIN.fullmatch(value) and not any(kind.fullmatch(value) for kind in CORE.values()):
        return value
    return _quoted(value)


def _quoted(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _shortened(text: str | None, other: str | None) -> str | None:
    """A long text cut to `WIDTH`, from shortly before the place where it leaves the other one."""
    if text is None or len(text) <= WIDTH:
        return text
    begin = 0
    if other is not None:
        pairs = enumerate(zip(text, other, strict=False))
        same = next((at for at, (one, its) in pairs if one != its), min(len(text), len(other)))
        begin = max(0, min(same - BEFORE, len(text) - WIDTH)) if same > WIDTH - BEFORE else 0
    end = begin + WIDTH
    return ("…" if begin else "") + text[begin:end] + ("…" if end < len(text) else "")
