"""lm-eval's command line with a clock inside: run by path, in the peer's own environment, without evalspec.

    python peer.py RECORD.json ARGUMENTS OF lm_eval …

RECORD gets the seconds of scoring (or generating) alone, and what each request asked and came to.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from lm_eval.__main__ import cli_evaluate
from lm_eval.models.huggingface import HFLM

record: dict[str, Any] = {"seconds": 0.0, "requests": []}
generated: list[tuple[Any, Any, Any]] = []

_score, _generate, _model_generate = HFLM._loglikelihood_tokens, HFLM.generate_until, HFLM._model_generate


def score(self: HFLM, requests: Any, *arguments: Any, **options: Any) -> Any:
    """Time the scoring of encoded requests: tokenisation is outside, as it is on evalspec's side."""
    began = time.perf_counter()
    results = _score(self, requests, *arguments, **options)
    record["seconds"] += time.perf_counter() - began
    for (_, context, continuation), (logprob, greedy) in zip(requests, results, strict=True):
        record["requests"].append(
            {"ids": context + continuation, "targets": len(continuation), "logprob": logprob, "greedy": bool(greedy)}
        )
    return results


def model_generate(self: HFLM, context: Any, max_length: int, stop: list[str], **options: Any) -> Any:
    """Keep what was generated as tokens."""
    out = _model_generate(self, context, max_length, stop, **options)
    generated.append((context, options.get("attention_mask"), out))
    return out


def generate(self: HFLM, requests: Any, *arguments: Any, **options: Any) -> Any:
    """Time the generation, and find each answer's tokens by its prompt's."""
    began = time.perf_counter()
    results = _generate(self, requests, *arguments, **options)
    record["seconds"] += time.perf_counter() - began
    tokens = {}
    for context, mask, out in generated:
        for row, kept, whole in zip(context, mask, out, strict=True):
            tokens[tuple(row[kept.bool()].tolist())] = whole[len(row) :].tolist()
    for request, text in zip(requests, results, strict=True):
        ids = self.tok_encode(request.args[0])
        record["requests"].append({"ids": ids, "text": text, "tokens": tokens[tuple(ids)]})
    return results


HFLM._loglikelihood_tokens, HFLM.generate_until, HFLM._model_generate = score, generate, model_generate

if __name__ == "__main__":
    path = Path(sys.argv.pop(1))
    cli_evaluate()
    path.write_text(json.dumps(record), encoding="utf-8")
