"""Hypotheses: what the author of a spec expects, said before anything runs, and judged from the run's own rows.

A hypothesis holds one group of answers against another: a model against a model, a task against a task, a condition
against a condition. Whatever neither side names (other models, tasks, points of the sweep) is paired with its like on
the other side. Architectures are held against each other with all their training seeds, each against each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from evalspec.errors import suggest
from evalspec.spec.base import Block
from evalspec.spec.params import Value, scalar

ARCHITECTURE = "architecture"
"""The axis of `seed_of`. It follows from the model, so that nothing is paired by it."""


class SideBlock(Block):
    """One side of a hypothesis: the answers of a model, an architecture, a task, or some points of the sweep."""

    model: str | None = None
    """Name of the model."""
    architecture: str | None = None
    """In place of a model: all models with this `seed_of`, as training seeds of one architecture. The other side names
    another one."""
    task: str | list[str] | None = None
    """Name of the task, or a list of names."""
    where: dict[str, Any] = Field(default_factory=dict)
    """Points of the sweep: from a parameter's short name, as reports say it (`k`, `shots`, `n`), to its value or a list
    of values."""
    stage: str = "main"
    """The stage of the task whose answers these are; `main` is the task itself."""
    filter: str | None = None
    """The chain of `filters` whose scores these are; by default the first under which the metric is
    taken."""


class HypothesisBlock(Block):
    """A claim that the run supports, refutes or leaves undecided, by a paired comparison of the same samples."""

    claim: str
    """The claim in words; reports say it with its verdict."""
    better: SideBlock
    """The side that is claimed to be better."""
    than: SideBlock
    """The side that it is held against."""
    metric: str | None = None
    """What is compared, `recall@5` for example; by default the first metric of the task. Options and a cut may be left
    out where only one metric of the task is called so."""
    each: list[str] = Field(default_factory=list)
    """`model`, `task` or swept parameters: a verdict for each of their values. The rest is taken together."""
    length: Literal["any", "within", "beyond"] = "any"
    """Only prompts within, or beyond, the length that the models were trained at (the shorter of the two)."""


@dataclass(frozen=True)
class Point:
    """Where a cell stands: `model`, `task`, and its swept parameters by short name."""

    cell_id: str
    axes: Mapping[str, Value]


@dataclass(frozen=True)
class Comparison:
    """One comparison of a hypothesis: its `each` values, and pairs of cells that differ only in what its sides name."""

    each: Mapping[str, Value]
    pairs: tuple[tuple[Point, Point], ...]
    free: tuple[str, ...] = ()
    """The axes by which cells were paired: what is neither named by the sides nor follows from what is."""


def comparisons(block: HypothesisBlock, points: Sequence[Point]) -> list[Comparison]:
    """The comparisons that a hypothesis asks for among a spec's cells, in the order of the cells.

    Raises ValueError, written for the author of the spec, where a side matches nothing or sides cannot be paired.
    """
    seeds = _over_seeds(block)
    sides = [_matching(side, points, name) for side, name in ((block.better, "better"), (block.than, "than"))]
    # What both sides name alike only selects; it is still what their cells are paired by.
    named = {axis for axis in {*_named(block.better), *_named(block.than)} if not _alike(block, axis)}
    named |= {ARCHITECTURE, "model"} if seeds else {ARCHITECTURE}
    differs = (block.better.stage, block.better.filter) != (block.than.stage, block.than.filter)
    known = {axis for point in points for axis in point.axes}
    for axis in block.each:
        if axis not in known:
            raise ValueError(f"`each` names no axis of this spec: `{axis}`.{_hint(axis, known)}")
    free = [axis for axis in dict.fromkeys(a for p in points for a in p.axes) if axis not in named]
    others: dict[tuple[Value, ...], list[Point]] = {}
    for point in sides[1]:
        others.setdefault(tuple(point.axes.get(axis) for axis in free), []).append(point)
    groups: dict[tuple[Value, ...], list[tuple[Point, Point]]] = {}
    for point in sides[0]:
        for other in others.get(tuple(point.axes.get(axis) for axis in free), ()):
            if other.cell_id != point.cell_id or differs:
                groups.setdefault(tuple(point.axes.get(axis) for axis in block.each), []).append((point, other))
    if not groups:
        raise ValueError("no cell of `better` has a counterpart in `than` that differs only in what the two name")
    for pairs in groups.values():
        for side in (0, 1) if not seeds else ():
            mine = [pair[side].cell_id for pair in pairs]
            if len(set(mine)) < len(mine) and len(set(mine)) < len({pair[1 - side].cell_id for pair in pairs}):
                which, other_side = ("better", "than") if side == 0 else ("than", "better")
                raise ValueError(
                    f"`{other_side}` has several cells for one of `{which}`; say in `where` which of them is meant"
                )
        for name, side in (("better", 0), ("than", 1)) if seeds else ():
            cells = {
                pair[side].cell_id: tuple(pair[side].axes.get(axis) for axis in ("model", *free)) for pair in pairs
            }
            if len(set(cells.values())) < len(cells):
                raise ValueError(f"`{name}` has several cells of one seed; say in `where` which of them is meant")
    return [
        Comparison(dict(zip(block.each, values, strict=True)), tuple(pairs), tuple(free))
        for values, pairs in groups.items()
    ]


def _over_seeds(block: HypothesisBlock) -> bool:
    """Whether architectures are compared. Raises ValueError where only one side names one, or both the same."""
    names = (block.better.architecture, block.than.architecture)
    if names == (None, None):
        return False
    if None in names:
        raise ValueError("an `architecture` is held against another one; name one in `better` and in `than`")
    if names[0] == names[1]:
        raise ValueError(f"`better` and `than` are both `{names[0]}`; name two architectures, or models of one")
    if block.better.model is not None or block.than.model is not None or "model" in block.each:
        raise ValueError("an `architecture` stands for all its seeds; leave out `model`")
    return True


def _alike(block: HypothesisBlock, axis: str) -> bool:
    sides = [{**_names(side), **side.where} for side in (block.better, block.than)]
    return axis in sides[0] and axis in sides[1] and sides[0][axis] is not None and sides[0][axis] == sides[1][axis]


def _names(side: SideBlock) -> dict[str, Any]:
    """The axes that have a key of their own."""
    return {"model": side.model, ARCHITECTURE: side.architecture, "task": side.task}


def _named(side: SideBlock) -> Iterator[str]:
    yield from (axis for axis, asked in _names(side).items() if asked is not None)
    yield from side.where


def _matching(side: SideBlock, points: Sequence[Point], name: str) -> list[Point]:
    wanted: dict[str, Any] = dict(side.where)
    wanted |= {axis: asked for axis, asked in _names(side).items() if asked is not None}
    if not wanted:
        raise ValueError(
            f"`{name}` names nothing; say a `model`, an `architecture`, a `task` or a point of the sweep (`where`)"
        )
    found = list(points)
    for axis, asked in wanted.items():
        known = {axis for point in points for axis in point.axes}
        if axis not in known:
            if axis == ARCHITECTURE:
                raise ValueError(f"`{name}`: no model says of which architecture it is a seed (`seed_of: {asked}`)")
            raise ValueError(f"`{name}` names no axis of this spec: `{axis}`.{_hint(axis, known)}")
        values = [scalar(value) for value in (asked if isinstance(asked, list) else [asked])]
        there = {point.axes[axis] for point in points if axis in point.axes}
        for value in values:
            if value not in there:
                shown = ", ".join(f"`{v}`" for v in sorted(there, key=str)[:8])
                raise ValueError(f"`{name}`: no cell has {axis} = `{value}`; there are {shown}")
        found = [point for point in found if axis in point.axes and point.axes[axis] in values]
    if not found:
        raise ValueError(
            f"`{name}` matches no cell: no cell has all of {', '.join(f'{k} = {v}' for k, v in wanted.items())}"
        )
    return found


def _hint(axis: str, known: set[str]) -> str:
    return suggest(axis, known) or f" It has {', '.join(f'`{name}`' for name in sorted(known))}."
