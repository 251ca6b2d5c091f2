"""The native backend's hybrids: state-space layers fork their fixed-size states, attention forks keys and values.

A pack runs as one row of tokens, as in `native`; its attention is answered as in the transformers backend's *tree*
(`tree_attention`, `branches`), so that no key or value stands anywhere twice. A sequence's memory is both: the chain of
what each span added to keys and values, and the last states of its recurrent layers and short convolutions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evalspec.execute.backends import branches, kv, paths
from evalspec.execute.backends.forking import Fed, ForkedState
from evalspec.execute.backends.state_space import Settings, StateSpaceBackend
from evalspec.execute.backends.tree_layout import Scoring
from evalspec.models.tokens import Tokenizer
from evalspec.plan.forest import Tokens
from evalspec.plan.pack import Pack
from evalspec.ssm.hybrid import Attend, AttentionMixer, HybridLanguageModel
from evalspec.ssm.state import LayerState, RecurrentState, select, stack


@dataclass(frozen=True, eq=False)
class HybridMemory:
    """One sequence's memory: keys and values, and of each layer its states (1, …), empty where it has none."""

    read: kv.Segment
    states: RecurrentState


@dataclass(frozen=True, eq=False)
class HybridBatch:
    """The memory of a batch that decodes; the states are updated in place."""

    read: branches.Branches
    states: RecurrentState


class HybridBackend(StateSpaceBackend[HybridLanguageModel, HybridMemory, HybridBatch]):
    """A `ForkingBackend` over a `HybridLanguageModel`."""

    states_refer = True

    def __init__(
        self, model: HybridLanguageModel, tokenizer: Tokenizer | None = None, **settings: Unpack[Settings]
    ) -> None:
        """Run a model where its parameters are."""
        super().__init__(model, tokenizer, settings)
        attending = sum(isinstance(block.mixer, AttentionMixer) for block in model.backbone.layers)
        # All layers' keys and values are alike: they stand in one tensor.
        self._groups = [list(range(2 * attending))] if attending else []
        self._planes = [(0, at) for at in range(2 * attending)]
        with torch.inference_mode():
            # A small pack: it says how large a memory is, and has every kernel compiled before it is needed.
            nothing = torch.zeros(0, dtype=torch.long, device=self.device)
            ids = torch.zeros(3, dtype=torch.long, device=self.device)
            (memory,) = self._feed(ids, Pack.of([1, 1, 1], [-1, 0, 0], 1, [0]), [None], nothing, None).memories
        self._bytes_a_token = sum(plane.nbytes for plane in memory.read.planes)  # the kept segment is one token
        self._bytes = memory.states.nbytes + self.hidden_bytes
        # A pack's states stand in memory together, however few its tokens are.
        self.most_spans = max(1, self.batch_bytes // max(1, memory.states.nbytes))

    def state_bytes(self, length: int) -> int:
        """Bytes of the keys and values of `length` tokens, and of one sequence's states."""
        return int(self._bytes_a_token * length + self._bytes)

    def _stack(self, states: Sequence[RecurrentState | None]) -> RecurrentState | None:
        """States side by side, each one row; zeros where nothing was read."""
        some = next((state for state in states if state is not None), None)
        if some is None:
            return None
        nothing = RecurrentState(
            tuple(LayerState(torch.zeros_like(layer.conv), torch.zeros_like(layer.ssm)) for layer in some.layers)
        )
        return stack([state or nothing for state in states])

    def _feed(
        self,
        tokens: Tensor,
        pack: Pack,
        given: Sequence[HybridMemory | None],
        scored: Tensor,
        hidden: Tensor | None,
    ) -> Fed[HybridMemory]:
        before = [None if memory is None else memory.read for memory in given]
        call, position, ends = paths.passing(pack, before, self._planes, self.device)
        states = self._stack([None if memory is None else memory.states for memory in given])
        vectors, after = self.model.read(tokens, states, pack, position, _over_pack(call))
        picked = vectors[scored] if hidden is None else torch.cat([vectors[scored], hidden])
        last = vectors[torch.from_numpy(pack.stop[pack.keep] - 1).to(self.device)]
        segments = paths.kept_segments(call, pack, before, ends, self._groups)
        kept = RecurrentState(tuple(LayerState(layer.conv, layer.ssm.to(self.state_dtype)) for layer in after.layers))
        # Copies, so that one row's memory is freed when that row is dropped.
        memories = [HybridMemory(segment, select(kept, [row])) for row, segment in enumerate(segments)]
        return Fed(self._logits(picked), last, memories)

    def _gather(self, states: Sequence[ForkedState[HybridMemory]], room: int) -> HybridBatch:
        recurrent = self._stack([state.memory.states for state in states])
        assert recurrent is not None
        # A copy: steps update it in place, and a single sequence's states would be its own.
        recurrent = select(recurrent, range(len(states))) if len(states) == 1 else recurrent
        return HybridBatch(branches.branch([state.memory.read for state in states], room, self._planes), recurrent)

    def _step(self, tokens: Tensor, batch: HybridBatch) -> tuple[Tensor, HybridBatch]:
        call = branches.StepPass(branches.grown(batch.read))
        hidden = self.model.step(tokens, batch.states, batch.read.lengths, _over_rows(call))
        return self._logits(hidden), HybridBatch(call.after(), batch.states)

    def _select(self, batch: HybridBatch, rows: Sequence[int]) -> HybridBatch:
        return HybridBatch(branches.select(batch.read, rows), select(batch.states, rows))

    def _join(self, first: HybridBatch, second: HybridBatch) -> HybridBatch:
        return HybridBatch(branches.join(first.read, second.read), stack([first.states, second.states]))

    @torch.inference_mode()
    def hidden_states(self, tokens: Tokens) -> NDArray[np.float32]:
        """(layers + 1, t, d): the embedding, and the residual stream after each block (mixer and MLP)."""
        ids = torch.as_tensor(np.asarray(tokens, np.int64), device=self.device)
        pack, streams = Pack.of([len(tokens)], [-1], 1, []), list[Tensor]()
        call, position, _ = paths.passing(pack, [None], self._planes, self.device)
        self.model.read(ids, None, pack, position, _over_pack(call), streams=streams)
        return torch.stack([stream.float().cpu() for stream in streams]).numpy()


def _over_pack(call: branches.PackPass) -> Attend:
    """What a pack's layers are told: heads come behind tokens there, and before them here."""

    def attend(query: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
        q, k, v = (tensor.transpose(0, 1).contiguous()[None] for tensor in (query, keys, values))
        return call.attend(q, k, v, Scoring(scale))[0].transpose(0, 1)

    return attend


def _over_rows(call: branches.StepPass) -> Attend:
    """The same for one token a row."""

    def attend(query: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
        return call.attend(query[:, :, None], keys[:, :, None], values[:, :, None], Scoring(scale))[:, :, 0]

    return attend
