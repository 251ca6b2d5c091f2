"""The way *rows* of the transformers backend: packs in padded batches, over the model's own cache.

A pack runs level by level. What came before a row stands on its left, padded and masked; new tokens are padded on the
right, where causality keeps the padding from every real position. It is not kept from a recurrent state, though: where
a model has such states, and a row's are needed afterwards, only rows of equal length are fed together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evalspec.execute.backends import kv
from evalspec.execute.backends.forking import Fed
from evalspec.execute.backends.transformers.way import Forward, Limits, Way
from evalspec.plan.pack import Ints, Pack

_ROOM = 64  # tokens that a batch may decode before its buffers grow


class Rows(Way[kv.Segment, kv.KeyValues]):
    """Packs level by level, in batches over the model's own cache."""

    def __init__(self, forward: Forward, layout: kv.Layout, limits: Limits) -> None:
        self._forward, self._layout, self._limits = forward, layout, limits

    def state_bytes(self, length: int) -> int:
        """Bytes of the keys and values of `length` tokens, and of a sequence's states."""
        return self._layout.state_bytes(length)

    def feed(
        self, tokens: Tensor, pack: Pack, given: Sequence[kv.Segment | None], scored: Tensor, hidden: Tensor | None
    ) -> Fed[kv.Segment]:
        """One level of the pack's segments after the other."""
        device = self._forward.device
        memories: dict[int, kv.Segment] = {}
        last = torch.empty(len(pack.length), 0, device=device)
        logits = torch.empty(len(scored), self._forward.vocab_size, device=device)
        positions = scored.cpu().numpy()
        place = np.searchsorted(pack.stop, positions, side="right")  # each scored token's segment
        for level in pack.levels:
            before = {
                number: memories[above] if above >= 0 else given[-1 - above]
                for number, above in zip(level.tolist(), pack.parent[level].tolist(), strict=True)
            }
            for batch in self._batches(pack, level, before):
                numbers, lengths = batch.tolist(), pack.length[batch].tolist()
                longest = max(lengths)
                grid = torch.zeros(len(batch), longest, dtype=torch.long, device=device)
                for row, number in enumerate(numbers):
                    grid[row, : lengths[row]] = tokens[pack.start[number] : pack.stop[number]]
                here = np.flatnonzero(np.isin(place, batch))
                order = np.argsort(batch)
                row_of = order[np.searchsorted(batch, place[here], sorter=order)]
                at = row_of * longest + positions[here] - pack.start[place[here]]
                past = [before[number] for number in numbers]
                memory = self._layout.gather(past, longest)
                found, vectors, after = self._feed_rows(grid, lengths, memory, torch.from_numpy(at).to(device))
                logits[torch.from_numpy(here).to(device)] = found
                if not last.shape[1]:
                    last = vectors.new_empty(len(pack.length), vectors.shape[1])
                last[torch.from_numpy(batch).to(device)] = vectors
                wanted = [row for row, number in enumerate(numbers) if pack.slot[number] >= 0]
                columns = 0 if memory is None else memory.columns
                kept = self._layout.scatter(after, wanted, past, columns, lengths)
                memories.update((numbers[row], segment) for row, segment in zip(wanted, kept, strict=True))
        if hidden is not None:
            logits = torch.cat([logits, self._forward.logits(hidden)])
        keep = torch.from_numpy(pack.keep).to(device)
        return Fed(logits, last[keep], [memories[number] for number in pack.keep.tolist()])

    def _batches(self, pack: Pack, level: Ints, before: dict[int, kv.Segment | None]) -> Iterator[Ints]:
        """Segments that are fed together: of like length, and of one length where padding would enter a state."""
        length = pack.length[level]
        past = np.asarray([0 if row is None else row.length for row in before.values()])
        exact = np.where((pack.slot[level] >= 0) & self._layout.recurrent, length, 0)
        kind = np.stack([past > 0, exact])
        order = np.lexsort((-length, *kind))
        most = self._limits.batch_bytes // max(1, self.state_bytes(int(past.max() + length.max())))
        while len(order):
            alike = order[(kind[:, order] == kind[:, order[:1]]).all(0)]  # they stand first
            rows = max(1, min(self._limits.batch_tokens // int(length[order[0]]), most))
            batch, order = alike[:rows], order[len(alike[:rows]) :]
            yield level[batch]

    def gather(self, rows: Sequence[kv.Segment], room: int) -> kv.KeyValues:
        """Side by side, aligned at their right ends."""
        batch = self._layout.gather(rows, room)
        assert batch is not None
        return batch

    def step(self, tokens: Tensor, batch: kv.KeyValues) -> tuple[Tensor, kv.KeyValues]:
        """One token a row."""
        rows = torch.arange(len(tokens), device=tokens.device)
        logits, _, after = self._feed_rows(tokens[:, None], [1] * len(tokens), batch, rows)
        return logits, after

    def select(self, batch: kv.KeyValues, rows: Sequence[int]) -> kv.KeyValues:
        """Only these rows."""
        return kv.select(batch, rows)

    def join(self, first: kv.KeyValues, second: kv.KeyValues) -> kv.KeyValues:
        """Both in one, with room for more."""
        return kv.join(first, second, _ROOM)

    def _feed_rows(
        self, tokens: Tensor, lengths: Sequence[int], memory: kv.KeyValues | None, scored: Tensor
    ) -> tuple[Tensor, Tensor, kv.KeyValues]:
        """Feed a padded batch (b, l), whose row i has lengths[i] tokens: logits (n, v), the rows' last hidden vectors
        (b, d), and the batch's memory. `scored` are positions in the flattened (b · l) grid."""
        batch, longest = tokens.shape
        device = tokens.device
        past = [0] * batch if memory is None else list(memory.lengths)
        columns = 0 if memory is None else memory.columns
        cache = self._layout.as_cache(memory)
        inputs: dict[str, Any] = {}
        # Without a mask attention runs its fast causal form; rows that begin in different columns need one.
        if self._layout.planes and min(past) < columns:
            column = torch.arange(columns + longest, device=device)
            first = columns - torch.tensor(past, device=device)
            inputs["attention_mask"] = (column >= first[:, None]).long()
        if self._forward.takes_positions:
            begin, count = (torch.tensor(values, device=device)[:, None] for values in (past, lengths))
            # Padding repeats the row's last position: a learned table of positions may end there.
            inputs["position_ids"] = begin + torch.arange(longest, device=device).minimum(count - 1)
        ends = torch.tensor([row * longest + length - 1 for row, length in enumerate(lengths)], device=device)
        logits, last = self._forward(tokens, inputs, scored, ends, None, cache=cache)
        after = [p + length for p, length in zip(past, lengths, strict=True)]
        return logits, last, self._layout.from_cache(cache, after, columns + longest)
