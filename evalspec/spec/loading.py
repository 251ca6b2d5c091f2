"""`load`: a file, a text or Python values in; a validated spec and its cells out, or every problem at once."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from evalspec.errors import Problem, SpecError
from evalspec.spec.blocks import Spec, TaskBlock
from evalspec.spec.cells import Cell, CellBuilder, MeasuredModel
from evalspec.spec.compose import Composed, compose, project_root, shown
from evalspec.spec.grammar import dotted
from evalspec.spec.hypotheses import ARCHITECTURE, HypothesisBlock, Point, comparisons
from evalspec.spec.meant import meant
from evalspec.spec.params import scalar, short_names
from evalspec.spec.problems import explain, in_order, nothing_asked
from evalspec.spec.published import PublishedBlock, cells_of
from evalspec.spec.source import Source, parse, read
from evalspec.spec.sweep import axes
from evalspec.spec.tree import from_python, kind


@dataclass(frozen=True)
class LoadedSpec:
    """A spec that was read, composed and checked.

    `cells` are its models × tasks × sweep, `measured` the models that its `measure` block has run alone.
    `root` is where its relative paths start, `path` its file (None when it came from Python), `texts` what its files
    held, by name: itself first, then what it includes. `canonical` is what it asks for and nothing else, for hashing:
    two ways of writing the same cells have the same one.
    """

    spec: Spec
    cells: tuple[Cell, ...]
    measured: tuple[MeasuredModel, ...]
    root: Path
    path: Path | None
    texts: Mapping[str, str]
    sets: tuple[str, ...]
    canonical: Mapping[str, Any]

    @property
    def text(self) -> str:
        """All that was written, for a reader of the report: the file, what it includes, what `--set` changed."""
        parts = [text if not index else f"# {name}\n{text}" for index, (name, text) in enumerate(self.texts.items())]
        return "\n".join([*parts, *(f"# --set {override}" for override in self.sets)])


def load(
    source: str | Path | Mapping[str, Any], sets: Sequence[str] = (), *, root: str | Path | None = None
) -> LoadedSpec:
    """Read a spec from a file or from Python values.

    Args:
        source: path of a YAML file, or the mapping that one would hold.
        sets: `path=value` overrides, applied after includes; values are YAML.
        root: where relative paths start; by default the project's root, found from the file (or the current folder).

    Raises: SpecError with every problem found.
    """
    if isinstance(source, Mapping):
        tree = from_python(source)
        wrong = [
            Problem(f"{dotted(path)} cannot be {kind(node.value)}: a spec holds texts, numbers, lists and mappings")
            for path, node in tree.walk()
            if not isinstance(node.value, (dict, list, str, bool, int, float, type(None)))
        ]
        text = "" if wrong else json.dumps(tree.plain(), indent=1, ensure_ascii=False)  # JSON is YAML
        return _load(Source("", text, None if wrong else tree, tuple(wrong)), Path.cwd(), None, sets, root)
    path = Path(source)
    return _load(read(path, shown(path)), path.resolve().parent, path, sets, root)


def loads(text: str, sets: Sequence[str] = (), *, root: str | Path | None = None, name: str = "spec") -> LoadedSpec:
    """Read a spec from YAML text; `name` is what errors call it. Otherwise like `load`."""
    return _load(parse(text, name), Path.cwd(), None, sets, root)


def _load(source: Source, folder: Path, path: Path | None, sets: Sequence[str], root: str | Path | None) -> LoadedSpec:
    start = Path(root).resolve() if root is not None else project_root(folder)
    composed = compose(source, folder, start, sets)
    problems: list[Problem] = []
    if source.tree is None:
        raise SpecError(composed.problems)
    spec: Spec | None = None
    try:
        spec = Spec.model_validate(composed.tree.plain())
    except ValidationError as error:
        problems += explain(error, composed.tree, (), composed.incomplete)
    problems += nothing_asked(composed.tree, composed.incomplete)
    found, wrong = axes(composed.tree)
    builder = CellBuilder(composed, start)
    cells = builder.build(found)
    measured = builder.measured(found, spec.measure) if spec is not None and spec.measure else ()
    problems += [*wrong, *builder.problems]
    if spec is not None and not problems:
        problems += _unjudged(spec, cells, composed)
    if spec is None or problems or composed.problems:
        raise SpecError(in_order(problems, composed.texts, read=composed.problems))
    canonical: dict[str, Any] = {
        "name": spec.name,
        "cells": [
            {
                "cell_id": cell.cell_id,
                "model": {"name": cell.model_name, **cell.model.model_dump(mode="json", exclude={"extends"})},
                "task": {"name": cell.task_name, **cell.task.model_dump(mode="json", exclude={"extends"})},
            }
            for cell in cells
        ],
    }
    if spec.measure is not None:
        canonical["measured"] = [one.cell_id for one in measured]
    if spec.hypotheses:
        canonical["hypotheses"] = {name: block.model_dump(mode="json") for name, block in spec.hypotheses.items()}
    if spec.published:
        canonical["published"] = {name: block.model_dump(mode="json") for name, block in spec.published.items()}
    return LoadedSpec(spec, cells, measured, start, path, dict(composed.texts), tuple(sets), canonical)


def _unjudged(spec: Spec, cells: Sequence[Cell], composed: Composed) -> Iterator[Problem]:
    """Hypotheses that no cells can judge, and published figures of none."""
    at = points(cells)
    judging: dict[tuple[str, str], Callable[[], object]] = {}
    tasks = {cell.cell_id: cell.task for cell in cells}
    judging |= {("hypotheses", name): partial(_judge, block, at, tasks) for name, block in spec.hypotheses.items()}
    judging |= {("published", name): partial(_place, block, at, tasks) for name, block in spec.published.items()}
    for path, judge in judging.items():
        try:
            judge()
        except ValueError as error:
            node = composed.tree.at(*path)
            assert node is not None
            yield node.mark.problem(f"{dotted(path)}: {error}")


def _judge(block: HypothesisBlock, at: Sequence[Point], tasks: Mapping[str, TaskBlock]) -> None:
    for comparison in comparisons(block, at):
        metric = block.metric
        for side, point in zip((block.better, block.than), comparison.pairs[0], strict=True):
            metric = meant(tasks[point.cell_id], metric, side.filter, side.stage).metric


def _place(block: PublishedBlock, at: Sequence[Point], tasks: Mapping[str, TaskBlock]) -> None:
    for point in cells_of(block, at).values():
        meant(tasks[point.cell_id], block.metric, block.filter)


def points(cells: Sequence[Cell]) -> list[Point]:
    """Where each cell stands, in the words of a hypothesis."""
    names = short_names(path for cell in cells for path in cell.params)
    return [
        Point(
            cell.cell_id,
            {"model": cell.model_name, "task": cell.task_name}
            | ({ARCHITECTURE: cell.model.seed_of} if cell.model.seed_of else {})
            | {names[path]: scalar(value) for path, value in cell.params.items()},
        )
        for cell in cells
    ]
