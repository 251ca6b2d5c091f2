"""Everything that needs no accelerator: load rows, retrieve, render, tokenise, lay out the requests of each model.

    cells ──► drafts (one set a distinct task) ──► samples of each model ──► requests ──► forest

The result is a `Plan`: deterministic, so the same spec, data and tokenizer give the same `plan_id`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from evalspec.data.rows import Rows, load_rows
from evalspec.errors import PromptError, located
from evalspec.models.card import Model, cache_folder, find_model
from evalspec.models.served import refuse_what_no_server_does
from evalspec.plan.forest import Decoding, Forest, Request, build_forest
from evalspec.plan.measurements import MeasurePlan, measure_plan
from evalspec.prompting.drafts import Draft, Source, draft_task
from evalspec.prompting.encode import Encoded, encode_pairs, encode_prompts, encode_windows
from evalspec.prompting.joining import Chat
from evalspec.prompting.stages import stage_templates
from evalspec.prompting.task_templates import Templates
from evalspec.registry import plugin_source
from evalspec.spec import Cell, LoadedSpec
from evalspec.spec.base import Block
from evalspec.spec.blocks import MAIN, DecodeBlock, TaskBlock
from evalspec.spec.data import DataBlock
from evalspec.spec.model import HOW_ONLY
from evalspec.spec.needs import METRICS, PLUGINS, STEPS
from evalspec.telling import heard

SampleKey = tuple[str, str, int, str]


@dataclass(frozen=True, eq=False)
class Sample:
    """One prompt of one cell, with everything that its result is scored by. `requests` are its model's.

    A later stage's sample has the stage as its `task`. It may have nothing to ask: where its `when` leaves it out
    (`skipped`), or where its prompt cannot be made (`error` says why).
    """

    cell: Cell
    task: TaskBlock
    draft: Draft
    repeat: int
    prompt_tokens: int
    truncated_tokens: int
    requests: tuple[Request, ...]
    stage: str = MAIN
    skipped: bool = False
    error: str | None = None

    @property
    def key(self) -> SampleKey:
        """(cell_id, sample_id, repeat, stage): names it within a run."""
        return (self.cell.cell_id, self.draft.sample_id, self.repeat, self.stage)


@dataclass(frozen=True, eq=False)
class ModelPlan:
    """What one model is asked, over all its cells."""

    model: Model
    cells: tuple[Cell, ...]
    samples: tuple[Sample, ...]
    """Those of the tasks themselves; later stages' are made once these are answered (`plan.stages`)."""
    stages: Mapping[tuple[str, str], Templates] = field(default_factory=dict)
    """The templates of each (cell_id, stage)."""

    @property
    def all_samples(self) -> int:
        """How many samples there are, with those of later stages."""
        return sum(1 + len(sample.cell.task.stages) for sample in self.samples)

    @cached_property
    def forest(self) -> Forest:
        """The forest of all its requests."""
        return forest_of(self.samples)


def forest_of(samples: Iterable[Sample]) -> Forest:
    """The forest of some samples' distinct requests."""
    distinct = {request.key: request for sample in samples for request in sample.requests}
    return build_forest(distinct.values())


@dataclass(frozen=True, eq=False)
class Plan:
    """A compiled spec."""

    plan_id: str
    loaded: LoadedSpec
    models: tuple[ModelPlan, ...]
    measured: tuple[MeasurePlan, ...] = ()
    """What each model is measured at, running alone."""

    @property
    def cells(self) -> tuple[Cell, ...]:
        """All cells, model by model."""
        return tuple(cell for part in self.models for cell in part.cells)

    @property
    def samples(self) -> int:
        """How many samples all models have together, with those of later stages."""
        return sum(part.all_samples for part in self.models)


def identity(block: Block) -> str:
    """A block's content as canonical JSON; how a server is asked is no part of it."""
    return json.dumps(block.model_dump(mode="json", exclude=HOW_ONLY), sort_keys=True, ensure_ascii=False)


