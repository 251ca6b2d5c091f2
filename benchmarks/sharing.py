"""Feeding each distinct prefix once against feeding each request by itself: the same backend, batches and requests.

    python -m benchmarks.sharing [SPEC] [--limit N]

Both sides run in turn, three times; the quickest of each counts, since machines are noisy. Scores must agree.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from evalspec.execute.opening import open_backend
from evalspec.execute.protocols import Result
from evalspec.execute.walk import walk
from evalspec.plan.compile import compile_plan
from evalspec.plan.forest import Forest
from evalspec.spec import load
from evalspec.tabular import table

ROUNDS = 3


def unshared(forest: Forest) -> Forest:
    """The same requests, each from a root of its own: what a harness without sharing feeds."""
    lengths = np.asarray([len(request.tokens) for request in forest.requests], np.int64)
    return Forest(
        tokens=np.concatenate([request.tokens for request in forest.requests]),
        start=np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64),
        length=lengths,
        parent=np.full(len(lengths), -1, np.int64),
        leaf=np.arange(len(lengths)),
        requests=forest.requests,
    )


def outcome(results: list[Result]) -> dict[int, str | None]:
    """What each request came to, as far as it must be equal."""
    return {result.request: result.text for result in results}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("spec", nargs="?", type=Path, default=Path("specs/rag.yaml"))
    parser.add_argument("--limit", type=int, default=24)
    parser.add_argument("--set", action="append", default=[])
    options = parser.parse_args(arguments)
    rows = []
    for part in compile_plan(load(options.spec, options.set), limit=options.limit).models:
        backend = open_backend(part.model)
        sides = {"shared": part.forest, "alone": unshared(part.forest)}
        seconds = dict.fromkeys(sides, float("inf"))
        answers = {}
        for _ in range(ROUNDS):
            for name, forest in sides.items():
                began = time.perf_counter()
                answers[name] = outcome(list(walk(forest, backend)))
                seconds[name] = min(seconds[name], time.perf_counter() - began)
        differing = sum(answers["shared"][number] != text for number, text in answers["alone"].items())
        rows.append(
            (
                part.model.name,
                sides["alone"].distinct_tokens,
                sides["shared"].distinct_tokens,
                f"{sides['alone'].distinct_tokens / sides['shared'].distinct_tokens:.2f}x",
                seconds["alone"],
                seconds["shared"],
                f"{seconds['alone'] / seconds['shared']:.2f}x",
                differing,
            )
        )
    columns = (
        "model",
        "tokens alone",
        "tokens shared",
        "ratio",
        "seconds alone",
        "seconds shared",
        "ratio",
        "differing",
    )
    print(table(columns, rows, f"{options.spec}, {options.limit} rows a task, quickest of {ROUNDS}"))


if __name__ == "__main__":
    main()
