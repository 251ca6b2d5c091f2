"""A task's rows into drafts: prompts with their shots and passages, right answers, choices. No model is known yet.

    rows ──► pool | evaluated ──► shots of each (draw, sample) ──► passages of all of them ──► text

Everything that a sample's prompt depends on comes in here, so two cells with the same task share their drafts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evalspec.data.rows import Row, Rows
from evalspec.errors import PromptError, located
from evalspec.prompting.answers import Answer, options_of, right_answer
from evalspec.prompting.joining import Chat, Turn, begun, join, prefix_of, turns
from evalspec.prompting.passages import Key, passages_of, seen
from evalspec.prompting.shots import choose_shots, shown_answer, split_pool
from evalspec.prompting.steps import steps
from evalspec.prompting.task_templates import Templates
from evalspec.retrieval import Hit
from evalspec.spec.blocks import TaskBlock
from evalspec.spec.prompt import ShotsBlock


@dataclass(frozen=True)
class Draft:
    """One sample of a task under one draw of shots, as text."""

    sample_id: str
    draw: int
    prompt: str
    targets: tuple[str, ...]
    choices: tuple[str, ...] = ()
    gold_choices: frozenset[int] = frozenset()
    shot_ids: tuple[str, ...] = ()
    hits: tuple[Hit, ...] = ()
    gold_ids: tuple[str, ...] = ()
    cluster: str | None = None
    contexts: tuple[str, ...] = ()
    """One prompt a choice, where the choices are contexts; `prompt` is then the first of them."""
    continuation: str = ""
    """What each of them is continued with."""
    options: tuple[str, ...] = ()
    """What the question offers, A the first, where an answer is generated."""
    row: Row | None = None
    """What it was made of: later stages read its columns."""
    plain: str = ""
    """The prompt as text where `prompt` is in a chat model's markup; else the same."""
    steps: tuple[str, ...] = ()
    """The right steps, where the task names them."""
    turns: tuple[Turn, ...] = ()
    """The conversation that `prompt` was rendered from; none for a model without a chat template, nor where a prefix
    begins the answer, which a conversation has no place for."""

    def pairs(self, delimiter: str) -> list[tuple[str, str]]:
        """(context, continuation) of each choice."""
        if self.contexts:
            return [(context, delimiter + self.continuation) for context in self.contexts]
        return [(self.prompt, delimiter + choice) for choice in self.choices]


@dataclass(frozen=True, eq=False)
class Source:
    """What a task is made from, loaded: its rows, the pool's rows, its corpus."""

    rows: Rows
    pool: Rows | None
    corpus: Rows | None


