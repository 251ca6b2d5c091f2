"""The blocks of the language: what a user may write, one pydantic model a block, one docstring a field.

`Spec` is the whole file after `include:` and `extends:` were resolved. A sweep turns it into cells, each of which
is again made of these blocks. The JSON Schema and docs/language.md are generated from here.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from evalspec.errors import suggest
from evalspec.spec.base import NAME, Block, Misfit, misfits
from evalspec.spec.extraction import PLAIN, Filters, StepBlock, chain_misfits
from evalspec.spec.hypotheses import HypothesisBlock
from evalspec.spec.needs import EVIDENCE_OF_KIND, METRICS, Kind

MAIN = "main"
"""The stage that a task itself is."""


class ModelBlock(Block):
    """A model: where its weights are, what runs it, in which precision."""

    extends: str | None = None
    """Name of another model whose keys this one starts from."""
    weights: str
    """`zoo/NAME` (shipped with evalspec), a directory, or a Hugging Face hub id."""
    backend: Literal["auto", "native", "transformers"] = "auto"
    """What runs it. `auto`: native for Mamba and Mamba-2, transformers for everything else."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of weights and activations. `auto`: float32 on a CPU, bfloat16 on a GPU."""
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:[0-9]+)?)$")
    """`auto` (a GPU where there is one), `cpu`, `cuda`, `cuda:1` … (ROCm devices are called `cuda` too)."""
    device_map: Literal["auto", "balanced", "sequential"] | None = None
    """Spread the layers over several GPUs (transformers backend only)."""
    kernels: Literal["auto", "torch", "triton", "mamba_ssm"] = "auto"
    """What convolutions and recurrences run on in the native backend. `triton`: our own kernels for GPUs. `mamba_ssm`:
    those of the packages mamba-ssm and causal-conv1d, for GPUs too. `torch`: plain forms, for comparison. `auto`:
    `triton` on a GPU, compiled loops and products on a CPU."""
    state_dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision in which the native backend keeps state-space states between batches of tokens and while it decodes
    (what is computed is float32). `bfloat16` halves their memory and rounds them, so that results depend a little on
    where batches begin."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    tokenizer: str | None = None
    """A tokenizer from elsewhere (directory or hub id); by default the one beside the weights."""
    max_length: int | None = Field(default=None, gt=0)
    """Longest sequence the model is given, in tokens; by default what its config allows."""
    trained_length: int | None = Field(default=None, gt=0)
    """Length the model was trained at, in tokens; by default what its config says."""
    chat: bool = False
    """Render each prompt through the tokenizer's chat template."""
    batch_tokens: int | None = Field(default=None, gt=0)
    """Most tokens in one batch; by default chosen from the device, and halved when memory runs out."""


class DataBlock(Block):
    """Rows: from a file, a SQL query, the Hugging Face hub, a generated world, or written out. Exactly one source."""

    generate: str | None = None
    """Name of a generator, `world.questions` for example."""
    seed: int = 0
    """Seed of the generator; the same seed gives the same world."""
    count: int | None = Field(default=None, gt=0)
    """How many rows to generate."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of the generator."""
    file: str | None = None
    """A JSON Lines, JSON, CSV or Parquet file (also gzipped), or a glob of such files."""
    format: Literal["auto", "jsonl", "json", "csv", "parquet"] = "auto"
    """Format of the file; `auto` goes by its name."""
    sql: str | None = None
    """A SELECT for DuckDB; relative file names in it start at the project's root."""
    database: str | None = None
    """A DuckDB database file that the query reads."""
    hub: str | None = None
    """Id of a data set on the Hugging Face hub."""
    subset: str | None = None
    """Configuration of the hub data set."""
    split: str | None = None
    """Split of the hub data set."""
    revision: str | None = None
    """Branch, tag or commit of the hub data set."""
    rows: list[dict[str, Any]] | None = Field(default=None, min_length=1)
    """The rows themselves, each a mapping from columns to values."""
    id: str | None = None
    """Column that names a row. Default: the column `id` if there is one, else a hash of the row's content."""

    @model_validator(mode="after")
    def _one_source(self) -> DataBlock:
        sources = [name for name in SETTINGS_OF_SOURCE if getattr(self, name) is not None]
        if len(sources) != 1:
            found = " and ".join(f"`{name}`" for name in sources) or "none"
            raise misfits([((), f"needs exactly one of `generate`, `file`, `sql`, `hub`, `rows`; found {found}")])
        useless = [
            ((name,), f"belongs to `{source}`; the rows come from `{sources[0]}`")
            for source, names in SETTINGS_OF_SOURCE.items()
            for name in names
            if source != sources[0]
            and name not in SETTINGS_OF_SOURCE[sources[0]]
            and name in self.model_fields_set
            and getattr(self, name) is not None
        ]
        if useless:
            raise misfits(useless)
        return self


