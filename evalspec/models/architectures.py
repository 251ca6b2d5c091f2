"""What a model is made of, from its Hugging Face config alone: layers, width, vocabulary, and the rest's parameters.

Each family's builder reads what transformers' own modelling code reads, with the defaults of its config class, so that
parameter counts are exact. A config that no builder covers raises `UncoveredConfig`, whose text is the reason.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from evalspec.models.layer_cost import AttentionLayer, FeedForwardLayer, Layer, Mamba2Layer, MambaLayer


class UncoveredConfig(Exception):
    """A config that the formulas do not cover; its text says why. Never meets a user: a plan then shows no cost."""


@dataclass(frozen=True)
class Architecture:
    """The parts of one model. `outer_parameters` are those outside the layers: embeddings, positions, norm, head."""

    model_type: str
    layers: tuple[Layer, ...]
    d_model: int
    vocab_size: int
    outer_parameters: int


def architecture_of(config: Mapping[str, Any]) -> Architecture:
    """The parts of the model that a `config.json` describes; raises UncoveredConfig."""
    family = str(config.get("model_type"))
    if family not in _BUILDERS:
        raise UncoveredConfig(f"no formulas for model_type `{family}`; known: {', '.join(sorted(_BUILDERS))}")
    return _BUILDERS[family](_Config(family, config))


@dataclass(frozen=True)
class _Config:
    """Reads a config: counts are whole numbers, and what old files leave out has the value that transformers gives."""

    family: str
    values: Mapping[str, Any]

    def count(self, key: str, default: int | None = None, *, least: int = 1) -> int:
        value = self.values.get(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise UncoveredConfig(
                f"the config of this {self.family} says `{key}: {value!r}`, which is no whole number from {least} on"
            )
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self.values.get(key)
        return default if value is None else bool(value)

    def architecture(self, layers: list[Layer], d: int, *, tied: bool, others: int) -> Architecture:
        vocabulary = self.count("vocab_size")
        matrices = 1 if self.flag("tie_word_embeddings", tied) else 2
        return Architecture(self.family, tuple(layers), d, vocabulary, matrices * vocabulary * d + others)


def _mamba(config: _Config) -> Architecture:
    layers: list[Layer] = [_mamba_layer(config)] * config.count("num_hidden_layers")
    return config.architecture(layers, config.count("hidden_size"), tied=True, others=config.count("hidden_size"))


def _mamba_layer(config: _Config) -> MambaLayer:
    d = config.count("hidden_size")
    rank = config.values.get("time_step_rank", "auto")
    return MambaLayer(
        d_model=d,
        d_inner=d * config.count("expand", 2),
        d_state=config.count("state_size", 16),
        conv_width=config.count("conv_kernel", 4),
        dt_rank=math.ceil(d / 16) if rank == "auto" else config.count("time_step_rank"),
        bias=config.flag("use_bias", False),
        conv_bias=config.flag("use_conv_bias", True),
    )


def _mamba2(config: _Config) -> Architecture:
    layers: list[Layer] = [_mamba2_layer(config)] * config.count("num_hidden_layers")
    return config.architecture(layers, config.count("hidden_size"), tied=False, others=config.count("hidden_size"))


def _mamba2_layer(config: _Config) -> Mamba2Layer:
    d = config.count("hidden_size")
    return Mamba2Layer(
        d_model=d,
        d_inner=d * config.count("expand", 2),
        d_state=config.count("state_size", 128),
        conv_width=config.count("conv_kernel", 4),
        heads=config.count("num_heads", 128),
        groups=config.count("n_groups", 8),
        chunk=config.count("chunk_size", 256),
        bias=config.flag("use_bias", False),
        conv_bias=config.flag("use_conv_bias", True),
    )


def _mamba_ssm(config: _Config) -> Architecture:
    """A hybrid of mamba_ssm, as `original_format` translates its config."""
    d, wide, layers = config.count("hidden_size"), config.count("intermediate_size", least=0), list[Layer]()
    mixer, attention = config.values.get("mixer"), config.values.get("attention")
    attending = set(config.values.get("attention_layers") or ())
    for index in range(config.count("num_hidden_layers")):
        if index in attending and attention is not None:
            heads, kv_heads = attention["num_heads"], attention["num_heads_kv"]
            vectors = d + attention["out_proj_bias"] * d + (d if wide else 0)
            vectors += attention["qkv_proj_bias"] * (heads + 2 * kv_heads) * attention["head_dim"]
            layers.append(
                AttentionLayer(
                    d, heads, kv_heads, attention["head_dim"], wide, True, None, vectors, attention["d_conv"]
                )
            )
        elif mixer is not None:
            inner = _Config(mixer["model_type"], {**config.values, **mixer})
            layers.append(_mamba_layer(inner) if mixer["model_type"] == "mamba" else _mamba2_layer(inner))
            if wide:
                layers.append(FeedForwardLayer(d, wide))
    return config.architecture(layers, d, tied=True, others=d)


@dataclass(frozen=True)
class _LlamaLike:
    """How a gated, rotary, RMS-normed family differs from Llama; the numbers are its config class's defaults."""

    kv_heads: int | None = None
    head_dim: int | None = None
    tied: bool = False
    norms: int = 2
    qk_norm: bool = False
    qkv_bias: bool = False
    biases: tuple[str, ...] = ("attention_bias",)
    window: int | None = None
    slides: Callable[[_Config, int], bool] | None = None

    def __call__(self, config: _Config) -> Architecture:
        d, heads = config.count("hidden_size"), config.count("num_attention_heads")
        values = {"num_key_value_heads": self.kv_heads, "head_dim": self.head_dim} | dict(config.values)
        kv_heads = (
            heads if values["num_key_value_heads"] is None else config.count("num_key_value_heads", self.kv_heads)
        )
        head_dim = d // heads if values["head_dim"] is None else config.count("head_dim", self.head_dim)
        d_ff = config.count("intermediate_size")
        vectors = self.norms * d + self.qk_norm * 2 * head_dim
        attention_bias = "attention_bias" in self.biases and config.flag("attention_bias", False)
        vectors += (self.qkv_bias or attention_bias) * (heads + 2 * kv_heads) * head_dim + attention_bias * d
        vectors += ("mlp_bias" in self.biases and config.flag("mlp_bias", False)) * (2 * d_ff + d)
        layers: list[Layer] = [
            AttentionLayer(d, heads, kv_heads, head_dim, d_ff, True, self._window(config, index), vectors)
            for index in range(config.count("num_hidden_layers"))
        ]
        return config.architecture(layers, d, tied=self.tied, others=d)

    def _window(self, config: _Config, index: int) -> int | None:
        if self.slides is None or not self.slides(config, index):
            return None
        window = config.values.get("sliding_window", self.window)
        return None if window is None else config.count("sliding_window", self.window)


