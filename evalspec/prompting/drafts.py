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
from evalspec.prompting.shots import choose_shots, shown_answer, split_pool
from evalspec.prompting.steps import steps
from evalspec.prompting.templates import Template, compile_template, constant
from evalspec.retrieval import Hit, Passage, chunked, retrieve
from evalspec.spec.blocks import TaskBlock
from evalspec.spec.prompt import PromptBlock, ShotsBlock
from evalspec.spec.retrieval import RetrievalBlock, SameBlock

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
    contexts: tuple[str, ...] = ()
    """One prompt a choice, where the choices are contexts; `prompt` is then the first of them."""
    continuation: str = ""
    """What each of them is continued with."""
    row: Row | None = None
    """What it was made of: later stages read its columns."""
    plain: str = ""
    """The prompt as text where `prompt` is in a chat model's markup; else the same."""
    steps: tuple[str, ...] = ()
    """The right steps, where the task names them."""

    def pairs(self, delimiter: str) -> list[tuple[str, str]]:
        """(context, continuation) of each choice."""
        if self.contexts:
            return [(context, delimiter + self.continuation) for context in self.contexts]
        return [(self.prompt, delimiter + choice) for choice in self.choices]


@dataclass(frozen=True, eq=False)
class Templates:
    """The compiled templates of one task, each naming its key of the spec in errors."""

    question: Template | None
    description: Template
    target: Template | None
    choices: tuple[Template, ...] | Template | None
    contexts: tuple[Template, ...] | Template | None
    continuation: Template | None
    prefix: Template | None
    shot_question: Template | None
    shot_answer: Template | None
    system: Template | None
    label: Template | None
    shot_query: Template | None
    query: Template | None
    gold: Template | None
    passage: Template | None
    kind: Template | None
    cluster: Template | None
    steps: Template | None = None
    when: Template | None = None

    @property
    def texts(self) -> list[str]:
        """The source of each template, in a fixed order."""
        found = []
        for value in vars(self).values():
            found += [template.text for template in (value if isinstance(value, tuple) else (value,)) if template]
        return found

    @classmethod
    def of(cls, name: str, task: TaskBlock, root: Path, when: str | None = None) -> Templates:
        """Compile all templates of a task; raises PromptError for the first that is missing or malformed."""

        def at(key: str, source: str | int | None) -> Template | None:
            where = f"tasks.{name}.{key}"
            if source is None:
                return None
            return constant(str(source), where) if isinstance(source, int) else compile_template(source, root, where)

        prompt, retrieval = task.prompt, task.retrieval
        same = retrieval.distractors if retrieval else None
        shots = prompt.shots or ShotsBlock()

        def several(key: str, source: list[str] | str | None) -> tuple[Template, ...] | Template | None:
            if source is None or isinstance(source, str):
                return at(key, source)
            listed = [at(f"{key}.{number}", item) for number, item in enumerate(source)]
            return tuple(template for template in listed if template)

        description = at("prompt.description", prompt.description)
        assert description is not None
        return cls(
            question=at("prompt.template", prompt.template),
            description=description,
            target=at("prompt.target", prompt.target),
            choices=several("prompt.choices", prompt.choices),
            contexts=several("prompt.contexts", prompt.contexts),
            continuation=at("prompt.continuation", prompt.continuation),
            prefix=at("prompt.prefix", prompt.prefix or None),
            shot_question=at("prompt.shots.template", shots.template),
            shot_answer=at("prompt.shots.target", shots.target),
            system=at("prompt.system", prompt.system),
            label=at("prompt.shots.label", shots.label),
            shot_query=at("prompt.shots.query", shots.query),
            query=at("retrieval.query", retrieval.query if retrieval else None),
            gold=at("retrieval.gold", retrieval.gold if retrieval else None),
            passage=at("retrieval.text", retrieval.text if retrieval else None),
            kind=at("retrieval.distractors.same", same.same if isinstance(same, SameBlock) else None),
            cluster=at("cluster", task.cluster),
            steps=at("prompt.steps.right", prompt.steps.right if prompt.steps else None),
            when=at("when", when),
        )


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(str(item) for item in value) if isinstance(value, list | tuple) else (str(value),)


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
        targets = _texts(raw)
        if not targets:
            raise PromptError(f"{where}: prompt.target of row {row.id} is an empty list")
        return Answer(targets)
    if isinstance(source, Template):
        listed = source.evaluate(row.values, row.id)
        if not isinstance(listed, list | tuple):
            raise PromptError(f"{where}: prompt.{name} of row {row.id} is not a list but {listed!r}")
        choices = _texts(listed)
    else:
        choices = tuple(template.render(row.values, row.id) for template in source)
    if len(choices) < 2:
        raise PromptError(f"{where}: row {row.id} has {len(choices)} {name}; at least two are needed")
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
    if isinstance(target, bool):
        return int(target)  # false and true as a data set writes 0 and 1
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
    hits, gold = _passages(name, task, templates, source, shown, evaluated, root, cache)

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
        return question, _begun(_prefix(templates, row.values, row.id), told)

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
                    row=row,
                    plain=plain,
                    steps=reference_steps(task, templates, row.values, row.id),
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


