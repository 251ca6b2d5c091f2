"""Mamba-2: blocks whose mixer is SSD, a scan with one scalar decay a head (arXiv 2405.21060, section 7, figure 6).

    z, xBC, Δ = in_proj(u)        x, B, C = silu(conv1d(xBC))        Δ = softplus(Δ + dt_bias)
    out = out_proj(norm(ssd(x, Δ, A, B, C, D) ⊙ silu(z)))

Glossary: t tokens of a pack · k kept segments · d model width · e inner channels (E = expand · d)
h heads · p head size · n state · g groups · K conv width
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evalspec.plan.pack import Pack
from evalspec.ssm.kernels.causal_conv1d import causal_conv1d
from evalspec.ssm.kernels.choice import kernels_for
from evalspec.ssm.kernels.ssd import ssd, ssd_chunked
from evalspec.ssm.language_model import (
    Mixer,
    RecurrentLanguageModel,
    RMSNorm,
    fan_in_uniform_,
    inverse_softplus_of_log_uniform,
)
from evalspec.ssm.state import LayerState


@dataclass(frozen=True)
class Mamba2Config:
    """The keys of Hugging Face's `Mamba2Config` that change what is computed."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_heads: int
    head_dim: int = 64
    state_size: int = 128
    expand: float = 2
    n_groups: int = 1
    conv_kernel: int = 4
    layer_norm_epsilon: float = 1e-5
    use_bias: bool = False
    use_conv_bias: bool = True
    residual_in_fp32: bool = True
    tie_word_embeddings: bool = True
    time_step_min: float = 1e-3
    time_step_max: float = 0.1
    time_step_floor: float = 1e-4
    time_step_limit: tuple[float, float] = (0.0, math.inf)

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Mamba2Config:
        """From the mapping of a config.json; keys that it leaves out have Hugging Face's defaults, not this class's."""
        hub = {"n_groups": 8, "num_heads": 128, "tie_word_embeddings": False}
        return cls(**{key: value for key, value in {**hub, **config}.items() if key in cls.__dataclass_fields__})

    @property
    def inner(self) -> int:
        """E, the channels of the scan."""
        return int(self.expand * self.hidden_size)

    @property
    def conv_channels(self) -> int:
        """Channels of the convolution: x, B and C together."""
        return self.inner + 2 * self.n_groups * self.state_size


