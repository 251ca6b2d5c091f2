"""Forced decoding inside vLLM: a request says which tokens it is to generate, and vLLM tells how likely each was.

That is how a continuation of several tokens is scored from the prefix cache. vLLM reads no cached prefix for a request
that wants log-probabilities of its prompt; it does for one that generates, and the log-probabilities it returns are
those before this processor (`logprobs_mode: raw_logprobs`). This file is imported in the engine's worker processes.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality

KEY = "evalspec_forced"
"""Where `SamplingParams.extra_args` holds the tokens."""

CERTAIN = 1e30
"""Above every logit, and finite, so that a softmax over it is no NaN."""


class Forced(LogitsProcessor):  # type: ignore[misc]
    """Makes the next token of each request that has `extra_args[KEY]` the one that stands there."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self.device = device
        self.rows: dict[int, tuple[list[int], list[int]]] = {}  # row of the batch: tokens to generate, generated so far

    def is_argmax_invariant(self) -> bool:
        """No: it is there to change what is likeliest."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow the requests through the rows of the batch: removed, added, moved, in this order (vLLM's contract)."""
        if batch_update is None:
            return
        for row in batch_update.removed:
            self.rows.pop(row, None)
        for row, params, _, generated in batch_update.added:
            self.rows.pop(row, None)
            forced = (params.extra_args or {}).get(KEY)
            if forced:
                self.rows[row] = (forced, generated)  # vLLM's own running list: it grows with each step
        for here, there, way in batch_update.moved:
            ours, other = self.rows.pop(here, None), self.rows.pop(there, None)
            if ours is not None:
                self.rows[there] = ours
            if other is not None and way == MoveDirectionality.SWAP:
                self.rows[here] = other

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Raise the logits (rows, vocabulary) of the tokens to generate, in place."""
        now = [(row, forced[len(done)]) for row, (forced, done) in self.rows.items() if len(done) < len(forced)]
        if now:
            rows, tokens = torch.tensor(now, device=self.device).unbind(1)
            logits[rows, tokens] = CERTAIN
        return logits
