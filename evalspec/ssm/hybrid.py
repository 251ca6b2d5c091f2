"""Hybrids of state-space layers and attention, and Transformers, as mamba_ssm 2.x builds them (mixer_seq_simple.py).

    h ← h + mixer(norm(h))          mixer: Mamba, Mamba-2 or attention, by layer
    h ← h + mlp(norm2(h))           only where the config has an MLP: fc2(u ⊙ silu(g)), u, g = fc1(·)

    attention:  q, k, v = split(conv1d(in_proj(x)))    rotary on q and k    out_proj(softmax(scale · q kᵀ) v)

The convolution over q, k and v is causal, depthwise and without activation, and is left out where `d_conv` is 0. Who
attends to whom is not decided here: keys and values live with the backend, which answers `attend`.

Parameter names are mamba_ssm's. Published in this form: state-spaces/mamba2attn-2.7b, state-spaces/transformerpp-2.7b.

Glossary: t tokens of a pack · b rows that decode · d model width · H heads, H_kv of keys · D head size · r rotated
dimensions of a head · K width of the convolution · C = (H + 2 H_kv) D its channels
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evalspec.plan.pack import Pack
from evalspec.ssm.kernels.causal_conv1d import causal_conv1d
from evalspec.ssm.kernels.choice import kernels_for
from evalspec.ssm.language_model import Block, LanguageModel, Mixer, RMSNorm, add_and_norm
from evalspec.ssm.mamba import MambaConfig, MambaMixer
from evalspec.ssm.mamba2 import Mamba2Config, Mamba2Mixer
from evalspec.ssm.state import LayerState, RecurrentState


class Attend(Protocol):
    """Softmax attention of new tokens to their paths; it keeps the keys and values. Called once a layer, in order."""

    def __call__(self, query: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
        """(t, H, D), (t, H_kv, D) twice → (t, H, D)."""
        ...


@dataclass(frozen=True)
class AttentionConfig:
    """The keys of mamba_ssm's `MHA` that change what is computed; scale is softmax_scale, settled."""

    num_heads: int
    num_heads_kv: int
    head_dim: int
    qkv_proj_bias: bool
    out_proj_bias: bool
    softmax_scale: float
    d_conv: int
    rotary_emb_dim: int
    rotary_emb_base: float
    rotary_emb_interleaved: bool


@dataclass(frozen=True)
class HybridConfig:
    """A hybrid's config, as `models/original_format.py` translates it."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    layer_norm_epsilon: float
    residual_in_fp32: bool
    tie_word_embeddings: bool
    intermediate_size: int
    attention_layers: tuple[int, ...]
    attention: AttentionConfig | None
    mixer: MambaConfig | Mamba2Config | None

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> HybridConfig:
        """From the translated mapping; its other keys do not change the computation."""
        known = {key: config[key] for key in cls.__dataclass_fields__}
        mixer = known["mixer"]
        if mixer is not None:
            family = MambaConfig if mixer["model_type"] == "mamba" else Mamba2Config
            mixer = family.of({**config, **mixer})
        attention = None if known["attention"] is None else AttentionConfig(**known["attention"])
        layers = tuple(known["attention_layers"])
        return cls(**{**known, "mixer": mixer, "attention": attention, "attention_layers": layers})


def rotated(heads: Tensor, position: Tensor, config: AttentionConfig) -> Tensor:
    """Rotary positions on the first r dimensions of each head (t, H, D), in float32 (arXiv 2104.09864, eq. 34).

    Pairs are (i, i + r/2), as in GPT-NeoX, or (2i, 2i + 1) where interleaved.
    """
    r = config.rotary_emb_dim
    if not r:
        return heads
    pair = torch.arange(0, r, 2, dtype=torch.float32, device=heads.device)
    angle = position.float()[:, None, None] * config.rotary_emb_base ** (-pair / r)  # t, 1, r/2
    turning = heads[..., :r].float()
    if config.rotary_emb_interleaved:
        first, second = turning[..., ::2], turning[..., 1::2]
    else:
        first, second = turning.chunk(2, dim=-1)
    cos, sin = angle.cos(), angle.sin()
    turned = (first * cos - second * sin, first * sin + second * cos)
    whole = torch.stack(turned, dim=-1).flatten(-2) if config.rotary_emb_interleaved else torch.cat(turned, dim=-1)
    return torch.cat([whole.to(heads.dtype), heads[..., r:]], dim=-1)


class AttentionMixer(Mixer):
    """Attention as a block's mixer; parameter names as mamba_ssm's `MHA`. Its state is the convolution's alone."""

    def __init__(self, config: AttentionConfig, d_model: int) -> None:
        super().__init__()
        self.config = config
        self.sizes = [heads * config.head_dim for heads in (config.num_heads, config.num_heads_kv, config.num_heads_kv)]
        channels = sum(self.sizes)
        self.in_proj = nn.Linear(d_model, channels, bias=config.qkv_proj_bias)
        self.conv1d = nn.Conv1d(channels, channels, config.d_conv, groups=channels) if config.d_conv else None
        self.out_proj = nn.Linear(self.sizes[0], d_model, bias=config.out_proj_bias)

    def freeze(self) -> None:
        """Nothing but its parameters is needed."""

    def attention(
        self, x: Tensor, state: LayerState | None, pack: Pack, position: Tensor, attend: Attend
    ) -> tuple[Tensor, LayerState]:
        """(t, d) → (t, d), and the last inputs of the convolution after the kept segments (k, K−1, C)."""
        mixed = self.in_proj(x)
        if self.conv1d is None:
            conv = mixed.new_zeros(len(pack.keep), 0, 0)
        else:
            kernels, before = kernels_for(self.kernels, x), None if state is None else state.conv
            weight, bias = self.conv1d.weight[:, 0], self.conv1d.bias
            if kernels is None:
                mixed, conv = causal_conv1d(mixed, weight, bias, pack=pack, state=before)
            else:
                mixed, conv = kernels.convolve(mixed, weight, bias, pack=pack, state=before, silu=False)
        q, k, v = (torch.unflatten(part, 1, (-1, self.config.head_dim)) for part in mixed.split(self.sizes, dim=-1))
        q, k = rotated(q, position, self.config), rotated(k, position, self.config)
        context = attend(q, k, v, self.config.softmax_scale)
        return self.out_proj(context.flatten(1)), LayerState(conv, conv.new_zeros(len(pack.keep), 0))


