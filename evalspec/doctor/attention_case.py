"""Attention over a forest as something to try, and the masked softmax in float64 that it must equal."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evalspec.doctor.kernel_cases import Case, Draw, Outputs, Widths, size, tolerance
from evalspec.execute.backends.tree_attention import attend
from evalspec.execute.backends.tree_layout import Scoring, lay_out
from evalspec.plan.pack import Pack


def attention_case(pack: Pack, on: str, widths: Widths, draw: Draw, past: Sequence[int]) -> Case:
    """Attention of a pack's tokens; `past`: how many tokens stand before each given state, columns of their own."""
    heads, d, t = widths.attention_heads, widths.attention_head, pack.tokens
    columns = np.cumsum([0, *past])
    position = np.asarray(past, np.int64)[np.repeat(pack.origin, pack.length)] + _depth(pack)
    before = np.concatenate([np.arange(count) for count in past])
    layout = lay_out(
        pack,
        [[(int(begin), int(end))] if end > begin else [] for begin, end in pairwise(columns)],
        torch.from_numpy(position).to(draw.device),
        torch.from_numpy(before).to(draw.device),
    )
    query, keys, values = torch.unflatten(draw(t, 3 * heads * d), 1, (3, heads, d)).permute(1, 2, 0, 3)  # tokens first
    inputs = {
        "query": 3 * query,
        "keys": keys,
        "values": values,
        "past": (draw(heads, int(columns[-1]), d), draw(heads, int(columns[-1]), d)),
    }

    def run(_: Any, given: dict[str, Any]) -> Outputs:
        return (attend(**given, layout=layout, scoring=Scoring(d**-0.5)),)

    moved = size(*inputs["past"], query, query, keys, values)
    operations = 4.0 * heads * d * float((position + 1).sum())  # q · k and p · v, for each column on the path
    return Case("attention", on, inputs, run, moved, operations, draw.dtype, tolerance(draw.dtype))


def masked_softmax(pack: Pack, inputs: dict[str, Any], past: Sequence[int]) -> Tensor:
    """The same (heads, t, d) in float64, by a mask of whom each token sees."""
    t = np.arange(pack.tokens)
    own = (t[None, :] <= t[:, None]) & (t[:, None] < pack.reach[None, :])
    origin, state = np.repeat(pack.origin, pack.length), np.repeat(np.arange(len(past)), past)
    query, keys, values = (inputs[name].double() for name in ("query", "keys", "values"))
    seen = torch.from_numpy(np.concatenate([origin[:, None] == state[None, :], own], axis=1)).to(query.device)
    keys, values = (torch.cat([old.double(), new], 1) for old, new in zip(inputs["past"], (keys, values), strict=True))
    scores = (query @ keys.transpose(1, 2) * query.shape[-1] ** -0.5).masked_fill(~seen, -torch.inf)
    return torch.matmul(scores.softmax(2), values)


def _depth(pack: Pack) -> np.ndarray[Any, np.dtype[np.int64]]:
    """(t,) how many of the pack's tokens stand before each on its path."""
    before = np.zeros(len(pack.length), np.int64)
    for number, above in enumerate(pack.parent.tolist()):
        if above >= 0:
            before[number] = before[above] + pack.length[above]
    return np.repeat(before - pack.start, pack.length) + np.arange(pack.tokens)
