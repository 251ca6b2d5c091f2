"""A model that a server runs: what can be known of it without asking the server, which is its tokenizer and its name.

Its weights are the server's own. They may change behind the same name and address, so nothing that a server answered
is ever reused by another run; and no cost is computed from a config that may not be theirs.
"""

from __future__ import annotations

from collections.abc import Collection
from urllib.parse import urlsplit

from evalspec.errors import BackendError, ModelError
from evalspec.spec.model import ModelBlock, ServerBlock

LOOPBACK = ("localhost", "127.0.0.1", "::1", "0.0.0.0", "::")  # the last two: what servers print


def settings_of(block: ModelBlock) -> ServerBlock:
    """How the server of a model is asked: its block, or what holds without one."""
    return block.server or ServerBlock()


def served_as(block: ModelBlock) -> str:
    """What stands in the store in place of a hash of weights: the server's address and its name for the model."""
    return f"server:{(block.url or '').rstrip('/')}:{block.weights}"


def on_this_machine(url: str) -> bool:
    """Whether an address is the machine's own, which no proxy can reach."""
    return (urlsplit(url).hostname or "") in LOOPBACK


def needs_tokenizer(name: str, block: ModelBlock) -> ModelError:
    """The error for a served model whose tokenizer is not to be found."""
    return ModelError(
        f"models.{name}: `weights: {block.weights}` is the model's name at the server, and a plan counts tokens: name "
        "its tokenizer by `tokenizer: …` (zoo/NAME, a directory, or a hub id)"
    )


def refuse_what_no_server_does(name: str, block: ModelBlock, kinds: Collection[str]) -> None:
    """Raise BackendError where the block itself says that a kind of task (`choose`, `score`) cannot be asked."""
    scored = sorted(set(kinds) - {"generate"})
    if scored and settings_of(block).prompts == "text":
        raise BackendError(
            f"models.{name}.server.prompts: `text` can only generate, and {' and '.join(scored)} tasks are scored: "
            "log-probabilities belong to token ids. Leave `prompts` out if the server takes token ids, or use a "
            "backend that scores: native, transformers, vllm"
        )
