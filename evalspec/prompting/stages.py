"""A later stage's prompt: the row and its passages again, and what the stages before it read, said and came to.

Before anything was answered the same templates are rendered with *marks* in place of answers. That finds a misspelt
name before an hour was spent on the stage before it, and how often an answer comes in says how long a prompt can get.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evalspec.data.rows import Row
from evalspec.errors import PromptError
from evalspec.prompting.answers import right_answer
from evalspec.prompting.drafts import Draft, reference_steps
from evalspec.prompting.joining import Chat, join, prefix_of, turns
from evalspec.prompting.passages import seen
from evalspec.prompting.steps import MARK
from evalspec.prompting.task_templates import Templates
from evalspec.spec.blocks import MAIN, TaskBlock

_UNKNOWABLE = ("has no element", "cannot be rendered", "cannot be evaluated", "nor an index of one", "is an empty list")


@dataclass(frozen=True)
class Said:
    """What one stage did with a sample: the text it read, what it wrote or chose, what each filter took from that."""

    prompt: str
    output: str | None
    extracted: Mapping[str, str] = field(default_factory=dict)


def draft_stage(
    name: str,
    task: TaskBlock,
    templates: Templates,
    main: Draft,
    earlier: Mapping[str, Said],
    chat: Chat | None = None,
    *,
    ask: bool = False,
) -> Draft | None:
    """The draft of a stage for one sample; None where its `when` leaves the sample out.

    Args: `task` is the stage as a task of its own, `main` the sample's draft in the task itself, `earlier` what each
    stage that was asked before said; `ask` asks whatever `when` says.
    Raises PromptError naming the stage's key.
    """
    row = main.row
    assert row is not None and templates.question is not None  # a stage has a template, no contexts
    said = {
        "outputs": {stage: found.output for stage, found in earlier.items() if found.output is not None},
        "extracted": {stage: dict(found.extracted) for stage, found in earlier.items()},
        "prompts": {stage: found.prompt for stage, found in earlier.items()},
    }
    values = {**seen(task, row, main.hits), **said}
    if templates.when is not None and not _holds(templates.when.evaluate(values, row.id)) and not ask:
        return None
    right = right_answer(templates, Row(row.id, values), f"tasks.{name}")
    question = templates.question.render(values, row.id)
    plain = join(task.prompt, templates, values, row.id, (), question, None)
    return Draft(
        sample_id=main.sample_id,
        draw=main.draw,
        prompt=join(task.prompt, templates, values, row.id, (), question, chat) if chat else plain,
        targets=right.targets,
        choices=right.choices,
        gold_choices=right.gold,
        hits=main.hits,
        gold_ids=main.gold_ids,
        cluster=main.cluster,
        options=main.options,
        row=row,
        plain=plain,
        steps=reference_steps(task, templates, values, row.id),
        turns=turns(task.prompt, templates, values, row.id, (), question)
        if chat and not prefix_of(templates, values, row.id)
        else (),
    )


def _holds(value: Any) -> bool:
    return value.strip().lower() not in ("", "false", "0", "none") if isinstance(value, str) else bool(value)


def marked(stage: str, task: TaskBlock, prompt: str) -> Said:
    """What stands for a stage that was not asked yet: marks instead of its answer."""
    if task.kind == "score":
        return Said(prompt, None)
    mark = f"\ue000{stage}\ue001"
    return Said(prompt, mark, dict.fromkeys(task.chains, mark) if task.decode else {})


def stage_templates(name: str, task: TaskBlock, drafts: Sequence[Draft], root: Path) -> dict[str, Templates]:
    """The compiled templates of a task's stages, tried on every draft with marks. Raises PromptError."""
    made: dict[str, Templates] = {}
    for stage, block in task.stages.items():
        made[stage] = Templates.of(f"{name}.stages.{stage}", task.at(stage), root, block.when)
    for draft in drafts:
        drafts_with_marks(name, task, made, draft)
    return made


def drafts_with_marks(
    name: str, task: TaskBlock, made: Mapping[str, Templates], main: Draft
) -> dict[str, Draft | None]:
    """A draft of each stage made with marks in place of answers; None where only real answers can tell what it will be.

    Raises PromptError where no answer would help: a name that nothing has.
    """
    earlier = {MAIN: marked(MAIN, task, main.plain)}
    found: dict[str, Draft | None] = {}
    for stage, templates in made.items():
        own = task.at(stage)
        try:
            found[stage] = draft_stage(f"{name}.stages.{stage}", own, templates, main, earlier, ask=True)
        except PromptError as error:
            if not any(words in str(error) for words in _UNKNOWABLE):
                raise
            found[stage] = None
        draft = found[stage]
        earlier[stage] = marked(stage, own, draft.plain if draft else "")
    return found


def unmarked(text: str) -> tuple[str, list[str]]:
    """A text without its marks, and the stages that they stood for, one for each time."""
    return MARK.sub("", text), MARK.findall(text)
