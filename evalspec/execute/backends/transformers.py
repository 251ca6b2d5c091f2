"""The transformers backend: any causal language model that transformers loads, its KV cache forked by evalspec.

Three ways, the first that fits the model:

- *tree*: attention is taken over (`tree_attention`), a pack runs as one row, nothing is padded or copied;
- *rows*: models with attention of their own (ALiBi in Bloom). A pack runs level by level in padded batches: new tokens
  are padded on the right, where causality keeps it from every real position, what came before on the left and masked;
- *again*: a model whose cache is not plain keys and values (recurrent and hybrid ones) cannot be forked: its states
  remember their tokens, and continuing one feeds them again (`forks` is False, and the cost is the caller's to count).

Which it is, is tried out when the model is opened, by its own numbers.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from evalspec.errors import ModelError
from evalspec.execute.backends import branches, kv, tree_attention
from evalspec.execute.backends.device import device_of, dtype_of, end_tokens_of
from evalspec.execute.backends.forking import Fed, ForkedState, ForkingModel, read_tokens
from evalspec.models.card import Model
from evalspec.models.tokens import Tokenizer
from evalspec.plan.forest import Tokens
from evalspec.plan.pack import Pack
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
Padded = kv.KeyValues | RetoldBatch
Batch = branches.Branches | Padded

ATTENTION = "evalspec_tree"
_CALL: ContextVar[branches.PackPass | branches.StepPass | None] = ContextVar("evalspec_tree", default=None)


@contextmanager
def taking(call: branches.PackPass | branches.StepPass) -> Iterator[None]:
    """Within it, attention is what `call` answers."""
    token = _CALL.set(call)
    try:
        yield
    finally:
        _CALL.reset(token)


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **settings: Any
) -> tuple[Tensor, None]:
    """What transformers calls in each layer: (b, H, t, D) → (b, t, H, D)."""
    call = _CALL.get()
    window = settings.get("sliding_window") or getattr(module, "sliding_window", None)
    scale = settings.get("scaling")
    scoring = tree_attention.Scoring(
        query.shape[-1] ** -0.5 if scale is None else float(scale),
        int(window) if window else None,
        settings.get("softcap"),
        settings.get("s_aux"),
    )
    if settings.get("position_bias") is not None:
        raise NotImplementedError("attention with a learned bias of positions")
    if call is None:  # whole sequences from their beginning, outside of any pack
        assert not scoring.window or query.shape[2] <= scoring.window
        causal = ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, attention_mask, **settings)
        return causal[0], None
    return call.attend(query, key, value, scoring).transpose(1, 2).contiguous(), None


transformers.AttentionInterface.register(ATTENTION, _attention)


class TransformersBackend(ForkingModel[Row, Batch]):
    """A `ForkingBackend` over a transformers model."""

    name = "transformers"
    states_refer = True

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
        """Feed a few tokens and look at what comes back: how memory may be forked, and how many bytes a token is."""
        output = self.model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=self.device), use_cache=True)
        cache = getattr(output, "past_key_values", None)
        layers = getattr(cache, "layers", [])
        plain = (DynamicLayer, DynamicSlidingWindowLayer)
        self.forks = bool(layers) and all(type(layer) in plain and layer.keys is not None for layer in layers)
        self._groups: list[list[int]] = []
        self._bytes_a_token = 0
        self._tree = False
        if self.forks:
            planes = [(layer.keys, layer.values) for layer in layers]
            self._groups = kv.groups_of(planes)
            self._bytes_a_token = sum(keys.nbytes + values.nbytes for keys, values in planes)
            self._tree = self._takes_over(len(layers))

    def _takes_over(self, layers: int) -> bool:
        """Put `tree_attention` in place of the model's own attention, if the model's numbers stay what they were."""
        if not self._takes_positions:
            return False
        before = self.model.config._attn_implementation
        tokens = torch.arange(7, device=self.device) % self.vocab_size
        expected = self.model(input_ids=tokens[None], use_cache=False).logits[0].float()
        try:
            self.model.set_attn_implementation(ATTENTION)
            # One pack: tokens 0 … 3, then 4 … 6 twice as its children.
            pack = Pack.of([4, 3, 3], [-1, 0, 0], 1, [])
            scored = torch.arange(pack.tokens, device=self.device)
            row = torch.cat([tokens, tokens[4:]])
            logits = self._feed_tree(row, pack, [None], scored, None, layers).logits
            if torch.allclose(logits, torch.cat([expected, expected[4:]]), atol=5e-2 * float(expected.abs().max())):
                return True
        except (RuntimeError, ValueError, TypeError, KeyError, AttributeError, IndexError, NotImplementedError):
            pass
        self.model.set_attn_implementation(before)
        return False

    def state_bytes(self, length: int) -> int:
        """Bytes of the keys and values of `length` tokens; of a model that cannot be forked, of the tokens."""
        return self._bytes_a_token * length if self.forks else 4 * length

    # A pack ----------------------------------------------------------------------------------------------------------

    def _feed(
        self, tokens: Tensor, pack: Pack, given: Sequence[Row | None], scored: Tensor, hidden: Tensor | None
    ) -> Fed[Row]:
        if self._tree:
            return self._feed_tree(tokens, pack, given, scored, hidden, len(self._planes_of) // 2)
        return self._feed_levels(tokens, pack, given, scored, hidden)

    @cached_property
    def _planes_of(self) -> list[tuple[int, int]]:
        """For each plane its group and its place there."""
        found = {plane: (group, at) for group, members in enumerate(self._groups) for at, plane in enumerate(members)}
        return [found[plane] for plane in sorted(found)]

    def _feed_tree(
        self,
        tokens: Tensor,
        pack: Pack,
        given: Sequence[Row | None],
        scored: Tensor,
        hidden: Tensor | None,
        layers: int,
    ) -> Fed[Row]:
        """The whole pack as one row, each token attending to its own path."""
        segments = [row if isinstance(row, kv.Segment) else None for row in given]
        order, ranges = branches.path_of(segments)
        ends = read_tokens(pack, [0 if segment is None else segment.length for segment in segments])
        begins = np.repeat(np.asarray(ends) - pack.length - pack.start, pack.length)
        position = torch.from_numpy(begins + np.arange(pack.tokens)).to(self.device)
        past = None
        if order:
            planes = [
                torch.cat([part.planes[group][place] for part in order], dim=1) for group, place in self._planes_of
            ]
            past = list(zip(planes[::2], planes[1::2], strict=True))
        layout = tree_attention.lay_out(pack, ranges, position, branches.positions_of(order, self.device))
        call = branches.PackPass(layout, past, [])
        last = torch.from_numpy(pack.stop[pack.keep] - 1).to(self.device)
        with taking(call):
            inputs = {"position_ids": position[None]}
            logits, vectors, _ = self._run(tokens[None], inputs, scored, last, hidden, use_cache=False)
        if len(call.seen) != layers:
            raise ModelError(f"{type(self.model).__name__} calls attention {len(call.seen)} times for {layers} layers")
        made: dict[int, kv.Segment] = {}

        def segment_of(number: int) -> kv.Segment:
            if number not in made:
                above = int(pack.parent[number])
                parent = segment_of(above) if above >= 0 else segments[-1 - above]
                begin, stop = int(pack.start[number]), int(pack.stop[number])
                flat = [plane[:, begin:stop] for layer in call.seen for plane in layer]
                stacked = tuple(torch.stack([flat[at] for at in group]) for group in self._groups)
                made[number] = kv.Segment(stacked, parent, ends[number])
            return made[number]

        return Fed(logits, vectors, [segment_of(number) for number in pack.keep.tolist()])

    def _feed_levels(
        self, tokens: Tensor, pack: Pack, given: Sequence[Row | None], scored: Tensor, hidden: Tensor | None
    ) -> Fed[Row]:
        """A pack in padded batches, one level of its segments after the other, those of like length together."""
        memories: dict[int, Row] = {}
        last = torch.empty(len(pack.length), 0, device=self.device)
        logits = torch.empty(len(scored), self.vocab_size, device=self.device)
        place = np.searchsorted(pack.stop, scored.cpu().numpy(), side="right")  # each scored token's segment
        for level in pack.levels:
            ordered = level[np.argsort(-pack.length[level], kind="stable")]
            while len(ordered):
                rows = max(1, self.batch_tokens // int(pack.length[ordered[0]]))
                batch, ordered = ordered[:rows], ordered[rows:]
                before = [memories[above] if above >= 0 else given[-1 - above] for above in pack.parent[batch].tolist()]
                lengths = pack.length[batch].tolist()
                longest = max(lengths)
                grid = torch.zeros(len(batch), longest, dtype=torch.long, device=self.device)
                spans = []
                for row, number in enumerate(batch.tolist()):
                    part = tokens[pack.start[number] : pack.stop[number]]
                    grid[row, : len(part)] = part
                    spans.append(part.cpu().numpy().astype(np.int32))
                here = np.flatnonzero(np.isin(place, batch))
                inside = np.searchsorted(batch, place[here], sorter=np.argsort(batch))
                row_of = np.argsort(batch)[inside]
                at = row_of * longest + scored.cpu().numpy()[here] - pack.start[place[here]]
                found, vectors, memory = self._feed_rows(
                    grid, lengths, self._beside(before, longest), torch.from_numpy(at).to(self.device), None
                )
                logits[torch.from_numpy(here).to(self.device)] = found
                if not last.shape[1]:
                    last = vectors.new_empty(len(pack.length), vectors.shape[1])
                last[torch.from_numpy(batch).to(self.device)] = vectors
                wanted = [row for row, number in enumerate(batch.tolist()) if pack.slot[number] >= 0]
                for row, kept in zip(wanted, self._scatter(memory, wanted, before, spans), strict=True):
                    memories[int(batch[row])] = kept
        if hidden is not None:
            logits = torch.cat([logits, self._logits(hidden)])
        keep = torch.from_numpy(pack.keep).to(self.device)
        return Fed(logits, last[keep], [memories[number] for number in pack.keep.tolist()])

    def _beside(self, rows: Sequence[Row | None], room: int) -> Padded | None:
        """Memories side by side in a padded batch, with room for more tokens; None if there are none."""
        if all(row is None for row in rows):
            return None
        if self.forks:
            return kv.gather([row if isinstance(row, kv.Segment) else None for row in rows], self._groups, room)
        return RetoldBatch(tuple(row.tokens if isinstance(row, Retold) else np.zeros(0, np.int32) for row in rows))

    def _scatter(
        self, batch: Padded, rows: Sequence[int], before: Sequence[Row | None], tokens: list[Tokens]
    ) -> list[Row]:
        """Memories of some rows of a padded batch, each on its own, that was made of `before` and then fed `tokens`."""
        if isinstance(batch, RetoldBatch):
            return [Retold(batch.tokens[row]) for row in rows]
        segments = [row if isinstance(row, kv.Segment) else None for row in before]
        lengths = [len(span) for span in tokens]
        past = max(0 if segment is None else segment.length for segment in segments)
        return list(kv.scatter(batch, rows, segments, past, lengths, self._groups))

    # A batch that decodes --------------------------------------------------------------------------------------------

    def _gather(self, states: Sequence[ForkedState[Row]], room: int) -> Batch:
        if self._tree:
            segments = [state.memory for state in states if isinstance(state.memory, kv.Segment)]
            return branches.branch(segments, room, self._planes_of)
        batch = self._beside([state.memory for state in states], room)
        assert batch is not None
        return batch

    def _step(self, tokens: Tensor, batch: Batch) -> tuple[Tensor, Batch]:
        rows = torch.arange(len(tokens), device=self.device)
        if not isinstance(batch, branches.Branches):
            logits, _, after = self._feed_rows(tokens[:, None], [1] * len(tokens), batch, rows, None)
            return logits, after
        call = branches.StepPass(branches.grown(batch))
        with taking(call):
            inputs = {"position_ids": batch.lengths[:, None]}
            logits, _, _ = self._run(tokens[:, None], inputs, rows, rows[:0], None, use_cache=False)
        return logits, call.after()

    def _select(self, batch: Batch, rows: Sequence[int]) -> Batch:
        if isinstance(batch, branches.Branches):
            return branches.select(batch, rows)
        if isinstance(batch, RetoldBatch):
            return RetoldBatch(tuple(batch.tokens[row] for row in rows))
        return kv.select(batch, rows)

    def _join(self, first: Batch, second: Batch) -> Batch:
        if isinstance(first, branches.Branches) and isinstance(second, branches.Branches):
            return branches.join(first, second)
        if isinstance(first, RetoldBatch) and isinstance(second, RetoldBatch):
            return RetoldBatch(first.tokens + second.tokens)
        assert isinstance(first, kv.KeyValues) and isinstance(second, kv.KeyValues)
        return kv.join(first, second, _ROOM)

    # The model's forward ---------------------------------------------------------------------------------------------

    def _feed_rows(
        self, tokens: Tensor, lengths: Sequence[int], memory: Padded | None, scored: Tensor, hidden: Tensor | None
    ) -> tuple[Tensor, Tensor, Padded]:
        """Feed a padded batch (b, l), whose row i has lengths[i] tokens: logits (n + m, v), the rows' last hidden
        vectors (b, d), and the batch's memory. `scored` are positions in the flattened (b · l) grid."""
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
        after = [p + length for p, length in zip(past, lengths, strict=True)]
        return logits, last, kv.from_cache(cache, after)

    def _feed_again(
        self, tokens: Tensor, lengths: Sequence[int], memory: RetoldBatch | None, scored: Tensor, hidden: Tensor | None
    ) -> tuple[Tensor, Tensor, Padded]:
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
        return logits, last, RetoldBatch(tuple(whole))

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
        sequence = torch.as_tensor(np.asarray(tokens, np.int64), device=self.device)
        try:
            if self._tree:
                self._feed(sequence, Pack.of([len(tokens)], [-1], 1, []), [None], end[:0], None)
            else:
                self._run(sequence[None], {}, end[:0], end, None, use_cache=False)
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
