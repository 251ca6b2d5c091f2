"""`python -m benchmarks.gpu_peers`: evalspec and its peers on one GPU, in one run, on the same weights and token ids.

    python -m benchmarks.gpu_peers [--models pythia mamba mamba2] [--systems ours lm-eval vllm vllm-cached]
                                   [--questions 500] [--limit 100] [--json OUT.json] [--work FOLDER]

The questions and the shapes are those of `benchmarks.gpu`; each model is drawn once and written to a folder that every
system reads. What is timed is the scoring stage, from token ids to one number a request, once warmed up:

    ours         the forest built and walked
    lm-eval      its `hf` backend, batch 64, from its own encoded requests; the Mambas with mamba-ssm's kernels
    vllm         what lm-eval's `vllm` backend asks for: the prompt's log-probabilities and one token
    vllm-cached  one token and no log-probabilities, prefix cache on: what vLLM could do if it scored from its cache

Each system has a process of its own. Those of one model start together, since starting is not timed, and then take
turns: while one is timed the others wait. What makes no run within the limit is stopped and reported as that.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import logging
import multiprocessing
import os
import re
import signal
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.gpu import CONFIGS, requests
from evalspec.plan.forest import Request, build_forest
from evalspec.tabular import table

START_LIMIT = 300  # seconds until a system must be ready
CLEAR = 0.5  # a question is won clearly if its best choices are that far apart: bfloat16 sums differ by less


@dataclass
class Score:
    """What one system came to with one model: the times of its runs, and each request's summed log-probability."""

    seconds: list[float]
    sums: list[float] | None = None
    note: str = ""


Run = Callable[[], list[float] | None]
Opened = tuple[Run, int, str]
"""What opening a system gives, warmed up: what runs it once, how many times to run it, and a remark for the reader."""


def write(model: str, folder: Path) -> None:
    """Draw the model and write it, with a tokenizer of as many words, which lm-eval wants although it is given ids."""
    if (folder / "tokenizer.json").exists():
        return  # the last thing that is written
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    from benchmarks.gpu import draw_model
    from evalspec.ssm import checkpoints

    drawn = draw_model(model)
    if model == "pythia":
        drawn.save_pretrained(folder)
    else:
        checkpoints.save(drawn, folder, CONFIGS[model], dtype=torch.bfloat16)
    words = {f"w{number}": number for number in range(CONFIGS[model]["vocab_size"])}
    tokenizer = Tokenizer(WordLevel(words, unk_token="w0"))  # type: ignore[call-arg]
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w0", eos_token="w0").save_pretrained(folder)


def open_ours(model: str, folder: Path, asked: list[Request], cache: int) -> Opened:
    import torch
    from transformers import AutoModelForCausalLM

    from evalspec.execute.backends.native import NativeBackend
    from evalspec.execute.backends.transformers.backend import TransformersBackend
    from evalspec.execute.walk import walk
    from evalspec.ssm import checkpoints

    backend: Any
    if model == "pythia":
        opened = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).cuda()
        backend = TransformersBackend(opened)
        note = type(backend.way).__name__
    else:
        backend, note = NativeBackend(checkpoints.load(folder, dtype=torch.bfloat16, device="cuda")), ""

    def run() -> list[float]:
        sums = [0.0] * len(asked)
        for result in walk(build_forest(asked), backend):
            sums[result.request] = sum(result.logprobs)
        torch.cuda.synchronize()
        return sums

    run()
    return run, 5, note


def open_lm_eval(model: str, folder: Path, asked: list[Request], cache: int) -> Opened:
    import torch
    from lm_eval.models.huggingface import HFLM

    said: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    # transformers takes mamba-ssm's kernels where they import, and else says that it falls back to a slow path
    logging.getLogger("transformers.integrations.hub_kernels").addHandler(Listener())
    harness = HFLM(pretrained=str(folder), backend="causal", dtype="bfloat16", batch_size=64)
    encoded = []
    for number, request in enumerate(asked):
        scored = len(request.targets)
        context = request.tokens[: len(request.tokens) - scored + 1].tolist()
        encoded.append(((str(number), ""), context, list(request.targets)))

    def score(some: list[Any]) -> list[float]:
        found = harness._loglikelihood_tokens(some, disable_tqdm=True)
        torch.cuda.synchronize()
        return [float(sums) for sums, _ in found]

    score(encoded[:128])
    slow = [message for message in said if "falling back" in message]
    return lambda: score(encoded), 1, f"slow path: {slow[0]}" if slow else f"batch 64, {harness.model.dtype}"


