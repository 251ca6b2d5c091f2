"""What a model costs, from its config alone: state and KV bytes, floating-point operations, exact parameter counts.

No weights and no torch are needed, so that a plan shows its price before a GPU is touched. architectures.py reads the
config, layer_cost.py has each layer's formulas, and here they are summed. An unknown architecture has no cost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evalspec.models.architectures import Architecture, UncoveredConfig, architecture_of
from evalspec.models.layer_cost import Layer


@dataclass(frozen=True)
class Cost:
    """The cost of one model."""

    architecture: Architecture

    @property
    def parameters(self) -> int:
        """How many parameters the model has; tied weights count once."""
        return self.architecture.outer_parameters + sum(n * layer.parameters for layer, n in self._kinds)

    @property
    def head_flops(self) -> int:
        """Operations of the output head at one position: 2 d V."""
        return 2 * self.architecture.d_model * self.architecture.vocab_size

    def state_bytes(self, length: int, dtype_bytes: int, ssm_dtype_bytes: int | None = None) -> int:
        """Bytes that one sequence of `length` tokens keeps: KV cache, convolution and state-space states.

        `ssm_dtype_bytes` is for state-space states held in another precision (4: float32); by default `dtype_bytes`.
        """
        ssm = dtype_bytes if ssm_dtype_bytes is None else ssm_dtype_bytes
        return sum(n * layer.state_bytes(length, dtype_bytes, ssm) for layer, n in self._kinds)

    def kv_bytes(self, length: int, dtype_bytes: int) -> int:
        """The part of `state_bytes` that grows with the length; 0 for a model without attention."""
        return self.state_bytes(length, dtype_bytes) - self.state_bytes(0, dtype_bytes)

    def flops(self, lengths: ArrayLike, starts: ArrayLike = 0, *, scored: ArrayLike = 0) -> int:
        """Operations of feeding spans of tokens, summed: numbers, or arrays of equal shape, one entry a span.

        Args: lengths, tokens fed · starts, tokens that the state before them has seen · scored, positions that meet
        the output head (in all spans together if a number).
        """
        return self._sum(lengths, starts, stepwise=False) + round(float(np.sum(scored)) * self.head_flops)

    def decode_flops(self, tokens: ArrayLike, starts: ArrayLike = 0) -> int:
        """Operations of feeding `tokens` one by one after `starts` tokens, the head at each; summed over spans."""
        return self._sum(tokens, starts, stepwise=True) + round(float(np.sum(tokens)) * self.head_flops)

    def step_flops(self, position: int) -> int:
        """Operations of decoding the token at `position` (from 1, so it attends to as many), the head included."""
        return self.decode_flops(1, position - 1)

    def flops_of_each(
        self, lengths: ArrayLike, starts: ArrayLike = 0, *, stepwise: bool = False
    ) -> NDArray[np.float64]:
        """Operations of feeding each span, all at once or (`stepwise`) token by token, without the head; shaped as the
        spans are."""
        spans = np.broadcast_arrays(np.asarray(lengths, np.float64), np.asarray(starts, np.float64))
        return sum((n * layer.flops(*spans, stepwise=stepwise) for layer, n in self._kinds), np.zeros(spans[0].shape))

    @property
    def _kinds(self) -> list[tuple[Layer, int]]:
        return list(Counter(self.architecture.layers).items())

    def _sum(self, lengths: ArrayLike, starts: ArrayLike, *, stepwise: bool) -> int:
        return round(float(self.flops_of_each(lengths, starts, stepwise=stepwise).sum()))


def cost_of(config: Mapping[str, Any]) -> Cost | None:
    """The cost of the model that a Hugging Face `config.json` describes; None when `why_no_cost` says why not."""
    try:
        return Cost(architecture_of(config))
    except UncoveredConfig:
        return None


def why_no_cost(config: Mapping[str, Any]) -> str | None:
    """Why `cost_of` gives None for this config; None when it gives a cost."""
    try:
        architecture_of(config)
    except UncoveredConfig as reason:
        return str(reason)
    return None