# Which of a data block's settings mean something for which source; `id` serves all.
SETTINGS_OF_SOURCE: dict[str, tuple[str, ...]] = {
    "generate": ("seed", "count", "options"),
    "file": ("format",),
    "sql": ("database",),
    "hub": ("subset", "split", "revision"),
    "rows": (),
}


class ShotsBlock(Block):
    """Worked examples in front of the question, from rows that are not evaluated."""

    n: int = Field(default=0, ge=0)
    """How many."""
    sampler: Literal["random", "first", "balanced", "nearest"] = "random"
    """`random`: one order of the pool per (seed, draw). `first`: the pool's own order. `balanced`: as many of each
    label. `nearest`: those whose query text is most like the sample's (BM25)."""
    seed: int = 0
    """Seed of the draw."""
    draws: int = Field(default=1, ge=1)
    """How many independent sets of shots; each sample is evaluated under each."""
    per_sample: bool = False
    """Draw anew for each sample, from (seed, sample id), instead of one set for all."""
    pool: float = Field(default=0.2, gt=0, lt=1)
    """Share of the rows, chosen by a hash of their ids, kept apart as the pool of shots."""
    data: DataBlock | None = None
    """Rows to draw shots from, instead of a part of the evaluated data (a training split, say)."""
    template: str | None = None
    """Template of a shot's question; by default the prompt's."""
    target: str | None = None
    """Template of a shot's answer; by default the right answer."""
    delimiter: str | None = None
    """What stands between a shot's question and its answer; by default the prompt's `delimiter`."""
    label: str | None = None
    """Template of the label that `balanced` balances; by default the target."""
    query: str | None = None
    """Template of the text by which `nearest` compares; by default the rendered prompt without shots."""
    labels: Literal["right", "wrong", "random"] = "right"
    """A control that separates copying from learning: which answers the shots show. `wrong`: another choice of the
    shot's, or without choices another pool row's target. `random`: any of them, the right one too. Drawn for each shot
    from (seed, draw, its id)."""

    @model_validator(mode="after")
    def _one_answer(self) -> ShotsBlock:
        if self.labels != "right" and self.target is not None:
            raise misfits(
                [(("labels",), "puts other answers in the place of the right one, and `target` does too; drop one")]
            )
        return self


def _shots(value: Any) -> Any:
    return {"n": value} if isinstance(value, int) and not isinstance(value, bool) else value


class StepsBlock(Block):
    """Right steps to compare written ones with. A text is its steps, then `end`, then its answer."""

    right: str
    """Template of the right steps: one text, or an `{{ expression }}` that yields a list."""
    separator: str = Field(default=", ", min_length=1)
    """What stands between steps."""
    end: str = "Answer:"
    """What stands between the steps and the answer (where it comes last); without it there is no answer."""


def _steps(value: Any) -> Any:
    return {"right": value} if isinstance(value, str) else value


