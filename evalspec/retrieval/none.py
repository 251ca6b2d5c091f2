"""No retrieval: the closed book, against which every other retriever is compared."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from evalspec.retrieval.passages import RETRIEVERS, Passage, Query, Ranking, Settings


class Closed:
    """Finds nothing."""

    def search(self, queries: Sequence[Query], k: int) -> list[Ranking]:
        """See `Retriever`: an empty ranking for each query."""
        return [[] for _ in queries]


@RETRIEVERS.register("none")
def build_none(passages: Sequence[Passage], settings: Settings, cache: Path | None) -> Closed:
    """A retriever that needs no corpus."""
    return Closed()