def compile_plan(
    loaded: LoadedSpec, *, limit: int | None = None, progress: Callable[[str], None] = lambda _: None
) -> Plan:
    """Compile a loaded spec. `limit` evaluates only the first rows of each task; `progress` hears what is being done.

    Raises an EvalspecError that names the block and says what to do.
    """
    compiler = _Compiler(loaded, limit, progress)
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell in loaded.cells:
        groups.setdefault((cell.model_name, identity(cell.model)), []).append(cell)
    with heard(progress):
        parts = tuple(compiler.model_plan(cells) for cells in groups.values())
    measured = compiler.measure_plans()
    return Plan(_plan_id(loaded, parts, measured, compiler, limit), loaded, parts, measured)


class _Compiler:
    """Keeps what several cells share: rows, drafts, tokenised texts."""

    def __init__(self, loaded: LoadedSpec, limit: int | None, progress: Callable[[str], None]) -> None:
        self.loaded, self.root, self.limit, self.progress = loaded, loaded.root, limit, progress
        self.said: set[str] = set()
        self.rows: dict[str, Rows] = {}
        self.drafts: dict[tuple[str, str], tuple[list[Draft], Templates]] = {}
        self.stages: dict[tuple[str, str], dict[str, Templates]] = {}

    def load(self, block: DataBlock | None) -> Rows | None:
        if block is None:
            return None
        key = identity(block)
        if key not in self.rows:
            self.rows[key] = load_rows(block, self.root)
        return self.rows[key]

    def _say(self, task: str) -> None:
        """Which task is at work, once for all its variants of a sweep."""
        if task not in self.said:
            self.said.add(task)
            variants = len({identity(cell.task) for cell in self.loaded.cells if cell.task_name == task})
            of = f" of {variants} variants" if variants > 1 else ""
            self.progress(f"task {task}: rows, passages, prompts{of}")

    def drafts_of(self, cell: Cell, chat: Chat | None, model: str) -> list[Draft]:
        key = (identity(cell.task), model if chat else "")
        if key not in self.drafts:
            self._say(cell.task_name)
            task = cell.task
            shots = task.prompt.shots
            rows = self._at(f"tasks.{cell.task_name}.data", task.data)
            assert rows is not None
            pool = None
            if shots and shots.data is not None:  # with no shots their data need not even be there
                read = self._at(f"tasks.{cell.task_name}.prompt.shots.data", shots.data if shots.n else None)
                pool = read or Rows((), "no shots", "")
            wanted = task.retrieval.corpus if task.retrieval and task.retrieval.retriever != "none" else None
            corpus = self._at(f"tasks.{cell.task_name}.retrieval.corpus", wanted)
            source = Source(rows, pool, corpus)
            self.drafts[key] = draft_task(
                cell.task_name, task, source, self.root, cache=cache_folder(), limit=self.limit, chat=chat
            )
            self.stages[key] = stage_templates(cell.task_name, task, self.drafts[key][0], self.root)
        return self.drafts[key][0]

    def _at(self, where: str, block: DataBlock | None) -> Rows | None:
        with located(where):
            return self.load(block)

    def model_plan(self, cells: Sequence[Cell]) -> ModelPlan:
        model = find_model(cells[0].model_name, cells[0].model, self.root)
        if model.served:
            refuse_what_no_server_does(model.name, model.block, [kind for cell in cells for kind in _kinds(cell.task)])
        self.progress(f"model {model.name}: tokens")
        chat = model.tokenizer.chat if cells[0].model.chat else None
        samples: list[Sample] = []
        stages: dict[tuple[str, str], Templates] = {}
        known: dict[tuple[object, ...], Request] = {}
        for cell in cells:
            drafts = self.drafts_of(cell, chat, model.name)
            with located(f"tasks.{cell.task_name}"):
                samples += _samples(cell, drafts, model, known)
            made = self.stages[identity(cell.task), model.name if chat else ""]
            stages |= {(cell.cell_id, stage): templates for stage, templates in made.items()}
        return ModelPlan(model, tuple(cells), tuple(samples), stages)

    def measure_plans(self) -> tuple[MeasurePlan, ...]:
        measure = self.loaded.spec.measure
        if measure is None:
            return ()
        return tuple(
            measure_plan(one.cell_id, find_model(one.model_name, one.model, self.root), one.params, measure)
            for one in self.loaded.measured
        )


