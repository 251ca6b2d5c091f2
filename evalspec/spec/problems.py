"""pydantic's verdict on a tree, told in the words of the language and at the place where it was written."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from pydantic import ValidationError

from evalspec.errors import Problem, suggest
from evalspec.spec.grammar import SPEC, Slot, dotted, expected, slot_at, unknown_key
from evalspec.spec.tree import Location, Mark, Node, kind


def explain(
    error: ValidationError, tree: Node, at: Location = (), incomplete: Collection[Location] = ()
) -> list[Problem]:
    """Every problem of a failed validation of what stands at `at` in `tree`.

    Keys that are missing below one of the locations in `incomplete` are left out.
    """
    found: list[dict[str, Any]] = [{**detail} for detail in error.errors(include_url=False)]
    details = [(_where(tree, (*at, *detail["loc"])), detail) for detail in found]
    unknown = {where for where, detail in details if detail["type"] == "extra_forbidden"}
    deepest = {where for where, _ in details}
    problems: list[Problem] = []
    for where, detail in details:
        if detail["type"] == "missing":
            key = str(detail["loc"][-1])
            hidden = any(where[: len(location)] == location for location in incomplete)
            misspelt = any(other[:-1] == where and suggest(str(other[-1]), [key]) for other in unknown)
            if not hidden and not misspelt:
                problems.append(_missing(where, key, tree))
        elif detail["type"] == "misfit":
            for inner, said in detail["ctx"]["found"]:
                problems.append(_misfit(where, inner, said, tree))
        elif any(len(other) > len(where) and other[: len(where)] == where for other in deepest):
            continue  # of a union, the branch that got further says more
        else:
            problems.append(_wrong(where, (*at, *detail["loc"]), detail, tree))
    return list(dict.fromkeys(problems))


def nothing_asked(tree: Node, incomplete: Collection[Location] = ()) -> list[Problem]:
    """The problem of a spec with neither `tasks` nor `measure`; none where a misspelt key is the reason."""
    if () in incomplete or not tree.is_mapping or tree.child("tasks") or tree.child("measure"):
        return []
    strange = [key for key, _ in tree.items() if SPEC.under(key) is None]
    return [] if any(suggest(key, ["tasks"]) for key in strange) else [_missing((), "tasks", tree)]


def in_order(problems: Iterable[Problem], files: Iterable[str], *, read: Collection[Problem] = ()) -> list[Problem]:
    """Problems once each, in the order of the files and within them of their places.

    What is wrong with a value that could not be `read` is not worth saying. A value that several blocks inherit is one
    problem, told for the first of them: the same words at the same place but for the path in front.
    """
    order = {file: index for index, file in enumerate(files)}
    unread = {(p.file, p.line, p.column) for p in read if p.line}
    told: dict[object, Problem] = {}
    for problem in [*read, *(p for p in problems if (p.file, p.line, p.column) not in unread)]:
        words = problem.message.partition(" ")[2] if problem.line else problem.message
        told.setdefault((problem.file, problem.line, problem.column, words), problem)
    return sorted(told.values(), key=lambda p: (order.get(p.file, len(order)), p.line, p.column))


def _where(tree: Node, location: tuple[int | str, ...]) -> Location:
    """pydantic's location without the names of union branches: the longest path that exists in the tree."""
    path: Location = ()
    node = tree
    for step in location:
        below = node.child(step)
        if below is not None:
            path, node = (*path, step), below
    return path


def _missing(where: Location, key: str, tree: Node) -> Problem:
    node = tree.at(*where) or tree
    field = slot_at((*where, key))
    says = f": {_first_sentence(field.description)}" if field is not None and field.description else ""
    mark = node.place if where else Mark(tree.mark.file, 1, 1, 1, tree.mark.source if tree.mark.line == 1 else "")
    return mark.problem(f"{dotted(where)} needs a key `{key}`{says}")


def _misfit(where: Location, inner: Location, said: str, tree: Node) -> Problem:
    node = tree.at(*where) or tree
    place = node.place
    reached = where
    for step in inner:
        below = node.child(step)
        if below is None:
            break
        node, reached = below, (*reached, step)
        place = node.mark if isinstance(step, int) else node.place
    colon = ":" if said.startswith("`") else ""
    return place.problem(f"{dotted(reached)}{colon} {said}")


def _wrong(where: Location, full: Location, detail: dict[str, Any], tree: Node) -> Problem:
    node = tree.at(*where) or tree
    if full[-1:] == ("[key]",):
        said = "a name starts with a letter and goes on with letters, digits, `_`, `-` or `.`"
        return node.place.problem(f"{dotted(where)}: {said}")
    slot = slot_at(where) or SPEC
    if detail["type"] == "extra_forbidden":
        parent = slot_at(where[:-1]) or SPEC
        return node.place.problem(unknown_key(dotted(where[:-1]), str(where[-1]), parent))
    if detail["type"] == "string_pattern_mismatch":
        says = "a name starts with a letter and goes on with letters, digits, `_`, `-` or `.`"
        says = says if where == ("name",) else _first_sentence(slot.description)
        return node.mark.problem(f"{dotted(where)} cannot be {kind(node.value)}: {says}")
    if detail["type"] == "too_short":
        return node.place.problem(f"{dotted(where)} is empty; it needs at least one entry")
    inside = slot_at(full) if len(full) > len(where) else None
    if inside is not None:  # inside a shorthand: the k of `recall@0`
        said = f"{full[-1]} must be {expected(inside)}, not {kind(detail['input'])}"
        return node.mark.problem(f"{dotted(where)}: {said}")
    return node.mark.problem(f"{dotted(where)} must be {expected(slot)}, not {kind(node.value)}{_hint(slot, node)}")


def _hint(slot: Slot, node: Node) -> str:
    if isinstance(node.value, str):
        return "." + near if (near := suggest(node.value, slot.literals)) else ""
    if str in slot.options and isinstance(node.value, (bool, int, float)):
        return "; put it in quotes if it is text"
    return ""


def _first_sentence(text: str) -> str:
    first = " ".join(text.split()).split(". ")[0].rstrip(".")
    return first[:1].lower() + first[1:]