class PromptBlock(Block):
    """How a row becomes a prompt, and what the right answer is."""

    template: str | None = None
    """A file under the project's root ending in `.jinja`, or the template itself. It sees the row's columns, and
    `passages` (each with `.id`, `.text`, `.rank`, `.score`). Where it is empty and nothing else stands in front, the
    target is scored as a text of its own, in windows of the model's length."""
    target: str | int | None = None
    """Template of the right answer; for choices and contexts, the index or the text of the right one. A template that
    is a single `{{ expression }}` yielding a list means several right answers."""
    choices: list[str] | str | None = None
    """Answers to choose from: a list of templates, or one `{{ expression }}` that yields a list."""
    contexts: list[str] | str | None = None
    """In place of `template` and `choices`: prompts to choose from, written as choices are. Chosen is the one after
    which `continuation` is likeliest, as WinoGrande asks. They see the row's columns, and no passages."""
    continuation: str | None = None
    """Template of the text that every context is continued with."""
    prefix: str = ""
    """Text with which the answer begins and that the model is given (a template): `The best answer is`. It stands in
    the shots too."""
    shots: Annotated[ShotsBlock | None, BeforeValidator(_shots)] = None
    """Worked examples: a number, or a block. Where they are named, even as 0, a part of the rows is kept apart as their
    pool, so that every number of shots is evaluated on the same samples."""
    steps: Annotated[StepsBlock | None, BeforeValidator(_steps)] = None
    """The right steps on the way to the answer, for the metrics that judge written steps: a template, or a block."""
    description: str = ""
    """Text in front of everything, an instruction for example (a template)."""
    separator: str = "\n\n"
    """What stands between shots, and between the last shot and the question."""
    delimiter: str = " "
    """What stands between a prompt and its answer."""
    system: str | None = None
    """System message (a template), for models with `chat: true`."""
    overflow: Literal["truncate", "error"] = "truncate"
    """What happens to a prompt longer than the model can hold: keep its right end (counted and shown), or stop."""
    unknown: list[str] = Field(default_factory=list)
    """Answers that say that the prompt does not hold the answer, `unknown` for example; `abstained` looks for them."""

    @model_validator(mode="after")
    def _one_way_to_ask(self) -> PromptBlock:
        found: list[Misfit] = []
        if self.contexts is None:
            if self.template is None:
                found.append(((), "needs a key `template` (or `contexts`, one prompt a choice)"))
            if self.continuation is not None:
                found.append((("continuation",), "continues `contexts`, which this prompt does not have"))
        else:
            found += [
                ((name,), "and `contexts` exclude each other: a prompt is one for all choices or one a choice")
                for name in ("template", "choices")
                if getattr(self, name) is not None
            ]
            if self.continuation is None:
                found.append((("contexts",), "need a `continuation`, the text that each of them is continued with"))
        if found:
            raise misfits(found)
        return self


class SameBlock(Block):
    """Distractors that have something in common with the gold passage."""

    same: str
    """Template over the columns of the corpus: distractors are passages for which it gives what it gives for a gold
    one, in random order; where these run out, random ones follow."""


class ChunkBlock(Block):
    """Documents cut into passages of at most so many words, characters or tokens: exactly one of the three."""

    words: int | None = Field(default=None, ge=1)
    """Most words (what stands between white space) in a passage."""
    characters: int | None = Field(default=None, ge=1)
    """Most characters in a passage; it may end within a word."""
    tokens: int | None = Field(default=None, ge=1)
    """Most tokens of `tokenizer` in a passage."""
    overlap: int = Field(default=0, ge=0)
    """How many of them two neighbours share."""
    tokenizer: str | None = None
    """What counts `tokens`: `zoo/NAME`, a directory or a hub id."""

    @property
    def size(self) -> int:
        """The number that was given, of whichever unit."""
        return self.words or self.characters or self.tokens or 0

    @model_validator(mode="after")
    def _one_unit(self) -> ChunkBlock:
        found: list[Misfit] = []
        given = [name for name in ("words", "characters", "tokens") if getattr(self, name) is not None]
        if len(given) != 1:
            named = " and ".join(f"`{name}`" for name in given) or "none"
            found.append(((), f"needs exactly one of `words`, `characters`, `tokens`; found {named}"))
        elif self.overlap >= self.size:
            found.append(
                (("overlap",), f"must be less than `{given[0]}: {self.size}`, or no passage would get further")
            )
        if given == ["tokens"] and self.tokenizer is None:
            found.append(((), "needs `tokenizer` to count tokens: a model's name or directory"))
        if given != ["tokens"] and self.tokenizer is not None:
            found.append((("tokenizer",), "belongs to `tokens`"))
        if found:
            raise misfits(found)
        return self


class RerankBlock(Block):
    """A cross-encoder reads query and passage together and orders anew what the retriever found (extra `dense`)."""

    model: str
    """A cross-encoder with one output, as sentence-transformers loads it: a directory or a hub id."""
    depth: int = Field(default=50, ge=1)
    """How many of the retriever's passages it reads, k at least."""


