"""A sample and what its requests came to: the rows that the store keeps.

What a model answered is an `Answer`, made either from fresh results or from a stored row (a result that an earlier
run paid for); scores are always computed anew from it, since metrics may have changed.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evalspec.execute.protocols import Result
from evalspec.metrics.filters import extract
from evalspec.metrics.outcome import Outcome
from evalspec.metrics.registry import METRIC_FUNCTIONS, metric_name
from evalspec.plan.compile import Sample

STAGE = "main"
FILTER = "default"
Row = dict[str, object]


@dataclass(frozen=True)
class Answer:
    """What a model said to one sample. `logprobs` holds, for each choice (or window of the target), its tokens'."""

    output: str | None = None
    logprobs: tuple[tuple[float, ...], ...] = ()
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
            finish_reason=results[0].finish_reason,
            output_tokens=sum(result.output_tokens for result in results),
        )

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Answer:
        """From a row of the table `samples` that an earlier run wrote."""
        return cls(
            output=row["output"],
            logprobs=tuple(tuple(part) for part in row["logprobs"] or ()),
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
    """What the metrics may look at."""
    draft, task = sample.draft, sample.cell.task
    sums = tuple(sum(part) for part in answer.logprobs)
    scored = task.kind == "score" and bool(sums)
    return Outcome(
        output=extract(answer.output, FILTER),
        targets=draft.targets,
        choices=draft.choices,
        choice_logprobs=sums if task.kind == "choose" else (),
        gold_choices=draft.gold_choices,
        target_logprob=sum(sums) if scored else None,
        target_tokens=sum(len(part) for part in answer.logprobs) if scored else 0,
        target_text=draft.targets[0] if scored else "",
        hits=tuple(hit.passage.id for hit in draft.hits),
        gold_ids=frozenset(draft.gold_ids),
        k=task.retrieval.k if task.retrieval else None,
        retrieved=task.retrieval is not None and task.retrieval.retriever != "none",
    )


def chosen(sample: Sample, answer: Answer) -> str | None:
    """The output of a sample: what was generated, or the likeliest choice."""
    if sample.cell.task.kind != "choose":
        return answer.output
    sums = [sum(part) for part in answer.logprobs]
    if not sums or any(math.isnan(total) for total in sums):
        return None
    return sample.draft.choices[sums.index(max(sums))]


def sample_row(sample: Sample, answer: Answer, key: str) -> Row:
    """The row of the table `samples`."""
    draft, kind = sample.draft, sample.cell.task.kind
    return {
        "cell_id": sample.cell.cell_id,
        "sample_id": draft.sample_id,
        "repeat": sample.repeat,
        "stage": STAGE,
        "draw": draft.draw,
        "prompt": draft.prompt,
        "target": " | ".join(draft.targets) if draft.targets else None,
        "output": chosen(sample, answer),
        "choices": list(draft.choices) if kind == "choose" else None,
        "logprobs": [list(part) for part in answer.logprobs] or None,
        "shot_ids": list(draft.shot_ids),
        "prompt_tokens": sample.prompt_tokens,
        "truncated_tokens": sample.truncated_tokens,
        "finish_reason": answer.finish_reason,
        "cached": answer.cached,
        "error": answer.error,
        "cache_key": key,
        "cluster": draft.cluster,
    }


def score_rows(sample: Sample, answer: Answer) -> Iterator[Row]:
    """The rows of the table `scores`: one for each metric that says something of this sample."""
    if answer.error:
        return
    outcome = outcome_of(sample, answer)
    retrieval = sample.cell.task.retrieval
    for block in sample.cell.task.metrics:
        metric = METRIC_FUNCTIONS.get(block.metric)
        score = metric.score(outcome, block.k)
        if score is not None:
            yield {
                "cell_id": sample.cell.cell_id,
                "sample_id": sample.draft.sample_id,
                "repeat": sample.repeat,
                "draw": sample.draft.draw,
                "stage": STAGE,
                "filter": FILTER,
                "metric": metric_name(block, retrieval.k if retrieval else None),
                "extracted": outcome.output,
                "value": score.value,
                "weight": score.weight,
            }


def retrieval_rows(sample: Sample) -> Iterator[Row]:
    """The rows of the table `retrievals`: the passages that the prompt saw. They do not depend on the repeat."""
    if sample.repeat:
        return
    for hit in sample.draft.hits:
        yield {
            "cell_id": sample.cell.cell_id,
            "sample_id": sample.draft.sample_id,
            "rank": hit.rank,
            "passage_id": hit.passage.id,
            "text": hit.passage.text,
            "score": hit.score,
            "relevant": hit.relevant,
        }
