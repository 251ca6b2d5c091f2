"""From the files a spec is written in to one tree: `include:`, then `--set`, then `extends:`.

Included files come first and the includer's keys win; mappings are merged key by key, lists and scalars replaced, and
`key: null` takes an inherited key away. `extends:` merges the same way within `models` and within `tasks`; a block
whose name starts with `_` is only there to be extended.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from evalspec.errors import Problem, suggest
from evalspec.paths import is_file, path_from
from evalspec.spec.grammar import SPEC, PathError, dotted, listed, locate, slot_at, written_out
from evalspec.spec.source import Source, parse_value, read
from evalspec.spec.tree import Location, Mark, Node, kind, merge

SECTIONS = ("models", "tasks")


@dataclass
class Composed:
    """A composed tree, the texts it came from (by the name errors show), and what went wrong on the way.

    Below a location in `incomplete` something could not be brought in, so that a missing key there means nothing.
    """

    tree: Node
    texts: dict[str, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    incomplete: set[Location] = field(default_factory=set)


def project_root(folder: Path) -> Path:
    """Where relative paths start: the nearest folder, from `folder` upwards, that holds prompts/ or a pyproject.toml;
    else `folder` itself."""
    folder = folder.resolve()
    for candidate in (folder, *folder.parents):
        if (candidate / "prompts").is_dir() or (candidate / "pyproject.toml").is_file():
            return candidate
    return folder


def shown(path: Path) -> str:
    """How errors call a file: relative to the current folder where it lies below it."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except (OSError, RuntimeError, ValueError):  # elsewhere, or a name that no file can have
        return str(path)


def compose(source: Source, folder: Path, root: Path, sets: Sequence[str] = ()) -> Composed:
    """Bring together a spec that was read from `folder`. Raises nothing; see `Composed.problems`."""
    empty = Node({}, Mark(source.file))
    composed = Composed(empty, {source.file: source.text} if source.text else {}, list(source.problems))
    if source.tree is None:
        composed.incomplete.add(())
        return composed
    here = (folder / Path(source.file).name).resolve()
    composed.tree = _with_includes(source.tree, here, root, (here,), composed, {})
    for text in sets:
        _set(text, composed)
    for section in SECTIONS:
        _extend(section, composed)
    return composed


def _with_includes(
    tree: Node, path: Path, root: Path, open_files: tuple[Path, ...], composed: Composed, done: dict[Path, Node]
) -> Node:
    """The tree of one file laid over the files that it includes. `open_files` are those being read, outermost first."""
    tree = _written_out(tree)
    listed = tree.child("include")
    if listed is None:
        return tree
    tree = replace(tree, value={key: child for key, child in tree.items() if key != "include"})
    base: Node | None = None
    for entry in listed.value if listed.is_list else [listed]:
        if not isinstance(entry.value, str):
            composed.problems.append(entry.mark.problem(f"include must name files, not {kind(entry.value)}"))
            composed.incomplete.add(())
            continue
        places = dict.fromkeys(path_from(folder, entry.value) for folder in (path.parent, root))
        target = next((place.resolve() for place in places if is_file(place)), None)
        if target is None:
            looked = " and ".join(shown(place) for place in places)
            composed.problems.append(
                entry.mark.problem(f"there is no file `{entry.value}` to include (looked for {looked})")
            )
            composed.incomplete.add(())
            continue
        if target in open_files:
            circle = " → ".join(shown(file) for file in (*open_files[open_files.index(target) :], target))
            composed.problems.append(entry.mark.problem(f"files include each other in a circle: {circle}"))
            composed.incomplete.add(())
            continue
        if target not in done:
            source = read(target, shown(target))
            composed.texts[source.file] = source.text
            composed.problems += source.problems
            if source.tree is None:
                composed.incomplete.add(())
            part = source.tree or Node({}, Mark(source.file))
            done[target] = _with_includes(part, target, root, (*open_files, target), composed, done)
        base = merge(base, done[target]) if base is not None else done[target]
    return merge(base, tree) if base is not None else tree


def _written_out(tree: Node) -> Node:
    """The tree with shorthands of blocks written out, so that merging them keeps what the other side says."""
    tasks = tree.child("tasks")
    for name, task in tasks.items() if tasks is not None else ():
        location: Location = ("tasks", name, "prompt", "shots")
        shots, slot = task.at("prompt", "shots"), slot_at(location)
        if shots is not None and slot is not None:
            tree = put(tree, location, written_out(slot, shots))
    return tree


