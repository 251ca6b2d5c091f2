"""Mamba: blocks whose mixer is a gated selective scan (arXiv 2312.00752, figure 3 and section 3.4).

    x, z = in_proj(u)        x = silu(conv1d(x))        Δ, B, C = softplus(dt_proj(·)), ·, ·  of  x_proj(x)
    out = out_proj(selective_scan(x, Δ, A, B, C, D) ⊙ silu(z))

Glossary: t tokens of a pack · k kept segments · d model width · e inner channels (E = expand · d) · n state
R rank of Δ · K conv width
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
from evalspec.ssm.kernels.choice import Kernels, kernels_for
from evalspec.ssm.kernels.selective_scan import selective_scan, selective_scan_reference
from evalspec.ssm.language_model import (
    Mixer,
    RecurrentLanguageModel,
    fan_in_uniform_,
    inverse_softplus_of_log_uniform,
)
from evalspec.ssm.state import LayerState, kept


@dataclass(frozen=True)
class MambaConfig:
    """The keys of Hugging Face's `MambaConfig` that change what is computed."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    state_size: int = 16
    expand: float = 2
    conv_kernel: int = 4
    time_step_rank: int | str = "auto"
    layer_norm_epsilon: float = 1e-5
    use_bias: bool = False
    use_conv_bias: bool = True
    residual_in_fp32: bool = True
    tie_word_embeddings: bool = True
    time_step_min: float = 1e-3
    time_step_max: float = 0.1
    time_step_floor: float = 1e-4

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> MambaConfig:
        """From the mapping of a config.json; its other keys do not change the computation."""
        return cls(**{key: config[key] for key in cls.__dataclass_fields__ if key in config})

    @property
    def inner(self) -> int:
        """E, the channels of the scan."""
        return int(self.expand * self.hidden_size)

    @property
    def rank(self) -> int:
        """R, the rank of Δ's projection."""
        return math.ceil(self.hidden_size / 16) if self.time_step_rank == "auto" else int(self.time_step_rank)