def seen(task: TaskBlock, row: Row, hits: Sequence[Hit]) -> dict[str, Any]:
    """What a template sees: the row's columns, and with a retrieval block its passages in the prompt's order."""
    if task.retrieval is None:
        return dict(row.values)
    passages = [
        {
            "id": hit.passage.id,
            "text": hit.passage.text,
            "document": hit.passage.document,
            "rank": hit.rank,
            "place": hit.place,
            "score": hit.score,
        }
        for hit in sorted(hits, key=lambda hit: hit.place)
    ]
    return {**row.values, "passages": passages}


def _passages(
    name: str,
    task: TaskBlock,
    templates: Templates,
    source: Source,
    shown: Mapping[Key, Row],
    evaluated: Sequence[Row],
    root: Path,
    cache: Path,
) -> tuple[dict[Key, tuple[Hit, ...]], dict[Key, tuple[str, ...]]]:
    """Retrieved passages and gold ids of each row."""
    rows = list(shown.values())
    block = task.retrieval
    if block is None:
        return {}, {}
    gold = [_texts(templates.gold.evaluate(row.values, row.id)) for row in rows] if templates.gold else None
    queries = [templates.query.render(row.values, row.id) for row in rows] if templates.query else []
    corpus = source.corpus.rows if source.corpus else ()
    passages = [
        Passage(
            row.id,
            templates.passage.render(row.values, row.id),
            kind=templates.kind.render(row.values, row.id) if templates.kind else "",
        )
        for row in corpus
        if templates.passage
    ]
    ids = [row.id for row in rows]
    withheld = _withheld(block, templates, shown, evaluated)
    with located(f"tasks.{name}.retrieval"):
        if block.chunk and block.retriever != "none":
            passages = chunked(passages, block.chunk, root)
        found = retrieve(_rooted(block, root), passages, queries, gold, ids, cache, withheld)
    return dict(zip(shown, found, strict=True)), dict(zip(shown, gold, strict=True)) if gold else {}


def _prefix(templates: Templates, values: Mapping[str, Any], row_id: str) -> str:
    """What the answer to a row begins with."""
    return templates.prefix.render(values, row_id) if templates.prefix else ""


def _begun(prefix: str, told: str) -> str:
    """An answer behind its prefix, with a blank between them where no white space stands (as in lm-eval)."""
    blank = " " if prefix and told and not (prefix[-1].isspace() or told[0].isspace()) else ""
    return f"{prefix}{blank}{told}"


def _joint(question: str, prefix: str, delimiter: str) -> str:
    """What stands between a question and the prefix of its answer."""
    return "" if not question or question[-1].isspace() or prefix[0].isspace() else delimiter


def _withheld(
    block: RetrievalBlock, templates: Templates, shown: Mapping[Key, Row], evaluated: Sequence[Row]
) -> list[frozenset[str]]:
    """Ids of the documents that each row is not shown: with `withhold_gold`, what answers any evaluated row.

    A shot keeps what answers the shot itself (a worked example whose answer stands nowhere would teach to guess), but
    its other passages stand in the same prompt as a question, and must not answer it. All evaluated rows count,
    whatever the limit, so that it changes no prompt.
    """
    if not block.withhold_gold or templates.gold is None:
        return [frozenset()] * len(shown)
    golds = {row.id: frozenset(_texts(templates.gold.evaluate(row.values, row.id))) for row in evaluated}
    every = frozenset().union(*golds.values())
    own = [frozenset(_texts(templates.gold.evaluate(row.values, row.id))) for row in shown.values()]
    tested = [place == "rows" and name in golds for place, name in shown]
    return [gold if is_tested else every - gold for gold, is_tested in zip(own, tested, strict=True)]


def _rooted(block: RetrievalBlock, root: Path) -> RetrievalBlock:
    """The block with the folders of its models, where they stand under the project's root, in full."""
    changed: dict[str, object] = {}
    if (root / block.encoder).is_dir():
        changed["encoder"] = str(root / block.encoder)
    if block.rerank and (root / block.rerank.model).is_dir():
        changed["rerank"] = block.rerank.model_copy(update={"model": str(root / block.rerank.model)})
    return block.model_copy(update=changed) if changed else block


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
    description = templates.description.render(values, row_id)
    prefix = _prefix(templates, values, row_id)
    if chat is None:
        between = block.shots.delimiter if block.shots and block.shots.delimiter is not None else block.delimiter
        shots = "".join(
            f"{asked}{_joint(asked, told, between) if prefix else between}{told}{block.separator}"
            for asked, told in worked
        )
        begun = _joint(question, prefix, block.delimiter) + prefix if prefix else ""
        return description + shots + question + begun
    messages = []
    system = (templates.system.render(values, row_id) if templates.system else "") or ""
    if system or description:
        messages.append({"role": "system", "content": "\n".join(part for part in (system, description) if part)})
    for asked, told in worked:
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": told}]
    return chat([*messages, {"role": "user", "content": question}]) + prefix
