"""Do both sides say the same? Requests are held against each other token by token, then log-probabilities and texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

TOLERANCE = 1e-4
"""Of one request's log-probability (the sum over its tokens), in nats."""
MARGIN = 2e-4
"""An argmax may differ where the best leads the second by less."""

Outcome = dict[str, Any]


@dataclass
class Agreement:
    """What a comparison came to: whether the sides agree, one line for the table, and what must be told besides."""

    agrees: bool
    says: str
    notes: list[str] = field(default_factory=list)


def same_requests(ours: Sequence[Outcome], theirs: Sequence[Outcome]) -> None:
    """Raise unless both sides asked the same token ids (and scored as many of them) in the same order."""
    if len(ours) != len(theirs):
        raise AssertionError(f"one side has {len(ours)} requests, the other {len(theirs)}")
    for number, (our, their) in enumerate(zip(ours, theirs, strict=True)):
        if our["ids"] != their["ids"] or our.get("targets") != their.get("targets"):
            raise AssertionError(f"request {number} is not the same tokens on both sides")


def compare_scores(ours: Sequence[Outcome], theirs: Sequence[Outcome], choices: int = 1) -> Agreement:
    """Log-probabilities within the tolerance; with several choices a question, the same argmax but for near ties."""
    same_requests(ours, theirs)
    worst = max(abs(our["logprob"] - their["logprob"]) for our, their in zip(ours, theirs, strict=True))
    greedy = sum(our["greedy"] != their["greedy"] for our, their in zip(ours, theirs, strict=True))
    flips, notes, ties = 0, [], 0
    for first in range(0, len(ours), choices) if choices > 1 else ():
        our = [request["logprob"] for request in ours[first : first + choices]]
        their = [request["logprob"] for request in theirs[first : first + choices]]
        top, second = sorted(their, reverse=True)[:2]
        if our.index(max(our)) != their.index(max(their)):
            tied = top - second <= MARGIN
            flips, ties = flips + (not tied), ties + tied
            notes.append(f"question {first // choices}: another argmax, margin {top - second:.1e}")
    says = f"Δ ≤ {worst:.1e}"
    if choices > 1:
        questions = len(ours) // choices
        says += f", argmax {questions - flips - ties}/{questions}"
    if greedy:
        notes.append(f"{greedy} of {len(ours)} requests differ in whether all their tokens are the likeliest")
    return Agreement(worst <= TOLERANCE and not flips, says, notes)


def compare_texts(
    ours: Sequence[Outcome],
    theirs: Sequence[Outcome],
    decode: Callable[[Sequence[int]], str],
    margins: Callable[[list[list[int]]], list[float]],
) -> Agreement:
    """The same texts, but for those that part where two tokens were nearly as likely.

    Args: decode, tokens to text · margins, for token prefixes how far the likeliest next token leads.
    """
    same_requests(ours, theirs)
    differing = [number for number, our in enumerate(ours) if our["text"] != theirs[number]["text"]]
    prefixes: list[list[int]] = []
    for number in differing:
        tokens, text = theirs[number]["tokens"], ours[number]["text"]
        shared = 0
        while shared < len(tokens) and text.startswith(decode(tokens[: shared + 1])):
            shared += 1
        # A token may end within a letter, so that the texts part up to a token later than the tokens do.
        prefixes += [theirs[number]["ids"] + tokens[: max(0, shared - back)] for back in (0, 1)]
    leads = margins(prefixes) if prefixes else []
    notes, wrong = [], 0
    for place, number in enumerate(differing):
        lead = min(leads[2 * place : 2 * place + 2])
        wrong += lead > MARGIN
        notes.append(f"answer {number}: another text; where they part the likeliest token leads by {lead:.1e}")
    return Agreement(not wrong, f"texts {len(ours) - len(differing)}/{len(ours)}", notes)
