"""The names in a folder of lm-evaluation-harness: tasks, groups and tags, and the leaf tasks that each stands for.

The rules are those of its `TaskIndex` and `TaskFactory` (0.4.13): files in the order of their paths, the first of equal
names counts, a file with `group:` is a group, whatever else a group says is laid over its tasks.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from evalspec.errors import Problem, suggest
from evalspec.importing.lm_eval_yaml import Config, HarnessError, Place, Reader

Kind = Literal["task", "python", "group", "tag"]

GROUP_KEYS = ("group", "group_alias", "task", "aggregate_metric_list", "metadata")
"""What a group says of itself; all its other keys are its tasks'."""

IGNORED_FOLDERS = ("__pycache__", ".ipynb_checkpoints")


@dataclass(frozen=True)
class Entry:
    """One name. `tasks` are those that carry a tag."""

    name: str
    kind: Kind
    config: Config | None = None
    tasks: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Leaf:
    """One task to carry over, with what its groups lay over it."""

    name: str
    config: Config


def installed_tasks() -> Path | None:
    """The tasks folder of an installed lm-eval, found without importing it."""
    try:
        found = importlib.util.find_spec("lm_eval")
    except (ImportError, ValueError):
        return None
    folders = [Path(place) / "tasks" for place in (found.submodule_search_locations or ()) if found] if found else []
    return next((folder for folder in folders if folder.is_dir()), None)


def kind_of(values: Mapping[str, Any]) -> Kind | None:
    """What a file is, None where it is none of them (a template that others include)."""
    if "class" in values:
        return "python"
    if "group" in values:
        return "group"
    return "task" if "task" in values else None


def name_in(config: Config) -> str:
    """What a task or group calls itself. Raises HarnessError where that is no text."""
    key = "group" if kind_of(config.values) == "group" else "task"
    name = config.values[key]
    if not isinstance(name, str) or not name.strip():
        raise HarnessError([config.place(key).problem(f"`{key}` is the name, a text in quotes, not {name!r}")])
    return name


class Index:
    """Every name below some folders. Later folders win over earlier ones."""

    def __init__(self, folders: Sequence[Path], reader: Reader | None = None) -> None:
        self.reader = reader or Reader()
        self.entries: dict[str, Entry] = {}
        self.broken: list[HarnessError] = []
        for folder in folders:
            self.entries |= self._of(folder)

    def _of(self, folder: Path) -> dict[str, Entry]:
        found: dict[str, Entry] = {}
        for path in sorted(folder.rglob("*.yaml"), key=Path.as_posix):
            if any(part in IGNORED_FOLDERS for part in path.parts):
                continue
            try:
                config = self.reader.read(path)
            except HarnessError as error:
                self.broken.append(error)
                continue
            kind = kind_of(config.values)
            name = config.values.get("group" if kind == "group" else "task")
            if kind is None or not isinstance(name, str) or name in found:
                continue
            found[name] = Entry(name, kind, config)
            tags = config.values.get("tag") if kind != "group" else None
            for tag in tags if isinstance(tags, list) else [tags] if tags else []:
                found.setdefault(str(tag), Entry(str(tag), "tag")).tasks.append(name)
        return found

    def leaves(self, name: str) -> list[Leaf]:
        """The tasks that a name stands for. Raises HarnessError for a name that is not there."""
        entry = self.entries.get(name)
        if entry is None:
            near = suggest(name, self.entries)
            raise HarnessError(f"there is no task, group or tag `{name}`.{near}{self._unread()}")
        return list(self._expand(entry, {}, {}, ()))

    def leaves_of(self, config: Config) -> list[Leaf]:
        """The tasks that a file stands for: its own, or those of its group."""
        kind = kind_of(config.values)
        if kind is None:
            says = "has neither `task:` nor `group:`; other files include it, and one of them is the task"
            raise HarnessError([Problem(says, str(config.path))])
        return list(self._expand(Entry(name_in(config), kind, config), {}, {}, ()))

    def _unread(self) -> str:
        """What to say where a name is missing that a broken file may hold."""
        if not self.broken:
            return ""
        return f" {len(self.broken)} files there cannot be read; the first: {self.broken[0].problems[0].brief()}"

    def _expand(
        self, entry: Entry, over: Mapping[str, Any], places: Mapping[str, Place], inside: tuple[str, ...]
    ) -> Iterator[Leaf]:
        if entry.kind == "tag":
            for task in sorted(set(entry.tasks)):
                yield from self._expand(self.entries[task], {**over, "task": task}, places, inside)
            return
        assert entry.config is not None
        if entry.kind != "group":
            config = entry.config.over(over, places)
            yield Leaf(str(config.values["task"]), config)
            return
        group = entry.config
        if entry.name in inside:
            chain = " → ".join((*inside, entry.name))
            raise HarnessError([group.place("task").problem(f"groups hold each other in a circle: {chain}")])
        own = {key: value for key, value in group.values.items() if key not in GROUP_KEYS}
        yield from self._members(
            group.values.get("task"),
            group,
            entry.name,
            {**own, **over},
            {**{key: group.place(key) for key in own}, **places},
            (*inside, entry.name),
        )

    def _members(
        self,
        members: Any,
        group: Config,
        name: str,
        over: Mapping[str, Any],
        places: Mapping[str, Place],
        inside: tuple[str, ...],
    ) -> Iterator[Leaf]:
        place = group.place("task")
        if members is not None and not isinstance(members, str | list):
            raise HarnessError([place.problem(f"`task` of a group is a name or a list of names, not {members!r}")])
        for member in [members] if isinstance(members, str) else members or ():
            said = member if isinstance(member, dict) else {"task": member}
            key = "group" if "group" in said else "task"
            own = {item: value for item, value in said.items() if item != key}
            laid, at = {**over, **own}, {**places, **dict.fromkeys(own, place)}
            known = self.entries.get(said[key]) if isinstance(said.get(key), str) else None
            if known is not None:
                extra = {} if known.kind in ("group", "tag") else {"task": known.name}
                yield from self._expand(known, {**laid, **extra}, at, inside)
            elif key == "group":
                inner = Config(group.path, said, dict.fromkeys(said, place))
                yield from self._expand(Entry(f"{name}::{said['group']}", "group", inner), over, places, inside)
            elif isinstance(member, dict) and isinstance(said.get("task"), str):
                yield Leaf(f"{name}::{said['task']}", Config(group.path, laid, at))
            else:
                missing = str(said.get("task"))
                near = suggest(missing, self.entries)
                lacks = f"group `{name}` has a task `{missing}` that is not there.{near}{self._unread()}"
                raise HarnessError([place.problem(lacks)])
