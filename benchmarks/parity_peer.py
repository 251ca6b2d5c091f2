"""Real lm-eval on some tasks, with everything it asked and got: run by path, in the peer's own environment.

    python -P parity_peer.py JOBS.json OUT.json

Each of the JOBS says `model_args`, `batch_size`, `tasks` and their folder `include`. OUT gets, job by job, for each
task in the order of its rows: every request's token ids and what it came to, and the results.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

scored: list[dict[str, Any]] = []
written: list[dict[str, Any]] = []
raw: list[tuple[Any, Any, Any]] = []

_score, _generate, _model_generate = HFLM._loglikelihood_tokens, HFLM.generate_until, HFLM._model_generate


def score(self: HFLM, requests: Any, *arguments: Any, **options: Any) -> Any:
    """Keep what is scored, in the order in which it is asked."""
    results = _score(self, requests, *arguments, **options)
    for (_, context, continuation), (logprob, greedy) in zip(requests, results, strict=True):
        kept = (context + continuation)[-(self.max_length + 1) :]
        scored.append({"ids": kept, "targets": len(continuation), "logprob": logprob, "greedy": bool(greedy)})
    return results


def model_generate(self: HFLM, context: Any, max_length: int, stop: list[str], **options: Any) -> Any:
    """Keep what was fed and generated as tokens."""
    out = _model_generate(self, context, max_length, stop, **options)
    raw.append((context, options.get("attention_mask"), out))
    return out


def generate(self: HFLM, requests: Any, *arguments: Any, **options: Any) -> Any:
    """Keep each answer and its tokens, found by its prompt's (whose right end is what fits)."""
    raw.clear()
    results = _generate(self, requests, *arguments, **options)
    tokens = {}
    for context, mask, out in raw:
        for row, kept, whole in zip(context, mask, out, strict=True):
            tokens[tuple(row[kept.bool()].tolist())] = whole[len(row) :].tolist()
    for request, text in zip(requests, results, strict=True):
        ids = self.tok_encode(request.args[0])
        fed = next(key for key in tokens if tuple(ids[-len(key) :]) == key)
        written.append({"ids": list(fed), "text": text, "tokens": tokens[fed]})
    return results


HFLM._loglikelihood_tokens, HFLM.generate_until, HFLM._model_generate = score, generate, model_generate


def main(job: dict[str, Any]) -> dict[str, Any]:
    """Each task of a job by itself, with its model."""
    model = HFLM(**job["model_args"], device="cpu", batch_size=job["batch_size"])
    manager = TaskManager(include_path=job["include"], include_defaults=False)
    found = {}
    for task in job["tasks"]:
        scored.clear()
        written.clear()
        out = simple_evaluate(model=model, tasks=[task], task_manager=manager, bootstrap_iters=0, log_samples=True)
        results = {key: value for key, value in out["results"][task].items() if "," in key}
        taken: dict[str, dict[int, Any]] = {}
        for sample in out["samples"][task] if written else ():
            taken.setdefault(sample["filter"], {})[sample["doc_id"]] = sample["filtered_resps"][0]
        answers = {name: [texts[number] for number in sorted(texts)] for name, texts in taken.items()}
        found[task] = {"requests": [*scored, *written], "answers": answers, "results": results}
    return found


if __name__ == "__main__":
    jobs = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    Path(sys.argv[2]).write_text(json.dumps([main(job) for job in jobs], default=str), encoding="utf-8")
