"""The way *tree* of the transformers backend: the model's attention is taken over, and a pack runs as one row.

Nothing is padded, and no key or value stands anywhere twice; see `tree_attention` and `branches`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from evalspec.errors import ModelError
from evalspec.execute.backends import branches, kv, paths, tree_layout
from evalspec.execute.backends.forking import Fed
from evalspec.execute.backends.transformers.way import Forward, Way
from evalspec.plan.pack import Pack

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
    scoring = tree_layout.Scoring(
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


class Tree(Way[kv.Segment, branches.Branches]):
    """Packs as one row, each token attending to its own path."""

    def __init__(self, forward: Forward, layout: kv.Layout) -> None:
        self._forward, self._layout = forward, layout
        self._layers = len(layout.layers)
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
        with taking(call):
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
        with taking(call):
            inputs = {"position_ids": batch.lengths[:, None]}
            logits, _ = self._forward(tokens[:, None], inputs, rows, rows[:0], None)
        return logits, call.after()

    def select(self, batch: branches.Branches, rows: Sequence[int]) -> branches.Branches:
        """Only these rows."""
        return branches.select(batch, rows)

    def join(self, first: branches.Branches, second: branches.Branches) -> branches.Branches:
        """Both in one."""
        return branches.join(first, second)