def _kinds(task: TaskBlock) -> list[str]:
    """What a task and its stages ask of a model: to `generate`, `choose` or `score`."""
    return [task.kind, *(task.at(stage).kind for stage in task.stages)]


def _decoding(block: DecodeBlock) -> Decoding:
    greedy = block.temperature == 0
    return Decoding(
        max_tokens=block.max_tokens,
        stop=tuple(block.stop),
        temperature=block.temperature,
        # What greedy decoding does not look at must not make two equal requests differ.
        top_p=1.0 if greedy else block.top_p,
        top_k=0 if greedy else block.top_k,
        seed=0 if greedy else block.seed,
    )


def _samples(
    cell: Cell, drafts: Sequence[Draft], model: Model, known: dict[tuple[object, ...], Request]
) -> list[Sample]:
    """The samples of one cell: each draft encoded for this model, once a repeat."""
    task = cell.task
    repeats = task.decode.repeats if task.decode else 1
    samples = []
    for draft, parts in zip(drafts, encoded_drafts(task, drafts, model), strict=True):
        for repeat in range(repeats):
            samples.append(sample_of(cell, task, draft, parts, draft.draw * repeats + repeat, known))
    return samples


def encoded_drafts(task: TaskBlock, drafts: Sequence[Draft], model: Model) -> list[list[Encoded]]:
    """What each draft asks of a model: one encoding, or one a choice or window. Where a metric compares with it, each
    choice without the prompt follows behind all of them. Raises PromptError."""
    tokenizer, longest = model.tokenizer, model.max_length
    decoding = _decoding(task.decode) if task.decode else None
    encoded: list[list[Encoded]]
    if decoding:
        prompts = [draft.prompt for draft in drafts]
        encoded = [[e] for e in encode_prompts(tokenizer, prompts, max_length=longest, new_tokens=decoding.max_tokens)]
    elif task.kind == "choose":
        pairs = [pair for draft in drafts for pair in draft.pairs(task.prompt.delimiter)]
        flat = iter(encode_pairs(tokenizer, pairs, max_length=longest))
        encoded = [[next(flat) for _ in draft.choices] for draft in drafts]
        if task.unconditional:
            alone = _unconditional(task, drafts, model)
            for parts, draft in zip(encoded, drafts, strict=True):
                parts += [alone[choice] for choice in draft.choices]
    elif task.prompt.template == "" and not any(draft.prompt for draft in drafts):  # nothing stands before the text
        encoded = [encode_windows(tokenizer, draft.targets[0], max_length=longest) for draft in drafts]
    else:
        pairs = [(draft.prompt, task.prompt.delimiter + draft.targets[0]) for draft in drafts]
        encoded = [[e] for e in encode_pairs(tokenizer, pairs, max_length=longest)]

    for draft, parts in zip(drafts, encoded, strict=True):
        cut = sum(part.truncated for part in parts)
        if cut and task.prompt.overflow == "error":
            raise PromptError(
                f"the prompt of row {draft.sample_id} is {cut} tokens longer than the {longest} that model "
                f"{model.name} holds; shorten it, or let `prompt.overflow: truncate` keep its right end"
            )
    return encoded


