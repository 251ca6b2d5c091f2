"""`python -m benchmarks.vllm_scoring`: two ways of scoring through vLLM, in one engine.

    python -m benchmarks.vllm_scoring [--models pythia mamba2] [--questions 500] [--tokens 0] [--runs 3] [--limit 150]
                                      [--sequences 128] [--tiny] [--json OUT.json] [--work FOLDER]

The questions and the shapes are those of `benchmarks.gpu` (ten shots, four choices of 3 to 5 tokens; random weights,
bfloat16); `--tokens 1` makes it choices of one token. Each model has one engine, opened as a run opens it, and each way
is timed from an empty prefix cache, warmed up before:

    ours    `VllmEngine.complete`: what a run does
    prompt  the same requests with log-probabilities of the prompt and one token, which is what lm-eval asks for

Printed: seconds (median), the ratio, tokens from the cache, and how far the scores are apart. What a way does not
finish within the limit is stopped there, and its time is extrapolated from the share that it did, and marked so.
`--tiny` is a small Llama in float32, to try the script where there is no GPU.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from evalspec.plan.forest import Request, build_forest
from evalspec.tabular import table

TINY = {
    "model_type": "llama", "vocab_size": 50_304, "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 64, "intermediate_size": 256, "max_position_embeddings": 2048,
}  # fmt: skip


def questions(count: int, tokens: int) -> list[Request]:
    """Those of `benchmarks.gpu`; with `tokens`, the same with choices of so many."""
    rng = np.random.default_rng(0)

    def draw(length: int) -> np.ndarray:
        return rng.integers(5, 50_000, length).astype(np.int32)

    shots, found = draw(410), []
    for _ in range(count):
        question = draw(int(rng.integers(24, 43)))
        for _ in range(4):
            choice = draw(tokens or int(rng.integers(3, 6)))
            found.append(Request(np.concatenate([shots, question, choice[:-1]]), tuple(choice.tolist())))
    return found


def write_model(name: str, folder: Path) -> None:
    """Random weights and a tokenizer of as many words."""
    if name != "tiny":
        from benchmarks.gpu_peers import write

        write(name, folder)
        return
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = LlamaConfig(**{key: value for key, value in TINY.items() if key != "model_type"})
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    words = Tokenizer(WordLevel({f"w{number}": number for number in range(TINY["vocab_size"])}, unk_token="w0"))  # type: ignore
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0", eos_token="w0").save_pretrained(folder)


class Ways:
    """One engine, and the two ways of scoring through it."""

    def __init__(self, name: str, folder: Path, asked: list[Request], options: argparse.Namespace) -> None:
        from evalspec.execute.opening import open_backend
        from evalspec.models.card import find_model
        from evalspec.spec.model import ModelBlock

        block: dict[str, Any] = {"weights": str(folder), "backend": "vllm", "max_length": 2048}
        if name == "mamba2":
            block["vllm"] = {"max_sequences": options.sequences}
        self.engine: Any = open_backend(find_model(name, ModelBlock(**block), Path()))
        self.asked, self.forest = asked, build_forest(asked)

    def empty(self) -> None:
        self.engine._engine.reset_prefix_cache()
        self.engine.cached_tokens = self.engine.asked_tokens = self.engine.asks = 0

    def ours(self, limit: float) -> tuple[float, dict[int, float]]:
        """Seconds, and each request's summed log-probability."""
        began = time.perf_counter()
        sums = {}
        for result in self.engine.complete(self.forest):
            sums[result.request] = sum(result.logprobs)
            if time.perf_counter() - began > limit:
                break
        return time.perf_counter() - began, sums

    def prompt(self, limit: float) -> tuple[float, dict[int, float]]:
        """The same by prompt log-probabilities, through the same engine's own loop."""
        from vllm import SamplingParams
        from vllm.inputs.engine import tokens_input

        engine = self.engine._engine
        settings = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=1, detokenize=False, ignore_eos=True)
        began = time.perf_counter()
        for number, request in enumerate(self.asked):
            tokens = [*request.tokens.tolist(), request.targets[-1]]
            engine.add_request(f"prompt-{number}", tokens_input(tokens), settings)
        sums: dict[int, float] = {}
        while len(sums) < len(self.asked):
            for output in engine.step():
                if output.finished:
                    number = int(output.request_id.removeprefix("prompt-"))
                    targets = self.asked[number].targets
                    tail = output.prompt_logprobs[-len(targets) :]
                    sums[number] = sum(at[token].logprob for at, token in zip(tail, targets, strict=True))
            if time.perf_counter() - began > limit:
                engine.abort_request([f"prompt-{n}" for n in range(len(self.asked)) if n not in sums])
                while engine.has_unfinished_requests():
                    engine.step()
                break
        return time.perf_counter() - began, sums


