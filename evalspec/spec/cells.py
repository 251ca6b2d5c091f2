"""From a composed spec to its cells: one model, one task, one point of the sweep, each once.

Settings that a cell does not use (k without a retriever, a seed of greedy decoding) are put back to their defaults and
leave its params, so that points which ask for the same thing are one cell: counted twice, they would inflate a family
of tests.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from pydantic import ValidationError

from evalspec.errors import Problem
from evalspec.spec.base import Block
from evalspec.spec.blocks import TaskBlock
from evalspec.spec.checks import check_model, check_task
from evalspec.spec.compose import Composed, put
from evalspec.spec.measure import MeasureBlock
from evalspec.spec.model import HOW_ONLY, ModelBlock
from evalspec.spec.problems import explain
from evalspec.spec.retrieval import RetrievalBlock
from evalspec.spec.sweep import MAX_CELLS, Assignment, Axis, leaves
from evalspec.spec.tree import Location, Node

B = TypeVar("B", bound=Block)


@dataclass(frozen=True)
class Cell:
    """One model on one task at one point of the sweep. `params` maps the paths of the sweep that it uses to values."""

    cell_id: str
    model_name: str
    model: ModelBlock
    task_name: str
    task: TaskBlock
    params: Mapping[str, Any]


@dataclass(frozen=True)
class MeasuredModel:
    """One model at one point of the sweep that `measure` runs alone; in the store it is a cell without a task."""

    cell_id: str
    model_name: str
    model: ModelBlock
    params: Mapping[str, Any]


def unused_settings(task: TaskBlock) -> list[Location]:
    """Settings of a task that change nothing about it, given its other settings."""
    unused: list[Location] = []
    retrieval, shots, decode = task.retrieval, task.prompt.shots, task.decode
    if retrieval is not None:
        idle = _unused_by(retrieval.retriever, retrieval)
        compared = shots is not None and shots.n > 0 and shots.sampler == "nearest" and shots.query is None
        # By its query a row also finds its nearest shots, whatever retrieves: open and closed book show the same.
        unused += [("retrieval", name) for name in idle if not (compared and name == "query")]
    if shots is not None:
        names: list[str] = []
        if shots.n == 0:
            names = ["sampler", "seed", "draws", "per_sample", "label", "labels", "query", "template", "target"]
            names += ["delimiter"]
        else:
            if shots.sampler in ("first", "nearest"):
                # Which shots stand there is settled; seed and draw still choose the answers of a control.
                names += ["per_sample"] + (["seed", "draws"] if shots.labels == "right" else [])
            if shots.sampler != "balanced":
                names.append("label")
            if shots.sampler != "nearest":
                names.append("query")
        if shots.data is not None:
            names.append("pool")
        unused += [("prompt", "shots", name) for name in names]
    if decode is not None and decode.temperature == 0:
        unused += [("decode", name) for name in ("top_p", "top_k", "seed")]
    return unused


def canonical(task: TaskBlock) -> TaskBlock:
    """The task with every unused setting at its default. Equal canonical tasks give equal results."""
    retrieval, prompt, decode = task.retrieval, task.prompt, task.decode
    dropped = unused_settings(task)

    def reset(block: B, path: Location) -> B:
        fields = type(block).model_fields
        names = [str(location[-1]) for location in dropped if location[:-1] == path]
        return block.model_copy(update={name: fields[name].get_default(call_default_factory=True) for name in names})

    if prompt.shots is not None:
        prompt = prompt.model_copy(update={"shots": reset(prompt.shots, ("prompt", "shots"))})
    return task.model_copy(
        update={
            "extends": None,
            "prompt": prompt,
            "retrieval": retrieval and reset(retrieval, ("retrieval",)),
            "decode": decode and reset(decode, ("decode",)),
        }
    )


_SHARED = ("retriever", "gold")  # gold is what retrieval is measured by, whatever was retrieved
_SHOWN = (*_SHARED, "corpus", "text", "k", "chunk", "order", "withhold_gold")
_RANKING = (*_SHOWN, "query", "rerank")
_USED: dict[str, tuple[str, ...]] = {
    "none": _SHARED,
    "bm25": (*_RANKING, "stemmer"),
    "dense": (*_RANKING, "encoder"),
    "fusion": (*_RANKING, "of", "rank_constant"),
    "oracle": (*_SHOWN, "distractors", "n_distractors", "gold_at"),
}


def _unused_by(retriever: str, block: RetrievalBlock) -> list[str]:
    """Fields of a retrieval block that a retriever does not read. A plugin may read them all."""
    if retriever not in _USED:
        return []
    used = set(_USED[retriever])
    if retriever == "fusion":
        for name in block.of:
            used |= set(_USED.get(name, type(block).model_fields))
    if retriever == "oracle":
        near = block.distractors == "near"  # BM25's best wrong passages
        used |= {"query", "stemmer"} if near else {"seed"}
        if block.withhold_gold:
            used -= {"gold_at"}
        elif block.gold_at == "random":
            used |= {"seed"}
        if block.n_distractors is not None:
            used -= {"k"}
        elif block.chunk is not None:
            used |= {"query", "stemmer"}  # of more gold chunks than k, BM25's best are shown
    if block.order == "random" and "order" in used:
        used |= {"seed"}
    return [name for name in type(block).model_fields if name not in used]


class CellBuilder:
    """Makes the cells of a composed spec, each distinct variant of a model or task validated once."""

    def __init__(self, composed: Composed, root: Path) -> None:
        self.composed, self.root = composed, root
        self.problems: list[Problem] = []
        self._models: dict[tuple[str, ...], _Variant[ModelBlock] | None] = {}
        self._tasks: dict[tuple[str, ...], _Variant[TaskBlock] | None] = {}

    def build(self, axes: Sequence[Axis]) -> tuple[Cell, ...]:
        """Cells in the order models, tasks, points. What is wrong with a point goes to `problems`."""
        cells: dict[str, Cell] = {}
        tree = self.composed.tree
        pairs = [(model, task) for model, _ in _blocks(tree, "models") for task, _ in _blocks(tree, "tasks")]
        points = {
            pair: [axis.within(*_places(*pair)) for axis in axes if axis.touches(*_places(*pair))] for pair in pairs
        }
        count = sum(math.prod(map(len, options)) for options in points.values())
        if count > MAX_CELLS:
            place = max(axes, key=lambda axis: len(axis.options)).place
            said = (
                f"this spec has {count:,} cells; more than {MAX_CELLS:,} are refused. Sweep less, or use several specs"
            )
            self.problems.append(place.place.problem(said))
            return ()
        for (model_name, task_name), options in points.items():
            for point in itertools.product(*options):
                cell = self._cell(model_name, task_name, list(itertools.chain(*point)))
                if cell is not None:
                    cells.setdefault(cell.cell_id, cell)
        return tuple(cells.values())

    def measured(self, axes: Sequence[Axis], measure: MeasureBlock) -> tuple[MeasuredModel, ...]:
        """Each model that is measured, once for each of its variants in the sweep."""
        asked = json.dumps(measure.model_dump(mode="json", exclude={"models"}), sort_keys=True)
        found: dict[str, MeasuredModel] = {}
        for name, _ in _blocks(self.composed.tree, "models"):
            if measure.models is not None and name not in measure.models:
                continue
            place: Location = ("models", name)
            options = [axis.within(place) for axis in axes if axis.touches(place)]
            for point in itertools.product(*options):
                assignments = list(itertools.chain(*point))
                model = self._variant(self._models, ModelBlock, ("models", name), assignments)
                if model is None:
                    continue
                content = f'{{"model": {model.content}, "measure": {asked}}}'
                cell_id = hashlib.sha256(content.encode()).hexdigest()[:12]
                params = dict(leaf for assignment in assignments for leaf in leaves(assignment))
                found.setdefault(cell_id, MeasuredModel(cell_id, name, model.block, params))
        return tuple(found.values())

    def _cell(self, model_name: str, task_name: str, point: list[Assignment]) -> Cell | None:
        model = self._variant(self._models, ModelBlock, ("models", model_name), point)
        task = self._variant(self._tasks, TaskBlock, ("tasks", task_name), point)
        if model is None or task is None:
            return None
        params = dict(leaf for assignment in point for leaf in leaves(assignment))
        for path in list(params):
            if any(path == unused or path.startswith(unused + ".") for unused in task.unused):
                del params[path]
        content = f'{{"model": {model.content}, "task": {task.content}}}'
        cell_id = hashlib.sha256(content.encode()).hexdigest()[:12]
        return Cell(cell_id, model_name, model.block, task_name, task.block, params)

    def _variant(
        self,
        known: dict[tuple[str, ...], _Variant[B] | None],
        block_type: type[B],
        where: tuple[str, str],
        point: list[Assignment],
    ) -> _Variant[B] | None:
        """One block at one point, None if it is not valid there."""
        own = [(location, node) for location, node in point if location[:2] == where]
        key = (*where, *(f"{location}={node.plain()!r}" for location, node in own))
        if key not in known:
            known[key] = self._new_variant(block_type, where, own)
        return known[key]

    def _new_variant(self, block_type: type[B], where: tuple[str, str], own: list[Assignment]) -> _Variant[B] | None:
        tree = self.composed.tree
        for location, value in own:
            tree = put(tree, location, value)
        node = tree.at(*where)
        assert node is not None
        if block_type is ModelBlock:
            found = list(check_model(where[1], node, self.root))
        else:
            found = list(check_task(where[1], node, self.root, self.composed.texts))
        self.problems += found
        try:
            block = block_type.model_validate(node.plain())
        except ValidationError as error:
            self.problems += explain(error, tree, where, self.composed.incomplete)
            return None
        unused: tuple[str, ...] = ()
        if isinstance(block, TaskBlock):
            unused = tuple(".".join(map(str, (*where, *path))) for path in unused_settings(block))
            block = cast(B, canonical(block))
        content = {"name": where[1], **block.model_dump(mode="json", exclude={"extends": True, **HOW_ONLY})}
        return _Variant(block, unused, json.dumps(content, sort_keys=True))


@dataclass(frozen=True)
class _Variant(Generic[B]):
    """A block at a point: canonical, the paths of its unused settings, its content as JSON."""

    block: B
    unused: tuple[str, ...]
    content: str


def _places(model: str, task: str) -> tuple[Location, Location]:
    return ("models", model), ("tasks", task)


def _blocks(tree: Node, section: str) -> list[tuple[str, Node]]:
    node = tree.child(section)
    return node.items() if node is not None else []
