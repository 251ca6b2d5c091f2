"""The blocks seen as a grammar: which keys may stand where, what a value may be, in plain words.

Errors, `--set`, sweeps and the language reference all ask the same questions of the same pydantic models.
"""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Union

from pydantic.fields import FieldInfo

from evalspec.errors import suggest
from evalspec.spec.base import Block
from evalspec.spec.blocks import Spec
from evalspec.spec.extraction import StepBlock
from evalspec.spec.metric import MetricBlock
from evalspec.spec.prompt import ShotsBlock, StepsBlock
from evalspec.spec.tree import Location, Node


@dataclass(frozen=True)
class Slot:
    """A place where a value may stand. `options` are the types it may have, null left out."""

    options: tuple[Any, ...]
    metadata: tuple[Any, ...] = ()
    optional: bool = False
    description: str = ""

    @property
    def block(self) -> type[Block] | None:
        """The block that may stand here, if any."""
        return next((option for option in self.options if isinstance(option, type) and issubclass(option, Block)), None)

    @property
    def literals(self) -> list[str]:
        """The words to choose from, if any."""
        return [str(word) for option in self.options for word in typing.get_args(option) if _is(option, Literal)]

    def under(self, step: str | int) -> Slot | None:
        """The place at a key or index below this one, None where the language has none."""
        if self.block is not None and not isinstance(step, int):
            found = self.block.model_fields.get(step)
            return slot_of(found) if found is not None else None
        for option in self.options:
            if _is(option, dict) and not isinstance(step, int):
                return slot_of(typing.get_args(option)[1])
            if _is(option, list) and isinstance(step, int):
                return slot_of(typing.get_args(option)[0])
        return ANYTHING if Any in self.options else None


ANYTHING = Slot((Any,))


def _is(annotation: Any, origin: Any) -> bool:
    return typing.get_origin(annotation) is origin


def slot_of(annotation: Any) -> Slot:
    """The slot that a field or an annotation describes."""
    if isinstance(annotation, FieldInfo):
        inner = slot_of(annotation.annotation)
        metadata = (*annotation.metadata, *inner.metadata)
        return Slot(inner.options, metadata, inner.optional, annotation.description or "")
    if _is(annotation, typing.Annotated):
        first, *marks = typing.get_args(annotation)
        inner = slot_of(first)
        bounds = [part for mark in marks for part in (mark.metadata if isinstance(mark, FieldInfo) else [mark])]
        return Slot(inner.options, (*bounds, *inner.metadata), inner.optional)
    if _is(annotation, Union) or isinstance(annotation, types.UnionType):
        parts = typing.get_args(annotation)
        return Slot(tuple(part for part in parts if part is not type(None)), (), type(None) in parts)
    return Slot((annotation,))


SPEC = Slot((Spec,))


def slot_at(location: Location) -> Slot | None:
    """The slot at a path of a spec, None where the language has none."""
    slot: Slot | None = SPEC
    for step in location:
        slot = slot.under(step) if slot is not None else None
    return slot


def dotted(location: Location) -> str:
    """A path as it is written: `tasks.open_book.metrics[1].k`; the empty path is the spec itself."""
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in location)
    return text.removeprefix(".") or "the spec"


def one_of(words: Iterable[str]) -> str:
    """`a, b or c`."""
    *firsts, last = words
    return f"{', '.join(firsts)} or {last}" if firsts else last


def expected(slot: Slot) -> str:
    """What may stand in a slot, in words: `a whole number ≥ 1`, `` `bm25` or `none` ``, `text or a list of texts`."""
    literals = [f"`{word}`" for word in slot.literals]
    rest = [_words(option, slot.metadata) for option in slot.options if not _is(option, Literal)]
    if slot.block is ShotsBlock:
        rest = ["a whole number ≥ 0", *rest]
    if slot.block is MetricBlock:
        rest = ["a metric's name", *rest]
    if slot.block is StepBlock:
        rest = ["a step's name", *rest]
    if slot.block is StepsBlock:
        rest = ["a template", *rest]
    return one_of([*literals, *rest])


def _words(option: Any, metadata: Iterable[Any]) -> str:
    bounds = {
        name: getattr(part, name) for part in metadata for name in BOUNDS if getattr(part, name, None) is not None
    }
    if option is int:
        low = bounds.get("ge", bounds["gt"] + 1 if "gt" in bounds else None)
        return "a whole number" + (f" ≥ {low}" if low is not None else "")
    if option is float:
        limits = [f"{sign} {bounds[name]}" for name, sign in BOUNDS.items() if name in bounds and name != "min_length"]
        return "a number" + (f" {' and '.join(limits)}" if limits else "")
    if _is(option, list):
        item = slot_of(typing.get_args(option)[0])
        of = {MetricBlock: "metrics", StepBlock: "steps", str: "texts"}.get(item.block or item.options[0], "values")
        return f"a {'non-empty ' if 'min_length' in bounds else ''}list of {of}"
    if _is(option, dict):
        item = slot_of(typing.get_args(option)[1])
        return "a mapping from names to blocks" if item.block else "a mapping"
    if isinstance(option, type) and issubclass(option, Block):
        return "a mapping"
    return PLAIN.get(option, "a value")


BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<", "min_length": ""}
PLAIN = {str: "text", bool: "true or false", Any: "anything"}