def put(tree: Node, location: Location, value: Node) -> Node:
    """The tree with a value laid at a path: merged into a mapping, else in place of what stands there. Null removes.

    Missing mappings on the way are made; the last key or index decides.
    """
    step, *rest = location
    if isinstance(tree.value, list) and str(step).isdecimal() and int(step) < len(tree.value):
        items, index = list(tree.value), int(step)
        items[index] = put(items[index], tuple(rest), value) if rest else merge(items[index], value)
        return replace(tree, value=items)
    keys = dict(tree.value) if isinstance(tree.value, dict) else {}
    if rest:
        keys[step] = put(keys.get(step, Node({}, value.mark, value.place)), tuple(rest), value)
    elif value.value is None:
        keys.pop(step, None)
    else:
        keys[step] = merge(keys[step], value) if step in keys else value
    return replace(tree, value=keys)


def _set(text: str, composed: Composed) -> None:
    """Apply one `--set path=value`."""
    label = f"--set {text}"
    path, equals, value = text.partition("=")
    path = path.strip()
    if not equals or not path:
        composed.problems.append(
            Problem("must be written as path=value, `tasks.mine.retrieval.k=3` for example", label)
        )
        return
    source = parse_value(value, label)
    if source.tree is None:
        composed.problems += source.problems
        return
    if path.split(".")[0] == "include":
        composed.problems.append(Problem("`include` cannot be set; write it in the file", label))
        return
    try:
        locations = locate(path, composed.tree)
    except PathError as error:
        composed.problems.append(Problem(str(error), label))
        return
    for location in locations:
        slot = slot_at(location) or SPEC
        node = written_out(slot, source.tree)
        block = composed.tree.at(*location[:2])
        if node.value is None and block is not None and block.child("extends") is not None and len(location) > 2:
            composed.tree = _put_null(composed.tree, location, node)  # to be taken away from what the block extends
        else:
            composed.tree = put(composed.tree, location, node)


def _put_null(tree: Node, location: Location, null: Node) -> Node:
    step, *rest = location
    if isinstance(tree.value, list):
        return put(tree, location, null)
    keys = dict(tree.value) if isinstance(tree.value, dict) else {}
    keys[step] = _put_null(keys.get(step, Node({}, null.mark, null.place)), tuple(rest), null) if rest else null
    return replace(tree, value=keys)


def _extend(section: str, composed: Composed) -> None:
    """Resolve `extends:` within `models` or `tasks`, and drop the blocks that only serve to be extended."""
    blocks = composed.tree.child(section)
    if blocks is None or not blocks.is_mapping:
        return
    resolved: dict[str, Node] = {}

    def resolve(name: str, chain: tuple[str, ...]) -> Node:
        if name in resolved:
            return resolved[name]
        block = blocks.value[name]
        base = block.child("extends")
        if base is None or base.value is None:
            resolved[name] = block
            return resolved[name]
        own = replace(block, value={key: child for key, child in block.items() if key != "extends"})
        where = dotted((section, name, "extends"))
        problem = None
        if not isinstance(base.value, str):
            problem = f"{where} must be the name of another block of {section}, not {kind(base.value)}"
        elif base.value in (*chain, name):
            circle = " → ".join((*(*chain, name)[(*chain, name).index(base.value) :], base.value))
            problem = f"{where}: blocks extend each other in a circle: {circle}"
        elif base.value not in blocks.value:
            others = [other for other in blocks.value if other != name]
            known = suggest(base.value, others) or (f" There is {listed(others)}." if others else "")
            problem = f"{where}: {section} has no `{base.value}` to extend.{known}"
        if problem is not None:
            composed.problems.append(base.mark.problem(problem))
            composed.incomplete.add((section, name))
            resolved[name] = own
        else:
            parent = resolve(base.value, (*chain, name))
            if (section, base.value) in composed.incomplete:
                composed.incomplete.add((section, name))
            resolved[name] = replace(merge(parent, own), key=block.key) if parent.is_mapping else own
        return resolved[name]

    for name in blocks.value:
        resolve(name, ())
    kept = {name: resolved[name] for name in blocks.value if not name.startswith("_")}
    composed.tree = composed.tree.having(section, replace(blocks, value=kept))
