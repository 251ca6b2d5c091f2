"""`python -m benchmarks.gpu`: models of 2.8 B parameters on one GPU, with random weights in bfloat16.

    python -m benchmarks.gpu [score] [decode] [--models pythia mamba mamba2] [--questions 500]

*score*: 10 shots, 4 choices, 500 questions; the scoring stage alone (forest built, model loaded): seconds (median of
three), distinct tokens a second, the share of the GPU's own measured GEMM rate, and how far the scores are from plain
forward passes of some requests. *decode*: milliseconds a step of 64 rows against the time to read the weights and to
read and write the states at the GPU's own copy rate.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, GPTNeoXConfig

from evalspec.execute.backends.forking import ForkedState, ForkingModel
from evalspec.execute.backends.native import NativeBackend
from evalspec.execute.backends.transformers.backend import TransformersBackend
from evalspec.execute.protocols import Span
from evalspec.execute.walk import walk
from evalspec.plan.forest import Request, build_forest
from evalspec.ssm import checkpoints
from evalspec.ssm.kernels.choice import Choice
from evalspec.ssm.kernels.mamba_ssm_kernels import load_mamba_ssm
from evalspec.tabular import table

VOCABULARY = 50_288
WIDE = ("A_log", "D", "dt_bias", "dt_proj.bias")  # parameters that stay in float32, as `checkpoints.load` keeps them
CONFIGS: dict[str, dict[str, Any]] = {
    "pythia": {
        "model_type": "gpt_neox", "vocab_size": 50_304, "hidden_size": 2560, "num_hidden_layers": 32,
        "num_attention_heads": 32, "intermediate_size": 10_240, "max_position_embeddings": 2048,
    },
    "mamba": {
        "model_type": "mamba", "vocab_size": VOCABULARY, "hidden_size": 2560, "num_hidden_layers": 64, "state_size": 16,
        "tie_word_embeddings": True,
    },
    "mamba2": {
        "model_type": "mamba2", "vocab_size": VOCABULARY, "hidden_size": 2560, "num_hidden_layers": 64,
        "state_size": 128, "num_heads": 80, "head_dim": 64, "n_groups": 1, "tie_word_embeddings": True,
    },
}  # fmt: skip


def requests(questions: int) -> list[Request]:
    """Ten shots (410 tokens), a question (33 on average), four choices of about 4 tokens: all drawn at random."""
    rng = np.random.default_rng(0)

    def draw(count: int) -> np.ndarray:
        return rng.integers(5, 50_000, count).astype(np.int32)

    shots, found = draw(410), []
    for _ in range(questions):
        question = draw(int(rng.integers(24, 43)))
        for _ in range(4):
            choice = draw(int(rng.integers(3, 6)))
            tokens = np.concatenate([shots, question, choice[:-1]])
            found.append(Request(tokens, tuple(choice.tolist())))
    return found


def draw_model(name: str, dtype: torch.dtype = torch.bfloat16) -> Any:
    """A model with random weights on the GPU."""
    torch.manual_seed(0)
    config = dict(CONFIGS[name])
    if name == "pythia":
        del config["model_type"]
        with torch.device("cuda"):
            return AutoModelForCausalLM.from_config(GPTNeoXConfig(**config), dtype=dtype)
    with torch.device("cuda"):
        model = checkpoints.build(config)
    for parameter_name, parameter in model.named_parameters():
        if not parameter_name.endswith(WIDE):
            parameter.data = parameter.data.to(dtype)
    return model.requires_grad_(False)


def open_model(name: str, kernels: Choice = "auto") -> ForkingModel[Any, Any]:
    model = draw_model(name)
    return TransformersBackend(model) if name == "pythia" else NativeBackend(model, kernels=kernels)


def weights_of(backend: Any) -> int:
    """Parameters that meet every token: all but the embedding (and the head, which meets scored positions alone)."""
    model = backend.model
    head = model.lm_head.weight if hasattr(model, "lm_head") else model.get_output_embeddings().weight
    embedding = model.get_input_embeddings().weight if hasattr(model, "get_input_embeddings") else head
    skipped = {id(head), id(embedding)}
    return sum(p.numel() for p in model.parameters() if id(p) not in skipped)


def seconds_of(run: Callable[[], Any]) -> float:
    torch.cuda.synchronize()
    began = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - began


def gemm_rate() -> float:
    """Operations a second of a large bfloat16 product on random data."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        a @ b
    return 2 * 8192**3 / median(seconds_of(lambda: a @ b) for _ in range(10))


def copy_rate() -> float:
    """Bytes a second, read and written, of a large copy."""
    source = torch.empty(2**32, device="cuda", dtype=torch.uint8).random_()
    target = torch.empty_like(source)
    target.copy_(source)
    return 2 * 2**32 / median(seconds_of(lambda: target.copy_(source)) for _ in range(10))