def _unconditional(task: TaskBlock, drafts: Sequence[Draft], model: Model) -> dict[str, Encoded]:
    """Every distinct choice behind the start token alone."""
    choices = list(dict.fromkeys(choice for draft in drafts for choice in draft.choices))
    pairs = [("", task.prompt.delimiter + choice) for choice in choices]
    return dict(zip(choices, encode_pairs(model.tokenizer, pairs, max_length=model.max_length), strict=True))


def sample_of(
    cell: Cell,
    task: TaskBlock,
    draft: Draft,
    parts: Sequence[Encoded],
    number: int,
    known: dict[tuple[object, ...], Request],
    stage: str = MAIN,
) -> Sample:
    """The sample of one draft and repeat. `number` counts draws × repeats; `known` shares equal requests."""
    decoding = _decoding(task.decode) if task.decode else None
    # Only what is drawn by chance differs between repeats.
    repeat = number % task.decode.repeats if task.decode and task.decode.temperature > 0 else 0
    # A server renders a conversation itself. What was cut to fit is none any more, and goes there as token ids.
    turns = draft.turns if cell.model.backend == "server" and decoding else ()
    requests = []
    for part in parts:
        request = Request(part.tokens, part.targets, decoding, repeat, () if part.truncated else turns)
        requests.append(known.setdefault(request.key, request))
    fed, cut = sum(len(part.tokens) for part in parts), sum(part.truncated for part in parts)
    return Sample(cell, task, draft, number, fed, cut, tuple(requests), stage)


def _plan_id(
    loaded: LoadedSpec,
    parts: Sequence[ModelPlan],
    measured: Sequence[MeasurePlan],
    compiler: _Compiler,
    limit: int | None,
) -> str:
    """A hash of what is asked: blocks, templates, data, tokenizers, token ids. Not of where files are."""
    digest = hashlib.sha256()

    def add(*values: Any) -> None:
        digest.update(json.dumps(values, sort_keys=True, ensure_ascii=False, default=list).encode() + b"\n")

    add("spec", loaded.spec.name, limit)
    if loaded.spec.hypotheses:
        seeds = {cell.model_name: cell.model.seed_of for cell in loaded.cells}
        add("hypotheses", loaded.canonical["hypotheses"], seeds)
    if loaded.spec.published:
        add("published", loaded.canonical["published"])
    for block in sorted(compiler.rows):
        add("rows", block, compiler.rows[block].content_hash)
    for key in sorted(compiler.drafts):
        add("templates", key[0], compiler.drafts[key][1].texts)
        for stage, templates in compiler.stages[key].items():
            add("stage", stage, templates.texts)
    for part in parts:
        model = part.model
        add("model", model.name, identity(model.block), dict(model.config), model.tokenizer.fingerprint)
        for cell in part.cells:
            add("cell", cell.cell_id, cell.params, identity(cell.task))
        for sample in part.samples:
            draft = sample.draft
            add(sample.key, draft.prompt, draft.targets, draft.choices, sorted(draft.gold_choices), draft.shot_ids)
            add(draft.contexts, draft.continuation, draft.steps)
            add([hit.passage.id for hit in draft.hits], draft.gold_ids, sample.truncated_tokens)
            for request in sample.requests:
                digest.update(request.tokens.tobytes() + repr(request.targets).encode())
    plugins = _plugins(cell.task for part in parts for cell in part.cells)
    if plugins:
        add("plugins", plugins)
    for one in measured:
        model = one.model
        add("measure", one.cell_id, one.params, identity(one.measure), identity(model.block), dict(model.config))
    return digest.hexdigest()[:16]


def _plugins(tasks: Iterable[TaskBlock]) -> list[tuple[str, ...]]:
    """The metrics and steps of packages that score these tasks, each with what tells it from an earlier version of it.

    What packages' retrievers and generators gave stands in the plan itself.
    """
    named = sorted({one for task in tasks for one in task.scored_by if one[1] not in {**METRICS, **STEPS}})
    return [(kind, name, *plugin_source(PLUGINS[kind], name)) for kind, name in named]