class MambaMixer(Mixer):
    """One Mamba layer's mixer; parameter names as Hugging Face's `MambaMixer`."""

    def __init__(self, config: MambaConfig) -> None:
        super().__init__()
        self.config = config
        d, e, n, rank = config.hidden_size, config.inner, config.state_size, config.rank
        self.in_proj = nn.Linear(d, 2 * e, bias=config.use_bias)
        self.conv1d = nn.Conv1d(e, e, config.conv_kernel, groups=e, bias=config.use_conv_bias)
        self.x_proj = nn.Linear(e, rank + 2 * n, bias=False)
        self.dt_proj = nn.Linear(rank, e)
        self.A_log = nn.Parameter(torch.arange(1, n + 1).float().log().repeat(e, 1))
        self.D = nn.Parameter(torch.ones(e))
        self.out_proj = nn.Linear(e, d, bias=config.use_bias)

    def forward(self, x: Tensor, state: LayerState | None, pack: Pack) -> tuple[Tensor, LayerState]:
        """(t, d) → (t, d) and the kept states: conv (k, K−1, e), ssm (k, e, n)."""
        kernels = kernels_for(self.kernels, x)
        if kernels is not None:
            return self._fused(kernels, x, state, pack)
        config = self.config
        u, z = self.in_proj(x).chunk(2, dim=-1)  # t, e each
        u, conv = causal_conv1d(
            u,
            self.conv1d.weight[:, 0],
            self.conv1d.bias,
            pack=pack,
            state=None if state is None else state.conv,
        )
        u = F.silu(u)
        low_rank, B, C = torch.split(self.x_proj(u), [config.rank, config.state_size, config.state_size], dim=-1)
        # The bias joins in float32: Δ spans orders of magnitude, and 16 bit would round its smallest away.
        delta = F.softplus(F.linear(low_rank, self.dt_proj.weight).float() + self.dt_proj.bias.float())
        A, scan = self.rates(), selective_scan_reference if self.kernels == "torch" else selective_scan
        y, ends = scan(u, delta, A, B, C, self.D, pack=pack, state=None if state is None else state.ssm)
        return self.out_proj((y * F.silu(z)).to(x.dtype)), LayerState(conv, kept(ends, pack))

    def _fused(self, kernels: Kernels, x: Tensor, state: LayerState | None, pack: Pack) -> tuple[Tensor, LayerState]:
        """The same on a GPU, in fewer passes: silu, softplus and the gate are parts of their neighbours' kernels."""
        config = self.config
        u, z = self.in_proj(x).chunk(2, dim=-1)
        weight, before = self.conv1d.weight[:, 0], None if state is None else state.conv
        u, conv = kernels.convolve(u, weight, self.conv1d.bias, pack=pack, state=before, silu=True)
        projected = self.x_proj(u)
        low_rank = projected[:, : config.rank]
        B, C = projected[:, config.rank :].float().chunk(2, dim=-1)  # widened once, not by every channel's program
        y, ends = kernels.scan(
            u,
            F.linear(low_rank, self.dt_proj.weight),
            self.rates(),
            B,
            C,
            self.D,
            pack=pack,
            state=None if state is None else state.ssm,
            z=z,
            delta_bias=self.dt_proj.bias,
        )
        return self.out_proj(y), LayerState(conv, kept(ends, pack))

    def step(self, x: Tensor, state: LayerState) -> Tensor:
        """One token a row, (b, d) → (b, d); the state (b, …) is updated in place."""
        kernels = kernels_for(self.kernels, x)
        if kernels is None:
            return super().step(x, state)
        config = self.config
        u, z = self.in_proj(x).chunk(2, dim=-1)
        u = kernels.convolve_step(u, self.conv1d.weight[:, 0], self.conv1d.bias, state=state.conv, silu=True)
        low_rank, B, C = torch.split(self.x_proj(u), [config.rank, config.state_size, config.state_size], dim=-1)
        delta = F.linear(low_rank, self.dt_proj.weight)
        A, bias = self.rates(), self.dt_proj.bias
        y = kernels.scan_step(u, delta, A, B, C, self.D, state=state.ssm, z=z, delta_bias=bias)
        return cast(Tensor, self.out_proj(y))

    @torch.no_grad()
    def initialise(self, generator: torch.Generator | None = None) -> None:
        """A = −(1 … N) (S4D-real), Δ log-uniform in [time_step_min, time_step_max], D = 1, else nn.Linear's default."""
        config = self.config
        fan_in_uniform_(self.in_proj.weight, config.hidden_size, generator)
        fan_in_uniform_(self.conv1d.weight, config.conv_kernel, generator)
        if self.conv1d.bias is not None:
            fan_in_uniform_(self.conv1d.bias, config.conv_kernel, generator)
        fan_in_uniform_(self.x_proj.weight, config.inner, generator)
        fan_in_uniform_(self.dt_proj.weight, config.rank, generator)
        fan_in_uniform_(self.out_proj.weight, config.inner, generator)
        for linear in (self.in_proj, self.out_proj):
            if linear.bias is not None:
                linear.bias.zero_()
        self.dt_proj.bias.copy_(
            inverse_softplus_of_log_uniform(
                (config.inner,), config.time_step_min, config.time_step_max, config.time_step_floor, generator
            )
        )
        self.A_log.copy_(torch.arange(1, config.state_size + 1).float().log().repeat(config.inner, 1))
        self.D.fill_(1.0)


class Mamba(RecurrentLanguageModel):
    """A Mamba language model; freshly built it is initialised as in the paper."""

    def __init__(self, config: MambaConfig) -> None:
        super().__init__(
            [MambaMixer(config) for _ in range(config.num_hidden_layers)],
            vocab_size=config.vocab_size,
            d_model=config.hidden_size,
            eps=config.layer_norm_epsilon,
            residual_in_fp32=config.residual_in_fp32,
            tie_word_embeddings=config.tie_word_embeddings,
        )
        self.config = config
        self.initialise()
