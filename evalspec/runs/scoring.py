"""A sample and what its requests came to: the rows that the store keeps.

What a model answered is an `Answer`, made either from fresh results or from a stored row (a result that an earlier
run paid for); scores are always computed anew from it, since metrics may have changed.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from evalspec.errors import PluginError
from evalspec.execute.protocols import Result
from evalspec.metrics.filters import STEPS, Extraction, extract, vote
from evalspec.metrics.outcome import Outcome
from evalspec.metrics.registry import METRIC_FUNCTIONS, Metric, metric_name
from evalspec.plan.compile import Sample
from evalspec.spec.blocks import MAIN, TaskBlock
from evalspec.spec.extraction import votes_of
from evalspec.spec.meant import UNFILTERED
from evalspec.spec.metric import MetricBlock
from evalspec.spec.prompt import StepsBlock

Row = dict[str, object]


@dataclass(frozen=True)
class Answer:
    """What a model said to one sample. `logprobs` holds, for each choice (or window of the target), its tokens',
    `greedy` whether all of these were the likeliest. Choices without their prompt, where asked, stand behind all."""

    output: str | None = None
    logprobs: tuple[tuple[float, ...], ...] = ()
    greedy: tuple[bool, ...] = ()
    finish_reason: str | None = None
    output_tokens: int = 0
    error: str | None = None
    cached: bool = False

    @classmethod
    def from_results(cls, results: Sequence[Result]) -> Answer:
        """From the results of a sample's requests, in the order of its requests."""
        errors = [result.error for result in results if result.error]
        if errors:
            return cls(error=errors[0])
        return cls(
            output=results[0].text,
            logprobs=tuple(result.logprobs for result in results if result.logprobs),
            greedy=tuple(all(result.greedy) for result in results if result.logprobs),
            finish_reason=results[0].finish_reason,
            output_tokens=sum(result.output_tokens for result in results),
        )

    @classmethod
    def of_nothing(cls, sample: Sample) -> Answer:
        """The answer to a later stage's sample that asks nothing: left out, or without a prompt."""
        return cls(finish_reason="skipped") if sample.skipped else cls(error=sample.error)

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Answer:
        """From a row of the table `samples` that an earlier run wrote."""
        return cls(
            output=row["output"],
            logprobs=tuple(tuple(part) for part in row["logprobs"] or ()),
            greedy=tuple(row["greedy"] or ()),
            finish_reason=row["finish_reason"],
            cached=True,
        )


def cache_key(sample: Sample, answering: Sequence[str]) -> str:
    """Names everything that can change a sample's answer: who answers (weights, backend, its version, dtype, device,
    kernels, tokenizer), token ids, targets, decode settings, repeat."""
    digest = hashlib.sha256(json.dumps(list(answering)).encode())
    for request in sample.requests:
        digest.update(request.tokens.tobytes() + repr((request.targets, request.decoding, request.repeat)).encode())
    return digest.hexdigest()


def outcome_of(sample: Sample, answer: Answer) -> Outcome:
    """What the metrics may look at, but for the generated answer, which depends on the filter."""
    draft, task = sample.draft, sample.task
    written = task.prompt.steps or StepsBlock(right="")
    sums = tuple(sum(part) for part in answer.logprobs)
    scored = task.kind == "score" and bool(sums)
    return Outcome(
        targets=draft.targets,
        steps=draft.steps,
        step_separator=written.separator,
        steps_end=written.end,
        choices=draft.choices,
        choice_logprobs=sums[: len(draft.choices)] if task.kind == "choose" else (),
        unconditional_logprobs=sums[len(draft.choices) :] if task.kind == "choose" else (),
        gold_choices=draft.gold_choices,
        target_logprob=sum(sums) if scored else None,
        target_tokens=sum(len(part) for part in answer.logprobs) if scored else 0,
        target_greedy=all(answer.greedy) if scored and answer.greedy else None,
        target_logprobs=tuple(p for part in answer.logprobs for p in part) if scored else (),
        target_start=_before_target(sample) if scored else 1,
        target_text=draft.targets[0] if scored else "",
        hits=tuple(hit.passage.document for hit in draft.hits),
        passages=tuple(hit.passage.text for hit in draft.hits),
        unknown=tuple(task.prompt.unknown),
        gold_ids=frozenset() if task.retrieval and task.retrieval.withhold_gold else frozenset(draft.gold_ids),
        k=task.retrieval.cut if task.retrieval else None,
        retrieved=task.retrieval is not None and task.retrieval.retriever != "none",
    )


def _before_target(sample: Sample) -> int:
    """Tokens before the first one of the scored target. Its last token is never fed, hence the 1."""
    first = sample.requests[0]
    return len(first.tokens) - len(first.targets) + 1


def chosen(sample: Sample, answer: Answer) -> str | None:
    """The output of a sample: what was generated, or the likeliest choice."""
    if sample.task.kind != "choose":
        return answer.output
    sums = [sum(part) for part in answer.logprobs[: len(sample.draft.choices)]]
    if not sums or any(math.isnan(total) for total in sums):
        return None
    return sample.draft.choices[sums.index(max(sums))]


