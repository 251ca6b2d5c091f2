"""Decoding on a GPU by recorded graphs: a step of a state-space model is hundreds of small kernels, and launching them
one by one takes longer than running them.

All running rows stand in one buffer of states, which a step updates in place; rows beyond the running ones compute
nothing that anyone reads. A graph is recorded for each of a few row counts, over the buffer's first rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evalspec.ssm.language_model import RecurrentLanguageModel
from evalspec.ssm.state import LayerState, RecurrentState, select


@dataclass(frozen=True)
class Seated:
    """The running rows: the buffer's first `rows`."""

    rows: int


@dataclass(frozen=True, eq=False)
class _Recorded:
    graph: torch.cuda.CUDAGraph
    tokens: Tensor
    logits: Tensor


class GraphedSteps:
    """The steps of one model; one batch is decoded at a time."""

    def __init__(self, model: RecurrentLanguageModel) -> None:
        self.model = model
        self.buffer: RecurrentState | None = None
        self.recorded: dict[int, _Recorded] = {}

    def seat(self, state: RecurrentState, behind: int = 0) -> Seated:
        """Put rows into the buffer, behind those that sit there already."""
        rows = behind + state.batch
        if self.buffer is None or self.buffer.batch < bucket(rows):
            self._grow(state, behind, bucket(rows))
        assert self.buffer is not None
        _copy(state, _rows(self.buffer, behind, rows))
        return Seated(rows)

    def select(self, batch: Seated, rows: Sequence[int]) -> Seated:
        """Only these rows, moved to the front."""
        assert self.buffer is not None
        _copy(select(self.buffer, rows), _rows(self.buffer, 0, len(rows)))
        return Seated(len(rows))

    def step(self, tokens: Tensor, batch: Seated) -> Tensor:
        """One token a row (b,): logits (b, v) in float32."""
        size = bucket(batch.rows)
        if size not in self.recorded:
            self.recorded[size] = self._record(size)
        recorded = self.recorded[size]
        recorded.tokens[: batch.rows] = tokens
        recorded.graph.replay()
        return recorded.logits[: batch.rows].clone()

    def _grow(self, like: RecurrentState, kept: int, size: int) -> None:
        """A larger buffer; graphs hold addresses, so they go with the old one."""
        old, self.recorded = self.buffer, {}
        self.buffer = RecurrentState(
            tuple(
                LayerState(
                    layer.conv.new_zeros(size, *layer.conv.shape[1:]), layer.ssm.new_zeros(size, *layer.ssm.shape[1:])
                )
                for layer in like.layers
            )
        )
        if old is not None and kept:
            _copy(_rows(old, 0, kept), _rows(self.buffer, 0, kept))

    def _record(self, size: int) -> _Recorded:
        assert self.buffer is not None
        state = _rows(self.buffer, 0, size)
        device = state.layers[0].ssm.device
        tokens = torch.zeros(size, dtype=torch.long, device=device)
        before = select(state, range(size))  # recording runs the step, which must leave no trace
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for _ in range(2):  # compiles what has to be compiled
                self.model.head(self.model.step(tokens, state))
        torch.cuda.current_stream(device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits = self.model.head(self.model.step(tokens, state))
        _copy(before, state)
        return _Recorded(graph, tokens, logits)


def bucket(rows: int) -> int:
    """The row count that a graph is recorded for: a power of two up to 16, then multiples of 16."""
    return 1 << (rows - 1).bit_length() if rows <= 16 else -(-rows // 16) * 16


def _rows(state: RecurrentState, begin: int, end: int) -> RecurrentState:
    """Some rows, as views."""
    return RecurrentState(tuple(LayerState(layer.conv[begin:end], layer.ssm[begin:end]) for layer in state.layers))


def _copy(source: RecurrentState, target: RecurrentState) -> None:
    for one, other in zip(source.layers, target.layers, strict=True):
        other.conv.copy_(one.conv)
        other.ssm.copy_(one.ssm)