def draft_task(
    name: str,
    task: TaskBlock,
    source: Source,
    root: Path,
    *,
    cache: Path,
    limit: int | None = None,
    chat: Chat | None = None,
) -> tuple[list[Draft], Templates]:
    """All drafts of a task: evaluated rows × draws, in that order. `chat` renders messages for a chat model.

    Raises DataError, PromptError or RetrievalError, each naming the key of the spec.
    """
    where = f"tasks.{name}"
    templates = Templates.of(name, task, root)
    shots = task.prompt.shots
    if shots is None or source.pool is not None:
        pool, evaluated = (source.pool.rows if source.pool else ()), source.rows.rows
    else:
        pool, evaluated = split_pool(source.rows.rows, shots.pool)
    if not evaluated:
        raise PromptError(f"{where}: all rows are in the pool of shots, none is left to evaluate; lower `shots.pool`")
    samples = evaluated[:limit]

    # Rows of `shots.data` number themselves as they like: their ids name other rows than the task's own.
    place = "shots" if source.pool is not None else "rows"
    answers: dict[Key, Answer] = {}

    def answer(place: str, row: Row) -> Answer:
        if (place, row.id) not in answers:
            answers[place, row.id] = right_answer(templates, row, where)
        return answers[place, row.id]

    chosen: list[list[tuple[Row, ...]]] = []
    with located(f"{where}.prompt.shots"):
        for draw in range(shots.draws if shots else 1):
            chosen.append(
                choose_shots(
                    shots or ShotsBlock(),
                    pool,
                    samples,
                    draw=draw,
                    label=lambda row: (
                        templates.label.render(row.values, row.id) if templates.label else answer(place, row).targets[0]
                    ),
                    query=lambda row: _shot_query(templates, row, lambda: right_answer(templates, row, where)),
                )
            )
    shown: dict[Key, Row] = {("rows", row.id): row for row in samples}
    shown |= {(place, row.id): row for draw in chosen for some in draw for row in some}
    hits, gold = passages_of(
        name, task, templates, source.corpus.rows if source.corpus else (), shown, evaluated, root, cache
    )

    # Without choices, what else a shot could show is what the other rows of the pool are answered with.
    others: tuple[str, ...] = ()
    control = shots is not None and shots.labels != "right"
    if control and task.prompt.choices is None and task.prompt.contexts is None:
        others = tuple(dict.fromkeys(text for row in pool for text in answer(place, row).targets))

    def shot(row: Row, draw: int) -> tuple[str, str]:
        right, values = answer(place, row), seen(task, row, hits.get((place, row.id), ()))
        asked = templates.shot_question or templates.question
        with located(f"{where}.prompt.shots"):
            told = shown_answer(shots or ShotsBlock(), draw, row.id, right.targets, right.choices or others)
        if templates.continuation is not None:  # the right context, and what continues it
            question, told = told, templates.continuation.render(row.values, row.id)
        if asked is not None:
            question = asked.render(values, row.id)
        if templates.shot_answer is not None:
            told = templates.shot_answer.render(row.values, row.id)
        return question, begun(prefix_of(templates, row.values, row.id), told)

    worked: dict[tuple[str, int], tuple[str, str]] = {}
    drafts = []
    for draw, sets in enumerate(chosen):
        told = draw if control else 0  # a right answer is the same in all draws
        for row, examples in zip(samples, sets, strict=True):
            for example in examples:
                if (example.id, told) not in worked:
                    worked[example.id, told] = shot(example, draw)
            right, own = answer("rows", row), ("rows", row.id)
            asked = right.choices
            if templates.question is not None:
                asked = (templates.question.render(seen(task, row, hits.get(own, ())), row.id),)
            before = [worked[example.id, told] for example in examples]
            parts = [(task.prompt, templates, row.values, row.id, before, question) for question in asked]
            plain = join(*parts[0], None)
            prompts = tuple(join(*part, chat) for part in parts)
            drafts.append(
                Draft(
                    sample_id=row.id,
                    draw=draw,
                    prompt=prompts[0],
                    targets=right.targets,
                    choices=right.choices,
                    gold_choices=right.gold,
                    shot_ids=tuple(example.id for example in examples),
                    hits=hits.get(own, ()),
                    gold_ids=gold.get(own, ()),
                    cluster=templates.cluster.render(row.values, row.id) if templates.cluster else None,
                    contexts=prompts if templates.continuation else (),
                    continuation=templates.continuation.render(row.values, row.id) if templates.continuation else "",
                    options=options_of(templates, row, where),
                    row=row,
                    plain=plain,
                    steps=reference_steps(task, templates, row.values, row.id),
                    turns=turns(*parts[0]) if chat and not prefix_of(templates, row.values, row.id) else (),
                )
            )
    return drafts, templates


def reference_steps(task: TaskBlock, templates: Templates, values: Mapping[str, Any], row: str) -> tuple[str, ...]:
    """The right steps of a row: a list as it is, a text split as the model's own steps are."""
    if templates.steps is None or task.prompt.steps is None:
        return ()
    found = templates.steps.evaluate(values, row)
    if isinstance(found, list | tuple):
        return tuple(str(item) for item in found)
    return tuple(steps(str(found), task.prompt.steps.separator, task.prompt.steps.end))


def _shot_query(templates: Templates, row: Row, right: Callable[[], Answer]) -> str:
    template = templates.shot_query or templates.query or templates.question
    return template.render(row.values, row.id) if template else " ".join(right().choices)
