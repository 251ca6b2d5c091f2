"""The native backend: Mamba and Mamba-2 on evalspec's own kernels, or mamba-ssm's, their fixed-size states forked.

A pack runs as one row of tokens: with our kernels nothing is padded, and all children read their parent's state where
it is. Between packs, and in decoding, states are kept in a precision of their own; what is computed is float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evalspec.errors import BackendError, ModelError
from evalspec.execute.backends.batch_invariance import ROWS, products
from evalspec.execute.backends.device import DTYPES, device_of, dtype_of, end_tokens_of
from evalspec.execute.backends.forking import Fed, ForkedState
from evalspec.execute.backends.graphs import GraphedSteps, Seated
from evalspec.execute.backends.hybrid import HybridBackend
from evalspec.execute.backends.state_space import Settings, StateSpaceBackend
from evalspec.models.card import Model
from evalspec.models.original_format import HYBRID
from evalspec.models.tokens import Tokenizer
from evalspec.plan.forest import Tokens
from evalspec.plan.pack import Pack
from evalspec.ssm.checkpoints import load, load_hybrid
from evalspec.ssm.kernels.choice import Choice
from evalspec.ssm.language_model import RecurrentLanguageModel
from evalspec.ssm.state import LayerState, RecurrentState, select, stack


@dataclass(frozen=True, eq=False)
class PackedState:
    """One sequence's memory, all layers together: conv (layers, K−1, C), ssm (layers, …) in the precision of states."""

    conv: Tensor
    ssm: Tensor


