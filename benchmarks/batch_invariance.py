"""`python -m benchmarks.batch_invariance`: what `batch_invariant: true` brings and costs.

    python -m benchmarks.batch_invariance [--questions 100] [--dtypes float32 bfloat16]

Multiple choice is scored in packs of the usual size and in smaller ones, with the key and without: seconds of the usual
size (median of three), how many log-probabilities the smaller packs give to the last bit, and the largest difference.
On a CPU by the shipped Transformer and `specs/few_shot.yaml`, on a GPU by 2.8 B parameters with random weights, 10 shots
and 4 choices (`benchmarks.gpu`).
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, GPTNeoXConfig

from benchmarks.gpu import CONFIGS, requests
from evalspec.execute.backends.transformers.backend import TransformersBackend
from evalspec.execute.walk import walk
from evalspec.models.card import zoo_folder
from evalspec.plan.compile import compile_plan
from evalspec.plan.forest import Forest, build_forest
from evalspec.spec import load
from evalspec.tabular import table

ON_GPU = torch.cuda.is_available()


def asked(questions: int) -> Forest:
    if ON_GPU:
        return build_forest(requests(questions))
    plan = compile_plan(load(Path("specs/few_shot.yaml")), limit=questions)
    (part,) = (part for part in plan.models if part.model.name == "transformer")
    return build_forest(
        {request.key: request for sample in part.samples for request in sample.requests if request.targets}.values()
    )


def model_of(dtype: torch.dtype) -> Any:
    if not ON_GPU:
        return AutoModelForCausalLM.from_pretrained(zoo_folder() / "transformer", dtype=dtype)
    torch.manual_seed(0)
    config = {key: value for key, value in CONFIGS["pythia"].items() if key != "model_type"}
    with torch.device("cuda"):
        return AutoModelForCausalLM.from_config(GPTNeoXConfig(**config), dtype=dtype)


def scored(backend: TransformersBackend, forest: Forest) -> tuple[NDArray[np.float64], float]:
    """All log-probabilities, in the order of the requests, and the seconds that they took."""
    began = time.perf_counter()
    results = sorted(walk(forest, backend), key=lambda result: result.request)
    return np.concatenate([result.logprobs for result in results]), time.perf_counter() - began


def rows(dtype: torch.dtype, forest: Forest) -> list[tuple[object, ...]]:
    found: list[tuple[object, ...]] = []
    usual = 0.0
    for invariant in (False, True):
        backend = TransformersBackend(model_of(dtype), batch_invariant=invariant)
        whole, _ = scored(backend, forest)
        seconds = median(scored(backend, forest)[1] for _ in range(3))
        usual = usual or seconds
        size = backend.batch_tokens
        name = str(dtype).removeprefix("torch.")
        for share in (4, 16):
            backend.batch_tokens = size // share
            other, _ = scored(backend, forest)
            found.append(
                (
                    name, "yes" if invariant else "no", f"{seconds:.2f}", f"{seconds / usual:.2f}x",
                    f"{size:,} and {size // share:,}", f"{int((whole == other).sum()):,} of {len(whole):,}",
                    f"{np.abs(whole - other).max():.1g}",
                )
            )  # fmt: skip
        del backend
        if ON_GPU:
            torch.cuda.empty_cache()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=100)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    options = parser.parse_args()
    if not ON_GPU:
        torch.set_num_threads(1)  # as a run does for small models
    forest = asked(options.questions)
    where = torch.cuda.get_device_name() if ON_GPU else "CPU"
    print(f"{where}: {len(forest.requests):,} requests, {forest.distinct_tokens:,} distinct tokens", flush=True)
    made = [row for dtype in options.dtypes for row in rows(getattr(torch, dtype), forest)]
    heads = ("precision", "batch_invariant", "seconds", "time", "packs of", "equal to the bit", "largest difference")
    print(table(heads, made))


if __name__ == "__main__":
    main()