def _stated_type(config: _Config, index: int) -> bool | None:
    kinds = config.values.get("layer_types")
    if not isinstance(kinds, list) or index >= len(kinds):
        return None
    return bool(kinds[index] == "sliding_attention")


def _late_layers_slide(config: _Config, index: int) -> bool:
    stated = _stated_type(config, index)
    late = index >= config.count("max_window_layers", 28, least=0)
    return config.flag("use_sliding_window", False) and (late if stated is None else stated)


def _all_but_every(default: int, key: str) -> Callable[[_Config, int], bool]:
    def slides(config: _Config, index: int) -> bool:
        stated = _stated_type(config, index)
        return (index + 1) % config.count(key, default) != 0 if stated is None else stated

    return slides


def _plain(
    config: _Config, *, d: int, heads: int, layers: int, d_ff: int, vectors: int, tied: bool, others: int
) -> Architecture:
    layer = AttentionLayer(d, heads, heads, d // heads, d_ff, gated=False, vectors=vectors)
    return config.architecture([layer] * layers, d, tied=tied, others=others)


def _gpt2(config: _Config) -> Architecture:
    d = config.count("n_embd")
    d_ff = config.count("n_inner", 4 * d)
    if config.flag("add_cross_attention", False):
        raise UncoveredConfig("this gpt2 has cross-attention, which the formulas do not cover")
    return _plain(
        config,
        d=d,
        heads=config.count("n_head"),
        layers=config.count("n_layer"),
        d_ff=d_ff,
        vectors=4 * d + 4 * d + d_ff + d,  # two LayerNorms; biases of q, k, v, output; of both feed-forward matrices
        tied=True,
        others=config.count("n_positions", 1024) * d + 2 * d,
    )


def _opt(config: _Config) -> Architecture:
    d, d_ff = config.count("hidden_size"), config.count("ffn_dim")
    if config.count("word_embed_proj_dim", d) != d:
        raise UncoveredConfig(
            "this opt projects its embeddings (`word_embed_proj_dim`), which the formulas do not cover"
        )
    norm = 2 * d if config.flag("layer_norm_elementwise_affine", True) else 0
    last = config.flag("do_layer_norm_before", True) and not config.flag("_remove_final_layer_norm", False)
    biases = 5 * d + d_ff if config.flag("enable_bias", True) else 0
    positions = config.count("max_position_embeddings", 2048) + 2  # transformers keeps two unused rows in front
    return _plain(
        config,
        d=d,
        heads=config.count("num_attention_heads"),
        layers=config.count("num_hidden_layers"),
        d_ff=d_ff,
        vectors=2 * norm + biases,
        tied=True,
        others=positions * d + last * norm,
    )


def _gpt_neox(config: _Config) -> Architecture:
    d, d_ff = config.count("hidden_size"), config.count("intermediate_size")
    return _plain(
        config,
        d=d,
        heads=config.count("num_attention_heads"),
        layers=config.count("num_hidden_layers"),
        d_ff=d_ff,
        vectors=4 * d + config.flag("attention_bias", True) * 4 * d + d_ff + d,
        tied=False,
        others=2 * d,
    )


_BUILDERS: dict[str, Callable[[_Config], Architecture]] = {
    "mamba": _mamba,
    "mamba2": _mamba2,
    "mamba_ssm": _mamba_ssm,
    "llama": _LlamaLike(biases=("attention_bias", "mlp_bias")),
    "mistral": _LlamaLike(kv_heads=8, biases=(), window=4096, slides=lambda config, index: True),
    "qwen2": _LlamaLike(kv_heads=32, biases=(), qkv_bias=True, window=4096, slides=_late_layers_slide),
    "qwen3": _LlamaLike(kv_heads=32, head_dim=128, qk_norm=True, window=4096, slides=_late_layers_slide),
    "gemma": _LlamaLike(kv_heads=16, head_dim=256, tied=True),
    "gemma2": _LlamaLike(
        kv_heads=4, head_dim=256, tied=True, norms=4, window=4096, slides=_all_but_every(2, "_pattern")
    ),
    "gemma3_text": _LlamaLike(
        kv_heads=4,
        head_dim=256,
        tied=True,
        norms=4,
        qk_norm=True,
        window=4096,
        slides=_all_but_every(6, "sliding_window_pattern"),
    ),
    "gpt2": _gpt2,
    "opt": _opt,
    "gpt_neox": _gpt_neox,
}