class RetrievalBlock(Block):
    """Which passages a row's prompt is given."""

    corpus: DataBlock | None = None
    """Where the passages are."""
    text: str = "{{ text }}"
    """Template of a passage's text."""
    query: str = "{{ question }}"
    """Template of the query."""
    gold: str | None = None
    """Template yielding the id, or the list of ids, of the passages that answer the question."""
    retriever: str = "bm25"
    """`none`, `oracle`, `bm25`, `dense`, `fusion`, or a plugin's."""
    k: int = Field(default=5, ge=1)
    """How many passages."""
    chunk: ChunkBlock | None = None
    """Cut the corpus's documents into passages, `doc#1`, `doc#2` …; `gold` then names documents, and a passage is
    relevant when its document is gold."""
    rerank: RerankBlock | None = None
    """Order anew what the retriever found."""
    order: Literal["rank", "reverse", "random"] = "rank"
    """Order of the passages in the prompt: best first, best last, or at random."""
    withhold_gold: bool = False
    """Leave each evaluated row's gold passages out of its ranking and its shots', so that nothing relevant is there.
    Shots keep what answers themselves."""
    distractors: Literal["near", "random"] | SameBlock = "near"
    """Oracle: the passages beside the gold are BM25's best wrong ones, random ones, or those that have something in
    common with it."""
    n_distractors: int | None = Field(default=None, ge=0)
    """Oracle: how many distractors, beside all gold passages; by default as many as make k passages."""
    gold_at: Literal["random", "first", "last"] | int = "random"
    """Oracle: where the gold passage stands; a number counts from 1."""
    encoder: str = "all-MiniLM-L6-v2"
    """Dense: a sentence-transformers model; the default needs no network (extra `dense`)."""
    of: list[str] = Field(default=["bm25", "dense"], min_length=1)
    """Fusion: the retrievers whose rankings are merged (reciprocal rank)."""
    rank_constant: int = Field(default=60, ge=1)
    """Fusion: the constant c in Σ 1 / (c + rank)."""
    stemmer: str = "english"
    """BM25: language of the Snowball stemmer and stop words, or `none`."""
    seed: int = 0
    """Seed of a random `order`, and of the oracle's places and random distractors."""

    @property
    def cut(self) -> int | None:
        """Where metrics of the ranking are cut: k, or None (its end) where a row's gold decides how long it is."""
        return None if self.n_distractors is not None and self.retriever == "oracle" else self.k

    @model_validator(mode="after")
    def _has_what_its_retriever_needs(self) -> RetrievalBlock:
        found: list[Misfit] = []
        if self.retriever != "none" and self.corpus is None:
            found.append(((), f"needs `corpus`: the retriever `{self.retriever}` has nowhere to look"))
        if self.retriever == "oracle" and self.gold is None:
            found.append(((), "needs `gold`: the retriever `oracle` gives each row its gold passages"))
        if isinstance(self.gold_at, int) and self.gold_at < 1:
            found.append((("gold_at",), "counts places from 1"))
        if self.withhold_gold and self.gold is None:
            found.append((("withhold_gold",), "needs `gold`: which passages to leave out"))
        if found:
            raise misfits(found)
        return self


class DecodeBlock(Block):
    """How an answer is generated."""

    max_tokens: int = Field(default=64, ge=1)
    """Most tokens to generate."""
    stop: list[str] = Field(default_factory=list)
    """Texts that end the answer (they are not part of it)."""
    temperature: float = Field(default=0.0, ge=0)
    """0 is greedy."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Sample from the smallest set of tokens with this probability."""
    top_k: int = Field(default=0, ge=0)
    """Sample from this many likeliest tokens; 0 means all."""
    repeats: int = Field(default=1, ge=1)
    """How many answers to each prompt, each with its own seed."""
    seed: int = 0
    """Seed of sampling."""

    @model_validator(mode="after")
    def _repeats_differ(self) -> DecodeBlock:
        found: list[Misfit] = []
        if self.repeats > 1 and self.temperature == 0:
            said = "above 1 gives the same answer each time at temperature 0; set a `temperature`"
            found.append((("repeats",), said))
        found += [
            (("stop", index), "is empty and would end every answer at once")
            for index, text in enumerate(self.stop)
            if not text
        ]
        if found:
            raise misfits(found)
        return self


