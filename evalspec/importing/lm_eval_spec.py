"""`evalspec import lm-eval`: a task, group or tag of lm-evaluation-harness as a spec that validates.

name or file ──► leaf tasks ──► task blocks, and refusals ──► one spec ──► validated ──► written
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from evalspec.errors import SpecError
from evalspec.importing.lm_eval_index import Index, Leaf, installed_tasks, kind_of, name_in
from evalspec.importing.lm_eval_python import Python, remove
from evalspec.importing.lm_eval_task import Carried, carry, task_name
from evalspec.importing.lm_eval_yaml import Config, HarnessError, Reader
from evalspec.paths import is_file, is_folder
from evalspec.spec import loads
from evalspec.spec.compose import project_root
from evalspec.spec.source import parse

MODEL = "zoo/transformer"
WIDTH = 110  # of remarks; texts stay on one line, as long as they are


@dataclass(frozen=True)
class Refused:
    """A task that no spec can say, and why."""

    name: str
    error: HarnessError

    def __str__(self) -> str:
        first, *more = self.error.problems
        rest = f" (and {len(more)} more)" if more else ""
        where = f"{first.file}:{first.line}: " if first.line else ""
        return f"{self.name}: {where}{first.message}{rest}"


@dataclass(frozen=True)
class Imported:
    """A spec's text, its tasks, and what was left behind."""

    name: str
    text: str
    tasks: tuple[Carried, ...]
    refused: tuple[Refused, ...]
    notes: tuple[str, ...]
    """What must be known about it; the same stands at the top of the spec."""
    rows: tuple[Path, ...] = ()
    """The files of rows that were written for it; they go where the spec cannot be written."""


def import_lm_eval(
    target: str,
    include_paths: Sequence[Path] = (),
    *,
    out: Path = Path("specs"),
    model: str = MODEL,
    run_python: bool = False,
) -> Imported:
    """The spec of a task file, or of the task, group or tag of this name.

    Args:
        target: a YAML file, or a name that `include_paths` or else the installed lm-eval has.
        include_paths: folders of task files; they win over the installed ones.
        out: the folder that the spec is for; file names in it start at the project's root above that.
        model: the weights that the spec names.
        run_python: call the task's own Python where all that it does is to make rows; they are kept in `out`/data.

    Raises HarnessError when nothing can be imported, with every reason; a group's other tasks are in `refused`.
    """
    root = project_root(out.resolve())
    name, leaves, notes = _leaves(target, include_paths)
    python = Python(out.resolve() / "data") if run_python else None
    carried: dict[str, Carried] = {}
    refused: list[Refused] = []
    for leaf in leaves:
        try:
            task = carry(leaf, root, python)
        except HarnessError as error:
            if python is not None:
                python.take_back()
            refused.append(Refused(leaf.name, error))
            continue
        called = names = task_name(leaf.name)
        while called in carried and carried[called].block != task.block:  # one name, but groups lay other keys over it
            called = f"{names}-{int(called.removeprefix(names).lstrip('-') or 1) + 1}"
        carried.setdefault(called, task)
    if not carried:
        problems = [problem for one in refused for problem in one.error.problems]
        raise HarnessError(problems or f"`{name}` has no tasks")
    rows = python.rows if python is not None else ()
    with or_without(rows):
        text = spec_text(task_name(name), carried, model, notes)
        try:
            loads(text, root=root, name=f"the spec of {name}")
        except SpecError as error:
            raise HarnessError(f"{error}\nThis is what became of `{name}`; it does not validate") from None
    remarks = _remarks(task_name(name), carried, notes)
    return Imported(task_name(name), text, tuple(carried.values()), tuple(refused), tuple(remarks[1:]), rows)


@contextmanager
def or_without(rows: Sequence[Path]) -> Iterator[None]:
    """Where a spec comes to nothing, its files of rows go too."""
    try:
        yield
    except HarnessError:
        remove(rows)
        raise


def write(imported: Imported, out: Path) -> Path:
    """Write the spec into a folder. Raises HarnessError where another file has its name already."""
    with or_without(imported.rows):
        return _written(imported, out)


def _written(imported: Imported, out: Path) -> Path:
    path = out / f"{imported.name}.yaml"
    try:
        out.mkdir(parents=True, exist_ok=True)
        if path.exists() and path.read_bytes() != imported.text.encode():
            raise HarnessError(f"{path} is there already and says something else; move it, or name another --out")
        path.write_text(imported.text, encoding="utf-8")
    except OSError as error:
        raise HarnessError(f"{path} cannot be written: {error.strerror or error}") from None
    return path


