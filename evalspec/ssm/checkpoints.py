"""Mamba, Mamba-2 and hybrid checkpoints: directories with a config.json and safetensors (or .bin) files.

Parameter names here are Hugging Face's, so reading is a plain load of names and writing gives a directory that
`AutoModelForCausalLM.from_pretrained` loads. The original `state-spaces/*` files differ by the name of the embedding
alone; their config.json is translated (`models/original_format.py`).
"""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from torch import Tensor

from evalspec.errors import ModelError
from evalspec.models.original_format import HYBRID, is_original, translated
from evalspec.ssm.hybrid import HybridConfig, HybridLanguageModel
from evalspec.ssm.language_model import LanguageModel, RecurrentLanguageModel
from evalspec.ssm.mamba import Mamba, MambaConfig
from evalspec.ssm.mamba2 import Mamba2, Mamba2Config

FAMILIES = ("mamba", "mamba2")
"""The purely recurrent `model_type`s that can be built here."""

Built = TypeVar("Built", bound=LanguageModel)

# Decay rates and step sizes act through exponentials: 16 bit would change them by per cent over long sequences.
_ALWAYS_FLOAT32 = ("A_log", "D", "dt_bias", "dt_proj.bias")


UNREADABLE = (OSError, RuntimeError, SafetensorError, pickle.UnpicklingError, struct.error, EOFError)
"""What reading a file of weights raises when it is damaged or is something else."""


def read_config(directory: Path) -> dict[str, Any]:
    """The mapping of config.json, under Hugging Face's names; ModelError if there is none or it is not JSON."""
    path = directory / "config.json"
    if not path.is_file():
        raise ModelError(f"{directory} is not a model directory: it has no config.json")
    try:
        config = json.loads(path.read_text(encoding="utf-8"), object_hook=_number)
    except ValueError as error:
        raise ModelError(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path} holds no JSON object")
    return translated(config, str(path)) if is_original(config) else config


def _number(value: dict[str, Any]) -> Any:
    """transformers 5 writes an infinite number as {"__float__": "Infinity"}."""
    return float(value["__float__"]) if set(value) == {"__float__"} else value


def build(config: Mapping[str, Any]) -> RecurrentLanguageModel:
    """A freshly initialised model of a config.json's mapping; ModelError if it is of no family here or lacks a key."""
    family = config.get("model_type")
    if family not in FAMILIES:
        raise ModelError(f"the native backend runs model_type {' and '.join(FAMILIES)}, not `{family}`")
    activation = config.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise ModelError(f"the native backend knows the activation silu, not `{activation}`")
    try:
        if family == "mamba":
            return Mamba(MambaConfig.of(config))
        return Mamba2(Mamba2Config.of(config))
    except (TypeError, ValueError, ArithmeticError, RuntimeError) as error:  # sizes that are no numbers, or zero
        raise ModelError(f"config.json of a {family} model: {error}") from error


def load(
    directory: Path, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> RecurrentLanguageModel:
    """Build the model that the directory's config describes and read its weights, for evaluation.

    Args: dtype of projections, norms and embeddings (decays, step biases and skips stay float32); device to put it on.
    Raises: ModelError that names the file and the parameters, if weights are missing, left over, or of another shape.
    """
    with torch.device("meta"):  # nothing is drawn or stored before the weights are there
        model = build(read_config(directory))
    return _fill(model, directory, dtype, device)


def load_hybrid(
    directory: Path, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> HybridLanguageModel:
    """The same for a model some of whose layers attend, in the original `state-spaces/*` format."""
    config = read_config(directory)
    if config.get("model_type") != HYBRID:
        raise ModelError(f"{directory}: its config.json describes no hybrid of mamba_ssm's format")
    with torch.device("meta"):
        model = HybridLanguageModel(HybridConfig.of(config))
    return _fill(model, directory, dtype, device)


def _fill(model: Built, directory: Path, dtype: torch.dtype, device: torch.device | str) -> Built:
    """A model on the meta device, with the directory's weights."""
    weights = {}
    for name, tensor in _read_weights(directory).items():
        if name.endswith("rotary_emb.inv_freq"):
            continue  # a function of the config, which some versions of the package saved beside the weights
        wanted = torch.float32 if name.endswith(_ALWAYS_FLOAT32) else dtype
        weights[name.replace("backbone.embedding.", "backbone.embeddings.")] = tensor.to(device=device, dtype=wanted)
    if model.tie_word_embeddings:
        weights["lm_head.weight"] = weights.get("backbone.embeddings.weight", torch.empty(0))
    try:
        model.load_state_dict(weights, strict=True, assign=True)
    except RuntimeError as error:
        raise ModelError(f"the weights in {directory} do not fit its config.json: {error}") from error
    if model.tie_word_embeddings:
        model.lm_head.weight = model.backbone.embeddings.weight
    return model.eval().requires_grad_(False)


def save(
    model: RecurrentLanguageModel, directory: Path, config: Mapping[str, Any], *, dtype: torch.dtype = torch.float32
) -> None:
    """Write config.json and model.safetensors, which transformers and `load` read.

    `config` is the mapping the model was built from, with any further keys (`trained_length`, token ids).
    Tied embeddings are written once.
    """
    from safetensors.torch import save_file

    directory.mkdir(parents=True, exist_ok=True)
    weights = {
        name: tensor.detach().to("cpu", torch.float32 if name.endswith(_ALWAYS_FLOAT32) else dtype).contiguous()
        for name, tensor in model.state_dict().items()
    }
    if model.tie_word_embeddings:
        del weights["lm_head.weight"]
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    architecture = {"mamba": "MambaForCausalLM", "mamba2": "Mamba2ForCausalLM"}[config["model_type"]]
    written = {"architectures": [architecture], "dtype": str(dtype).removeprefix("torch."), **config}
    (directory / "config.json").write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")


def _read_weights(directory: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint: safetensors before .bin, one file or the shards that its index names."""
    from safetensors.torch import load_file

    for single in ("model.safetensors", "pytorch_model.bin"):
        index = directory / f"{single}.index.json"
        if (directory / single).is_file():
            files = [directory / single]
        elif index.is_file():
            files = [directory / name for name in _shards(index)]
        else:
            continue
        weights: dict[str, Tensor] = {}
        for file in files:
            try:
                if file.suffix == ".safetensors":
                    weights.update(load_file(file))
                else:
                    weights.update(torch.load(file, map_location="cpu", weights_only=True))
            except UNREADABLE as error:
                raise ModelError(f"{file} cannot be read: {error}") from error
        return weights
    raise ModelError(f"{directory} holds no weights: neither model.safetensors nor pytorch_model.bin")


def _shards(index: Path) -> list[str]:
    """The names of the files that an index lists."""
    try:
        return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{index} lists no files: it needs a `weight_map` from parameters to files") from error