def measure(name: str, folder: Path, asked: list[Request], options: argparse.Namespace) -> dict[str, Any]:
    """Both ways' seconds, cached tokens, differences."""
    opened = time.perf_counter()
    ways = Ways(name, folder, asked, options)
    print(f"{name}: engine {ways.engine.identity} ready in {time.perf_counter() - opened:.0f} s", flush=True)
    found: dict[str, Any] = {"model": name, "identity": ways.engine.identity}
    try:
        scores = {}
        for way, runs in (("ours", options.runs), ("prompt", 1)):
            run = getattr(ways, way)
            few = Ways.__new__(Ways)  # a warm-up on a few questions: kernels, graphs
            few.engine, few.asked = ways.engine, asked[:32]
            few.forest = build_forest(few.asked)
            getattr(few, way)(options.limit)
            seconds = []
            for _ in range(runs):
                ways.empty()
                took, scores[way] = run(options.limit)
                share = len(scores[way]) / len(asked)
                seconds.append(took / max(share, 1e-9))
                if share < 1:
                    found[f"{way}_share_done"] = share
                print(f"  {way}: {took:.2f} s, {share:.0%} of the requests", flush=True)
            found[f"{way}_seconds"] = statistics.median(seconds)
            if way == "ours":
                found |= {
                    "asked_tokens": ways.engine.asked_tokens,
                    "cached_tokens": ways.engine.cached_tokens,
                    "asks": ways.engine.asks,
                }
        both = sorted(set(scores["ours"]) & set(scores["prompt"]))
        one, other = (np.asarray([scores[way][number] for number in both]) for way in ("ours", "prompt"))
        targets = np.asarray([len(asked[number].targets) for number in both])
        found["compared"] = len(both)
        if both:
            found["largest_difference_of_sums"] = float(np.abs(one - other).max())
            found["mean_difference_a_token"] = float((np.abs(one - other) / targets).mean())
            found["largest_difference_a_token"] = float((np.abs(one - other) / targets).max())
    finally:
        ways.engine.close()
    found["ratio"] = found["prompt_seconds"] / found["ours_seconds"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--models", nargs="+", choices=["pythia", "mamba", "mamba2", "tiny"], default=["pythia", "mamba2"]
    )
    parser.add_argument("--questions", type=int, default=500)
    parser.add_argument("--tokens", type=int, default=0, help="tokens of a choice; 0: 3 to 5")
    parser.add_argument("--runs", type=int, default=3, help="of our way; the other is run once")
    parser.add_argument("--limit", type=float, default=150, help="seconds that one run may take")
    parser.add_argument("--sequences", type=int, default=128, help="most sequences at a time of Mamba-2")
    parser.add_argument("--tiny", action="store_true", help="a small Llama alone")
    parser.add_argument("--json", type=Path, help="also write everything there")
    parser.add_argument("--work", type=Path, help="keep the weights there")
    options = parser.parse_args()
    asked = questions(options.questions, options.tokens)
    prompt = sum(len(request.tokens) for request in asked)
    print(
        f"{len(asked)} requests, {prompt:,} prompt tokens, {build_forest(asked).distinct_tokens:,} distinct", flush=True
    )
    rows = []
    with tempfile.TemporaryDirectory() as passing:
        for name in ["tiny"] if options.tiny else options.models:
            folder = (options.work or Path(passing)) / name
            folder.mkdir(parents=True, exist_ok=True)
            writer = multiprocessing.get_context("spawn").Process(target=write_model, args=(name, folder))
            writer.start()  # of its own, so that it leaves nothing on the GPU: the engine wants its share of all of it
            writer.join()
            if writer.exitcode:
                raise SystemExit(f"{name} could not be written")
            rows.append(measure(name, folder, asked, options))
            print(json.dumps(rows[-1]), flush=True)
            if options.json:
                options.json.write_text(json.dumps(rows) + "\n", encoding="utf-8")
    columns = (
        "model",
        "prompt logprobs",
        "ours",
        "ratio",
        "asks",
        "from cache",
        "compared",
        "largest difference a token",
    )
    print(
        table(
            columns,
            [
                (
                    row["model"],
                    f"{row['prompt_seconds']:.2f} s" + (" (extrapolated)" if "prompt_share_done" in row else ""),
                    f"{row['ours_seconds']:.2f} s",
                    f"{row['ratio']:.1f}",
                    row["asks"],
                    f"{row['cached_tokens'] / row['asked_tokens']:.0%}",
                    row["compared"],
                    f"{row.get('largest_difference_a_token', float('nan')):.2g}",
                )
                for row in rows
            ],
        )
    )


if __name__ == "__main__":
    main()
