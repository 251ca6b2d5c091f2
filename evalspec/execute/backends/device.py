"""Where a model runs and in which precision, from what its block says."""

from __future__ import annotations

import json

import torch

from evalspec.errors import BackendError, ModelError
from evalspec.models.card import Model

DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def device_of(model: Model) -> torch.device:
    """The block's `device`; `auto` is a GPU where there is one. BackendError for a device that is not here."""
    wanted = model.block.device
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(wanted)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise BackendError(
            f"models.{model.name}: device `{wanted}` is not here ({torch.cuda.device_count()} GPUs); say `device: auto`"
        )
    return device


def dtype_of(model: Model, device: torch.device) -> torch.dtype:
    """The block's `dtype`; `auto` is float32 on a CPU and bfloat16 on a GPU."""
    if model.block.dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return DTYPES[model.block.dtype]


def end_tokens_of(model: Model) -> frozenset[int]:
    """Every token that ends an answer: as the config, generation_config.json and the tokenizer name them."""
    named = [model.config.get("eos_token_id")]
    generation = model.directory / "generation_config.json"
    if generation.is_file():
        try:
            named.append(json.loads(generation.read_text(encoding="utf-8")).get("eos_token_id"))
        except (ValueError, AttributeError) as error:
            raise ModelError(f"models.{model.name}: {generation} is not a JSON object: {error}") from error
    named.append(model.tokenizer.inner.eos_token_id)
    ends: set[int] = set()
    for tokens in named:
        if tokens is not None:
            ends.update(tokens if isinstance(tokens, list) else [tokens])
    return frozenset(ends)
