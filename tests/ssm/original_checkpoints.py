"""Tiny checkpoints in mamba_ssm's own format, made on the spot, and plain reference models that read them.

Shapes and the reference's attention are written from mamba_ssm's definition (mixer_seq_simple.py, mha.py, mlp.py);
state-space layers run in transformers' own mixers. No code of evalspec.ssm is used here.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Mamba2Config, MambaConfig
from transformers.models.mamba.modeling_mamba import MambaMixer
from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

from evalspec.execute.backends.transformers.on_cpu import kernels_by_device

VOCABULARY = 61
WIDTH = 32
SHARED: dict[str, Any] = {
    "d_model": WIDTH, "n_layer": 3, "vocab_size": 58, "pad_vocab_size_multiple": 4, "rms_norm": True,
    "residual_in_fp32": True, "fused_add_norm": True, "tie_embeddings": True,
}  # fmt: skip
SSD = {"layer": "Mamba2", "d_state": 8, "headdim": 8}
CONVOLVED = {
    "causal": True, "d_conv": 4, "head_dim": 16, "num_heads": 3, "out_proj_bias": False, "qkv_proj_bias": False,
    "rotary_emb_dim": 8,
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    # the published models, made small
    "mamba": {**SHARED, "ssm_cfg": {}},
    "mamba2": {**SHARED, "d_intermediate": 0, "ssm_cfg": SSD, "attn_layer_idx": [], "attn_cfg": {}},
    "mamba2attn": {**SHARED, "d_intermediate": 0, "ssm_cfg": SSD, "attn_layer_idx": [1], "attn_cfg": CONVOLVED},
    "transformerpp": {
        **SHARED, "d_intermediate": 70, "ssm_cfg": {}, "attn_layer_idx": [0, 1, 2],
        "attn_cfg": {**CONVOLVED, "d_conv": 0, "rotary_emb_dim": 16},
    },
    # what else the package can say
    "grouped heads, biases, turned in pairs, untied": {
        **SHARED, "d_intermediate": 128, "ssm_cfg": {"d_state": 4, "bias": True}, "attn_layer_idx": [0, 2],
        "tie_embeddings": False, "residual_in_fp32": False, "attn_cfg": {
            "causal": True, "num_heads": 4, "num_heads_kv": 2, "d_conv": 3, "rotary_emb_dim": 4,
            "rotary_emb_interleaved": True, "rotary_emb_base": 100.0, "softmax_scale": 0.5,
        },
    },
    "mamba with an MLP": {**SHARED, "d_intermediate": 128, "ssm_cfg": {"d_state": 4}, "attn_layer_idx": []},
}  # fmt: skip
HYBRIDS = [name for name in CONFIGS if name not in ("mamba", "mamba2")]


def padded(config: dict[str, Any]) -> int:
    multiple = config["pad_vocab_size_multiple"]
    return -(-config["vocab_size"] // multiple) * multiple


def wide(config: dict[str, Any]) -> int:
    return -(-config.get("d_intermediate", 0) // 128) * 128


def shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The tensors of pytorch_model.bin."""
    d, attention, ssm = config["d_model"], config.get("attn_cfg") or {}, config["ssm_cfg"]
    found: dict[str, tuple[int, ...]] = {"backbone.embedding.weight": (padded(config), d)}
    for layer in range(config["n_layer"]):
        at = f"backbone.layers.{layer}."
        found[at + "norm.weight"] = (d,)
        if layer in (config.get("attn_layer_idx") or []):
            heads = attention["num_heads"]
            kv, size = attention.get("num_heads_kv", heads), attention.get("head_dim", d // heads)
            channels = (heads + 2 * kv) * size
            found[at + "mixer.in_proj.weight"] = (channels, d)
            found[at + "mixer.out_proj.weight"] = (d, heads * size)
            if attention.get("qkv_proj_bias", True):
                found[at + "mixer.in_proj.bias"] = (channels,)
            if attention.get("out_proj_bias", True):
                found[at + "mixer.out_proj.bias"] = (d,)
            if attention.get("d_conv"):
                found[at + "mixer.conv1d.weight"] = (channels, 1, attention["d_conv"])
                found[at + "mixer.conv1d.bias"] = (channels,)
        else:
            e, n = 2 * d, ssm.get("d_state", 128 if "layer" in ssm else 16)
            channels, rank = (e + 2 * n, 0) if "layer" in ssm else (e, math.ceil(d / 16))
            found[at + "mixer.conv1d.weight"] = (channels, 1, 4)
            found[at + "mixer.conv1d.bias"] = (channels,)
            found[at + "mixer.out_proj.weight"] = (d, e)
            if "layer" in ssm:
                heads = e // ssm.get("headdim", 64)
                found[at + "mixer.in_proj.weight"] = (e + channels + heads, d)
                found[at + "mixer.norm.weight"] = (e,)
                found |= {at + f"mixer.{name}": (heads,) for name in ("A_log", "D", "dt_bias")}
            else:
                found[at + "mixer.in_proj.weight"] = (2 * e, d)
                found[at + "mixer.x_proj.weight"] = (rank + 2 * n, e)
                found[at + "mixer.dt_proj.weight"], found[at + "mixer.dt_proj.bias"] = (e, rank), (e,)
                found[at + "mixer.A_log"], found[at + "mixer.D"] = (e, n), (e,)
            if ssm.get("bias"):
                found[at + "mixer.in_proj.bias"], found[at + "mixer.out_proj.bias"] = (2 * e,), (d,)
        if wide(config):
            found[at + "norm2.weight"] = (d,)
            found[at + "mlp.fc1.weight"] = (2 * wide(config), d)
            found[at + "mlp.fc2.weight"] = (d, wide(config))
    return found | {"backbone.norm_f.weight": (d,), "lm_head.weight": (padded(config), d)}


def write(name: str, directory: Path, **changes: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """config.json and pytorch_model.bin with random weights, as `MambaLMHeadModel.save_pretrained` writes them."""
    config, generator = {**CONFIGS[name], **changes}, torch.Generator().manual_seed(5)
    weights = {key: 0.25 * torch.randn(shape, generator=generator) for key, shape in shapes(config).items()}
    for key, tensor in weights.items():
        if "norm" in key:
            tensor.add_(1.0)
        elif key.endswith(("dt_bias", "dt_proj.bias")):
            tensor.sub_(2.0)
        elif key.endswith("A_log"):
            tensor.abs_()
    if config["tie_embeddings"]:
        weights["lm_head.weight"] = weights["backbone.embedding.weight"]
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    torch.save(weights, directory / "pytorch_model.bin")
    return config, weights


def norm(x: Tensor, weight: Tensor) -> Tensor:
    return weight * x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt()


def turned(heads: Tensor, config: dict[str, Any]) -> Tensor:
    """Each pair of dimensions is a complex number that turns by position · base^(−2i / r). (t, H, D)."""
    r = config.get("rotary_emb_dim", 0)
    if not r:
        return heads
    base = config.get("rotary_emb_base", 10000.0)
    speed = torch.tensor([base ** (-2 * i / r) for i in range(r // 2)])
    turn = torch.polar(torch.ones(len(heads), r // 2), torch.arange(len(heads))[:, None] * speed)[:, None]
    pairs = heads[..., :r].unflatten(-1, (r // 2, 2) if config.get("rotary_emb_interleaved") else (2, r // 2))
    if not config.get("rotary_emb_interleaved"):
        pairs = pairs.transpose(-1, -2)
    result = torch.view_as_real(torch.view_as_complex(pairs.contiguous()) * turn)
    if not config.get("rotary_emb_interleaved"):
        result = result.transpose(-1, -2)
    return torch.cat([result.flatten(-2), heads[..., r:]], -1)


def attention(x: Tensor, own: dict[str, Tensor], config: dict[str, Any]) -> Tensor:
    """(t, d) → (t, d), every token against every earlier one."""
    heads = config["num_heads"]
    kv, size = config.get("num_heads_kv", heads), config.get("head_dim", x.shape[1] // heads)
    qkv = F.linear(x, own["in_proj.weight"], own.get("in_proj.bias"))
    if "conv1d.weight" in own:
        weight = own["conv1d.weight"]
        qkv = F.conv1d(F.pad(qkv.T, (weight.shape[-1] - 1, 0)), weight, own["conv1d.bias"], groups=len(weight)).T
    q, k, v = (part.unflatten(-1, (-1, size)) for part in qkv.split([heads * size, kv * size, kv * size], dim=-1))
    q, k = turned(q, config), turned(k, config)
    k, v = (part.repeat_interleave(heads // kv, dim=1) for part in (k, v))
    scores = torch.einsum("thd,shd->hts", q, k) * config.get("softmax_scale", size**-0.5)
    later = torch.ones(len(x), len(x), dtype=torch.bool).triu(1)
    mixed = torch.einsum("hts,shd->thd", scores.masked_fill(later, -math.inf).softmax(-1), v)
    return F.linear(mixed.flatten(1), own["out_proj.weight"], own.get("out_proj.bias"))


def state_space(x: Tensor, own: dict[str, Tensor], config: dict[str, Any]) -> Tensor:
    """The same through transformers' mixer."""
    ssm, shared = config["ssm_cfg"], {"vocab_size": 4, "hidden_size": len(own["out_proj.weight"])}
    if "layer" in ssm:
        theirs = Mamba2Config(
            **shared, num_heads=len(own["D"]), head_dim=ssm["headdim"], state_size=ssm["d_state"], n_groups=1,
            chunk_size=16,
        )  # fmt: skip
        mixer: Any = Mamba2Mixer(theirs, 0)
    else:
        theirs = MambaConfig(**shared, state_size=ssm.get("d_state", 16), use_bias=ssm.get("bias", False))
        mixer = MambaMixer(theirs, 0)
    mixer.load_state_dict(own)
    kernels_by_device(mixer)
    return mixer.eval()(x[None])[0]


@torch.no_grad()
def reference(config: dict[str, Any], weights: dict[str, Tensor], ids: Tensor, layers: int | None = None) -> Tensor:
    """Logits (t, v) of one sequence (t,); the residual stream (t, d) after so many layers, if told."""
    stream = weights["backbone.embedding.weight"][ids]
    for layer in range(config["n_layer"] if layers is None else layers):
        at = f"backbone.layers.{layer}."
        own = {key.removeprefix(at + "mixer."): value for key, value in weights.items() if key.startswith(at + "mixer")}
        x = norm(stream, weights[at + "norm.weight"])
        attends = layer in (config.get("attn_layer_idx") or [])
        stream = stream + (attention(x, own, config["attn_cfg"]) if attends else state_space(x, own, config))
        if wide(config):
            up, gate = F.linear(norm(stream, weights[at + "norm2.weight"]), weights[at + "mlp.fc1.weight"]).chunk(2, -1)
            stream = stream + F.linear(up * F.silu(gate), weights[at + "mlp.fc2.weight"])
    if layers is not None:
        return stream
    return F.linear(norm(stream, weights["backbone.norm_f.weight"]), weights["lm_head.weight"])
