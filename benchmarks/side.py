"""evalspec's side of the harness, one measurement a process: `python -m benchmarks.side VERB … OUT.json`.

walk SPEC OUT       the scoring stage: the forest built and walked on a backend that is open
    --alone         each request from a root of its own
    --states N      room for N live states of the longest sequence
margins SPEC PREFIXES OUT   how far the likeliest next token leads after some token prefixes
gemm SHAPES OUT     float32 matrix products a second at some (rows, inner, columns)
"""

from __future__ import annotations

import argparse
import json
import time
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.sharing import unshared
from evalspec.execute.opening import open_backend
from evalspec.execute.protocols import Extended, ForkingBackend, Result, Span
from evalspec.execute.walk import walk
from evalspec.models.card import Model
from evalspec.plan.compile import ModelPlan, compile_plan
from evalspec.plan.forest import Forest
from evalspec.spec import load


def plan_of(spec: Path, limit: int | None = None) -> ModelPlan:
    """The only model of a benchmark's spec."""
    [part] = compile_plan(load(spec), limit=limit).models
    return part


def measure_walk(spec: Path, *, alone: bool, states: int | None, limit: int | None) -> dict[str, Any]:
    """Time one walk over one spec, cold, and tell what each request came to in the order of the samples."""
    part = plan_of(spec, limit)
    backend = open_backend(part.model)
    options: dict[str, int] = {}
    alive = Alive(backend) if states is not None else None
    if states is not None:
        longest = max(len(request.tokens) for sample in part.samples for request in sample.requests)
        options["state_budget"] = states * backend.state_bytes(longest)
    began = time.perf_counter()
    forest = unshared(part.forest) if alone else part.forest
    results = {result.request: result for result in walk(forest, backend, **options)}
    seconds = time.perf_counter() - began
    place = {request.key: number for number, request in enumerate(forest.requests)}
    asked = [request for sample in part.samples for request in sample.requests]
    return {
        "seconds": seconds,
        "prompt": forest.prompt_tokens,
        "distinct": part.forest.distinct_tokens,
        "computed": sum(result.computed_tokens for result in results.values()),
        "flops": operations(part.model, part.forest, results),
        "alive": alive.most if alive else None,
        "requests": [_outcome(forest, results[place[request.key]]) for request in asked],
    }


class Alive:
    """Counts the states that a backend has given out and that are still held: the most at any time."""

    def __init__(self, backend: ForkingBackend) -> None:
        self.now = self.most = 0
        self.extend = backend.extend
        backend.extend = self.watched  # type: ignore[method-assign]

    def watched(self, spans: Sequence[Span]) -> Sequence[Extended]:
        """`extend`, with every state counted until nothing holds it."""
        extended = self.extend(spans)
        for one in extended:
            if one.state is not None:
                self.now += 1
                weakref.finalize(one.state, self._gone)
        self.most = max(self.most, self.now)
        return extended

    def _gone(self) -> None:
        self.now -= 1


def _outcome(forest: Forest, result: Result) -> dict[str, Any]:
    request = forest.requests[result.request]
    ids = request.tokens.tolist()
    if request.decoding:
        return {"ids": ids, "text": result.text, "new": result.output_tokens, "reason": result.finish_reason}
    return {
        "ids": [*ids, request.targets[-1]],
        "targets": len(request.targets),
        "logprob": float(np.sum(np.asarray(result.logprobs, np.float64))),
        "greedy": all(result.greedy),
    }


def operations(model: Model, forest: Forest, results: dict[int, Result]) -> int | None:
    """Floating-point operations of feeding each distinct token once, the head where a prediction is asked alone."""
    if model.cost is None:
        return None
    depth = np.zeros(len(forest.parent), np.int64)
    for node, parent in enumerate(forest.parent):
        depth[node] = forest.length[node] + (depth[parent] if parent >= 0 else 0)
    heads = set()
    for request in forest.requests:
        size = len(request.tokens)
        heads |= {request.tokens[:end].tobytes() for end in range(size - len(request.targets) + 1, size + 1)}
    total = model.cost.flops(forest.length, depth - forest.length, scored=len(heads))
    decoded = [(result.output_tokens - 1, number) for number, result in results.items() if result.output_tokens]
    if decoded:  # the prompt's last position predicts the first new token, and the last one is never fed
        contexts = [len(forest.requests[number].tokens) for _, number in decoded]
        total += model.cost.decode_flops([count for count, _ in decoded], contexts)
        total += model.cost.head_flops * len(decoded)
    return total


def measure_margins(spec: Path, prefixes: list[list[int]]) -> list[float]:
    """For each prefix, by how many nats the likeliest next token leads the second."""
    return margins_of(plan_of(spec).model, prefixes)


def margins_of(model: Model, prefixes: list[list[int]]) -> list[float]:
    """As `measure_margins`, of a model."""
    backend = open_backend(model)
    vocabulary = int(model.config["vocab_size"])
    every = np.arange(vocabulary, dtype=np.int64)
    margins = []
    for prefix in prefixes:
        last = np.full(vocabulary, len(prefix) - 1, np.int64)
        [extended] = backend.extend([Span(np.asarray(prefix, np.int32), None, last, every)])
        second, first = np.sort(extended.logprobs)[-2:]
        margins.append(float(first - second))
    return margins


def measure_gemm(shapes: list[list[int]]) -> list[float]:
    """Operations a second of float32 matrix products, the best of several rounds of at least a tenth of a second."""
    import torch

    rates = []
    for rows, inner, columns in shapes:
        left, weights, out = torch.randn(rows, inner), torch.randn(columns, inner), torch.empty(rows, columns)
        best = 0.0
        for _ in range(12):
            count, began, passed = 0, time.perf_counter(), 0.0
            while passed < 0.1:
                torch.mm(left, weights.T, out=out)
                count, passed = count + 1, time.perf_counter() - began
            best = max(best, 2 * rows * inner * columns * count / passed)
        rates.append(best)
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    sub = verbs.add_parser("walk")
    sub.add_argument("spec", type=Path)
    sub.add_argument("--alone", action="store_true")
    sub.add_argument("--states", type=int)
    sub.add_argument("--limit", type=int)
    sub.add_argument("out", type=Path)
    sub = verbs.add_parser("margins")
    sub.add_argument("spec", type=Path)
    sub.add_argument("prefixes", type=Path)
    sub.add_argument("out", type=Path)
    sub = verbs.add_parser("gemm")
    sub.add_argument("shapes", type=json.loads)
    sub.add_argument("out", type=Path)
    options = parser.parse_args()
    measured: Any
    if options.verb == "walk":
        measured = measure_walk(options.spec, alone=options.alone, states=options.states, limit=options.limit)
    elif options.verb == "margins":
        measured = measure_margins(options.spec, json.loads(options.prefixes.read_text(encoding="utf-8")))
    else:
        measured = measure_gemm(options.shapes)
    options.out.write_text(json.dumps(measured), encoding="utf-8")


if __name__ == "__main__":
    main()
