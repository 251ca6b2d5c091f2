"""What a state-space model remembers: one convolution window and one recurrent state a layer, of fixed size.

A backend forks a state by selecting its row several times, and runs many branches at once by stacking rows.

Glossary: b batch · K width of the convolution · C its channels
The recurrent state is (b, e, n) in Mamba, (b, h, p, n) in Mamba-2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evalspec.plan.pack import Pack


@dataclass(frozen=True)
class LayerState:
    """One layer's memory: `conv` (b, K−1, C), its last inputs, in the model's dtype; `ssm` (b, …), computed in float32,
    whatever it is kept in."""

    conv: Tensor
    ssm: Tensor


@dataclass(frozen=True)
class RecurrentState:
    """The memory of a whole model for a batch of sequences, first layer first."""

    layers: tuple[LayerState, ...]

    @property
    def batch(self) -> int:
        """How many sequences it remembers."""
        return int(self.layers[0].ssm.shape[0])

    @property
    def nbytes(self) -> int:
        """Its size in bytes, all layers and rows."""
        return sum(layer.conv.nbytes + layer.ssm.nbytes for layer in self.layers)


def kept(ends: Tensor, pack: Pack) -> Tensor:
    """Of the states after the segments `pack.ends`, those after the segments `pack.keep`."""
    if pack.rows is not None or len(pack.keep) == len(pack.ends):
        return ends
    return ends[torch.from_numpy(pack.slot[pack.keep]).to(ends.device)]


def select(state: RecurrentState, rows: Tensor | Sequence[int]) -> RecurrentState:
    """The rows asked for, in that order, as a copy; a row may be asked for more than once (a fork)."""
    index = torch.as_tensor(rows, dtype=torch.long, device=state.layers[0].ssm.device)
    return RecurrentState(
        tuple(LayerState(layer.conv.index_select(0, index), layer.ssm.index_select(0, index)) for layer in state.layers)
    )


def stack(states: Sequence[RecurrentState]) -> RecurrentState:
    """All rows of all states in one batch, in order."""
    if len(states) == 1:
        return states[0]
    return RecurrentState(
        tuple(
            LayerState(torch.cat([layer.conv for layer in layers]), torch.cat([layer.ssm for layer in layers]))
            for layers in zip(*(state.layers for state in states), strict=True)
        )
    )


def split(state: RecurrentState) -> list[RecurrentState]:
    """One state a row, each with memory of its own, so that one row can be dropped while another lives on."""
    return [select(state, [row]) for row in range(state.batch)]