def written_out(slot: Slot, node: Node) -> Node:
    """A shorthand as the block it stands for, where blocks are merged: `shots: 2` is `shots: {n: 2}`."""
    value = node.value
    if slot.block is ShotsBlock and isinstance(value, int) and not isinstance(value, bool):
        return Node({"n": Node(value, node.mark, node.place)}, node.mark, node.key)
    if slot.block is MetricBlock and isinstance(value, str):
        found = re.fullmatch(r"(.+?)@([0-9]+)", value)
        parts = {"metric": found[1], "k": int(found[2])} if found else {"metric": value}
        return Node({key: Node(part, node.mark, node.place) for key, part in parts.items()}, node.mark, node.key)
    if slot.block is StepsBlock and isinstance(value, str):
        return Node({"right": Node(value, node.mark, node.place)}, node.mark, node.key)
    if slot.block is StepBlock and isinstance(value, str):
        return Node({"step": Node(value, node.mark, node.place)}, node.mark, node.key)
    return node


ELSEWHERE: Mapping[str, tuple[str, ...]] = {
    "template": ("text", "prompt", "doc_to_text", "input", "question"),
    "target": ("answer", "answers", "label", "gold", "doc_to_target", "reference"),
    "choices": ("options", "doc_to_choice"),
    "shots": ("few_shot", "fewshot", "num_fewshot", "examples"),
    "decode": ("generation", "generation_kwargs", "sampling"),
    "filters": ("extract", "extraction", "filter_list", "postprocess"),
    "weights": ("path", "name", "pretrained", "model", "model_path"),
    "dtype": ("torch_dtype", "precision"),
    "backend": ("engine", "runner"),
    "max_length": ("max_model_len", "context_length"),
    "max_tokens": ("max_new_tokens", "max_gen_toks"),
    "stop": ("until", "stop_sequences"),
    "repeats": ("n", "num_return_sequences", "samples"),
    "hub": ("dataset", "dataset_path"),
    "count": ("limit", "size"),
    "retriever": ("method", "type"),
    "k": ("top_k", "n_passages"),
}
"""Keys by what other tools and papers call them; a block says of the first that it has."""


def unknown_key(where: str, key: str, slot: Slot) -> str:
    """What to say of a key that a block does not have: the nearest one, or where it belongs."""
    assert slot.block is not None
    fields = slot.block.model_fields
    inner = [name for name, field in fields.items() if (block := slot_of(field).block) and key in block.model_fields]
    meant = next((name for name, others in ELSEWHERE.items() if key in others and name in fields), None)
    if inner:
        near = f" It belongs inside `{inner[0]}`."
    else:
        near = f" Did you mean `{meant}`?" if meant else suggest(key, fields)
    return f"{where} has no key `{key}`.{near or f' It has {listed(fields)}.'}"


def listed(names: Iterable[str]) -> str:
    """`` `a`, `b` and `c` ``."""
    return one_of(f"`{name}`" for name in names).replace(" or ", " and ")


class PathError(Exception):
    """A dotted path does not lead anywhere in the language; the message says where it goes wrong."""


def locate(path: str, tree: Node) -> list[Location]:
    """The places that a dotted path names: one, or several where `*` stands for every model or task.

    Names may hold dots themselves (`models.mamba-2.8b.dtype`): the longest known name wins. Beyond the names of models
    and tasks a path may lead to keys that are not written yet, as long as the language knows them. `*` skips tasks that
    lack the block it leads into.

    Raises PathError.
    """
    if not path or path.endswith("."):
        raise PathError(f"`{path}` is not a path; `tasks.mine.retrieval.k` is one")
    return [location for location, _ in _locate(path, path, (), SPEC, tree)]


def _locate(path: str, rest: str, done: Location, slot: Slot, tree: Node) -> list[tuple[Location, Slot]]:
    if not rest:
        return [(done, slot)]
    head, _, tail = rest.partition(".")
    where = dotted(done)
    node = tree.at(*done)
    if slot.block is not None:
        below = slot.under(head)
        if below is None:
            raise PathError(unknown_key(where, head, slot))
        return _locate(path, tail, (*done, head), below, tree)
    option = slot.options[0]
    if _is(option, dict) and slot_of(typing.get_args(option)[1]).block is not None:
        return _locate_named(path, rest, done, slot, tree)
    if _is(option, dict) or option is Any:
        return _locate(path, tail, (*done, head), ANYTHING, tree)
    if slot.under(0) is not None:
        length = len(node.value) if node is not None and node.is_list else 0
        if not head.isdecimal() or int(head) >= length:
            places = f"places 0 to {length - 1}" if length else "no items yet; set it as a whole"
            raise PathError(f"{where} is a list with {places}; `{head}` is none of them")
        below = slot.under(int(head))
        assert below is not None
        return _locate(path, tail, (*done, int(head)), below, tree)
    raise PathError(f"{where} holds {expected(slot)}; it has no key `{head}`")


def _locate_named(path: str, rest: str, done: Location, slot: Slot, tree: Node) -> list[tuple[Location, Slot]]:
    """Go on below `models` or `tasks`, whose keys are the user's names."""
    node = tree.at(*done)
    names = [name for name, _ in node.items()] if node is not None else []
    below = slot.under("")
    assert below is not None
    if rest == "*" or rest.startswith("*."):
        found = [
            found
            for name in names
            for found in _locate(path, rest[2:], (*done, name), below, tree)
            if len(found[0]) <= 3 or tree.at(*found[0][:3]) is not None or _always_there(found[0])
        ]
        if not found:
            raise PathError(f"`{path}` leads nowhere: none of {dotted(done)} has the block it goes into")
        return found
    for name in sorted(names, key=len, reverse=True):
        if rest == name or rest.startswith(name + "."):
            return _locate(path, rest[len(name) + 1 :], (*done, name), below, tree)
    head = rest.partition(".")[0]
    known = suggest(head, names) or (f" There is {listed(names)}." if names else "")
    raise PathError(f"{dotted(done)} has no `{head}`.{known}")


def _always_there(location: Location) -> bool:
    """Whether the block that a path goes into is never left out: every task has `prompt`, some have `retrieval`."""
    slot = slot_at(location[:3])
    return slot is not None and not slot.optional
