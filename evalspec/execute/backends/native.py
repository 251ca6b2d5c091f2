"""The native backend: Mamba and Mamba-2 on evalspec's own kernels, their fixed-size states forked and packed.

Rows of unequal length run in one batch: padding stands on the right and never enters a row's state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import evalspec
from evalspec.errors import BackendError
from evalspec.execute.backends.device import device_of, dtype_of, end_tokens_of
from evalspec.execute.backends.forking import Fed, ForkingModel
from evalspec.models.card import Model
from evalspec.models.tokens import Tokenizer
from evalspec.plan.forest import Tokens
from evalspec.ssm.checkpoints import load
from evalspec.ssm.kernels.selective_scan import selective_scan_blocked
from evalspec.ssm.language_model import RecurrentLanguageModel
from evalspec.ssm.mamba import MambaMixer
from evalspec.ssm.state import LayerState, RecurrentState, select


@dataclass(frozen=True, eq=False)
class PackedState:
    """One sequence's memory, all layers together: conv (layers, K−1, C), ssm (layers, …)."""

    conv: Tensor
    ssm: Tensor


class NativeBackend(ForkingModel[PackedState, RecurrentState]):
    """A `ForkingBackend` over a `RecurrentLanguageModel`."""

    name = "native"

    def __init__(
        self,
        model: RecurrentLanguageModel,
        tokenizer: Tokenizer | None = None,
        *,
        end_tokens: frozenset[int] = frozenset(),
        batch_tokens: int | None = None,
    ) -> None:
        """Run a model where its parameters are. `end_tokens` end an answer; `batch_tokens` bounds a batch."""
        self.model = model.eval()
        head = model.lm_head.weight
        super().__init__(
            tokenizer,
            device=head.device,
            dtype=head.dtype,
            vocab_size=head.shape[0],
            end_tokens=end_tokens,
            batch_tokens=batch_tokens,
        )
        self.version = f"{evalspec.__version__} (torch {torch.__version__})"
        with torch.inference_mode():
            _, state = model(torch.zeros(1, 1, dtype=torch.long, device=self.device))
        self._bytes = int(state.nbytes + head.shape[1] * head.element_size())

    def state_bytes(self, length: int) -> int:
        """Bytes of one sequence's state, whatever its length."""
        return self._bytes

    def _gather(self, rows: Sequence[PackedState | None], room: int) -> RecurrentState | None:
        known = {id(row): row for row in rows if row is not None}
        if not known:
            return None
        any_row = next(iter(known.values()))
        if None in rows:
            known[id(None)] = PackedState(torch.zeros_like(any_row.conv), torch.zeros_like(any_row.ssm))
        conv = torch.stack([row.conv for row in known.values()], dim=1)  # layers, distinct rows, …
        ssm = torch.stack([row.ssm for row in known.values()], dim=1)
        if len(known) < len(rows):
            place = {key: number for number, key in enumerate(known)}
            index = torch.tensor([place[id(row)] for row in rows], device=self.device)
            conv, ssm = conv.index_select(1, index), ssm.index_select(1, index)
        return RecurrentState(tuple(LayerState(c, s) for c, s in zip(conv, ssm, strict=True)))

    def _scatter(
        self,
        batch: RecurrentState,
        rows: Sequence[int],
        before: Sequence[PackedState | None],
        tokens: list[Tokens],
    ) -> list[PackedState]:
        kept = select(batch, rows)
        conv = torch.stack([layer.conv for layer in kept.layers], dim=1)  # rows, layers, …
        ssm = torch.stack([layer.ssm for layer in kept.layers], dim=1)
        # Copies, so that one row's memory is freed when that row is dropped.
        return [PackedState(c.clone(), s.clone()) for c, s in zip(conv, ssm, strict=True)]

    def _select(self, batch: RecurrentState, rows: Sequence[int]) -> RecurrentState:
        return select(batch, rows)

    def _join(self, first: RecurrentState, second: RecurrentState) -> RecurrentState:
        return RecurrentState(
            tuple(
                LayerState(torch.cat([a.conv, b.conv]), torch.cat([a.ssm, b.ssm]))
                for a, b in zip(first.layers, second.layers, strict=True)
            )
        )

    def _feed(
        self,
        tokens: Tensor,
        lengths: Sequence[int],
        memory: RecurrentState | None,
        scored: Tensor,
        hidden: Tensor | None,
    ) -> Fed[RecurrentState]:
        batch, longest = tokens.shape
        ends = torch.tensor(lengths, device=self.device)
        padded = min(lengths) < longest
        # Long spans go in pieces, from state to state: activations are bounded whatever the length.
        piece = max(64, self.batch_tokens // batch)
        parts = []
        for start in range(0, longest, piece):
            left = (ends - start).clamp(0, piece) if padded else None
            part, memory = self.model(tokens[:, start : start + piece], memory, left)
            parts.append(part)
        assert memory is not None
        vectors = torch.cat(parts, dim=1).flatten(0, 1) if len(parts) > 1 else parts[0].flatten(0, 1)  # b · l, d
        last = vectors[torch.arange(batch, device=self.device) * longest + ends - 1]
        picked = vectors[scored]
        if hidden is not None:
            picked = torch.cat([picked, hidden])
        return Fed(self._logits(picked), last, memory)

    def _logits(self, hidden: Tensor) -> Tensor:
        return self.model.head(hidden)

    @torch.inference_mode()
    def hidden_states(self, tokens: Tokens) -> NDArray[np.float32]:
        """(layers + 1, t, d): the embedding, and the residual stream after each block."""
        states = [
            self.model.backbone.embeddings(torch.as_tensor(np.asarray(tokens, np.int64), device=self.device)[None])
        ]
        for block in self.model.backbone.layers:
            states.append(block(states[-1], None, None)[0])
        return torch.cat(states).float().cpu().numpy()


def open_native(model: Model) -> NativeBackend:
    """Load a Mamba or Mamba-2 checkpoint as its block asks. BackendError for kernels that cannot serve it here."""
    device, kernels = device_of(model), model.block.kernels
    if kernels == "triton" and device.type != "cuda":
        raise BackendError(f"models.{model.name}: `kernels: triton` needs a GPU, which is not here; say `auto`")
    weights = load(model.directory, dtype=dtype_of(model, device), device=device)
    if kernels == "torch":
        for mixer in weights.modules():
            if isinstance(mixer, MambaMixer):
                mixer.scan = selective_scan_blocked
    return NativeBackend(
        weights, model.tokenizer, end_tokens=end_tokens_of(model), batch_tokens=model.block.batch_tokens
    )
