"""A task's rows into drafts: prompts with their shots and passages, right answers, choices. No model is known yet.

    rows ──► pool | evaluated ──► shots of each (draw, sample) ──► passages of all of them ──► text

Everything that a sample's prompt depends on comes in here, so two cells with the same task share their drafts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evalspec.data.rows import Row, Rows
from evalspec.errors import PromptError, located
from evalspec.prompting.shots import choose_shots, split_pool
from evalspec.prompting.templates import Template, compile_template, constant
from evalspec.retrieval import Hit, Passage, retrieve
from evalspec.spec.blocks import PromptBlock, ShotsBlock, TaskBlock

Chat = Callable[[Sequence[Mapping[str, str]]], str]
Key = tuple[str, str]  # where a row stands (`rows`, or `shots` where these have data of their own), and its id


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


@dataclass(frozen=True, eq=False)
class Templates:
    """The compiled templates of one task, each naming its key of the spec in errors."""

    question: Template
    description: Template
    target: Template | None
    choices: tuple[Template, ...] | Template | None
    system: Template | None
    label: Template | None
    shot_query: Template | None
    query: Template | None
    gold: Template | None
    passage: Template | None
    cluster: Template | None

    @property
    def texts(self) -> list[str]:
        """The source of each template, in a fixed order."""
        found = []
        for value in vars(self).values():
            found += [template.text for template in (value if isinstance(value, tuple) else (value,)) if template]
        return found

    @classmethod
    def of(cls, name: str, task: TaskBlock, root: Path) -> Templates:
        """Compile all templates of a task; raises PromptError for the first that is missing or malformed."""

        def at(key: str, source: str | int | None) -> Template | None:
            where = f"tasks.{name}.{key}"
            if source is None:
                return None
            return constant(str(source), where) if isinstance(source, int) else compile_template(source, root, where)

        prompt, retrieval = task.prompt, task.retrieval
        shots = prompt.shots or ShotsBlock()
        question, description = at("prompt.template", prompt.template), at("prompt.description", prompt.description)
        assert question is not None and description is not None
        choices: tuple[Template, ...] | Template | None = None
        if isinstance(prompt.choices, str):
            choices = at("prompt.choices", prompt.choices)
        elif prompt.choices is not None:
            listed = [at(f"prompt.choices.{number}", choice) for number, choice in enumerate(prompt.choices)]
            choices = tuple(template for template in listed if template)
        return cls(
            question=question,
            description=description,
            target=at("prompt.target", prompt.target),
            choices=choices,
            system=at("prompt.system", prompt.system),
            label=at("prompt.shots.label", shots.label),
            shot_query=at("prompt.shots.query", shots.query),
            query=at("retrieval.query", retrieval.query if retrieval else None),
            gold=at("retrieval.gold", retrieval.gold if retrieval else None),
            passage=at("retrieval.text", retrieval.text if retrieval else None),
            cluster=at("cluster", task.cluster),
        )


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(str(item) for item in value) if isinstance(value, list | tuple) else (str(value),)


@dataclass(frozen=True)
class Answer:
    """The right answer of a row: its texts, and for choices which of them are right."""

    targets: tuple[str, ...]
    choices: tuple[str, ...] = ()
    gold: frozenset[int] = frozenset()


def _answer(templates: Templates, row: Row, where: str) -> Answer:
    if templates.target is None:
        return Answer(())
    raw = templates.target.evaluate(row.values, row.id)
    if templates.choices is None:
        targets = _texts(raw)
        if not targets:
            raise PromptError(f"{where}: prompt.target of row {row.id} is an empty list")
        return Answer(targets)
    if isinstance(templates.choices, Template):
        listed = templates.choices.evaluate(row.values, row.id)
        if not isinstance(listed, list | tuple):
            raise PromptError(f"{where}: prompt.choices of row {row.id} is not a list but {listed!r}")
        choices = _texts(listed)
    else:
        choices = tuple(template.render(row.values, row.id) for template in templates.choices)
    if len(choices) < 2:
        raise PromptError(f"{where}: row {row.id} has {len(choices)} choices; at least two are needed")
    if isinstance(raw, list | tuple) and not raw:
        raise PromptError(f"{where}: prompt.target of row {row.id} is an empty list")
    gold = frozenset(_index(item, choices, row, where) for item in (raw if isinstance(raw, list | tuple) else [raw]))
    return Answer(tuple(choices[number] for number in sorted(gold)), choices, gold)


def _index(target: Any, choices: tuple[str, ...], row: Row, where: str) -> int:
    """The right choice's place: its text, or its index counted from 0."""
    text = str(target)
    if not isinstance(target, int) and text in choices:
        return choices.index(text)
    if text.strip().lstrip("-").isdigit() and 0 <= int(text) < len(choices):
        return int(text)
    if text in choices:
        return choices.index(text)
    shown = ", ".join(repr(choice) for choice in choices[:6])
    raise PromptError(
        f"{where}: the target {text!r} of row {row.id} is neither one of its choices ({shown}) nor an index of one"
    )


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
            answers[place, row.id] = _answer(templates, row, where)
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
                    query=lambda row: _shot_query(templates, row),
                )
            )
    shown: dict[Key, Row] = {("rows", row.id): row for row in samples}
    shown |= {(place, row.id): row for draw in chosen for some in draw for row in some}
    hits, gold = _passages(name, task, templates, source, shown, cache)

    questions = {
        key: templates.question.render(_seen(task, row, hits.get(key, ())), row.id) for key, row in shown.items()
    }
    drafts = []
    for draw, sets in enumerate(chosen):
        for row, examples in zip(samples, sets, strict=True):
            worked = [(questions[place, shot.id], next(iter(answer(place, shot).targets), "")) for shot in examples]
            right, own = answer("rows", row), ("rows", row.id)
            drafts.append(
                Draft(
                    sample_id=row.id,
                    draw=draw,
                    prompt=_join(task.prompt, templates, row, worked, questions[own], chat),
                    targets=right.targets,
                    choices=right.choices,
                    gold_choices=right.gold,
                    shot_ids=tuple(shot.id for shot in examples),
                    hits=hits.get(own, ()),
                    gold_ids=gold.get(own, ()),
                    cluster=templates.cluster.render(row.values, row.id) if templates.cluster else None,
                )
            )
    return drafts, templates


