"""Later stages: samples made from what earlier stages answered, and, before anything was, how large they can get.

level 0   the tasks themselves (`main`)                    compiled with the plan
level 1   the first stage of every task that has stages    one forest a model and level, once the one
level 2   the second …                                     before it is done
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from evalspec.errors import PromptError, located
from evalspec.plan.compile import ModelPlan, Sample, SampleKey, encoded_drafts, identity, sample_of
from evalspec.plan.forest import Request
from evalspec.prompting.drafts import Draft
from evalspec.prompting.stages import Said, draft_stage, drafts_with_marks, unmarked
from evalspec.spec.blocks import MAIN, TaskBlock


def stage_at(task: TaskBlock, level: int) -> str | None:
    """The name of a task's stage at a level, None where it has no so many."""
    names = [MAIN, *task.stages]
    return names[level] if level < len(names) else None


def task_at(task: TaskBlock, stage: str) -> TaskBlock:
    """A stage as a task of its own; `main` is the task itself."""
    return task if stage == MAIN else task.at(stage)


def levels(part: ModelPlan) -> int:
    """How many levels a model's tasks have, `main` among them."""
    return max((1 + len(cell.task.stages) for cell in part.cells), default=1)


def keys_at(part: ModelPlan, level: int) -> list[SampleKey]:
    """The keys of all samples at a level, which do not depend on any answer."""
    named = [(sample, stage_at(sample.cell.task, level)) for sample in part.samples]
    return [(*sample.key[:3], stage) for sample, stage in named if stage is not None]


Earlier = Callable[[Sample, str], Said | str | None]
"""What a stage said of one of the plan's samples: None where its `when` left it out, where it failed the reason."""


def stage_samples(part: ModelPlan, level: int, said: Earlier) -> tuple[Sample, ...]:
    """The samples of a model's stages at a level ≥ 1, cell by cell.

    A prompt that cannot be made of what a model wrote is that sample's error. Raises PromptError for what holds for all
    of them: a prompt that is too long where `overflow: error` says so, a continuation without tokens.
    """
    known: dict[tuple[object, ...], Request] = {}
    chat = part.model.tokenizer.chat if part.model.block.chat else None
    made: list[Sample] = []
    for cell in part.cells:
        stage = stage_at(cell.task, level)
        if stage is None:
            continue
        task, templates, name = (
            cell.task.at(stage),
            part.stages[cell.cell_id, stage],
            f"{cell.task_name}.stages.{stage}",
        )
        asked: list[tuple[Sample, Draft]] = []
        for main in (sample for sample in part.samples if sample.cell is cell):
            draft: Draft | None = None
            earlier, error = _earlier(main, level, said)
            if error is None:
                try:
                    draft = draft_stage(name, task, templates, main.draft, earlier, chat)
                except PromptError as reason:
                    error = str(reason)
            if draft is not None:
                asked.append((main, draft))
                continue
            nothing = Sample(cell, task, main.draft, main.repeat, 0, 0, (), stage, skipped=error is None, error=error)
            made.append(nothing)
        with located(f"tasks.{name}"):
            parts = encoded_drafts(task, [draft for _, draft in asked], part.model)
        for (main, draft), own in zip(asked, parts, strict=True):
            made.append(sample_of(cell, task, draft, own, main.repeat, known, stage))
    return tuple(made)


def _earlier(main: Sample, level: int, said: Earlier) -> tuple[dict[str, Said], str | None]:
    """What the stages before a level said of a sample, and why there can be no more where one of them failed."""
    earlier: dict[str, Said] = {}
    for stage in [MAIN, *main.cell.task.stages][:level]:
        found = said(main, stage)
        if isinstance(found, str):
            return {}, f"stage `{stage}` has no answer: {found}"
        if found is not None:
            earlier[stage] = found
    return earlier, None


@dataclass(frozen=True)
class Bound:
    """The most that a stage of one cell can ask, were every sample asked and every answer as long as it may be.

    `prompt_tokens` and `longest` are None where the length of a prompt depends on more than the lengths of answers.
    """

    cell_id: str
    stage: str
    samples: int
    requests: int
    prompt_tokens: int | None
    longest: int | None
    new_tokens: int


def bounds(part: ModelPlan) -> list[Bound]:
    """What each later stage of each cell can come to, cell by cell."""
    sizes: dict[tuple[str, str, int], list[_Size]] = {}
    found: list[Bound] = []
    for cell in part.cells:
        if not cell.task.stages:
            continue
        same = identity(cell.task)
        own: list[list[_Size]] = []
        for sample in part.samples:
            if sample.cell is cell:
                key = (same, sample.draft.sample_id, sample.draft.draw)
                if key not in sizes:
                    sizes[key] = _sizes(part, sample)
                own.append(sizes[key])
        for at, stage in enumerate(cell.task.stages):
            of_stage = [each[at] for each in own]
            known = [size.prompt_tokens for size in of_stage if size.prompt_tokens is not None]
            complete = len(known) == len(of_stage)
            found.append(
                Bound(
                    cell.cell_id,
                    stage,
                    samples=len(of_stage),
                    requests=sum(size.requests for size in of_stage),
                    prompt_tokens=sum(known) if complete else None,
                    longest=max((size.longest for size in of_stage), default=0) if complete else None,
                    new_tokens=sum(size.new_tokens for size in of_stage),
                )
            )
    return found


@dataclass(frozen=True)
class _Size:
    """The most that one sample can ask in one stage."""

    requests: int
    prompt_tokens: int | None
    longest: int
    new_tokens: int


def _sizes(part: ModelPlan, sample: Sample) -> list[_Size]:
    """A sample's size in each stage of its task."""
    task, cell = sample.task, sample.cell
    templates = {stage: part.stages[cell.cell_id, stage] for stage in task.stages}
    drafts = drafts_with_marks(cell.task_name, task, templates, sample.draft)
    limits = {MAIN: _limit(part, task, sample.draft)}
    sizes = []
    for stage, draft in drafts.items():
        own = task.at(stage)
        limits[stage] = _limit(part, own, draft)
        new_tokens = own.decode.max_tokens if own.decode else 0
        if draft is None:
            requests = len(own.prompt.choices) if isinstance(own.prompt.choices, list) else 1
            sizes.append(_Size(requests * (2 if own.unconditional else 1), None, 0, new_tokens))
            continue
        answers = draft.choices if own.kind == "choose" else draft.targets[:1] if own.kind == "score" else ("",)
        fed = [_tokens(part, draft.prompt, limits) + _tokens(part, answer, limits) for answer in answers]
        fed += [1 + _tokens(part, answer, limits) for answer in answers] if own.unconditional else []
        longest = part.model.max_length
        fed = [min(tokens, longest) if longest else tokens for tokens in fed]
        sizes.append(_Size(len(fed), sum(fed), max(fed), new_tokens))
    return sizes


def _limit(part: ModelPlan, task: TaskBlock, draft: Draft | None) -> int:
    """The most tokens that an answer can have."""
    if task.decode is not None:
        return task.decode.max_tokens
    return max((_tokens(part, choice, {}) for choice in draft.choices), default=0) if draft else 0


def _tokens(part: ModelPlan, text: str, limits: Mapping[str, int]) -> int:
    """The tokens of a text, each answer in it as long as it may be."""
    bare, stages = unmarked(text)
    return (len(part.model.tokenizer.encode([bare])[0]) if bare else 0) + sum(limits.get(name, 0) for name in stages)