def sample_row(sample: Sample, answer: Answer, key: str | None) -> Row:
    """The row of the table `samples`."""
    draft, kind = sample.draft, sample.task.kind
    return {
        "cell_id": sample.cell.cell_id,
        "sample_id": draft.sample_id,
        "repeat": sample.repeat,
        "stage": sample.stage,
        "draw": draft.draw,
        "prompt": draft.prompt if sample.requests else None,
        "target": " | ".join(draft.targets) if draft.targets else None,
        "output": chosen(sample, answer),
        "choices": list(draft.choices) if kind == "choose" else None,
        "logprobs": [list(part) for part in answer.logprobs] or None,
        "greedy": list(answer.greedy) or None,
        "shot_ids": list(draft.shot_ids),
        "prompt_tokens": sample.prompt_tokens,
        "truncated_tokens": sample.truncated_tokens,
        "finish_reason": answer.finish_reason,
        "cached": answer.cached,
        "error": answer.error,
        "cache_key": key,
        "cluster": draft.cluster,
    }


def load_scoring(tasks: Iterable[TaskBlock]) -> None:
    """Load all metrics and steps of these tasks, so that what a package lacks is said before anything is computed.

    Raises EvalspecError for a name that nothing has, PluginError for what cannot be loaded.
    """
    for kind, name in sorted({named for task in tasks for named in task.scored_by}):
        METRIC_FUNCTIONS.get(name) if kind == "metric" else STEPS.get(name)


def score_rows(sample: Sample, answer: Answer) -> Iterator[Row]:
    """The rows of the table `scores`: one for each metric that says something of this sample, those of the generated
    answer once a filter. Votes are not among them (`vote_rows`)."""
    if answer.error:
        return
    task, outcome = sample.task, outcome_of(sample, answer)
    with _named(sample):
        for block in task.metrics:
            metric = METRIC_FUNCTIONS.get(block.metric)
            if metric.declaration.evidence != "output":
                yield from _score_row(sample, sample.repeat, UNFILTERED, block, metric, outcome, None)
        if answer.output is not None:
            for name, chain in task.chains.items():
                if votes_of(chain) is None:
                    taken = extract(answer.output, chain, sample.draft.options)
                    yield from _output_rows(sample, sample.repeat, name, outcome, taken)


def vote_rows(sample: Sample, outputs: Sequence[str]) -> Iterator[Row]:
    """The scores of the votes over one sample's repeats; `sample` is the first, `outputs` are in their order."""
    with _named(sample):
        for name, chain in sample.task.chains.items():
            verdict = vote(outputs, chain, sample.draft.options)
            if verdict is not None:
                yield from _output_rows(sample, None, name, outcome_of(sample, Answer()), verdict)


@contextmanager
def _named(sample: Sample) -> Iterator[None]:
    """A plugin that fails within says on which sample."""
    try:
        yield
    except PluginError as error:
        raise PluginError(f"tasks.{sample.cell.task_name}, sample {sample.draft.sample_id}: {error}") from error


def _output_rows(sample: Sample, repeat: int | None, name: str, outcome: Outcome, taken: Extraction) -> Iterator[Row]:
    """The scores of what one filter took."""
    outcome = replace(outcome, output=taken.text)
    for block in sample.task.metrics:
        metric = METRIC_FUNCTIONS.get(block.metric)
        if metric.declaration.evidence == "output" and (block.filters is None or name in block.filters):
            yield from _score_row(sample, repeat, name, block, metric, outcome, taken)


def _score_row(
    sample: Sample,
    repeat: int | None,
    name: str,
    block: MetricBlock,
    metric: Metric,
    outcome: Outcome,
    taken: Extraction | None,
) -> Iterator[Row]:
    score = metric.score(outcome, block.k, block)
    if score is None:
        return
    share = metric.values != "real" and metric.declaration.higher_is_better
    if taken is not None and not taken.found and share:
        score = replace(score, value=0.0)  # a fallback may hold the target by chance
    retrieval = sample.task.retrieval
    yield {
        "cell_id": sample.cell.cell_id,
        "sample_id": sample.draft.sample_id,
        "repeat": repeat,
        "draw": sample.draft.draw,
        "stage": sample.stage,
        "filter": name,
        "metric": metric_name(block, retrieval.cut if retrieval else None),
        "extracted": taken.text if taken else None,
        "found": taken.found if taken else None,
        "value": score.value,
        "weight": score.weight,
        "parts": None if score.parts is None else list(score.parts),
    }


def retrieval_rows(sample: Sample) -> Iterator[Row]:
    """The rows of the table `retrievals`: the passages that the prompt saw. They do not depend on the repeat."""
    if sample.repeat or sample.stage != MAIN:
        return
    for hit in sample.draft.hits:
        yield {
            "cell_id": sample.cell.cell_id,
            "sample_id": sample.draft.sample_id,
            "rank": hit.rank,
            "place": hit.place,
            "document_id": hit.passage.document,
            "passage_id": hit.passage.id,
            "text": hit.passage.text,
            "score": hit.score,
            "relevant": hit.relevant,
        }