@torch.inference_mode()
def largest_difference(backend: Any, asked: list[Request], found: dict[int, tuple[float, ...]]) -> float:
    """Between scores and those of plain forward passes, over a few requests."""
    worst = 0.0
    for number in range(0, len(asked), max(1, len(asked) // 6)):
        tokens = torch.from_numpy(asked[number].tokens.astype(np.int64)).cuda()[None]
        logits = (
            backend.model.head(backend.model(tokens)[0]) if backend.name == "native" else backend.model(tokens).logits
        )
        expected = logits[0].float().log_softmax(-1)[-len(asked[number].targets) :]
        for row, target, ours in zip(expected, asked[number].targets, found[number], strict=True):
            worst = max(worst, abs(float(row[target]) - ours))
    return worst


def score(name: str, backend: Any, asked: list[Request], gemm: float) -> tuple[object, ...]:
    forest = build_forest(asked)
    found: dict[int, tuple[float, ...]] = {}
    computed = 0

    def run() -> None:
        nonlocal computed
        results = list(walk(forest, backend))
        found.update((result.request, result.logprobs) for result in results)
        computed = sum(result.computed_tokens for result in results)

    first = seconds_of(run)
    seconds = median(seconds_of(run) for _ in range(3))
    rate = 2 * weights_of(backend) * forest.distinct_tokens / seconds
    return (
        name, forest.prompt_tokens, forest.distinct_tokens, f"{computed / forest.distinct_tokens:.3f}",
        f"{first:.2f}", f"{seconds:.3f}", round(forest.distinct_tokens / seconds), f"{rate / gemm:.0%}",
        f"{largest_difference(backend, asked, found):.3f}", f"{torch.cuda.max_memory_allocated() / 2**30:.1f}",
    )  # fmt: skip


@torch.inference_mode()
def decode(name: str, backend: Any, copy: float, rows: int = 64, steps: int = 50) -> tuple[object, ...]:
    prompts = np.random.default_rng(1).integers(5, 50_000, (rows, 100)).astype(np.int32)
    states: list[ForkedState[Any]] = [part.state for part in backend.extend([Span(p, keep=True) for p in prompts])]
    batch = backend._gather(states, steps + 10)
    tokens = torch.zeros(rows, dtype=torch.long, device="cuda")
    for _ in range(5):
        _, batch = backend._step(tokens, batch)

    def run() -> None:
        nonlocal batch
        for _ in range(steps):
            _, batch = backend._step(tokens, batch)

    step = seconds_of(run) / steps
    weights = sum(p.numel() * p.element_size() for p in backend.model.parameters())
    state = rows * backend.state_bytes(100 + steps // 2)
    floor = (weights + (2 if name != "pythia" else 1) * state) / copy
    return name, rows, f"{1e3 * step:.2f}", f"{1e3 * floor:.2f}", f"{floor / step:.0%}", round(rows / step)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("works", nargs="*", default=["score", "decode"])
    parser.add_argument("--models", nargs="+", default=list(CONFIGS))
    parser.add_argument("--questions", type=int, default=500)
    parser.add_argument("--batch-tokens", type=int)
    parser.add_argument("--kernels", choices=["auto", "mamba_ssm"], default="auto", help="of state-space models")
    options = parser.parse_args()
    kernels = load_mamba_ssm() if options.kernels == "mamba_ssm" else "auto"
    gemm, copy = gemm_rate(), copy_rate()
    print(f"{torch.cuda.get_device_name()}: {gemm / 1e12:.0f} TFLOP/s bf16, {copy / 1e12:.2f} TB/s copied", flush=True)
    scored, decoded = [], []
    for name in options.models:
        torch.cuda.reset_peak_memory_stats()
        backend = open_model(name, kernels)
        if isinstance(backend, TransformersBackend):
            print(f"{name}: fed by way of {type(backend.way).__name__} {backend.why_not_tree}", flush=True)
        if options.batch_tokens:
            backend.batch_tokens = options.batch_tokens
        if "score" in options.works:
            scored.append(score(name, backend, requests(options.questions), gemm))
            print(*scored[-1], flush=True)
        if "decode" in options.works:
            decoded.append(decode(name, backend, copy))
            print(*decoded[-1], flush=True)
        del backend
        torch.cuda.empty_cache()
    columns = (
        "model", "prompt tokens", "distinct", "computed/distinct", "first s", "seconds", "tokens/s", "of GEMM rate",
        "largest difference", "GiB",
    )  # fmt: skip
    if scored:
        print(table(columns, scored, "scoring"))
    if decoded:
        print(table(("model", "rows", "ms a step", "floor ms", "of the floor's rate", "tokens/s"), decoded, "decoding"))


if __name__ == "__main__":
    main()
