"""Description, shots and question into what a model reads: one text, or the turns of a conversation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from evalspec.prompting.task_templates import Templates
from evalspec.spec.prompt import PromptBlock

Chat = Callable[[Sequence[Mapping[str, str]]], str]
"""Renders the messages of a conversation as a chat model's own template has it."""


class Turn(NamedTuple):
    """One message of a conversation; `role` is `system`, `user` or `assistant`."""

    role: str
    content: str


def join(
    block: PromptBlock,
    templates: Templates,
    values: Mapping[str, Any],
    row_id: str,
    worked: Sequence[tuple[str, str]],
    question: str,
    chat: Chat | None,
) -> str:
    """Description, shots and question as one text; for a chat model, shots are turns of the conversation."""
    prefix = prefix_of(templates, values, row_id)
    if chat is not None:
        said = turns(block, templates, values, row_id, worked, question)
        return chat([turn._asdict() for turn in said]) + prefix
    between = block.shots.delimiter if block.shots and block.shots.delimiter is not None else block.delimiter
    shots = "".join(
        f"{asked}{_joint(asked, told, between) if prefix else between}{told}{block.separator}" for asked, told in worked
    )
    started = _joint(question, prefix, block.delimiter) + prefix if prefix else ""
    return templates.description.render(values, row_id) + shots + question + started


def turns(
    block: PromptBlock,
    templates: Templates,
    values: Mapping[str, Any],
    row_id: str,
    worked: Sequence[tuple[str, str]],
    question: str,
) -> tuple[Turn, ...]:
    """The conversation: system message and description, the shots' questions and answers, the question."""
    description = templates.description.render(values, row_id)
    system = (templates.system.render(values, row_id) if templates.system else "") or ""
    first = "\n".join(part for part in (system, description) if part)
    shots = [turn for asked, told in worked for turn in (Turn("user", asked), Turn("assistant", told))]
    return (*([Turn("system", first)] if first else []), *shots, Turn("user", question))


def prefix_of(templates: Templates, values: Mapping[str, Any], row_id: str) -> str:
    """What the answer to a row begins with."""
    return templates.prefix.render(values, row_id) if templates.prefix else ""


def begun(prefix: str, told: str) -> str:
    """An answer behind its prefix, with a blank between them where no white space stands (as in lm-eval)."""
    blank = " " if prefix and told and not (prefix[-1].isspace() or told[0].isspace()) else ""
    return f"{prefix}{blank}{told}"


def _joint(question: str, prefix: str, delimiter: str) -> str:
    """What stands between a question and the prefix of its answer."""
    return "" if not question or question[-1].isspace() or prefix[0].isspace() else delimiter
