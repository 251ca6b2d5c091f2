"""Configs of the original `state-spaces/*` checkpoints: mamba_ssm's `MambaConfig`, which names no `model_type`.

    mamba-130m … 2.8b   ssm_cfg {}                    Mamba        → read as Hugging Face's `mamba`
    mamba2-130m … 2.7b  ssm_cfg {layer: Mamba2}       Mamba-2      → `mamba2`
    mamba2attn-2.7b     and attn_layer_idx, attn_cfg  a hybrid     → `mamba_ssm`, layer by layer
    transformerpp-2.7b  all layers attention, d_intermediate: attention and a gated MLP   → `mamba_ssm`

Keys, defaults and what they mean are those of mamba_ssm 2.x (models/config_mamba.py, models/mixer_seq_simple.py,
modules/mamba_simple.py, mamba2.py, mha.py, mlp.py). What of them is not run here is refused by its name.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from evalspec.errors import ModelError

HYBRID = "mamba_ssm"
"""The `model_type` given here to what Hugging Face has no class for."""
ORIGINAL = "original_format"
"""The key that marks a translated config."""

_KNOWN = {
    "d_model", "d_intermediate", "n_layer", "vocab_size", "ssm_cfg", "attn_layer_idx", "attn_cfg", "rms_norm",
    "residual_in_fp32", "fused_add_norm", "pad_vocab_size_multiple", "tie_embeddings",
}  # fmt: skip
# How values are drawn before training, and how the package computes: neither changes a trained model's numbers.
_NO_MATTER = {
    "layer", "dt_min", "dt_max", "dt_init", "dt_scale", "dt_init_floor", "A_init_range", "conv_init", "use_fast_path",
    "use_mem_eff_path", "process_group", "sequence_parallel",
}  # fmt: skip
_FIXED = {"D_has_hdim": False, "rmsnorm": True, "norm_before_gate": False, "d_ssm": None, "ngroups": 1}
_ATTENTION = {
    "num_heads": None, "num_heads_kv": None, "head_dim": None, "qkv_proj_bias": True, "out_proj_bias": True,
    "softmax_scale": None, "d_conv": 0, "rotary_emb_dim": 0, "rotary_emb_base": 10000.0,
    "rotary_emb_interleaved": False,
}  # fmt: skip


def is_original(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is of mamba_ssm's own format."""
    return not config.get("model_type") and "d_model" in config and "n_layer" in config


