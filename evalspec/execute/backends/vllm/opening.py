"""The vLLM backend: an engine in processes of its own that owns its states, asked in the forest's order.

asks           what it is asked, so that its prefix cache answers
queue          in which order
settings       how an ask is put
forced         the tokens of a continuation, generated one after the other (runs in the engine's processes)
engine         its answers as results, and times
start          starting and ending it; all that depends on vLLM's version and build
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from evalspec.execute.backends.device import end_tokens_of
from evalspec.execute.backends.vllm.start import start
from evalspec.models.card import Model

if TYPE_CHECKING:
    from evalspec.execute.backends.vllm.engine import VllmEngine


def open_vllm(model: Model, *, threads: int, prefix_caching: bool = True) -> VllmEngine:
    """Start an engine for a model, on so many threads where that is a CPU. BackendError when vLLM cannot load it."""
    end_tokens, tokenizer = end_tokens_of(model), model.tokenizer
    started = start(model, threads=threads, prefix_caching=prefix_caching)
    from evalspec.execute.backends.vllm.engine import VllmEngine  # imports vLLM, which `start` has made quiet

    return VllmEngine(started, tokenizer, end_tokens, f"models.{model.name}")
