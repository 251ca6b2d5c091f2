"""The tables of the store: every column with its type and what it says.

`docs/store.md` is held equal to this file by a test. Times are UTC. JSON columns hold JSON values; a number that JSON
cannot write (a log-probability of −infinity) stands there as the text "-Infinity", "Infinity" or "NaN".
"""

from __future__ import annotations

from dataclasses import dataclass

SCHEMA_VERSION = 2
"""Counts up when a table changes; written into every database and every segment."""


@dataclass(frozen=True)
class Column:
    """One column. `key` columns together name a row; a key that may be NULL says so in `nullable`."""

    name: str
    type: str
    about: str
    key: bool = False
    nullable: bool = False


@dataclass(frozen=True)
class TableSchema:
    """One table and what a row of it is."""

    name: str
    about: str
    columns: tuple[Column, ...]

    @property
    def key(self) -> tuple[str, ...]:
        """Names of the columns that together name a row; a later row with the same key replaces the earlier one."""
        return tuple(column.name for column in self.columns if column.key)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all columns, in order."""
        return tuple(column.name for column in self.columns)

    def create(self, name: str) -> str:
        """The CREATE TABLE statement, under the given (qualified) name."""
        columns = ", ".join(
            f'"{c.name}" {c.type}{" NOT NULL" if c.key and not c.nullable else ""}' for c in self.columns
        )
        return f"CREATE TABLE IF NOT EXISTS {name} ({columns})"


RUN = Column("run_id", "VARCHAR", "the run", key=True)
CELL = Column("cell_id", "VARCHAR", "the cell: one model × task × point of the sweep", key=True)
SAMPLE = Column("sample_id", "VARCHAR", "the row of the data that was asked about", key=True)
DRAW = Column("draw", "INTEGER", "which draw of the shots, from 0", key=True, nullable=True)
REPEAT = Column("repeat", "INTEGER", "which repetition of the same request, from 0", key=True, nullable=True)
STAGE = Column("stage", "VARCHAR", "the step of a task that has several", key=True, nullable=True)
FILTER = Column("filter", "VARCHAR", "how the answer was taken from the output", key=True, nullable=True)

TABLES: dict[str, TableSchema] = {
    table.name: table
    for table in (
        TableSchema(
            "runs",
            "One row a run.",
            (
                RUN,
                Column("spec_name", "VARCHAR", "`name:` of the spec"),
                Column("spec", "VARCHAR", "text of the spec as it was run"),
                Column("plan_id", "VARCHAR", "hash of what was asked"),
                Column(
                    "status",
                    "VARCHAR",
                    "running, finished, failed (some samples did) or interrupted (stopped or killed)",
                ),
                Column("started_at", "TIMESTAMP", "when it began (UTC)"),
                Column("finished_at", "TIMESTAMP", "when it ended (UTC); NULL while it is running"),
                Column("evalspec_version", "VARCHAR", "version of evalspec"),
                Column("git_commit", "VARCHAR", "commit of the project that the spec stands in"),
                Column("host", "VARCHAR", "machine"),
                Column("device", "VARCHAR", "what computed: cpu, the GPU's name, …"),
                Column("versions", "JSON", "versions of what the results depend on: torch, transformers, …"),
            ),
        ),
        TableSchema(
            "cells",
            "One row a cell of a run.",
            (
                RUN,
                CELL,
                Column("model", "VARCHAR", "name of the model in the spec"),
                Column("weights_hash", "VARCHAR", "hash of the weights that answered"),
                Column("task", "VARCHAR", "name of the task in the spec; NULL for a model that is measured alone"),
                Column("params", "JSON", "object from sweep path to value"),
                Column("backend", "VARCHAR", "backend that ran it"),
                Column("dtype", "VARCHAR", "number format of the weights while running"),
                Column("trained_length", "BIGINT", "tokens that the model was trained at; NULL where it is not known"),
            ),
        ),
        TableSchema(
            "samples",
            "One row a sample, under each repeat, draw and stage: what was asked and what came back.",
            (
                RUN,
                CELL,
                SAMPLE,
                REPEAT,
                DRAW,
                STAGE,
                Column("prompt", "VARCHAR", "the text the model read"),
                Column("target", "VARCHAR", "the right answer"),
                Column("output", "VARCHAR", "the generated text, or the choice that was likeliest"),
                Column("choices", "JSON", "texts of the choices, for a multiple choice"),
                Column(
                    "logprobs",
                    "JSON",
                    "natural log-probabilities: one a choice, or of the target; behind those of all choices, where a "
                    "metric compares with them, those of each without its prompt",
                ),
                Column("greedy", "JSON", "whether all their tokens were the likeliest: one a choice, or of the target"),
                Column("shot_ids", "JSON", "ids of the examples in the prompt, in order"),
                Column(
                    "prompt_tokens",
                    "BIGINT",
                    "tokens fed for it when nothing is shared; of choices, each with the prompt",
                ),
                Column("truncated_tokens", "BIGINT", "tokens cut off the prompt's left end"),
                Column(
                    "finish_reason",
                    "VARCHAR",
                    "of an answer: stop, length, or nan (no numbers to choose by); or skipped",
                ),
                Column("cached", "BOOLEAN", "taken from an earlier run, not computed"),
                Column("error", "VARCHAR", "why there is no answer; NULL when there is one"),
                Column("cache_key", "VARCHAR", "hash of everything that can change the answer; NULL: never reused"),
                Column("cluster", "VARCHAR", "the document it comes from, where several samples share one"),
            ),
        ),
        TableSchema(
            "scores",
            "One row a sample and metric.",
            (
                RUN,
                CELL,
                SAMPLE,
                REPEAT,
                DRAW,
                STAGE,
                FILTER,
                Column("metric", "VARCHAR", "the metric, with its k: `recall@5`", key=True),
                Column("extracted", "VARCHAR", "the answer that the filter took, its fallback where it found none"),
                Column("found", "BOOLEAN", "whether the filter found an answer; NULL: the metric looks at none"),
                Column("value", "DOUBLE", "the score"),
                Column("weight", "DOUBLE", "tokens, words or bytes behind it, for perplexities; NULL: all weigh alike"),
                Column(
                    "parts", "JSON", "counts that a metric of all samples together sums (BLEU, say); NULL for others"
                ),
            ),
        ),
        TableSchema(
            "metrics",
            "One row a cell, stage, filter and metric: the aggregate over its samples, with its 95 % interval.",
            (
                RUN,
                CELL,
                STAGE,
                FILTER,
                Column("metric", "VARCHAR", "the metric, with its k: `recall@5`", key=True),
                Column("value", "DOUBLE", "the aggregate"),
                Column("stderr", "DOUBLE", "its standard error"),
                Column("ci_low", "DOUBLE", "lower end of the 95 % interval"),
                Column("ci_high", "DOUBLE", "upper end of the 95 % interval"),
                Column("n", "BIGINT", "scores behind it; repeats of a sample are one unit of the interval"),
            ),
        ),
        TableSchema(
            "retrievals",
            "One row a passage that was shown with a sample.",
            (
                RUN,
                CELL,
                SAMPLE,
                Column("rank", "INTEGER", "place in the ranking, from 1", key=True),
                Column("place", "INTEGER", "place in the prompt, from 1 (`order:` may make it another)"),
                Column("passage_id", "VARCHAR", "the passage"),
                Column("document_id", "VARCHAR", "the document that it is cut from; itself where documents stay whole"),
                Column("text", "VARCHAR", "its text, as the prompt shows it"),
                Column("score", "DOUBLE", "the retriever's score"),
                Column("relevant", "BOOLEAN", "whether it is a gold passage; NULL when no gold is known"),
            ),
        ),
        TableSchema(
            "efficiency",
            "One row a cell: its share of what the run cost. Shared tokens are split equally among the cells that use "
            "them, so sums over a run are the run's totals; claims about speed come from `measurements` only.",
            (
                RUN,
                CELL,
                Column("prompt_tokens", "BIGINT", "tokens of its prompts: what is fed when nothing is shared"),
                Column("distinct_tokens", "DOUBLE", "its share of the distinct tokens of the forest"),
                Column("computed_tokens", "DOUBLE", "its share of the prompt tokens that were really fed"),
                Column("cached_tokens", "DOUBLE", "prompt tokens whose answers came from earlier runs"),
                Column("output_tokens", "BIGINT", "tokens generated"),
                Column("requests", "BIGINT", "requests answered"),
                Column("seconds", "DOUBLE", "its share of the time; over Ray, of all workers' time"),
                Column("tokens_per_second", "DOUBLE", "computed and generated tokens over seconds"),
                Column("peak_memory_bytes", "BIGINT", "most device memory of its model"),
                Column("state_bytes", "BIGINT", "state or KV cache of one sequence"),
            ),
        ),
        TableSchema(
            "measurements",
            "One row a timing of a model running alone and unshared. Its cell has no task (`cells.task` is NULL). What "
            "could not be measured has one row with `error` and no seconds.",
            (
                RUN,
                CELL,
                Column("kind", "VARCHAR", "prefill, decode or throughput", key=True),
                Column("length", "BIGINT", "tokens of context", key=True),
                Column("batch", "INTEGER", "sequences at a time", key=True),
                Column("repeat", "INTEGER", "which repetition, from 0", key=True),
                Column("seconds", "DOUBLE", "wall time"),
                Column("tokens", "BIGINT", "tokens fed (prefill) or generated (decode, throughput) in that time"),
                Column(
                    "peak_memory_bytes", "BIGINT", "most memory: of the GPU, weights included; of the process on a CPU"
                ),
                Column(
                    "energy_joules",
                    "DOUBLE",
                    "energy, where the device tells: its own, or, of less than a second, a longer run's share",
                ),
                Column("baseline_memory_bytes", "BIGINT", "memory in use before it began, weights included"),
                Column("state_bytes", "BIGINT", "state or KV cache of one sequence of this length, as it was held"),
                Column("predicted_state_bytes", "BIGINT", "the same by the architecture's formula"),
                Column("device", "VARCHAR", "what computed, a CPU with its threads"),
                Column("error", "VARCHAR", "why it could not be measured; NULL when it was"),
            ),
        ),
        TableSchema(
            "representations",
            "One row a measure of hidden states: of one layer, or between two (layers, cells). Nothing writes it yet.",
            (
                RUN,
                CELL,
                Column("cell_b", "VARCHAR", "the other cell of a comparison", key=True, nullable=True),
                Column("layer", "INTEGER", "layer, 0 is the embedding", key=True, nullable=True),
                Column("layer_b", "INTEGER", "the other layer of a comparison", key=True, nullable=True),
                Column("position", "VARCHAR", "which tokens", key=True, nullable=True),
                Column("measure", "VARCHAR", "what was measured: cka, token_similarity, …", key=True),
                Column("value", "DOUBLE", "its value"),
                Column("ci_low", "DOUBLE", "lower end of the 95 % interval"),
                Column("ci_high", "DOUBLE", "upper end of the 95 % interval"),
                Column("n", "BIGINT", "sequences behind it"),
                Column("reason", "VARCHAR", "why there is no value"),
            ),
        ),
        TableSchema(
            "training",
            "One row a logged step of a training run. Nothing writes it yet.",
            (
                RUN,
                Column("model", "VARCHAR", "the model", key=True),
                Column("seed", "BIGINT", "training seed", key=True),
                Column("learning_rate", "DOUBLE", "peak learning rate", key=True),
                Column("step", "BIGINT", "optimiser step", key=True),
                Column("loss", "DOUBLE", "training loss"),
                Column("tokens", "BIGINT", "tokens seen so far"),
                Column("seconds", "DOUBLE", "time so far"),
            ),
        ),
        TableSchema(
            "verdicts",
            "One row a hypothesis and what the data say; `evalspec compare` writes them.",
            (
                RUN,
                Column("hypothesis", "VARCHAR", "in words: who is better, by which metric, where", key=True),
                Column("statistic", "DOUBLE", "the effect that was estimated: the difference A − B of the metric"),
                Column("ci_low", "DOUBLE", "lower end of the 95 % interval"),
                Column("ci_high", "DOUBLE", "upper end of the 95 % interval"),
                Column("verdict", "VARCHAR", "supported, refuted or undecided"),
                Column("claim", "VARCHAR", "what the spec claims in words; NULL where a comparison wrote the row"),
                Column("reason", "VARCHAR", "why undecided: floor, ceiling, overlap or undefined"),
                Column("task", "VARCHAR", "name of the task"),
                Column("params", "JSON", "object from sweep path to value: the condition"),
                Column("stage", "VARCHAR", "the step of a task that has several"),
                Column("filter", "VARCHAR", "how the answers were taken from the outputs"),
                Column("metric", "VARCHAR", "the metric, with its k"),
                Column("model_a", "VARCHAR", "the model (or architecture) that the hypothesis holds to be better"),
                Column("model_b", "VARCHAR", "the other one"),
                Column("run_b", "VARCHAR", "the run of the other one; NULL: the same run"),
                Column("value_a", "DOUBLE", "A's value over the shared samples"),
                Column("value_b", "DOUBLE", "B's, or the published figure"),
                Column(
                    "method", "VARCHAR", "McNemar, permutation, Student, hierarchical for architectures, or published"
                ),
                Column("p_value", "DOUBLE", "two-sided"),
                Column("p_holm", "DOUBLE", "corrected over the family: all comparisons of one task and metric"),
                Column("family", "BIGINT", "comparisons in that family"),
                Column("effect", "VARCHAR", "h (Cohen's, of proportions) or d (paired)"),
                Column("effect_size", "DOUBLE", "its size"),
                Column("n", "BIGINT", "samples that both have"),
                Column("units", "BIGINT", "independent units among them: samples, or clusters"),
                Column("a_ahead", "BIGINT", "units in which A has the greater value"),
                Column("b_ahead", "BIGINT", "units in which B has"),
                Column("only_a", "BIGINT", "samples of A alone, left out"),
                Column("only_b", "BIGINT", "samples of B alone, left out"),
                Column(
                    "detectable",
                    "DOUBLE",
                    "the smallest difference that this n would show four times out of five; NULL where all units "
                    "differ alike",
                ),
                Column("components", "JSON", "variance of the estimate by seeds, draws and samples, for architectures"),
            ),
        ),
    )
}
