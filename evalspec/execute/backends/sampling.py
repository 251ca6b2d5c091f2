"""From logits to the next token, and from tokens to an answer that knows when to stop.

Each request draws from a stream of its own, one number a token, so that what it samples depends on nothing else: not on
the batch it is in, nor on the order, nor on the other requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from evalspec.execute.protocols import DecodeRequest, Output
from evalspec.models.tokens import Tokenizer
from evalspec.plan.forest import Decoding

NO_TOKEN = -1


def next_tokens(logits: Tensor, decodings: Sequence[Decoding], draws: Sequence[float]) -> list[int]:
    """The next token of each row: the likeliest at temperature 0 (the first, if several are), else sampled.

    Args: logits (b, v) float32 · decodings, one a row · draws, one uniform number in [0, 1) a row, unused where greedy.
    A row that holds NaN has no next token: NO_TOKEN.
    Sampling keeps the top_k likeliest tokens (0: all), then the fewest of these whose mass reaches top_p.
    """
    tokens: list[int] = logits.argmax(-1).tolist()
    rows = [row for row, decoding in enumerate(decodings) if decoding.temperature > 0]
    if rows:
        temperature, top_p, draw = (
            torch.tensor(values, dtype=torch.float64, device=logits.device)[:, None]
            for values in (
                [decodings[row].temperature for row in rows],
                [decodings[row].top_p for row in rows],
                [draws[row] for row in rows],
            )
        )
        vocabulary = logits.shape[1]
        top_k = torch.tensor([decodings[row].top_k or vocabulary for row in rows], device=logits.device)[:, None]
        ordered, order = logits[rows].sort(dim=-1, descending=True, stable=True)
        scaled = ordered.double() / temperature
        rank = torch.arange(vocabulary, device=logits.device)
        scaled = scaled.masked_fill(rank >= top_k, -torch.inf)
        mass = scaled.softmax(-1)
        before = mass.cumsum(-1) - mass
        mass = mass.masked_fill((before >= top_p) & (rank > 0), 0.0)
        reached = mass.cumsum(-1)
        chosen = (reached <= draw * reached[:, -1:]).sum(-1, keepdim=True)
        chosen = torch.minimum(chosen, (mass > 0).sum(-1, keepdim=True) - 1)
        for row, token in zip(rows, order.gather(-1, chosen)[:, 0].tolist(), strict=True):
            tokens[row] = token
    for row in logits.amax(-1).isnan().nonzero()[:, 0].tolist():
        tokens[row] = NO_TOKEN
    return tokens


@dataclass(eq=False)
class Answer:
    """An answer that is being generated."""

    request: DecodeRequest
    tokenizer: Tokenizer
    end_tokens: frozenset[int]
    tokens: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stream = np.random.Generator(np.random.Philox(self.request.stream))

    def draw(self) -> float:
        """The next number of this request's own stream; none is spent where decoding is greedy."""
        return float(self._stream.random()) if self.request.decoding.temperature > 0 else 0.0

    def add(self, token: int) -> Output | None:
        """Take the next token; the finished Output if the answer ends with it.

        Stop texts are looked for in the text and not in the tokens, since one may begin and end within tokens.
        """
        decoding = self.request.decoding
        if token == NO_TOKEN:
            return self._output(self.tokenizer.decode(self.tokens), "nan")
        self.tokens.append(token)
        if token in self.end_tokens:
            return self._output(self.tokenizer.decode(self.tokens[:-1]), "stop")
        if decoding.stop:
            text = self.tokenizer.decode(self.tokens)
            found = [at for at in (text.find(stop) for stop in decoding.stop) if at >= 0]
            if found:
                return self._output(text[: min(found)], "stop")
        if len(self.tokens) >= decoding.max_tokens:
            return self._output(self.tokenizer.decode(self.tokens), "length")
        return None

    def cut(self) -> Output:
        """The answer so far, which cannot go on."""
        return self._output(self.tokenizer.decode(self.tokens), "length")

    def _output(self, text: str, reason: str) -> Output:
        return Output(self.request.request, self.request.repeat, tuple(self.tokens), text, reason)