def _leaves(target: str, include_paths: Sequence[Path]) -> tuple[str, list[Leaf], list[str]]:
    """What the user calls: its name, the tasks it stands for, what is to be told of it."""
    for folder in include_paths:
        if not is_folder(folder):
            raise HarnessError(f"--include-path {folder}: there is no such folder")
    path, reader = Path(target), Reader()
    folders = [*([found] if (found := installed_tasks()) else []), *include_paths]
    if path.suffix in (".yaml", ".yml") or is_file(path):
        config = reader.read(path) if is_file(path) else _missing(path)
        if kind_of(config.values) == "task":
            leaf = Leaf(name_in(config), config)
            return leaf.name, [leaf], []
        index = Index([*folders, path.parent], reader)
        return str(config.values.get("group", path.stem)), index.leaves_of(config), _of_group(config)
    if not folders:
        raise HarnessError(
            f"there is no file {target}, and no lm-eval is installed here whose tasks could have this name; "
            "name a YAML file, or a folder of tasks with --include-path"
        )
    index = Index(folders, reader)
    leaves = index.leaves(target)
    entry = index.entries[target]
    return target, leaves, _of_group(entry.config) if entry.kind == "group" and entry.config else []


def _of_group(config: Config) -> list[str]:
    averages = config.values.get("aggregate_metric_list")
    return ["The group's average over its tasks is not computed: each task has its own value"] if averages else []


def _missing(path: Path) -> Config:
    raise HarnessError(f"there is no file {path}")


def spec_text(name: str, tasks: Mapping[str, Carried], model: str, of_group: Sequence[str] = ()) -> str:
    """The text of a spec: what must be known at its top, one model, the tasks."""
    values = {
        "name": name,
        "models": {task_name(model.rstrip("/").rpartition("/")[2]): {"weights": model}},
        "tasks": {key: task.block for key, task in tasks.items()},
    }
    body: str = yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1_000_000)
    written = parse(body, name)
    if written.tree is None or written.problems or written.tree.plain() != values:
        raise HarnessError(f"`{name}` cannot be written as YAML: {'; '.join(map(str, written.problems)) or body[:200]}")
    lines = []
    for remark in _remarks(name, tasks, of_group):
        lines += textwrap.wrap(remark, WIDTH, subsequent_indent="  " if remark.startswith("-") else "")
    return "\n".join(f"# {line}" for line in lines) + "\n\n" + body


def _remarks(name: str, tasks: Mapping[str, Carried], of_group: Sequence[str]) -> list[str]:
    """What a reader of the spec must know: where it comes from first."""
    sources = list(dict.fromkeys(task.source.name for task in tasks.values()))
    shown = ", ".join(sources[:3]) + (f" and {len(sources) - 3} more" if len(sources) > 3 else "")
    said = [f"`{name}` of lm-evaluation-harness ({shown}), by `evalspec import lm-eval`. Name your models below."]
    said += [f"- {note}." for note in of_group]
    notes: dict[str, list[str]] = {}
    for key, task in tasks.items():
        for note in task.notes:
            notes.setdefault(note, []).append(key)
    for note, keys in notes.items():
        which = "" if len(keys) == len(tasks) else f" ({', '.join(keys[:3])}{' …' if len(keys) > 3 else ''})"
        told = " ".join(note.split())
        said.append(f"- {told[:1].upper()}{told[1:]}{which}.")
    left_out = list(dict.fromkeys(key for task in tasks.values() for key in task.left_out))
    if left_out:
        said.append(f"- Left out, since they change no score: {', '.join(left_out)}.")
    return said


class _Dumper(yaml.SafeDumper):
    """PyYAML's, with every text in quotes that some YAML could read as anything else, and lines as lines."""

    def ignore_aliases(self, data: Any) -> bool:
        """A spec reads best with every value where it stands."""
        return True


_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_./-]*")
_WORDS = frozenset("null true false yes no on off".split())


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    if _PLAIN.fullmatch(text) and text.lower() not in _WORDS:
        style = None
    elif "\n" in text.rstrip("\n") and not re.search(r"[ \t]\n|[^\S\n\t ]|^\s|\t", text) and text.strip():
        style = "|"
    else:
        style = '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)
