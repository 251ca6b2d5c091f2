"""What the ways of the transformers backend share: the model's forward, and what a way has to bring."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from evalspec.errors import ModelError
from evalspec.execute.backends.batch_invariance import products
from evalspec.execute.backends.forking import Fed
from evalspec.plan.pack import Pack

Row = TypeVar("Row")
Batch = TypeVar("Batch")


class Limits(Protocol):
    """How much is fed at a time: the backend itself, which lowers `batch_tokens` where memory runs out."""

    batch_tokens: int
    batch_bytes: int


class Way(ABC, Generic[Row, Batch]):
    """One way to feed packs and to decode; `Row` is its memory of one sequence, `Batch` that of a batch that decodes.

    The methods are `ForkingModel`'s, of memories instead of states.
    """

    forks: bool = True

    @abstractmethod
    def state_bytes(self, length: int) -> int:
        """Bytes that the memory of a sequence of `length` tokens takes."""

    @abstractmethod
    def feed(
        self, tokens: Tensor, pack: Pack, given: Sequence[Row | None], scored: Tensor, hidden: Tensor | None
    ) -> Fed[Row]:
        """Feed a pack's tokens (t,); logits of the positions `scored` (n,), then of the vectors `hidden` (m, d)."""

    @abstractmethod
    def gather(self, rows: Sequence[Row], room: int) -> Batch:
        """Sequences side by side, each about to be fed up to `room` tokens. One may appear more than once."""

    @abstractmethod
    def step(self, tokens: Tensor, batch: Batch) -> tuple[Tensor, Batch]:
        """Feed one token a row (b,): the logits (b, v), float32, that follow, and the memory after it."""

    @abstractmethod
    def select(self, batch: Batch, rows: Sequence[int]) -> Batch:
        """Only these rows."""

    @abstractmethod
    def join(self, first: Batch, second: Batch) -> Batch:
        """Both batches in one, the rows of the first before the second's."""


@dataclass(eq=False)
class _Pick:
    """Which vectors the head is to be given: flat positions, further vectors; `last` comes back, the rows' ends."""

    scored: Tensor
    ends: Tensor
    hidden: Tensor | None
    last: Tensor | None = None


class Forward:
    """A transformers model, its output head given the vectors alone whose logits are asked for."""

    def __init__(self, model: Any, *, batch_invariant: bool = False) -> None:
        self.model = model.eval()
        self.batch_invariant = batch_invariant
        head = model.get_output_embeddings()
        if head is None:
            raise ModelError(f"{type(model).__name__} has no output head: it is no causal language model")
        embeddings = model.get_input_embeddings().weight
        self.device: torch.device = embeddings.device
        self.vocab_size: int = embeddings.shape[0]
        self.dtype: torch.dtype = head.weight.dtype
        takes = inspect.signature(model.forward).parameters
        self.takes_positions = "position_ids" in takes
        self.cache_name = "cache_params" if "cache_params" in takes else "past_key_values"
        self._pick: _Pick | None = None
        head.register_forward_pre_hook(self._before_head)

    def __call__(
        self,
        tokens: Tensor,
        inputs: dict[str, Any],
        scored: Tensor,
        ends: Tensor,
        hidden: Tensor | None,
        *,
        cache: Any = None,
    ) -> tuple[Tensor, Tensor]:
        """Feed tokens (b, l), from and into `cache` if there is one.

        Returns: logits (n + m, v), float32, of the flat positions `scored` (n,) and the vectors `hidden` (m, d) · the
            vectors (e, d) of the flat positions `ends`.
        """
        self._pick = pick = _Pick(scored, ends, hidden)
        if cache is not None:
            inputs = {**inputs, self.cache_name: cache}
        try:
            with products(self.batch_invariant):
                output = self.model(input_ids=tokens, use_cache=cache is not None, **inputs)
        finally:
            self._pick = None
        if pick.last is None:
            raise ModelError(f"{type(self.model).__name__} does not call its output head as transformers' models do")
        return output.logits[0, : len(scored) + (0 if hidden is None else len(hidden))].float(), pick.last

    def _before_head(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Give the head the vectors that are asked for instead of all: no (b, l, v) tensor ever exists.

        What the model does to logits afterwards (soft caps, scales) still applies, since this is inside its forward.
        """
        if self._pick is None:
            return None
        pick, flat = self._pick, args[0].flatten(0, -2)
        pick.last = flat[pick.ends.to(flat.device)]
        wanted = [flat[pick.scored.to(flat.device)]]
        if pick.hidden is not None:
            wanted.append(pick.hidden.to(flat.device, flat.dtype))
        if not sum(len(vectors) for vectors in wanted):
            wanted.append(flat[:1])  # a head that is given nothing may fail; the caller drops this one
        return (torch.cat(wanted)[None], *args[1:])

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits (m, v), float32, of hidden vectors (m, d)."""
        nothing = torch.zeros(0, dtype=torch.long, device=self.device)
        token = torch.zeros(1, 1, dtype=torch.long, device=self.device)
        return self(token, {}, nothing, nothing, hidden)[0]
