"""A pack whose attention is answered here: what each path has read before it, and what is kept of it afterwards.

Shared by the transformers backend's *tree* and the native backend's hybrids.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from evalspec.execute.backends import branches, kv, tree_layout
from evalspec.execute.backends.spans import read_tokens
from evalspec.plan.pack import Pack

Planes = Sequence[tuple[int, int]]
"""For each plane (keys and values in turn, layer by layer) its group and its place in a segment."""


def passing(
    pack: Pack, given: Sequence[kv.Segment | None], planes: Planes, device: torch.device
) -> tuple[branches.PackPass, Tensor, list[int]]:
    """One forward pass over a pack that continues these segments.

    Returns: what answers its attention · where each token (t,) stands in its sequence · the tokens that each segment's
        path has read at its end.
    """
    order, ranges = branches.path_of(given)
    ends = read_tokens(pack, [0 if segment is None else segment.length for segment in given])
    begins = np.repeat(np.asarray(ends) - pack.length - pack.start, pack.length)
    position = torch.from_numpy(begins + np.arange(pack.tokens)).to(device)
    past = None
    if order and planes:
        read = [torch.cat([part.planes[group][place] for part in order], dim=1) for group, place in planes]
        past = list(zip(read[::2], read[1::2], strict=True))
    layout = tree_layout.lay_out(pack, ranges, position, branches.positions_of(order, device))
    return branches.PackPass(layout, past, []), position, ends


def kept_segments(
    call: branches.PackPass,
    pack: Pack,
    given: Sequence[kv.Segment | None],
    ends: Sequence[int],
    groups: Sequence[Sequence[int]],
) -> list[kv.Segment]:
    """The memories of `pack.keep` after the pass; `groups` are the numbers of the planes that pack together."""
    needed: set[int] = set()  # the kept segments and those on their paths
    for number in pack.keep.tolist():
        while number >= 0 and number not in needed:
            needed.add(number)
            number = int(pack.parent[number])
    made: dict[int, kv.Segment] = {}
    for number in sorted(needed):
        above, begin, stop = (int(values[number]) for values in (pack.parent, pack.start, pack.stop))
        flat = [plane[:, begin:stop] for layer in call.seen for plane in layer]
        stacked = tuple(torch.stack([flat[at] for at in group]) for group in groups)
        made[number] = kv.Segment(stacked, made[above] if above >= 0 else given[-1 - above], ends[number])
    return [made[number] for number in pack.keep.tolist()]
