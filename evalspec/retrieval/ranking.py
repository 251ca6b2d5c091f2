"""From scores to rankings: the k best, ties in the corpus's order, whatever the sort or the batch."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from evalspec.retrieval.passages import Ranking


def best(scores: npt.NDArray[np.floating], k: int) -> Ranking:
    """The k largest of `scores` (n,), best first; of equal scores the earlier passage comes first.

    `argpartition` alone takes any of those that tie at the cut, so all of them are candidates here.
    """
    if k < len(scores):
        cut = np.partition(scores, -k)[-k]
        candidates = np.flatnonzero(scores >= cut)
    else:
        candidates = np.arange(len(scores))
    order = np.lexsort((candidates, -scores[candidates]))[:k]
    return [(int(index), float(scores[index])) for index in candidates[order]]