class NativeBackend(StateSpaceBackend[RecurrentLanguageModel, PackedState, RecurrentState | Seated]):
    """A `ForkingBackend` over a `RecurrentLanguageModel`."""

    def __init__(
        self, model: RecurrentLanguageModel, tokenizer: Tokenizer | None = None, **settings: Unpack[Settings]
    ) -> None:
        """Run a model where its parameters are."""
        super().__init__(model, tokenizer, settings)
        # Plain steps read indices from the CPU, which a recorded graph cannot.
        self.graphs = GraphedSteps(model) if self.device.type == "cuda" and self.kernels != "torch" else None
        with torch.inference_mode():
            # A small pack: it says how large a state is, and has every kernel compiled or loaded before it is needed.
            ids = torch.zeros(3, dtype=torch.long, device=self.device)
            _, state = model(ids, None, Pack.of([1, 1, 1], [-1, 0, 0], 1, [0]))
        held = sum(layer.conv.nbytes + layer.ssm.numel() * self.state_dtype.itemsize for layer in state.layers)
        self._bytes = int(held) + self.hidden_bytes
        if self.batch_invariant and (why := self._where_batches_matter()):
            raise ModelError(
                f"`batch_invariant: true` cannot be had of {type(model).__name__} here: {why}; leave it out"
            )

    @torch.inference_mode()
    def _where_batches_matter(self) -> str | None:
        """A batch in which tokens come out otherwise, to the last bit, than in one with all others; None if none does.
        So it is tried out whether the promise holds for this model, here."""
        most = 2 * ROWS[self.device.type] + 3
        tokens = torch.linspace(0, self.vocab_size - 1, most, device=self.device).long()
        every = torch.arange(most, device=self.device)
        whole = self._feed(tokens, Pack.of([most], [-1], 1, [0]), [None], every, None)
        begin, given = 0, None
        for count in (1, 2, 3, 5, 8, 13, most // 4, most - (32 + most // 4)):
            piece = slice(begin, begin + count)
            fed = self._feed(tokens[piece], Pack.of([count], [-1], 1, [0]), [given], every[:count], None)
            if not torch.equal(fed.logits, whole.logits[piece]):
                return f"{count} token{'s' * (count != 1)} come out otherwise than among {most}"
            begin, given = begin + count, fed.memories[0]
        # And while decoding: one row, and the same row beside others.
        state = ForkedState(whole.memories[0], whole.last[0], most)
        rows = [self._step(tokens[:count], self._gather([state] * count, 1))[0] for count in (1, 2, 3, 7, 18)]
        same = all(torch.equal(few, rows[-1][: len(few)]) for few in rows)
        return None if same else "rows that decode come out otherwise beside others"

    def state_bytes(self, length: int) -> int:
        """Bytes of one sequence's state, whatever its length."""
        return self._bytes

    def _stack(self, rows: Sequence[PackedState | None]) -> RecurrentState | None:
        """Memories side by side, each once; zeros where nothing was read."""
        some = next((row for row in rows if row is not None), None)
        if some is None:
            return None
        nothing = PackedState(torch.zeros_like(some.conv), torch.zeros_like(some.ssm)) if None in rows else some
        conv = torch.stack([(row or nothing).conv for row in rows], dim=1)  # layers, rows, …
        ssm = torch.stack([(row or nothing).ssm for row in rows], dim=1)
        return RecurrentState(tuple(LayerState(c, s) for c, s in zip(conv, ssm, strict=True)))

    def _feed(
        self, tokens: Tensor, pack: Pack, given: Sequence[PackedState | None], scored: Tensor, hidden: Tensor | None
    ) -> Fed[PackedState]:
        with products(self.batch_invariant):
            vectors, after = self.model(tokens, self._stack(given), pack)
        picked = vectors[scored] if hidden is None else torch.cat([vectors[scored], hidden])
        last = vectors[torch.from_numpy(pack.stop[pack.keep] - 1).to(self.device)]
        conv = torch.stack([layer.conv for layer in after.layers], dim=1)  # rows, layers, …
        ssm = torch.stack([layer.ssm.to(self.state_dtype) for layer in after.layers], dim=1)
        # Copies, so that one row's memory is freed when that row is dropped.
        memories = [PackedState(c.clone(), s.clone()) for c, s in zip(conv, ssm, strict=True)]
        return Fed(self._logits(picked), last, memories)

    def _gather(self, states: Sequence[ForkedState[PackedState]], room: int) -> RecurrentState:
        batch = self._stack([state.memory for state in states])
        assert batch is not None
        return batch

    def _step(self, tokens: Tensor, batch: RecurrentState | Seated) -> tuple[Tensor, RecurrentState | Seated]:
        with products(self.batch_invariant):
            if self.graphs is None:
                assert isinstance(batch, RecurrentState)
                return self._logits(self.model.step(tokens, batch)), batch
            seated = batch if isinstance(batch, Seated) else self.graphs.seat(batch)
            return self.graphs.step(tokens, seated), seated

    def _select(self, batch: RecurrentState | Seated, rows: Sequence[int]) -> RecurrentState | Seated:
        if isinstance(batch, Seated):
            assert self.graphs is not None
            return self.graphs.select(batch, rows)
        return select(batch, rows)

    def _join(self, first: RecurrentState | Seated, second: RecurrentState | Seated) -> RecurrentState | Seated:
        assert isinstance(second, RecurrentState)
        if isinstance(first, Seated):
            assert self.graphs is not None
            return self.graphs.seat(second, behind=first.rows)
        return stack([first, second])

    @torch.inference_mode()
    def hidden_states(self, tokens: Tokens) -> NDArray[np.float32]:
        """(layers + 1, t, d): the embedding, and the residual stream after each block."""
        states = [self.model.backbone.embeddings(torch.as_tensor(np.asarray(tokens, np.int64), device=self.device))]
        pack = Pack.of_rows(1, len(tokens))
        with products(self.batch_invariant):
            for block in self.model.backbone.layers:
                states.append(block(states[-1], None, pack)[0])
        return torch.stack(states).float().cpu().numpy()


def open_native(model: Model) -> NativeBackend | HybridBackend:
    """Load a Mamba, Mamba-2 or hybrid checkpoint as its block asks. BackendError for kernels that cannot serve it."""
    device, block = device_of(model), model.block
    dtype, kernels = dtype_of(model, device), _kernels(model, device)
    settings: Settings = {
        "end_tokens": end_tokens_of(model),
        "batch_tokens": block.batch_tokens,
        "kernels": kernels,
        "state_dtype": DTYPES[block.state_dtype],
        "batch_invariant": block.batch_invariant,
    }
    if model.type == HYBRID:
        return HybridBackend(load_hybrid(model.directory, dtype=dtype, device=device), model.tokenizer, **settings)
    try:
        return NativeBackend(load(model.directory, dtype=dtype, device=device), model.tokenizer, **settings)
    except ModelError as error:
        raise ModelError(f"models.{model.name}: {error}") from error


def _kernels(model: Model, device: torch.device) -> Choice:
    """What the block's `kernels` stands for on this device: `triton` is what `auto` takes on a GPU."""
    asked, said = model.block.kernels, f"models.{model.name}: `kernels: {model.block.kernels}`"
    if asked in ("triton", "mamba_ssm") and device.type != "cuda":
        raise BackendError(f"{said} needs a GPU, which is not here; say `auto`")
    if asked != "mamba_ssm":
        return "torch" if asked == "torch" else "auto"
    from evalspec.ssm.kernels.mamba_ssm_kernels import load_mamba_ssm

    try:
        return load_mamba_ssm()
    except (ImportError, OSError) as error:  # OSError: a library that was built for another one
        raise BackendError(
            f"{said} needs mamba-ssm and causal-conv1d, and they cannot be loaded here ({error}); "
            "pip install 'evalspec[mamba]' on a machine with a GPU and its compiler, or say `auto`"
        ) from error
