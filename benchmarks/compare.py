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


def compare_scores(
    ours: Sequence[Outcome], theirs: Sequence[Outcome], choices: int = 1, *, unconditional: bool = False
) -> Agreement:
    """Log-probabilities within the tolerance; with several choices a question, the same argmax but for near ties.

    With `unconditional` each question's choices follow once more, without their prompt, and what they gain by it has
    an argmax too.
    """
    same_requests(ours, theirs)
    worst = max(abs(our["logprob"] - their["logprob"]) for our, their in zip(ours, theirs, strict=True))
    greedy = sum(our["greedy"] != their["greedy"] for our, their in zip(ours, theirs, strict=True))
    flips, notes, ties = 0, [], 0
    asked = choices * (1 + unconditional)
    compared = 0
    for first in range(0, len(ours), asked) if choices > 1 else ():
        our, their = ([one["logprob"] for one in side[first : first + asked]] for side in (ours, theirs))
        rankings = [(our[:choices], their[:choices])]
        if unconditional:
            rankings.append((_gains(our), _gains(their)))
        for mine, peers in rankings:
            compared += 1
            top, second = sorted(peers, reverse=True)[:2]
            if mine.index(max(mine)) != peers.index(max(peers)):
                tied = top - second <= MARGIN
                flips, ties = flips + (not tied), ties + tied
                notes.append(f"question {first // asked}: another argmax, margin {top - second:.1e}")
    says = f"Δ ≤ {worst:.1e}"
    if choices > 1:
        says += f", argmax {compared - flips - ties}/{compared}"
    if greedy:
        notes.append(f"{greedy} of {len(ours)} requests differ in whether all their tokens are the likeliest")
    return Agreement(worst <= TOLERANCE and not flips, says, notes)


def _gains(logprobs: Sequence[float]) -> list[float]:
    """What each choice's log-probability gains by the prompt; those without it stand in the second half."""
    half = len(logprobs) // 2
    return [given - alone for given, alone in zip(logprobs[:half], logprobs[half:], strict=True)]


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
