"""The way *tree* of the transformers backend: the model's attention is taken over, and a pack runs as one row.

Nothing is padded, and no key or value stands anywhere twice; see `tree_attention` and `branches`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

import torch
import transformers
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from evalspec.errors import ModelError
from evalspec.execute.backends import branches, kv, paths, tree_layout
from evalspec.execute.backends.batch_invariance import ROWS
from evalspec.execute.backends.forking import Fed
from evalspec.execute.backends.transformers.way import Forward, Way
from evalspec.plan.pack import Pack

ATTENTION = "evalspec_tree"
_CALL: ContextVar[tuple[Answers, torch.dtype | None]] = ContextVar("evalspec_tree")


class Answers(Protocol):
    """What answers a layer's attention."""

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, scoring: tree_layout.Scoring) -> Tensor:
        """Queries (b, H, t, D) over keys and values (b, H_kv, t, D): (b, H, t, D)."""


@contextmanager
def taking(call: Answers, dtype: torch.dtype | None = None) -> Iterator[None]:
    """Within it, attention is what `call` answers, computed in `dtype`, if not in the queries' own."""
    token = _CALL.set((call, dtype))
    try:
        yield
    finally:
        _CALL.reset(token)


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **settings: Any
) -> tuple[Tensor, None]:
    """What transformers calls in each layer: (b, H, t, D) → (b, t, H, D)."""
    call, dtype = _CALL.get((None, None))
    window = settings.get("sliding_window") or getattr(module, "sliding_window", None)
    scale = settings.get("scaling")
    scoring = tree_layout.Scoring(
        query.shape[-1] ** -0.5 if scale is None else float(scale),
        int(window) if window else None,
        settings.get("softcap"),
        settings.get("s_aux"),
        dtype,
    )
    if settings.get("position_bias") is not None:
        raise NotImplementedError("attention with a learned bias of positions")
    if call is None:  # whole sequences from their beginning, outside of any pack
        assert not scoring.window or query.shape[2] <= scoring.window
        causal = ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, attention_mask, **settings)
        return causal[0], None
    return call.attend(query, key, value, scoring).transpose(1, 2).contiguous(), None


transformers.AttentionInterface.register(ATTENTION, _attention)


class _Alone:
    """Attention in which each token sees itself alone: without it, nothing in a Transformer lets tokens meet."""

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, scoring: tree_layout.Scoring) -> Tensor:
        return values.repeat_interleave(query.shape[1] // values.shape[1], dim=1)


def tokens_meet(forward: Forward) -> str | None:
    """In what a token's numbers depend, to the last bit, on the tokens beside it where nothing attends; None if in
    nothing. So it is tried out whether a batch-invariant forward keeps its promise for this model, here."""
    most = 2 * ROWS[forward.device.type] + 3
    tokens = torch.linspace(0, forward.vocab_size - 1, most, device=forward.device).long()
    position = torch.arange(most, device=forward.device) % 7

    def told(count: int, *shape: int) -> tuple[Tensor, Tensor]:
        """Logits and log-probabilities after the last `count` tokens."""
        every = torch.arange(count, device=forward.device)
        logits, _ = forward(
            tokens[-count:].view(*shape), {"position_ids": position[-count:].view(*shape)}, every, every[:0], None
        )
        return logits, logits.log_softmax(-1)

    with taking(_Alone()):
        expected = told(most, 1, most)
        for count in sorted({1, 2, 3, 5, 8, 13, most // 4, most // 2 - 1, most // 2, most - 2}):
            for shape, name in (((1, count), "in a row"), ((count, 1), "side by side")):
                if not all(torch.equal(a, b[-count:]) for a, b in zip(told(count, *shape), expected, strict=True)):
                    return f"{count} token{'s' * (count != 1)} {name} come out otherwise than among {most}"
    return None


class Tree(Way[kv.Segment, branches.Branches]):
    """Packs as one row, each token attending to its own path."""

    def __init__(self, forward: Forward, layout: kv.Layout) -> None:
        self._forward, self._layout = forward, layout
        self._layers = len(layout.layers)
        self._dtype = torch.float64 if forward.batch_invariant else None
        found = {plane: (group, at) for group, members in enumerate(layout.planes) for at, plane in enumerate(members)}
        self._planes_of = [found[plane] for plane in sorted(found)]  # for each plane its group and its place there

    def state_bytes(self, length: int) -> int:
        """Bytes of the keys and values of `length` tokens."""
        return self._layout.state_bytes(length)

    def feed(
        self, tokens: Tensor, pack: Pack, given: Sequence[kv.Segment | None], scored: Tensor, hidden: Tensor | None
    ) -> Fed[kv.Segment]:
        """The whole pack at once."""
        call, position, ends = paths.passing(pack, given, self._planes_of, self._forward.device)
        last = torch.from_numpy(pack.stop[pack.keep] - 1).to(self._forward.device)
        with taking(call, self._dtype):
            logits, vectors = self._forward(tokens[None], {"position_ids": position[None]}, scored, last, hidden)
        if len(call.seen) != self._layers:
            name = type(self._forward.model).__name__
            raise ModelError(f"{name} calls attention {len(call.seen)} times for {self._layers} layers")
        return Fed(logits, vectors, paths.kept_segments(call, pack, given, ends, self._layout.planes))

    def gather(self, rows: Sequence[kv.Segment], room: int) -> branches.Branches:
        """What several rows have read stands once for them."""
        return branches.branch(rows, room, self._planes_of)

    def step(self, tokens: Tensor, batch: branches.Branches) -> tuple[Tensor, branches.Branches]:
        """One token a row."""
        rows = torch.arange(len(tokens), device=tokens.device)
        call = branches.StepPass(branches.grown(batch))
        with taking(call, self._dtype):
            inputs = {"position_ids": batch.lengths[:, None]}
            logits, _ = self._forward(tokens[:, None], inputs, rows, rows[:0], None)
        return logits, call.after()

    def select(self, batch: branches.Branches, rows: Sequence[int]) -> branches.Branches:
        """Only these rows."""
        return branches.select(batch, rows)

    def join(self, first: branches.Branches, second: branches.Branches) -> branches.Branches:
        """Both in one."""
        return branches.join(first, second)
