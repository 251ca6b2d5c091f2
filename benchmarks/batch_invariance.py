"""`python -m benchmarks.batch_invariance`: what `batch_invariant: true` brings and costs.

    python -m benchmarks.batch_invariance [--questions 100] [--dtypes float32 bfloat16] [--models pythia mamba mamba2]

Multiple choice is scored in packs of the usual size and in smaller ones, with the key and without: seconds of the usual
size (median of three), how many log-probabilities the smaller packs give to the last bit, and the largest difference.
On a CPU by the shipped models and `specs/few_shot.yaml`, on a GPU by models of 2.8 B parameters with random weights, 10
shots and 4 choices (`benchmarks.gpu`).
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM

from benchmarks.gpu import draw_model, requests
from evalspec.execute.backends.native import NativeBackend
from evalspec.execute.backends.transformers.backend import TransformersBackend
from evalspec.execute.walk import walk
from evalspec.models.card import zoo_folder
from evalspec.plan.compile import compile_plan
from evalspec.plan.forest import Forest, build_forest
from evalspec.spec import load
from evalspec.ssm.checkpoints import load as load_native
from evalspec.tabular import table

ON_GPU = torch.cuda.is_available()


Backend = TransformersBackend | NativeBackend
SHIPPED = {"pythia": "transformer", "mamba": "mamba", "mamba2": "mamba2"}


def asked(questions: int) -> Forest:
    if ON_GPU:
        return build_forest(requests(questions))
    plan = compile_plan(load(Path("specs/few_shot.yaml")), limit=questions)  # the shipped models share a tokenizer
    part = plan.models[0]
    return build_forest(
        {request.key: request for sample in part.samples for request in sample.requests if request.targets}.values()
    )


def open_model(name: str, dtype: torch.dtype, invariant: bool) -> Backend:
    folder = zoo_folder() / SHIPPED[name]
    if name == "pythia":
        model = draw_model(name, dtype) if ON_GPU else AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        return TransformersBackend(model, batch_invariant=invariant)
    model = draw_model(name, dtype) if ON_GPU else load_native(folder, dtype=dtype, device=torch.device("cpu"))
    return NativeBackend(model, batch_invariant=invariant)


def scored(backend: Backend, forest: Forest) -> tuple[NDArray[np.float64], float]:
    """All log-probabilities, in the order of the requests, and the seconds that they took."""
    began = time.perf_counter()
    results = sorted(walk(forest, backend), key=lambda result: result.request)
    return np.concatenate([result.logprobs for result in results]), time.perf_counter() - began


def rows(model: str, dtype: torch.dtype, forest: Forest) -> list[tuple[object, ...]]:
    found: list[tuple[object, ...]] = []
    usual = 0.0
    for invariant in (False, True):
        backend = open_model(model, dtype, invariant)
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
                    model if ON_GPU else SHIPPED[model], name, "yes" if invariant else "no",
                    f"{seconds:.2f}", f"{seconds / usual:.2f}x",
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
    parser.add_argument("--models", nargs="+", default=list(SHIPPED), choices=list(SHIPPED))
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    options = parser.parse_args()
    if not ON_GPU:
        torch.set_num_threads(1)  # as a run does for small models
    forest = asked(options.questions)
    where = torch.cuda.get_device_name() if ON_GPU else "CPU"
    print(f"{where}: {len(forest.requests):,} requests, {forest.distinct_tokens:,} distinct tokens", flush=True)
    made = [row for name in options.models for dtype in options.dtypes
            for row in rows(name, getattr(torch, dtype), forest)]  # fmt: skip
    heads = ("model", "precision", "batch_invariant", "seconds", "time", "packs of", "equal to the bit", "difference ≤")
    print(table(heads, made))


if __name__ == "__main__":
    main()
