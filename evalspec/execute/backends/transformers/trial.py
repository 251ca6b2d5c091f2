"""Whether a way gives the model's own numbers: tried on a few tokens when the model is opened.

A cache that goes on wrongly raises no error. So its logits are compared with a plain forward's, and its recurrent
states with those that a plain forward leaves: what a state lost shows there at once, however little of it would reach
the logits of so short a text, or stand out from the rounding of 16 bits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from evalspec.execute.backends import kv
from evalspec.execute.backends.transformers.way import Forward, Way
from evalspec.plan.pack import Pack

ERRORS = (RuntimeError, ValueError, TypeError, KeyError, AttributeError, IndexError, NotImplementedError)
"""What models raise when they are run in a way that is not theirs."""


def steps_differ(model: nn.Module) -> bool:
    """Whether its recurrent layers bound their time steps: transformers does so for several tokens, and not for one.

    How much that is depends on the text, so that no trial could tell.
    """
    unbounded = (0.0, float("inf"))
    return any(tuple(getattr(module, "time_step_limit", None) or unbounded) != unbounded for module in model.modules())


class Trial:
    """A plain forward of two short sequences that begin alike, to hold ways against."""

    def __init__(self, forward: Forward) -> None:
        self._tolerance = 5e-2 if forward.dtype.itemsize < 4 else 1e-3  # of the largest number
        spread = torch.linspace(0, forward.vocab_size - 1, 7, device=forward.device).long()
        self._tokens = torch.stack([spread, torch.cat([spread[:4], spread[4:].flip(0)])])
        self._expected = forward.model(input_ids=self._tokens, use_cache=False).logits.float()
        self.layout: kv.Layout | None = None
        self.why = ""
        """Why the last way that was tried is none."""
        self._states: list[Tensor] = []  # after the first sequence
        try:
            output = forward.model(input_ids=self._tokens[:1], use_cache=True)
            cache = getattr(output, forward.cache_name, None)
            self.layout = kv.Layout.of(cache)
            if self.layout is not None:
                self._states = list(self.layout.from_cache(cache, [7], 7).states)
        except ERRORS:
            pass

    def forks(self, way: Way[kv.Segment, Any]) -> bool:
        """Whether sequences of unequal length may be continued by several tokens, side by side, and then decoded."""
        one, other = self._tokens
        a, b = self._expected
        # 4 tokens and two continuations of 3; 2 tokens and continuations of 3 and of 1.
        pack = Pack.of([4, 3, 3, 2, 3, 1], [-1, 0, 0, -1, 3, 3], 1, [0, 1, 4])
        tokens = torch.cat([one, other[4:], one[:5], one[2:3]])
        return self._agrees(way, pack, tokens, torch.cat([a, b[4:], a[:5], a[2:3]]))

    def decodes(self, way: Way[kv.Segment, Any]) -> bool:
        """Whether sequences that are fed from their beginning may be continued token by token."""
        one, a = self._tokens[0], self._expected[0]
        pack = Pack.of([4, 7, 5], [-1, -1, -1], 1, [0, 1, 2])
        return self._agrees(way, pack, torch.cat([one[:4], one, one[:5]]), torch.cat([a[:4], a, a[:5]]))

    def _agrees(self, way: Way[kv.Segment, Any], pack: Pack, tokens: Tensor, expected: Tensor) -> bool:
        """Whether feeding a pack, which keeps the first sequence's first 4, all 7, and first 5 tokens, gives these
        logits; and if what follows the 4 and the 5, decoded side by side, is right too."""
        one, a = self._tokens[0], self._expected[0]
        try:
            fed = way.feed(tokens, pack, [None], torch.arange(len(tokens), device=tokens.device), None)
            four, seven, five = fed.memories
            found = [fed.logits]
            logits, batch = way.step(one[[4, 5]], way.gather([four, five], 1))
            found.append(logits)
            logits, _ = way.step(one[[6]], way.select(batch, [1]))
            found.append(logits)
        except ERRORS as error:
            self.why = f"{type(error).__name__}: {error}"
            return False
        self.why = "its numbers are not those of the model's own forward pass"
        assert self.layout is not None
        states = self.layout.states_of(seven)
        return self._near(torch.cat(found), torch.cat([expected, a[[4, 5, 6]]])) and all(
            self._near(state, right[0]) for state, right in zip(states, self._states, strict=True)
        )

    def _near(self, found: Tensor, right: Tensor) -> bool:
        return bool((found - right).abs().max() <= self._tolerance * right.abs().max())