def open_vllm(model: str, folder: Path, asked: list[Request], cache: int, cached: bool = False) -> Opened:
    from vllm import LLM, SamplingParams

    prompts = [{"prompt_token_ids": [*request.tokens.tolist(), request.targets[-1]]} for request in asked]
    # As `backend: vllm` asks; by itself vLLM 0.25 fails on Mamba-2 with its prefix cache on.
    states: dict[str, Any] = {"mamba_cache_mode": "align", "block_size": 16} if cached and model == "mamba2" else {}
    engine = LLM(
        str(folder),
        skip_tokenizer_init=True,
        dtype="bfloat16",
        max_model_len=2048,
        enable_prefix_caching=True if cached else None,
        gpu_memory_utilization=0.1,  # what must be free at the start, with the cache's size given
        kv_cache_memory_bytes=cache,
        max_num_seqs=256 if model == "mamba2" else None,  # it wants a state for each, and Mamba-2's are large
        **states,
        compilation_config={"cudagraph_capture_sizes": [1, 2, 4, 8, 16, 32, 64, 128, 256]},  # prompts fill larger steps
    )
    asks: dict[str, Any] = {"temperature": 0, "max_tokens": 1, "detokenize": False}
    sampling = SamplingParams(**asks) if cached else SamplingParams(**asks, prompt_logprobs=1)
    hits: list[int] = []

    def score(count: int) -> list[float] | None:
        found = engine.generate(prompts[:count], sampling, use_tqdm=False)  # type: ignore[arg-type]
        if cached:
            hits.append(sum(output.num_cached_tokens or 0 for output in found))
            return None
        sums = []
        for request, output in zip(asked, found, strict=False):
            tail = output.prompt_logprobs[-len(request.targets) :]  # type: ignore[index]
            sums.append(sum(at[token].logprob for at, token in zip(tail, request.targets, strict=True)))  # type: ignore[index]
        return sums

    def run() -> list[float] | None:
        """From an empty cache; what emptying takes is nothing beside the rest."""
        engine.reset_prefix_cache()
        return score(len(prompts))

    if not cached:
        score(64)
        return run, 1, ""
    run()
    return (
        run,
        3,
        f"{hits[0] / sum(len(prompt['prompt_token_ids']) for prompt in prompts):.0%} of the tokens from cache",
    )


def open_vllm_cached(model: str, folder: Path, asked: list[Request], cache: int) -> Opened:
    return open_vllm(model, folder, asked, cache, cached=True)


SYSTEMS = {"ours": open_ours, "lm-eval": open_lm_eval, "vllm-cached": open_vllm_cached, "vllm": open_vllm}


def serve(connection: Connection, system: str, model: str, folder: Path, questions: int, cache: int, log: Path) -> None:
    """A system's process: get ready, wait for the turn, run."""
    os.setsid()  # so that what it starts itself can be stopped with it
    with log.open("w", encoding="utf-8") as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
    if system == "write":
        write(model, folder)
        connection.send("ready")
        return
    run, times, note = SYSTEMS[system](model, folder, requests(questions), cache)
    connection.send("ready")
    connection.recv()
    score = Score([], note=note)
    for number in range(times):
        began = time.perf_counter()
        score.sums = run()
        score.seconds.append(time.perf_counter() - began)
        connection.send((score, number + 1 == times))
    connection.recv()  # until it is stopped: what it runs in is torn down at once, not while another is timed