class MetricBlock(Block):
    """A metric and where it is cut."""

    metric: str
    """Its name."""
    k: int | None = Field(default=None, ge=1)
    """Rank at which a retrieval metric is cut; by default the retrieval's k. For `nll` the position, which it needs."""
    filters: list[str] | None = Field(default=None, min_length=1)
    """The chains of `filters` under which it is taken; by default all of them."""
    literal: bool = False
    """exact_match: compare the texts as they are, but for what `ignore_…` leaves out, and not after SQuAD's
    normalisation. Each `ignore_…` says so by itself."""
    ignore_case: bool = False
    """exact_match: compare them in lower case."""
    ignore_punctuation: bool = False
    """exact_match: compare them without ASCII punctuation."""
    ignore_numbers: bool = False
    """exact_match: compare them without ASCII digits."""
    regexes_to_ignore: list[str] = Field(default_factory=list)
    """exact_match: take out what these regular expressions find, one after the other, before anything else."""

    @model_validator(mode="after")
    def _patterns_are_patterns(self) -> MetricBlock:
        found: list[Misfit] = []
        for index, pattern in enumerate(self.regexes_to_ignore):
            try:
                re.compile(pattern)
            except (re.error, OverflowError, RecursionError) as error:
                found.append((("regexes_to_ignore", index), f"is not a regular expression: {error}"))
        if found:
            raise misfits(found)
        return self

    @property
    def options(self) -> dict[str, Any]:
        """What is said besides the name, the cut and the chains."""
        fields = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: value for name, value in fields.items() if name not in ("metric", "k", "filters") and value}

    @property
    def label(self) -> str:
        """The name under which results are stored: `exact_match(ignore_case)`, and when k is fixed here `recall@3`."""
        shown = [name if value is True else f"{name}={_short(value)}" for name, value in self.options.items()]
        named = f"{self.metric}({','.join(shown)})" if shown else self.metric
        return f"{named}@{self.k}" if self.k else named


def _short(value: Any) -> str:
    """A few letters that differ where values do, for a name that people read and type."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:6]


def _metric(value: Any) -> Any:
    if isinstance(value, str):
        found = re.fullmatch(r"(.+?)@(\d+)", value)
        return {"metric": found[1], "k": int(found[2])} if found else {"metric": value}
    return value


Metric = Annotated[MetricBlock, BeforeValidator(_metric)]


class StageBlock(Block):
    """A further step of a task: every answer of the step before it is asked about once more, under a prompt that may
    read it. It has no shots and no passages of its own; it sees the task's."""

    when: str | None = None
    """Template that decides whether this stage is asked: not where it comes to nothing, `false` or 0. A sample that is
    left out has a row whose `finish_reason` is `skipped`, and no score."""
    prompt: PromptBlock
    """How it is asked. Its templates see the row, `passages`, and of each stage before it (`main` is the task itself)
    `outputs.NAME` (what the model wrote or chose), `extracted.NAME.FILTER` and `prompts.NAME` (what it had read).
    `target` is the task's unless it is written."""
    decode: DecodeBlock | None = None
    """Generate an answer, one to each of the task's repeats."""
    filters: Filters = Field(default_factory=dict)
    """How answers are taken from what this stage generated."""
    metrics: list[Metric] = Field(default_factory=list)
    """What is measured of this stage's answers."""