class Mamba2Mixer(Mixer):
    """One Mamba-2 layer's mixer; parameter names as Hugging Face's `Mamba2Mixer`."""

    def __init__(self, config: Mamba2Config) -> None:
        super().__init__()
        self.config = config
        d, e, channels, heads = config.hidden_size, config.inner, config.conv_channels, config.num_heads
        self.in_proj = nn.Linear(d, e + channels + heads, bias=config.use_bias)
        self.conv1d = nn.Conv1d(channels, channels, config.conv_kernel, groups=channels, bias=config.use_conv_bias)
        self.dt_bias = nn.Parameter(torch.zeros(heads))
        self.A_log = nn.Parameter(torch.zeros(heads))
        self.D = nn.Parameter(torch.ones(heads))
        self.norm = RMSNorm(e, config.layer_norm_epsilon)
        self.out_proj = nn.Linear(e, d, bias=config.use_bias)

    def forward(self, x: Tensor, state: LayerState | None, pack: Pack) -> tuple[Tensor, LayerState]:
        """(t, d) → (t, d) and the kept states: conv (k, K−1, E + 2 g n), ssm (k, h, p, n)."""
        config, kernels = self.config, kernels_for(self.kernels, x)
        z, u, delta = torch.split(self.in_proj(x), [config.inner, config.conv_channels, config.num_heads], dim=-1)
        weight, bias, before = self.conv1d.weight[:, 0], self.conv1d.bias, None if state is None else state.conv
        if kernels is None:
            scan = ssd_chunked if self.kernels == "torch" else ssd
            u, conv = causal_conv1d(u, weight, bias, pack=pack, state=before)
            u = F.silu(u)
        else:
            scan = kernels.ssd
            u, conv = kernels.convolve(u, weight, bias, pack=pack, state=before, silu=True)
        shared = config.n_groups * config.state_size
        u, B, C = torch.split(u, [config.inner, shared, shared], dim=-1)
        delta = F.softplus(delta.float() + self.dt_bias.float()).clamp(*config.time_step_limit)  # t, h
        y, last = scan(
            torch.unflatten(u, 1, (config.num_heads, config.head_dim)),
            delta,
            self.rates(),
            torch.unflatten(B, 1, (config.n_groups, config.state_size)),
            torch.unflatten(C, 1, (config.n_groups, config.state_size)),
            self.D,
            pack=pack,
            state=None if state is None else state.ssm,
        )
        return self.out_proj(self.norm(y.flatten(1), z).to(x.dtype)), LayerState(conv, last)

    def step(self, x: Tensor, state: LayerState) -> Tensor:
        """One token a row, (b, d) → (b, d); the state (b, …) is updated in place."""
        kernels = kernels_for(self.kernels, x)
        if kernels is None:
            return super().step(x, state)
        config = self.config
        z, u, delta = torch.split(self.in_proj(x), [config.inner, config.conv_channels, config.num_heads], dim=-1)
        u = kernels.convolve_step(u, self.conv1d.weight[:, 0], self.conv1d.bias, state=state.conv, silu=True)
        shared = config.n_groups * config.state_size
        u, B, C = torch.split(u, [config.inner, shared, shared], dim=-1)
        delta = F.softplus(delta.float() + self.dt_bias.float()).clamp(*config.time_step_limit)
        y = kernels.ssd_step(
            torch.unflatten(u, 1, (config.num_heads, config.head_dim)),
            delta,
            self.rates(),
            torch.unflatten(B, 1, (config.n_groups, config.state_size)),
            torch.unflatten(C, 1, (config.n_groups, config.state_size)),
            self.D,
            state=state.ssm,
        )
        return cast(Tensor, self.out_proj(self.norm(y.flatten(1), z)))

    @torch.no_grad()
    def initialise(self, generator: torch.Generator | None = None) -> None:
        """A uniform in −[1, 16], Δ log-uniform in [time_step_min, time_step_max], D = 1, else nn.Linear's default."""
        config = self.config
        fan_in_uniform_(self.in_proj.weight, config.hidden_size, generator)
        fan_in_uniform_(self.conv1d.weight, config.conv_kernel, generator)
        if self.conv1d.bias is not None:
            fan_in_uniform_(self.conv1d.bias, config.conv_kernel, generator)
        fan_in_uniform_(self.out_proj.weight, config.inner, generator)
        for linear in (self.in_proj, self.out_proj):
            if linear.bias is not None:
                linear.bias.zero_()
        self.dt_bias.copy_(
            inverse_softplus_of_log_uniform(
                (config.num_heads,), config.time_step_min, config.time_step_max, config.time_step_floor, generator
            )
        )
        self.A_log.copy_(torch.empty(config.num_heads).uniform_(1.0, 16.0, generator=generator).log())
        self.D.fill_(1.0)
        self.norm.weight.fill_(1.0)


class Mamba2(RecurrentLanguageModel):
    """A Mamba-2 language model; freshly built it is initialised as in the paper."""

    def __init__(self, config: Mamba2Config) -> None:
        super().__init__(
            [Mamba2Mixer(config) for _ in range(config.num_hidden_layers)],
            vocab_size=config.vocab_size,
            d_model=config.hidden_size,
            eps=config.layer_norm_epsilon,
            residual_in_fp32=config.residual_in_fp32,
            tie_word_embeddings=config.tie_word_embeddings,
        )
        self.config = config
        self.initialise()