def _shot_query(templates: Templates, row: Row) -> str:
    return (templates.shot_query or templates.query or templates.question).render(row.values, row.id)


def _seen(task: TaskBlock, row: Row, hits: Sequence[Hit]) -> dict[str, Any]:
    """What a template sees: the row's columns, and with a retrieval block its passages."""
    if task.retrieval is None:
        return dict(row.values)
    passages = [{"id": hit.passage.id, "text": hit.passage.text, "rank": hit.rank, "score": hit.score} for hit in hits]
    return {**row.values, "passages": passages}


def _passages(
    name: str, task: TaskBlock, templates: Templates, source: Source, shown: Mapping[Key, Row], cache: Path
) -> tuple[dict[Key, tuple[Hit, ...]], dict[Key, tuple[str, ...]]]:
    """Retrieved passages and gold ids of each row."""
    rows = list(shown.values())
    block = task.retrieval
    if block is None:
        return {}, {}
    gold = [_texts(templates.gold.evaluate(row.values, row.id)) for row in rows] if templates.gold else None
    queries = [templates.query.render(row.values, row.id) for row in rows] if templates.query else []
    corpus = source.corpus.rows if source.corpus else ()
    passages = [Passage(row.id, templates.passage.render(row.values, row.id)) for row in corpus if templates.passage]
    ids = [row.id for row in rows]
    with located(f"tasks.{name}.retrieval"):
        found = retrieve(block, passages, queries, gold, ids, cache)
    return dict(zip(shown, found, strict=True)), dict(zip(shown, gold, strict=True)) if gold else {}


def _join(
    block: PromptBlock,
    templates: Templates,
    row: Row,
    worked: Sequence[tuple[str, str]],
    question: str,
    chat: Chat | None,
) -> str:
    """Description, shots and question as one text; for a chat model, shots are turns of the conversation."""
    description = templates.description.render(row.values, row.id)
    if chat is None:
        shots = "".join(f"{asked}{block.delimiter}{told}{block.separator}" for asked, told in worked)
        return description + shots + question
    messages = []
    system = (templates.system.render(row.values, row.id) if templates.system else "") or ""
    if system or description:
        messages.append({"role": "system", "content": "\n".join(part for part in (system, description) if part)})
    for asked, told in worked:
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": told}]
    return chat([*messages, {"role": "user", "content": question}])
