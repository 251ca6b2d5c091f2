"""Texts into token ids, by the rules that scores depend on.

Scoring a continuation: all trailing white space of the context moves to the continuation, and the continuation's
tokens are what follows the context's tokens in the encoding of the whole (as lm-evaluation-harness 0.4 does). What
does not fit keeps its right end, and how much was cut is counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evalspec.errors import PromptError
from evalspec.models.tokens import Tokenizer


@dataclass(frozen=True, eq=False)
class Encoded:
    """What is fed (`tokens`, int32), what is scored (`targets`; empty for generation), how many tokens were cut.

    The last len(targets) positions of `tokens` predict the targets.
    """

    tokens: NDArray[np.int32]
    targets: tuple[int, ...] = ()
    truncated: int = 0


def encode_prompts(
    tokenizer: Tokenizer, prompts: Sequence[str], *, max_length: int | None, new_tokens: int
) -> list[Encoded]:
    """Prompts to generate from. At most `max_length − new_tokens` tokens are kept, from the right."""
    room = None if max_length is None else max_length - new_tokens
    if room is not None and room < 1:
        raise PromptError(
            f"decode.max_tokens is {new_tokens}, but the model holds {max_length} tokens in all; lower `max_tokens`"
        )
    encoded = []
    for ids in tokenizer.encode(prompts):
        kept = (ids or [tokenizer.start])[-room:] if room else (ids or [tokenizer.start])
        encoded.append(Encoded(np.asarray(kept, np.int32), (), max(0, len(ids) - len(kept))))
    return encoded


def encode_pairs(tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]], *, max_length: int | None) -> list[Encoded]:
    """(context, continuation) pairs to score. The last `max_length + 1` tokens of both are kept, since the last
    token of a continuation is never fed. Raises PromptError for a continuation of no tokens."""
    moved = []
    for context, continuation in pairs:
        stripped = context.rstrip()
        moved.append((stripped, context[len(stripped) :] + continuation))
    contexts = tokenizer.encode([context for context, _ in moved if context])
    wholes = tokenizer.encode([context + continuation for context, continuation in moved if context])
    alone = tokenizer.encode([continuation for context, continuation in moved if not context], special=False)
    with_context, without = iter(zip(contexts, wholes, strict=True)), iter(alone)
    encoded = []
    for context, continuation in moved:
        if context:
            before, whole = next(with_context)
            ids, first = whole, len(before)
        else:
            tokens = next(without)
            ids, first = (tokens if tokens[:1] == [tokenizer.start] else [tokenizer.start, *tokens]), 1
        targets = ids[first:]
        if not targets:
            raise PromptError(f"the continuation {continuation!r} has no tokens of its own, so it cannot be scored")
        fed, cut = ids[:-1], 0
        if max_length is not None and len(fed) > max_length:
            cut = len(fed) - max_length
            fed = fed[-max_length:]
        encoded.append(Encoded(np.asarray(fed, np.int32), tuple(targets[-len(fed) :]), cut))
    return encoded


def encode_windows(tokenizer: Tokenizer, text: str, *, max_length: int | None) -> list[Encoded]:
    """A whole text to score, in windows of `max_length` targets (rolling perplexity): every token is scored once.

    The first window's context is the start token, that of a full one is the token before it. The last one is mostly
    shorter, and its context fills it up from the left, as lm-evaluation-harness 0.4 has it. What the tokenizer puts in
    front of a text by itself (BOS, say) is scored with it, as there.
    """
    [ids] = tokenizer.encode([text])
    if not ids:
        raise PromptError("an empty text has no likelihood")
    width = max_length or len(ids)
    whole = [tokenizer.start, *ids]  # whole[i + 1] is predicted from whole[: i + 1]
    windows = []
    for first in range(0, len(ids), width):
        end = min(first + width, len(ids))
        fed = np.asarray(whole[max(0, end - width) : end], np.int32)
        windows.append(Encoded(fed, tuple(whole[first + 1 : end + 1])))
    return windows
