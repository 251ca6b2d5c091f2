"""The way *again* of the transformers backend: a model that cannot be forked is fed from the beginning each time.

Its states remember their tokens, and continuing one feeds them again. While it decodes it may go on token by token,
where the model does that rightly (`Rows`, which is then given to it).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from evalspec.execute.backends import kv
from evalspec.execute.backends.forking import Fed
from evalspec.execute.backends.transformers.rows import Rows
from evalspec.execute.backends.transformers.way import Forward, Limits, Way
from evalspec.plan.forest import Tokens
from evalspec.plan.pack import Pack


@dataclass(frozen=True, eq=False)
class Retold:
    """What one sequence has read: the tokens to feed again."""

    tokens: Tokens


@dataclass(frozen=True, eq=False)
class RetoldBatch:
    """The tokens of each row of a batch."""

    tokens: tuple[Tokens, ...]


class Again(Way[Retold, RetoldBatch | kv.KeyValues]):
    """Every sequence from its beginning, in padded batches. `rows` decodes, if the model goes on rightly by a token."""

    forks = False

    def __init__(self, forward: Forward, rows: Rows | None, limits: Limits) -> None:
        self._forward, self._rows, self._limits = forward, rows, limits

    def state_bytes(self, length: int) -> int:
        """Bytes of `length` tokens, or of what they are to the model while it decodes."""
        return 4 * length if self._rows is None else self._rows.state_bytes(length)

    def feed(
        self, tokens: Tensor, pack: Pack, given: Sequence[Retold | None], scored: Tensor, hidden: Tensor | None
    ) -> Fed[Retold]:
        """Each segment with its whole path in front, those of like length together."""
        new = tokens.cpu().numpy().astype(np.int32)
        whole: list[Tokens] = []
        for begin, stop, above in zip(pack.start.tolist(), pack.stop.tolist(), pack.parent.tolist(), strict=True):
            before = given[-1 - above] if above < 0 else Retold(whole[above])
            whole.append(new[begin:stop] if before is None else np.concatenate([before.tokens, new[begin:stop]]))
        positions = scored.cpu().numpy()
        place = np.searchsorted(pack.stop, positions, side="right")
        from_end = pack.stop[place] - positions
        logits = torch.empty(len(scored), self._forward.vocab_size, device=tokens.device)
        last: list[Tensor] = [logits[:0]] * len(whole)
        order = sorted(range(len(whole)), key=lambda number: -len(whole[number]))
        while order:
            longest = len(whole[order[0]])
            rows = max(1, self._limits.batch_tokens // longest)
            batch, order = order[:rows], order[rows:]
            here = [at for at, number in enumerate(place.tolist()) if number in set(batch)]
            row_of = {number: row for row, number in enumerate(batch)}
            ends = [row * longest + len(whole[number]) for row, number in enumerate(batch)]
            at = [ends[row_of[int(place[one])]] - int(from_end[one]) for one in here]
            found, vectors = self._feed_whole([whole[number] for number in batch], at)
            logits[torch.tensor(here, dtype=torch.long, device=logits.device)] = found
            for row, number in enumerate(batch):
                last[number] = vectors[row]
        if hidden is not None:
            logits = torch.cat([logits, self._forward.logits(hidden)])
        keep = pack.keep.tolist()
        vectors = torch.stack([last[number] for number in keep]) if keep else logits[:0]
        return Fed(logits, vectors, [Retold(whole[number]) for number in keep])

    def _feed_whole(self, rows: Sequence[Tokens], scored: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Sequences padded on the right: logits (n, v) at flat positions, and their last hidden vectors (b, d)."""
        device = self._forward.device
        longest = max(map(len, rows))
        padded = np.zeros((len(rows), longest), np.int64)
        for row, sequence in enumerate(rows):
            padded[row, : len(sequence)] = sequence
        ends = torch.tensor([row * longest + len(sequence) - 1 for row, sequence in enumerate(rows)], device=device)
        at = torch.tensor(scored, dtype=torch.long, device=device)
        return self._forward(torch.from_numpy(padded).to(device), {}, at, ends, None)

    def gather(self, rows: Sequence[Retold], room: int) -> RetoldBatch | kv.KeyValues:
        """The rows' tokens; fed once more, for a cache, where the model can go on from it."""
        if self._rows is None:
            return RetoldBatch(tuple(row.tokens for row in rows))
        distinct = list({id(row): row for row in rows}.values())
        pack = Pack.of([len(row.tokens) for row in distinct], [-1] * len(distinct), 1, range(len(distinct)))
        tokens = torch.from_numpy(np.concatenate([row.tokens for row in distinct]).astype(np.int64))
        fed = self._rows.feed(tokens.to(self._forward.device), pack, [None], tokens[:0], None)
        memories = {id(row): memory for row, memory in zip(distinct, fed.memories, strict=True)}
        return self._rows.gather([memories[id(row)] for row in rows], room)

    def step(self, tokens: Tensor, batch: RetoldBatch | kv.KeyValues) -> tuple[Tensor, RetoldBatch | kv.KeyValues]:
        """One token a row."""
        if isinstance(batch, kv.KeyValues):
            assert self._rows is not None
            return self._rows.step(tokens, batch)
        new = tokens.cpu().numpy().astype(np.int32)
        whole = tuple(np.append(before, token) for before, token in zip(batch.tokens, new, strict=True))
        longest = max(map(len, whole))
        ends = [row * longest + len(sequence) - 1 for row, sequence in enumerate(whole)]
        return self._feed_whole(whole, ends)[0], RetoldBatch(whole)

    def select(self, batch: RetoldBatch | kv.KeyValues, rows: Sequence[int]) -> RetoldBatch | kv.KeyValues:
        """Only these rows."""
        if isinstance(batch, kv.KeyValues):
            return kv.select(batch, rows)
        return RetoldBatch(tuple(batch.tokens[row] for row in rows))

    def join(self, first: RetoldBatch | kv.KeyValues, second: RetoldBatch | kv.KeyValues) -> RetoldBatch | kv.KeyValues:
        """Both in one."""
        if isinstance(first, RetoldBatch) and isinstance(second, RetoldBatch):
            return RetoldBatch(first.tokens + second.tokens)
        assert self._rows is not None and isinstance(first, kv.KeyValues) and isinstance(second, kv.KeyValues)
        return self._rows.join(first, second)