class GatedMLP(nn.Module):
    """fc2(u ⊙ silu(g)) with u, g = fc1(x): mamba_ssm's `GatedMLP`."""

    def __init__(self, d_model: int, d_ff: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(d_model, 2 * d_ff, bias=False)
        self.fc2 = nn.Linear(d_ff, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(t, d) → (t, d)."""
        up, gate = self.fc1(x).chunk(2, dim=-1)
        return cast(Tensor, self.fc2(up * F.silu(gate)))


class HybridBlock(Block):
    """A block that may have an MLP behind its mixer."""

    def __init__(self, mixer: Mixer, config: HybridConfig) -> None:
        width, wide = config.hidden_size, config.intermediate_size
        super().__init__(mixer, width, config.layer_norm_epsilon, config.residual_in_fp32)
        self.norm2 = RMSNorm(width, config.layer_norm_epsilon) if wide else None
        self.mlp = GatedMLP(width, wide) if wide else None

    def feed_forward(self, update: Tensor, stream: Tensor) -> tuple[Tensor, Tensor]:
        """Behind the mixer, whose output is `update`: what is to be added next (t, d), and the stream so far."""
        if self.norm2 is None or self.mlp is None:
            return update, stream
        normed, stream = add_and_norm(update, stream, self.norm2)
        return self.mlp(normed), stream


class HybridLanguageModel(LanguageModel):
    """A language model some or all of whose layers attend. Only for inference."""

    def __init__(self, config: HybridConfig) -> None:
        super().__init__(
            [HybridBlock(_mixer(config, at), config) for at in range(config.num_hidden_layers)],
            vocab_size=config.vocab_size,
            d_model=config.hidden_size,
            eps=config.layer_norm_epsilon,
            residual_in_fp32=config.residual_in_fp32,
            tie_word_embeddings=config.tie_word_embeddings,
        )
        self.config = config

    def read(
        self,
        tokens: Tensor,
        state: RecurrentState | None,
        pack: Pack,
        position: Tensor,
        attend: Attend,
        *,
        streams: list[Tensor] | None = None,
    ) -> tuple[Tensor, RecurrentState]:
        """Read a pack's tokens (t,), which stand at `position` (t,) in their sequences, on from the given states.

        Returns: hidden (t, d) after the final norm, and the states of the kept segments. To `streams` is appended the
            residual stream (t, d): the embedding, and after each block.
        """
        update: Tensor | None = None
        stream, after = self._stream(self.backbone.embeddings(tokens)), []
        before = [None] * len(self.backbone.layers) if state is None else state.layers
        for block, layer in zip(cast(list[HybridBlock], self.backbone.layers), before, strict=True):
            normed, stream = add_and_norm(update, stream, block.norm)
            if streams is not None:
                streams.append(stream.clone())
            if isinstance(block.mixer, AttentionMixer):
                update, layer_state = block.mixer.attention(normed, layer, pack, position, attend)
            else:
                update, layer_state = block.mixer(normed, layer, pack)
            after.append(layer_state)
            update, stream = block.feed_forward(update, stream)
        hidden, stream = add_and_norm(update, stream, self.backbone.norm_f)
        if streams is not None:
            streams.append(stream)
        return hidden, RecurrentState(tuple(after))

    def step(self, tokens: Tensor, state: RecurrentState, position: Tensor, attend: Attend) -> Tensor:
        """Read one token a row (b,) on from `state`, which is updated in place: hidden (b, d) after the final norm."""
        pack = Pack.of_rows(len(tokens), 1)
        update: Tensor | None = None
        stream = self._stream(self.backbone.embeddings(tokens))
        for block, layer in zip(cast(list[HybridBlock], self.backbone.layers), state.layers, strict=True):
            normed, stream = add_and_norm(update, stream, block.norm)
            if isinstance(block.mixer, AttentionMixer):
                update, after = block.mixer.attention(normed, layer, pack, position, attend)
                layer.conv.copy_(after.conv)
            else:
                update = block.mixer.step(normed, layer)
            update, stream = block.feed_forward(update, stream)
        return add_and_norm(update, stream, self.backbone.norm_f)[0]


def _mixer(config: HybridConfig, at: int) -> Mixer:
    if at in config.attention_layers:
        assert config.attention is not None
        return AttentionMixer(config.attention, config.hidden_size)
    if isinstance(config.mixer, MambaConfig):
        return MambaMixer(config.mixer)
    assert config.mixer is not None
    return Mamba2Mixer(config.mixer)
