"""SQuAD's normalisation of answers (arXiv 1606.05250), and the right answers that it would spoil."""

from __future__ import annotations

import re
import string
from collections.abc import Iterable

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NEGATIVE = re.compile(r"-\.?\d[\d.,]*")


def normalise(text: str) -> str:
    """Lower case, without ASCII punctuation, then without the words a, an, the; white space runs become one space.

    Equals `normalize_answer` of the SQuAD evaluation (v1.1 and v2.0), whose order of steps matters: `a-the` is `athe`.
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def spoiled(answers: Iterable[str]) -> str | None:
    """What the normalisation makes of some of these right answers that nobody would want, with one of them; or None.

    An answer that it empties (the letter A is an article) is met by an empty output, a negative number by its opposite.
    """
    for answer in answers:
        if answer.strip() and not normalise(answer):
            return f"leaves nothing of the right answer `{answer.strip()}`"
        if _NEGATIVE.fullmatch(answer.strip()):
            return f"takes the minus sign from the right answer `{answer.strip()}`"
    return None