class TaskBlock(Block):
    """One thing that models are asked to do: rows, a prompt, perhaps passages, and metrics."""

    extends: str | None = None
    """Name of another task whose keys this one starts from."""
    data: DataBlock
    """The rows."""
    prompt: PromptBlock
    """How a row becomes a prompt."""
    retrieval: RetrievalBlock | None = None
    """Which passages the prompt sees."""
    decode: DecodeBlock | None = None
    """Generate an answer. Without it (and without `choices`) the target's likelihood is scored."""
    filters: Filters = Field(default_factory=dict)
    """How answers are taken from what was generated: from the name of a chain to its steps, each a step's name or a
    block. Every metric of the output is scored under every chain. By default one, `default`, of the step `strip`."""
    metrics: list[Metric] = Field(min_length=1)
    """What is measured: names, `recall@3`, or blocks."""
    cluster: str | None = None
    """Template of the group a row belongs to (its document, say); intervals are then clustered by it."""
    stages: dict[Annotated[str, Field(pattern=NAME)], StageBlock] = Field(default_factory=dict)
    """Further steps, run one after the other once the task itself (the stage `main`) is answered."""

    @property
    def kind(self) -> Kind:
        """`generate`, `choose` or `score`."""
        if self.decode is not None:
            return "generate"
        return "score" if self.prompt.choices is None and self.prompt.contexts is None else "choose"

    @property
    def chains(self) -> Mapping[str, Sequence[StepBlock]]:
        """The chains under which outputs are scored, by name."""
        return self.filters or PLAIN

    def at(self, stage: str) -> TaskBlock:
        """A stage as a task of its own: with the task's rows, passages, clusters, number of repeats and, unless it has
        one, target."""
        block = self.stages[stage]
        target = self.prompt.target if block.prompt.target is None else block.prompt.target
        repeats = {"repeats": self.decode.repeats if self.decode else 1}
        return TaskBlock.model_construct(
            data=self.data,
            prompt=block.prompt.model_copy(update={"target": target}),
            retrieval=self.retrieval,
            decode=block.decode and block.decode.model_copy(update=repeats),
            filters=block.filters,
            metrics=block.metrics,
            cluster=self.cluster,
        )

    @model_validator(mode="after")
    def _parts_fit(self) -> TaskBlock:
        found = self._misfits()
        for name, stage in self.stages.items():
            where: tuple[str | int, ...] = ("stages", name)
            if name == MAIN:
                found.append((where, f"cannot be called `{MAIN}`: that is the task itself"))
            if stage.prompt.shots is not None:
                said = "are not for a stage: `{{ prompts.main }}` is the task's prompt, with its shots"
                found.append(((*where, "prompt", "shots"), said))
            if stage.prompt.contexts is not None:
                found.append(((*where, "prompt", "contexts"), "are for a task itself; give the stage a `template`"))
            if stage.decode is not None and stage.decode.repeats > 1:
                found.append(
                    ((*where, "decode", "repeats"), "is the task's to say: a stage answers each of its repeats once")
                )
            for index, block in enumerate(stage.metrics):
                if (declared := METRICS.get(block.metric)) and declared.evidence == "retrieval" and self.retrieval:
                    said = f"`{block.metric}` is measured once, by the task's own `metrics`"
                    found.append(((*where, "metrics", index), said))
            found += [((*where, *inner), said) for inner, said in self.at(name)._misfits()]
        if found:
            raise misfits(found)
        return self

    def _misfits(self) -> list[Misfit]:
        """What does not fit together in the task itself, its stages apart."""
        found: list[Misfit] = []
        rivals = [name for name in ("choices", "contexts") if getattr(self.prompt, name) is not None]
        if self.decode is not None and rivals:
            said = f"and `prompt.{rivals[0]}` exclude each other: an answer is generated or chosen"
            found.append((("decode",), said))
        elif self.kind != "generate" and self.prompt.target is None:
            found.append((("prompt",), "needs `target`: without `decode` there is nothing else to score"))
        repeats = self.decode.repeats if self.decode else 1
        found += chain_misfits(self.filters, generates=self.decode is not None, repeats=repeats)
        has = {EVIDENCE_OF_KIND[self.kind]} | ({"retrieval"} if self.retrieval else set())
        for index, block in enumerate(self.metrics):
            declared = METRICS.get(block.metric)
            if declared is None:
                continue  # a plugin's; unknown names are found when names are checked
            said = ""
            if declared.evidence not in has:
                how = {
                    "output": "a generated answer (`decode`)",
                    "choices": "answers to choose from (`prompt.choices`)",
                    "likelihood": "a scored target (neither `decode` nor `prompt.choices`)",
                    "retrieval": "a `retrieval` block",
                }[declared.evidence]
                said = f"`{block.metric}` needs {how}, which this task does not have"
            elif block.k and not declared.at_k:
                said = f"`{block.metric}` is not cut at a rank; drop `@{block.k}`"
            elif declared.at_k and not block.k and declared.evidence == "likelihood":
                said = f"`{block.metric}` needs a position: `{block.metric}@512` looks behind 256 to 512 tokens"
            elif declared.evidence == "output" and declared.compares and self.prompt.target is None:
                said = f"`{block.metric}` compares with `prompt.target`, which is missing"
            elif declared.evidence == "retrieval" and self.retrieval is not None and self.retrieval.gold is None:
                said = f"`{block.metric}` compares with `retrieval.gold`, which is missing"
            elif "steps" in declared.needs and self.prompt.steps is None:
                said = f"`{block.metric}` compares with `prompt.steps`, which is missing"
            elif block.filters is not None and declared.evidence != "output":
                said = f"`{block.metric}` does not look at a generated answer; drop its `filters`"
            elif useless := [name for name in block.options if name not in declared.options]:
                said = f"`{block.metric}` has no option `{useless[0]}`"
            elif "retrieval" in declared.needs and self.retrieval is None:
                said = f"`{block.metric}` looks at the passages shown and needs a `retrieval` block"
            elif "unknown" in declared.needs and not self.prompt.unknown:
                said = f"`{block.metric}` needs `prompt.unknown`: the answers that count as none, [unknown] for example"
            if said:
                found.append((("metrics", index), said))
        for index, block in enumerate(self.metrics):
            for place, name in enumerate(block.filters or ()):
                if name not in self.chains:
                    near = suggest(name, self.chains) or f" It has {', '.join(f'`{known}`' for known in self.chains)}."
                    said = f"the task has no filter `{name}`.{near}"
                    found.append((("metrics", index, "filters", place), said))
        return found


