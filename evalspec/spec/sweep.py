"""`sweep:` into axes: what varies, and which values each path takes.

An axis is a list of options, an option a list of values laid at paths. The points of a sweep are the product of its
axes. Axes and not points are kept, because a cell only meets the axes that touch its model or its task.

    sweep:
      tasks.*.prompt.shots.n: [0, 2, 4]            # a path and its values
      tasks.qa.retrieval:                          # a block and its conditions; lists in them are a product
        - {retriever: none}
        - {retriever: [bm25, dense], k: [1, 5]}
      zip:                                         # paths that advance together
        models.a.dtype: [float32, bfloat16]
        models.b.dtype: [float32, bfloat16]
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace

from evalspec.errors import Problem
from evalspec.spec.grammar import PathError, dotted, locate, slot_at, written_out
from evalspec.spec.tree import Location, Node, kind

MAX_CELLS = 100_000

Assignment = tuple[Location, Node]
Option = tuple[Assignment, ...]


@dataclass(frozen=True)
class Axis:
    """One thing that varies. `place` is where it is written."""

    options: tuple[Option, ...]
    place: Node

    def touches(self, *blocks: Location) -> bool:
        """Whether any option changes one of these blocks."""
        return any(location[:2] in blocks for option in self.options for location, _ in option)

    def within(self, *blocks: Location) -> list[Option]:
        """Its options as these blocks see them, each once."""
        seen: dict[tuple[tuple[Location, str], ...], Option] = {}
        for option in self.options:
            part = tuple(assignment for assignment in option if assignment[0][:2] in blocks)
            seen.setdefault(tuple((location, repr(node.plain())) for location, node in part), part)
        return list(seen.values())


class _SweepError(Exception):
    def __init__(self, problem: Problem) -> None:
        self.problem = problem


def axes(tree: Node) -> tuple[list[Axis], list[Problem]]:
    """The axes of a composed spec's `sweep:`, in the order they are written, and what is wrong with it."""
    sweep = tree.child("sweep")
    if sweep is None or not sweep.is_mapping:
        return [], []  # nothing varies, or validation says what is wrong
    found: list[Axis] = []
    problems: list[Problem] = []
    for path, node in sweep.items():
        groups = [{path: node}]
        if path == "zip":
            zips = node.value if node.is_list else [node]
            groups = [dict(group.items()) for group in zips if group.is_mapping and group.value]
            if len(groups) < len(zips) or not zips:
                problems.append(node.mark.problem("sweep.zip must map paths to lists of equal length"))
        for group in groups:
            try:
                found.append(_axis(group, node, tree))
            except _SweepError as error:
                problems.append(error.problem)
    return found, problems


def _axis(group: dict[str, Node], place: Node, tree: Node) -> Axis:
    columns: list[list[list[Option]]] = []  # for each path, for each of its values: the options it expands to
    for path, node in group.items():
        locations = _locations(path, node, tree)
        values = [node] if node.is_mapping else node.value
        if not isinstance(values, list):
            said = f"sweep of {path} must be a list of values, not {kind(node.value)}"
            raise _SweepError(node.mark.problem(said))
        if not values:
            raise _SweepError(node.place.problem(f"sweep of {path} is empty; it needs at least one value"))
        columns.append([[_laid(locations, value) for value in _expanded(value)] for value in values])
    lengths = {len(column) for column in columns}
    if len(lengths) > 1:
        counts = ", ".join(f"`{path}` has {len(column)}" for path, column in zip(group, columns, strict=True))
        raise _SweepError(place.place.problem(f"sweep.zip needs lists of equal length: {counts}"))
    options: list[Option] = []
    for row in zip(*columns, strict=True):
        if len(options) + math.prod(len(choices) for choices in row) > MAX_CELLS:
            raise _SweepError(place.place.problem(f"this sweep alone has more than {MAX_CELLS:,} points"))
        options += [tuple(itertools.chain(*combination)) for combination in itertools.product(*row)]
    return Axis(tuple(options), place)


def _locations(path: str, node: Node, tree: Node) -> list[Location]:
    try:
        locations = locate(path, tree)
    except PathError as error:
        raise _SweepError(node.place.problem(f"sweep: {error}")) from None
    for location in locations:
        if location[0] not in ("models", "tasks") or len(location) < 2:
            said = f"sweep: `{path}` does not vary a model or a task; a path starts with `models.NAME` or `tasks.NAME`"
            raise _SweepError(node.place.problem(said))
    return locations


def _expanded(node: Node) -> list[Node]:
    """A value of a sweep; a condition as the product of the lists inside it, `[[…]]` being a list that stays one."""
    if not node.is_mapping:
        return [node]
    choices: list[list[Node]] = []
    for key, child in node.items():
        items = child.value if child.is_list else [child]
        if not items:
            raise _SweepError(
                child.place.problem(f"sweep: `{key}` has an empty list; write [[]] for a list without items")
            )
        parts = [part for item in items for part in _expanded(item)]
        choices.append([replace(part, key=part.mark if child.is_list else child.key) for part in parts])
    if math.prod(map(len, choices)) > MAX_CELLS:
        raise _SweepError(node.place.problem(f"this condition alone has more than {MAX_CELLS:,} points"))
    keys = [key for key, _ in node.items()]
    return [
        Node(dict(zip(keys, combination, strict=True)), node.mark, node.mark)
        for combination in itertools.product(*choices)
    ]


def _laid(locations: list[Location], node: Node) -> Option:
    """A value laid at each place of a path, shorthands written out."""
    node = replace(node, key=node.mark)
    for location in locations:
        if len(location) == 2 and not node.is_mapping:
            said = f"sweep: {dotted(location)} varies by conditions (keys and values), not by {kind(node.value)}"
            raise _SweepError(node.mark.problem(said))
    return tuple((location, _written_out(location, node)) for location in locations)


def _written_out(location: Location, node: Node) -> Node:
    slot = slot_at(location)
    if slot is None:
        return node
    node = written_out(slot, node)
    if slot.block is None or not node.is_mapping:
        return node
    return replace(node, value={key: _written_out((*location, key), child) for key, child in node.items()})


def leaves(assignment: Assignment) -> list[tuple[str, object]]:
    """The paths that an assignment sets and their values, down to scalars and lists."""
    location, node = assignment
    if node.is_mapping and node.value:
        return [leaf for key, child in node.items() for leaf in leaves(((*location, key), child))]
    return [(".".join(map(str, location)), node.plain())]
