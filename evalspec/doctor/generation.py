"""A generation by vLLM, in a process of its own: an engine that dies or hangs there becomes a line here.

`python -m evalspec.doctor.generation MODEL DEVICE` is that process; the last line that it prints is its answer.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass

import torch

from evalspec.errors import in_a_line

SECONDS = 300.0
NEW_TOKENS = 12
PROMPT_TOKENS = 24


@dataclass(frozen=True)
class Generation:
    """What came of it. `same`: new tokens that equal those of the transformers backend, from the first one on."""

    model: str
    version: str | None = None
    seconds: float | None = None
    """From the shell to the answer: starting the engine is most of it."""
    tokens: int = 0
    same: int = 0
    failure: str | None = None

    @property
    def right(self) -> bool:
        """Whether vLLM answered as the transformers backend does."""
        return self.failure is None and self.tokens == self.same > 0


def try_vllm(device: torch.device, model: str = "transformer", limit: float = SECONDS) -> Generation:
    """Have vLLM generate, and hold its tokens against those of the transformers backend, both in float32."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "evalspec.doctor.generation", model, str(device)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return Generation(model, failure=f"no answer within {limit:.0f} s")
    seconds = time.perf_counter() - began
    try:
        told = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        last = [line for line in done.stderr.splitlines() if line.strip()][-1:] or ["it says nothing"]
        return Generation(model, failure=f"the engine ended with exit code {done.returncode}: {last[0].strip()}")
    if told.get("failure"):
        return Generation(model, told.get("version"), failure=told["failure"])
    ours = _answer(model, device, "transformers")[1]
    theirs = told["tokens"]
    same = next((n for n, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
    return Generation(model, told["version"], seconds, len(theirs), same)


def _answer(name: str, device: torch.device, backend: str) -> tuple[str, list[int]]:
    """The backend's version, and its greedy answer to a fixed prompt as token ids of its text."""
    import numpy as np

    from evalspec.doctor.score_parity import shipped
    from evalspec.execute.opening import close_backend, open_backend
    from evalspec.execute.walk import walk
    from evalspec.plan.forest import Decoding, Request, build_forest

    keys: dict[str, object] = {"backend": backend}
    if backend == "vllm":  # the GPU is not this process's alone, and graphs are not worth their time here
        keys["vllm"] = {"eager": True} if device.type == "cpu" else {"eager": True, "memory_share": 0.3}
        keys["max_length"] = 512
    model = shipped(name, device, **keys)
    opened = open_backend(model)
    prompt = np.random.default_rng(0).integers(5, 1900, PROMPT_TOKENS).astype(np.int32)
    try:
        (result,) = walk(build_forest([Request(prompt, (), Decoding(NEW_TOKENS))]), opened)
    finally:
        close_backend(opened)
    if result.error:
        raise RuntimeError(result.error)
    return opened.version, model.tokenizer.inner.encode(result.text or "", add_special_tokens=False)


def main(name: str, device: str) -> None:
    """Print one line of JSON: `version` and `tokens`, or `failure`."""
    try:
        version, tokens = _answer(name, torch.device(device), "vllm")
        told: dict[str, object] = {"version": version, "tokens": tokens}
    except Exception as error:  # what vLLM raises is its own affair: the parent shows it
        told = {"failure": f"{type(error).__name__}: {in_a_line(error)}"}
    print("\n" + json.dumps(told), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:3])