Length = Annotated[int, Field(ge=1)]


class MeasureBlock(Block):
    """How fast and how large each model is when it runs alone: nothing shared, nothing else in its batches."""

    lengths: list[Length] = Field(min_length=1)
    """Contexts to measure at, in tokens. What a model cannot hold is left out, with the reason."""
    kinds: list[Literal["prefill", "decode", "throughput"]] = Field(
        default=["prefill", "decode", "throughput"], min_length=1
    )
    """`prefill`: feeding a context up to its first new token. `decode`: new tokens after a context. `throughput`: both,
    from prompts to finished answers."""
    batch_sizes: list[Length] = Field(default=[1], min_length=1)
    """Sequences at a time, for decode and throughput; prefill is measured one sequence at a time."""
    batch_lengths: list[Length] | None = None
    """Contexts of throughput, and of decode at more than one sequence; by default all of `lengths`."""
    new_tokens: int = Field(default=32, ge=1)
    """How many tokens decode and throughput generate for each sequence."""
    repeats: int = Field(default=6, ge=1)
    """How often each is timed. With fewer than 6 no interval of a median reaches 95 %, and the report says so."""
    warmup: int = Field(default=1, ge=1)
    """How often each is run beforehand without being stored."""
    seed: int = 0
    """Seed of the random tokens that are fed."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads, the same for every model. By default what OMP_NUM_THREADS says, else one if all models are small
    (under 5 million parameters), else all cores."""
    models: list[str] | None = None
    """Which models; by default all."""

    @model_validator(mode="after")
    def _each_once(self) -> MeasureBlock:
        lists = {
            name: getattr(self, name) or [] for name in ("lengths", "kinds", "batch_sizes", "batch_lengths", "models")
        }
        found: list[Misfit] = [
            ((name, index), f"stands twice: {value}")
            for name, values in lists.items()
            for index, value in enumerate(values)
            if value in values[:index]
        ]
        if found:
            raise misfits(found)
        return self


class Spec(Block):
    """A whole evaluation: models × tasks × sweep."""

    name: str = Field(pattern=NAME)
    """Name of the evaluation; its reports are called after it."""
    description: str = ""
    """The question that the evaluation answers; stands at the top of the report."""
    include: list[str] | str = Field(default_factory=list)
    """Other spec files whose keys come first; what stands here wins."""
    models: dict[Annotated[str, Field(pattern=NAME)], ModelBlock] = Field(min_length=1)
    """The models, by the names that reports use."""
    tasks: dict[Annotated[str, Field(pattern=NAME)], TaskBlock] = Field(default_factory=dict, min_length=1)
    """The tasks, by name. Needed, unless there is a `measure` block and nothing else is asked."""
    measure: MeasureBlock | None = None
    """Seconds, bytes and joules of each model running alone, at these lengths."""
    sweep: Annotated[dict[str, Any], BeforeValidator(lambda value: {} if value is None else value)] = Field(
        default_factory=dict
    )
    """What varies: from a path to its values (a product over paths); a value that is a mapping is a condition, merged
    into the block at that path, and lists inside it are expanded. `zip:` holds paths that advance together."""
    hypotheses: Annotated[
        dict[Annotated[str, Field(pattern=NAME)], HypothesisBlock],
        BeforeValidator(lambda value: {} if value is None else value),
    ] = Field(default_factory=dict)
    """What you expect to find, by name: claims that the run judges by paired tests, and that its report begins with."""

    @model_validator(mode="after")
    def _measured_models_are_there(self) -> Spec:
        named = self.measure.models if self.measure else None
        unknown = [
            (("measure", "models", index), f"names no model of this spec: `{name}`.{suggest(name, self.models)}")
            for index, name in enumerate(named or ())
            if name not in self.models
        ]
        if unknown:
            raise misfits(unknown)
        return self
