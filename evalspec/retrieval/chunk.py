"""Long documents cut into passages that overlap: windows of words, characters or tokens.

A passage is a piece of its document's text as it stands, from the beginning of the window's first unit to the end of
its last. Windows start `size − overlap` units apart, and the last one ends with the document; it may be shorter.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from evalspec.errors import ModelError, RetrievalError
from evalspec.models.card import zoo_folder
from evalspec.models.tokens import Tokenizer
from evalspec.paths import is_folder, path_from
from evalspec.retrieval.passages import Passage
from evalspec.spec.retrieval import ChunkBlock

Spans = Sequence[tuple[int, int]]
"""Where the units of a text begin and end."""

WORD = re.compile(r"\S+")


def chunked(passages: Sequence[Passage], block: ChunkBlock, root: Path) -> list[Passage]:
    """The passages cut into `<id>#1`, `<id>#2` …, each with its document's id; one without units stays as `<id>#1`.

    Raises RetrievalError where the tokenizer cannot be had or does not tell where its tokens are.
    """
    spans_of = _by_token(block, root) if block.tokens else _by_word if block.words else _by_character
    return [
        Passage(f"{passage.id}#{number}", text, passage.id, passage.kind)
        for passage in passages
        for number, text in enumerate(windows(passage.text, spans_of(passage.text), block.size, block.overlap), start=1)
    ]


def windows(text: str, spans: Spans, size: int, overlap: int) -> Iterator[str]:
    """Windows of `size` units of a text, neighbours sharing `overlap` of them; the whole text where it has no unit."""
    if not spans:
        yield text
        return
    for start in range(0, max(len(spans) - overlap, 1), size - overlap):
        last = min(start + size, len(spans)) - 1
        yield text[spans[start][0] : spans[last][1]]


def _by_word(text: str) -> Spans:
    return [found.span() for found in WORD.finditer(text)]


def _by_character(text: str) -> Spans:
    return [(at, at + 1) for at in range(len(text))]


def _by_token(block: ChunkBlock, root: Path) -> Callable[[str], Spans]:
    name = block.tokenizer or ""
    folder = zoo_folder() / name[4:] if name.startswith("zoo/") else path_from(root, name)
    try:
        tokenizer = Tokenizer(str(folder) if is_folder(folder) else name).inner
    except ModelError as error:
        raise RetrievalError(f"`chunk.tokenizer`: {error}") from None
    if not tokenizer.is_fast:
        raise RetrievalError(
            f"`chunk.tokenizer: {name}` does not tell where in a text its tokens are (it is a slow tokenizer); "
            "name another, or cut by `words`"
        )

    def spans(text: str) -> Spans:
        found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]
        return [(start, end) for start, end in found if end > start]

    return spans
