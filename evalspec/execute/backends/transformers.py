"""The transformers backend: any causal language model that transformers loads, its KV cache forked by evalspec.

Padding of new tokens stands on the right, where causality keeps it from every real position; padding of what came
before stands on the left and is masked; positions count real tokens only. So no row's result depends on its batch.

A model whose cache is not plain keys and values (recurrent and hybrid ones) cannot be forked: its states remember their
tokens, and continuing one feeds them again (`forks` is False, and the cost is the caller's to count).
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from evalspec.errors import ModelError
from evalspec.execute.backends import kv
from evalspec.execute.backends.device import device_of, dtype_of, end_tokens_of
from evalspec.execute.backends.forking import Fed, ForkingModel
from evalspec.models.card import Model
from evalspec.models.tokens import Tokenizer
from evalspec.plan.forest import Tokens
from evalspec.ssm.checkpoints import UNREADABLE


@dataclass(frozen=True, eq=False)
class Retold:
    """A state of a model that cannot be forked: the tokens to feed again."""

    tokens: Tokens


@dataclass(frozen=True, eq=False)
class RetoldBatch:
    """The tokens of each row of such a batch."""

    tokens: tuple[Tokens, ...]


LOADING_ERRORS = (*UNREADABLE, StrictDataclassError, ValueError, KeyError, TypeError, AttributeError, ImportError)
"""What transformers raises for directories that hold no model, half of one, or one that it does not know."""

_ROOM = 64  # tokens that a batch may decode before its buffers grow

Row = kv.Segment | Retold
Batch = kv.KeyValues | RetoldBatch


class TransformersBackend(ForkingModel[Row, Batch]):
    """A `ForkingBackend` over a transformers model."""

    name = "transformers"

    def __init__(
        self,
        model: Any,
        tokenizer: Tokenizer | None = None,
        *,
        end_tokens: frozenset[int] = frozenset(),
        batch_tokens: int | None = None,
    ) -> None:
        """Run a model where its parameters are. `end_tokens` end an answer; `batch_tokens` bounds a batch."""
        self.model = model.eval()
        head = model.get_output_embeddings()
        if head is None:
            raise ModelError(f"{type(model).__name__} has no output head: it is no causal language model")
        device = model.get_input_embeddings().weight.device
        vocab_size = model.get_input_embeddings().weight.shape[0]
        super().__init__(
            tokenizer,
            device=device,
            dtype=head.weight.dtype,
            vocab_size=vocab_size,
            end_tokens=end_tokens,
            batch_tokens=batch_tokens,
        )
        self.version = f"{transformers.__version__} (torch {torch.__version__})"
        self._takes_positions = "position_ids" in inspect.signature(model.forward).parameters
        self._pick: _Pick | None = None
        head.register_forward_pre_hook(self._before_head)
        self._probe()

    @torch.inference_mode()
    def _probe(self) -> None:
        """Feed one token and look at the cache that comes back: may it be forked, and how many bytes is a token?"""
        output = self.model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=self.device), use_cache=True)
        cache = getattr(output, "past_key_values", None)
        layers = getattr(cache, "layers", [])
        plain = (DynamicLayer, DynamicSlidingWindowLayer)
        self.forks = bool(layers) and all(type(layer) in plain and layer.keys is not None for layer in layers)
        self._groups: list[list[int]] = []
        self._bytes_a_token = 0
        if self.forks:
            planes = [(layer.keys, layer.values) for layer in layers]
            self._groups = kv.groups_of(planes)
            self._bytes_a_token = sum(keys.nbytes + values.nbytes for keys, values in planes)

    def state_bytes(self, length: int) -> int:
        """Bytes of the keys and values of `length` tokens; of a model that cannot be forked, of the tokens."""
        return self._bytes_a_token * length if self.forks else 4 * length

    def _gather(self, rows: Sequence[Row | None], room: int) -> Batch | None:
        if all(row is None for row in rows):
            return None
        if self.forks:
            return kv.gather([row if isinstance(row, kv.Segment) else None for row in rows], self._groups, room)
        return RetoldBatch(tuple(row.tokens if isinstance(row, Retold) else np.zeros(0, np.int32) for row in rows))

    def _scatter(
        self, batch: Batch, rows: Sequence[int], before: Sequence[Row | None], tokens: list[Tokens]
    ) -> list[Row]:
        if isinstance(batch, RetoldBatch):
            return [Retold(batch.tokens[row]) for row in rows]
        segments = [row if isinstance(row, kv.Segment) else None for row in before]
        lengths = [len(span) for span in tokens]
        past = max(0 if segment is None else segment.length for segment in segments)
        return list(kv.scatter(batch, rows, segments, past, lengths, self._groups))

    def _select(self, batch: Batch, rows: Sequence[int]) -> Batch:
        if isinstance(batch, RetoldBatch):
            return RetoldBatch(tuple(batch.tokens[row] for row in rows))
        return kv.select(batch, rows)

    def _join(self, first: Batch, second: Batch) -> Batch:
        if isinstance(first, RetoldBatch) and isinstance(second, RetoldBatch):
            return RetoldBatch(first.tokens + second.tokens)
        assert isinstance(first, kv.KeyValues) and isinstance(second, kv.KeyValues)
        return kv.join(first, second, _ROOM)

    def _feed(
        self, tokens: Tensor, lengths: Sequence[int], memory: Batch | None, scored: Tensor, hidden: Tensor | None
    ) -> Fed[Batch]:
        if not self.forks:
            assert not isinstance(memory, kv.KeyValues)
            return self._feed_again(tokens, lengths, memory, scored, hidden)
        assert not isinstance(memory, RetoldBatch)
        batch, longest = tokens.shape
        past = [0] * batch if memory is None else list(memory.lengths)
        columns = 0 if memory is None else memory.columns
        inputs: dict[str, Any] = {"past_key_values": kv.as_cache(memory)}
        # Without a mask attention runs its fast causal form; rows that begin in different columns need one.
        if min(past) < columns:
            column = torch.arange(columns + longest, device=self.device)
            first = columns - torch.tensor(past, device=self.device)
            inputs["attention_mask"] = (column >= first[:, None]).long()
        if self._takes_positions:
            begin, count = (torch.tensor(values, device=self.device)[:, None] for values in (past, lengths))
            # Padding repeats the row's last position: a learned table of positions may end there.
            inputs["position_ids"] = begin + torch.arange(longest, device=self.device).minimum(count - 1)
        ends = torch.tensor([row * longest + length - 1 for row, length in enumerate(lengths)], device=self.device)
        logits, last, cache = self._run(tokens, inputs, scored, ends, hidden, use_cache=True)
        return Fed(logits, last, kv.from_cache(cache, [p + length for p, length in zip(past, lengths, strict=True)]))

    def _feed_again(
        self, tokens: Tensor, lengths: Sequence[int], memory: RetoldBatch | None, scored: Tensor, hidden: Tensor | None
    ) -> Fed[Batch]:
        """The same for a model that cannot be forked: what each row has read before is fed again in front."""
        batch, longest = tokens.shape
        before = (np.zeros(0, np.int32),) * batch if memory is None else memory.tokens
        new = tokens.cpu().numpy()
        whole = [np.concatenate([before[row], new[row, : lengths[row]]]).astype(np.int32) for row in range(batch)]
        width = max(len(row) for row in whole)
        padded = np.zeros((batch, width), np.int64)
        for row, sequence in enumerate(whole):
            padded[row, : len(sequence)] = sequence
        past = torch.tensor([len(row) for row in before], device=self.device)
        rows = scored // longest
        moved = rows * width + past[rows] + scored % longest
        ends = torch.tensor([row * width + len(sequence) - 1 for row, sequence in enumerate(whole)], device=self.device)
        logits, last, _ = self._run(torch.from_numpy(padded).to(self.device), {}, moved, ends, hidden, use_cache=False)
        return Fed(logits, last, RetoldBatch(tuple(whole)))

    def _run(
        self,
        tokens: Tensor,
        inputs: dict[str, Any],
        scored: Tensor,
        ends: Tensor,
        hidden: Tensor | None,
        *,
        use_cache: bool,
    ) -> tuple[Tensor, Tensor, Any]:
        """The model's forward, its head given the scored positions alone."""
        self._pick = pick = _Pick(scored, ends, hidden)
        try:
            output = self.model(input_ids=tokens, use_cache=use_cache, **inputs)
        finally:
            self._pick = None
        if pick.last is None:
            raise ModelError(f"{type(self.model).__name__} does not call its output head as transformers' models do")
        logits = output.logits[0, : len(scored) + (0 if hidden is None else len(hidden))].float()
        return logits, pick.last, getattr(output, "past_key_values", None)

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

    def _logits(self, hidden: Tensor) -> Tensor:
        nothing = torch.zeros(0, dtype=torch.long, device=self.device)
        token = torch.zeros(1, 1, dtype=torch.long, device=self.device)
        return self._run(token, {}, nothing, nothing, hidden, use_cache=False)[0]

    @torch.inference_mode()
    def hidden_states(self, tokens: Tokens) -> NDArray[np.float32]:
        """(layers + 1, t, d): what the first block is given, and the residual stream after each block."""
        blocks = self._blocks()
        states: list[Tensor] = []

        def given(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            states.append(args[0] if args else kwargs["hidden_states"])

        def gave(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            states.append(output[0] if isinstance(output, tuple) else output)

        hooks = [blocks[0].register_forward_pre_hook(given, with_kwargs=True)]
        hooks += [block.register_forward_hook(gave) for block in blocks]
        end = torch.tensor([len(tokens) - 1], device=self.device)
        sequence = torch.as_tensor(np.asarray(tokens, np.int64), device=self.device)[None]
        try:
            self._run(sequence, {}, end[:0], end, None, use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()
        return torch.cat([state.float().cpu() for state in states]).numpy()

    def _blocks(self) -> nn.ModuleList:
        """The model's residual blocks: its one list of as many modules as it has layers."""
        layers = self.model.config.get_text_config().num_hidden_layers
        lists = [
            module for module in self.model.modules() if isinstance(module, nn.ModuleList) and len(module) == layers
        ]
        if not lists:
            raise ModelError(f"{type(self.model).__name__} has no list of {layers} blocks to read hidden states from")
        return lists[0]


def open_transformers(model: Model) -> TransformersBackend:
    """Load a causal language model as its block asks, over several GPUs where it says `device_map`."""
    device = device_of(model)
    spread = {"device_map": model.block.device_map} if model.block.device_map else {}
    try:
        loaded, found = transformers.AutoModelForCausalLM.from_pretrained(
            model.directory, dtype=dtype_of(model, device), output_loading_info=True, **spread
        )
    except LOADING_ERRORS as error:
        lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        # A config that its class refuses says in the first line only that it does.
        first = " ".join(line.strip() for line in lines[: 2 if isinstance(error, StrictDataclassError) else 1])
        raise ModelError(f"models.{model.name}: transformers cannot load {model.directory}: {first}") from error
    missing = sorted(found["missing_keys"])
    if missing:  # transformers would go on with random numbers in their place
        shown = ", ".join(missing[:3]) + (" …" if len(missing) > 3 else "")
        raise ModelError(
            f"models.{model.name}: {model.directory} lacks {len(missing)} of the weights that its config.json names: "
            f"{shown}; the files are incomplete, or of another model"
        )
    return TransformersBackend(
        loaded if spread else loaded.to(device),
        model.tokenizer,
        end_tokens=end_tokens_of(model),
        batch_tokens=model.block.batch_tokens,
    )


@dataclass(eq=False)
class _Pick:
    """Which vectors the head is to be given: flat positions, further vectors; `last` comes back, the rows' ends."""

    scored: Tensor
    ends: Tensor
    hidden: Tensor | None
    last: Tensor | None = None