class Side:
    """A system's process, as seen from here."""

    def __init__(self, system: str, model: str, folder: Path, questions: int, cache: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.system, self.model, self.log = system, model, folder.parent / f"{model}-{system}.log"
        self.connection, other = context.Pipe()
        self.process = context.Process(target=serve, args=(other, system, model, folder, questions, cache, self.log))
        self.process.start()
        other.close()

    def hear(self, limit: float) -> Any:
        """What it says next; a sentence if it ends, or is not heard of in time."""
        if not wait([self.connection, self.process.sentinel], max(0.0, limit)):
            return f"more than {limit:.0f} s"
        try:
            return self.connection.recv() if self.connection.poll() else self.failed()
        except EOFError:
            return self.failed()

    def failed(self) -> str:
        """The first error in its log: what a process of its own said first is why the others then ended."""
        said = self.log.read_text(encoding="utf-8", errors="replace")
        errors = [line for line in said.splitlines() if re.search(r"\b\w*Error: ", line)]
        return f"failed: {errors[0] if errors else said.strip()[-200:]}"

    def measure(self, limit: float) -> Any:
        """Its turn: the runs that it makes before the limit; a sentence if that is none."""
        self.connection.send("go")
        until = time.monotonic() + limit
        score: Any = None
        while not isinstance(said := self.hear(until - time.monotonic()), str):
            score, last = said
            if last:
                return score
        return score or (said if said.startswith("failed") else f"more than {limit:.0f} s")

    def stop(self) -> None:
        try:
            os.killpg(self.process.pid or 0, signal.SIGKILL)
        except ProcessLookupError:
            self.process.kill()
        self.process.join()


def measure(models: list[str], work: Path, options: argparse.Namespace) -> dict[Any, Any]:
    """Start all at once, then let each have the GPU in turn: {(model, system): its Score, or what became of it}."""

    def start(system: str, model: str) -> Side:
        return Side(system, model, work / model, options.questions, int(options.cache_gib * 2**30))

    writers = [start("write", model) for model in models]
    for writer in writers:
        said = writer.hear(START_LIMIT)
        writer.stop()
        if said != "ready":
            raise SystemExit(f"{writer.model} could not be written: {said}")
    sides = [start(system, model) for system in SYSTEMS if system in options.systems for model in models]
    found: dict[Any, Any] = {}
    try:
        until = time.monotonic() + START_LIMIT
        waiting = []
        for side in sides:
            said = side.hear(until - time.monotonic())
            if said == "ready":
                waiting.append(side)
            else:
                found[side.model, side.system] = (
                    said if said.startswith("failed") else f"not ready within {START_LIMIT} s"
                )
                side.stop()
        for side in waiting:
            found[side.model, side.system] = score = side.measure(options.limit)
            side.stop()
            shown = f"{median(score.seconds):.3f} s {score.note}" if isinstance(score, Score) else score
            print(f"{side.model} {side.system}: {shown}", flush=True)
    finally:
        for side in sides:
            side.stop()
    return found


def compare(ours: list[float], theirs: list[float]) -> tuple[str, str]:
    """How far the scores are apart at most, and whether the same choice wins where one wins clearly."""
    import numpy as np

    one, other = (np.asarray(sums).reshape(-1, 4) for sums in (ours, theirs))
    ordered = np.sort(one, axis=1)
    clear = ordered[:, -1] - ordered[:, -2] >= CLEAR
    same = one.argmax(1) == other.argmax(1)
    return f"{np.abs(one - other).max():.3f}", f"{same[clear].sum()} of {clear.sum()}"


def versions() -> str:
    found = []
    for name in ("torch", "triton", "transformers", "lm_eval", "vllm", "mamba_ssm", "causal_conv1d"):
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"no {name}")
    return ", ".join(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=CONFIGS, default=list(CONFIGS))
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--questions", type=int, default=500)
    parser.add_argument("--limit", type=float, default=100, help="seconds that a system may take for all its runs")
    parser.add_argument(
        "--at-once", type=int, default=1, help="models whose systems start together, if memory holds them"
    )
    parser.add_argument(
        "--cache-gib", type=float, default=32, help="vLLM's cache, which it cannot measure beside others"
    )
    parser.add_argument("--json", type=Path, help="also write everything there")
    parser.add_argument("--work", type=Path, help="keep weights and the processes' logs there")
    options = parser.parse_args()
    print(versions(), flush=True)
    asked = requests(options.questions)
    prompt = sum(len(request.tokens) for request in asked)
    print(f"{len(asked)} requests, {prompt} prompt tokens, {build_forest(asked).distinct_tokens} distinct", flush=True)
    found: dict[Any, Any] = {}
    with tempfile.TemporaryDirectory() as passing:
        work = options.work or Path(passing)
        work.mkdir(parents=True, exist_ok=True)
        for first in range(0, len(options.models), options.at_once):
            some = options.models[first : first + options.at_once]
            found |= measure(some, work, options)
            if options.json:
                write_json(options.json, found)

    def place(item: Any) -> tuple[int, int]:
        return options.models.index(item[0][0]), list(SYSTEMS).index(item[0][1])

    rows = []
    for (model, system), score in sorted(found.items(), key=place):
        ours = found.get((model, "ours"))
        if not isinstance(score, Score):
            rows.append((model, system, score, "", "", "", "", ""))
            continue
        seconds = median(score.seconds)
        ratio = f"{seconds / median(ours.seconds):.1f}" if isinstance(ours, Score) else ""
        apart = compare(ours.sums, score.sums) if isinstance(ours, Score) and ours.sums and score.sums else ("", "")
        rows.append((model, system, f"{seconds:.3f}", len(score.seconds), round(prompt / seconds), ratio, *apart))
    columns = ("model", "system", "seconds", "runs", "prompt tokens/s", "times ours", "differs by", "same choice")
    print(table(columns, rows, f"scoring {len(asked)} requests"))


def write_json(path: Path, found: dict[Any, Any]) -> None:
    rows = [
        {"model": model, "system": system, **(asdict(score) if isinstance(score, Score) else {"said": score})}
        for (model, system), score in found.items()
    ]
    path.write_text(json.dumps(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
