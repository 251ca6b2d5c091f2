"""The blocks of the language: what a user may write, one pydantic model a block, one docstring a field.

`Spec` is the whole file after `include:` and `extends:` were resolved. A sweep turns it into cells, each of which
is again made of these blocks. The JSON Schema and docs/language.md are generated from here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from evalspec.errors import suggest
from evalspec.spec.base import NAME, Block, Misfit, misfits
from evalspec.spec.data import DataBlock
from evalspec.spec.extraction import PLAIN, Filters, StepBlock, chain_misfits
from evalspec.spec.hypotheses import HypothesisBlock
from evalspec.spec.measure import MeasureBlock
from evalspec.spec.metric import Metric
from evalspec.spec.model import ModelBlock
from evalspec.spec.needs import EVIDENCE_OF_KIND, METRICS, Kind
from evalspec.spec.prompt import PromptBlock
from evalspec.spec.published import PublishedBlock
from evalspec.spec.retrieval import RetrievalBlock

MAIN = "main"
"""The stage that a task itself is."""


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
    def unconditional(self) -> bool:
        """Whether each choice is also scored without its prompt, because a metric compares with that."""
        declared = [METRICS.get(block.metric) for block in self.metrics]
        return self.kind == "choose" and any(one is not None and one.unconditional for one in declared)

    @property
    def chains(self) -> Mapping[str, Sequence[StepBlock]]:
        """The chains under which outputs are scored, by name."""
        return self.filters or PLAIN

    @property
    def scored_by(self) -> set[tuple[Literal["metric", "step"], str]]:
        """The names of all metrics and steps that score it and its stages."""
        found: set[tuple[Literal["metric", "step"], str]] = set()
        for metrics, filters in [(self.metrics, self.filters), *((s.metrics, s.filters) for s in self.stages.values())]:
            found |= {("metric", block.metric) for block in metrics}
            found |= {("step", block.step) for chain in filters.values() for block in chain if block.step}
        return found

    def at(self, stage: str) -> TaskBlock:
        """A stage as a task of its own: with the task's rows, passages, clusters, number of repeats and, unless it has
        one, target."""
        block = self.stages[stage]
        target = self.prompt.target if block.prompt.target is None else block.prompt.target
        repeats = {"repeats": self.decode.repeats if self.decode else 1}
        options = self.prompt.options if block.decode else None
        return TaskBlock.model_construct(
            data=self.data,
            prompt=block.prompt.model_copy(update={"target": target, "options": options}),
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
            if stage.prompt.options is not None:
                found.append(((*where, "prompt", "options"), "are the task's; a stage's filters find the same"))
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
        if self.prompt.options is not None and self.decode is None:
            found.append((("prompt", "options"), "are of a generated answer (`decode`); what is scored are `choices`"))
        repeats, options = self.decode.repeats if self.decode else 1, self.prompt.options is not None
        found += chain_misfits(self.filters, generates=self.decode is not None, repeats=repeats, options=options)
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
            elif declared.unconditional and self.prompt.contexts is not None:
                said = f"`{block.metric}` needs `prompt.choices`: all `contexts` have one continuation to compare with"
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
    published: Annotated[
        dict[Annotated[str, Field(pattern=NAME)], PublishedBlock],
        BeforeValidator(lambda value: {} if value is None else value),
    ] = Field(default_factory=dict)
    """What others published, by name: figures that the run's own values are held against, to within a tolerance."""

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
