"""The right answer of a row, as its task names it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from evalspec.data.rows import Row
from evalspec.errors import PromptError
from evalspec.prompting.task_templates import Templates, texts_of
from evalspec.prompting.templates import Template


@dataclass(frozen=True)
class Answer:
    """The right answer of a row: its texts, and for choices which of them are right."""

    targets: tuple[str, ...]
    choices: tuple[str, ...] = ()
    gold: frozenset[int] = frozenset()


def right_answer(templates: Templates, row: Row, where: str) -> Answer:
    """The right answer of a row, as `prompt.target` and `prompt.choices` say. Raises PromptError."""
    if templates.target is None:
        return Answer(())
    raw = templates.target.evaluate(row.values, row.id)
    name = "choices" if templates.contexts is None else "contexts"
    source = templates.choices if templates.contexts is None else templates.contexts
    if source is None:
        targets = texts_of(raw)
        if not targets:
            raise PromptError(f"{where}: prompt.target of row {row.id} is an empty list")
        return Answer(targets)
    choices = _listed(source, name, row, where)
    if isinstance(raw, list | tuple) and not raw:
        raise PromptError(f"{where}: prompt.target of row {row.id} is an empty list")
    gold = frozenset(_index(item, choices, row, where) for item in (raw if isinstance(raw, list | tuple) else [raw]))
    return Answer(tuple(choices[number] for number in sorted(gold)), choices, gold)


def options_of(templates: Templates, row: Row, where: str) -> tuple[str, ...]:
    """The answers that a question offers, as `prompt.options` says; none without it. Raises PromptError."""
    return () if templates.options is None else _listed(templates.options, "options", row, where)


def _listed(source: tuple[Template, ...] | Template, name: str, row: Row, where: str) -> tuple[str, ...]:
    if isinstance(source, Template):
        listed = source.evaluate(row.values, row.id)
        if not isinstance(listed, list | tuple):
            raise PromptError(f"{where}: prompt.{name} of row {row.id} is not a list but {listed!r}")
        texts = texts_of(listed)
    else:
        texts = tuple(template.render(row.values, row.id) for template in source)
    if len(texts) < 2:
        raise PromptError(f"{where}: row {row.id} has {len(texts)} {name}; at least two are needed")
    return texts


def _index(target: Any, choices: tuple[str, ...], row: Row, where: str) -> int:
    """The right choice's place: its text, or its index counted from 0."""
    text = str(target)
    if not isinstance(target, int) and text in choices:
        return choices.index(text)
    if re.fullmatch(r"\s*-?[0-9]{1,9}\s*", text) and 0 <= int(text) < len(choices):
        return int(text)
    if text in choices:
        return choices.index(text)
    if isinstance(target, bool):
        return int(target)  # false and true as a data set writes 0 and 1
    shown = ", ".join(repr(choice) for choice in choices[:6])
    raise PromptError(
        f"{where}: the target {text!r} of row {row.id} is neither one of its choices ({shown}) nor an index of one"
    )