def translated(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A config of the original format under Hugging Face's names; ModelError, with `where`, for what cannot be run.

    A hybrid has beside the keys of its state-space layers (which are then under `mixer`): `attention_layers`,
    `attention` (every key of mamba_ssm's MHA, with its default) and `intermediate_size` (0: no MLP).
    """
    try:
        return _translated(config)
    except _Refused as reason:
        raise ModelError(f"{where}: {reason}") from None


class _Refused(Exception):
    """What is wrong with a config, without its place."""


def _translated(config: Mapping[str, Any]) -> dict[str, Any]:
    width, layers = _count(config, "d_model"), _count(config, "n_layer")
    vocabulary, multiple = _count(config, "vocab_size", 50277), _count(config, "pad_vocab_size_multiple", 8)
    if config.get("rms_norm") is False:
        raise _Refused("`rms_norm: false` (LayerNorm) is not run here; no published checkpoint has it")
    shared = {
        **{key: value for key, value in config.items() if key not in _KNOWN},
        ORIGINAL: True,
        "vocab_size": -(-vocabulary // multiple) * multiple,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "layer_norm_epsilon": 1e-5,
        "residual_in_fp32": bool(config.get("residual_in_fp32", True)),
        "tie_word_embeddings": bool(config.get("tie_embeddings", True)),
    }
    wide = _count(config, "d_intermediate", 0, least=0)
    attending = _attention_layers(config, layers)
    mixer = _mixer(_mapping(config, "ssm_cfg"), width) if len(attending) < layers else None
    if not attending and not wide:
        assert mixer is not None
        return {**shared, **mixer}
    return {
        **shared,
        "model_type": HYBRID,
        "mixer": mixer,
        "attention_layers": attending,
        "attention": _attention(_mapping(config, "attn_cfg"), width) if attending else None,
        "intermediate_size": -(-wide // 128) * 128,  # GatedMLP rounds up
    }


def _mixer(ssm: Mapping[str, Any], width: int) -> dict[str, Any]:
    """The keys of the state-space layers."""
    kind = ssm.get("layer", "Mamba1")
    expand = _number(ssm, "expand", 2)
    shared = {
        "expand": expand,
        "conv_kernel": _count(ssm, "d_conv", 4, within="ssm_cfg"),
        "use_bias": bool(ssm.get("bias", False)),
        "use_conv_bias": bool(ssm.get("conv_bias", True)),
    }
    if kind == "Mamba1":
        _refuse_others(ssm, {"d_state", "d_conv", "expand", "dt_rank", "conv_bias", "bias"}, "ssm_cfg")
        rank = ssm.get("dt_rank", "auto")
        rank = math.ceil(width / 16) if rank == "auto" else _count(ssm, "dt_rank", within="ssm_cfg")
        state = _count(ssm, "d_state", 16, within="ssm_cfg")
        return {"model_type": "mamba", "state_size": state, "time_step_rank": rank, **shared}
    if kind != "Mamba2":
        raise _Refused(f"`ssm_cfg.layer: {kind}` is not run here; Mamba1 and Mamba2 are")
    for key, value in _FIXED.items():
        if ssm.get(key, value) != value:
            raise _Refused(f"`ssm_cfg.{key}: {json.dumps(ssm[key])}` is not run here; no published checkpoint has it")
    known = {"d_state", "d_conv", "expand", "headdim", "dt_limit", "chunk_size", "conv_bias", "bias", *_FIXED}
    _refuse_others(ssm, known, "ssm_cfg")
    head = _count(ssm, "headdim", 64, within="ssm_cfg")
    if int(expand * width) % head:
        raise _Refused(f"`ssm_cfg.headdim: {head}` does not divide {int(expand * width)} channels (expand · d_model)")
    limit = ssm.get("dt_limit", (0.0, math.inf))
    if not (isinstance(limit, list | tuple) and len(limit) == 2 and all(isinstance(end, int | float) for end in limit)):
        raise _Refused(f"`ssm_cfg.dt_limit: {json.dumps(limit)}` is not the least and the greatest step")
    return {
        "model_type": "mamba2",
        "state_size": _count(ssm, "d_state", 128, within="ssm_cfg"),
        "num_heads": int(expand * width) // head,
        "head_dim": head,
        "n_groups": 1,
        "chunk_size": _count(ssm, "chunk_size", 256, within="ssm_cfg"),
        "time_step_limit": [float(end) for end in limit],
        **shared,
    }


def _attention_layers(config: Mapping[str, Any], layers: int) -> list[int]:
    found = config.get("attn_layer_idx") or []
    if not isinstance(found, list) or not all(isinstance(at, int) and 0 <= at < layers for at in found):
        raise _Refused(f"`attn_layer_idx` is no list of layers from 0 to {layers - 1}: {json.dumps(found)}")
    return sorted(set(found))


def _attention(attention: Mapping[str, Any], width: int) -> dict[str, Any]:
    """Every key of mamba_ssm's MHA that changes what is computed."""
    _refuse_others(attention, {*_ATTENTION, "causal", "mlp_dim"}, "attn_cfg")
    if not attention.get("causal", False):
        raise _Refused("`attn_cfg.causal` is not true: a language model's attention must not see what comes after")
    if attention.get("mlp_dim"):
        raise _Refused("`attn_cfg.mlp_dim` (an MLP beside attention) is not run here; no published checkpoint has it")
    found = _ATTENTION | dict(attention)
    heads = _count(found, "num_heads", within="attn_cfg")
    keys = heads if found["num_heads_kv"] is None else _count(found, "num_heads_kv", within="attn_cfg")
    size = width // heads if found["head_dim"] is None else _count(found, "head_dim", within="attn_cfg")
    turned = _count(found, "rotary_emb_dim", least=0, within="attn_cfg")
    if heads % keys or turned > size or turned % 2:
        raise _Refused(
            f"`attn_cfg`: {heads} heads over {keys} key heads of {size} dimensions, of which {turned} are rotated, do "
            "not fit together"
        )
    return {
        "num_heads": heads,
        "num_heads_kv": keys,
        "head_dim": size,
        "qkv_proj_bias": bool(found["qkv_proj_bias"]),
        "out_proj_bias": bool(found["out_proj_bias"]),
        "softmax_scale": size**-0.5 if found["softmax_scale"] is None else _number(found, "softmax_scale", 1.0),
        "d_conv": _count(found, "d_conv", least=0, within="attn_cfg"),
        "rotary_emb_dim": turned,
        "rotary_emb_base": _number(found, "rotary_emb_base", 10000.0),
        "rotary_emb_interleaved": bool(found["rotary_emb_interleaved"]),
    }


def _refuse_others(values: Mapping[str, Any], known: set[str], where: str) -> None:
    other = next((key for key in values if key not in known | _NO_MATTER), None)
    if other is not None:
        raise _Refused(f"`{where}.{other}` is no key that is known here")


def _mapping(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = config.get(key) or {}
    if not isinstance(value, Mapping):
        raise _Refused(f"`{key}` is no mapping: {json.dumps(value)}")
    return value


def _count(values: Mapping[str, Any], key: str, default: int | None = None, *, least: int = 1, within: str = "") -> int:
    value = values.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise _Refused(f"`{within and within + '.'}{key}` is {json.dumps(value)}, no whole number from {least} on")
    return value


def _number(values: Mapping[str, Any], key: str, default: float) -> float:
    value = values.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise _Refused(f"`{key}` is {json.dumps(value)}, no number above 0")
    return value
