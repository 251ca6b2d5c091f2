"""What a metric may look at: everything known about one (cell, sample, repeat, stage) once it was answered."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Outcome:
    """One answered sample. What a task does not have keeps its default, and metrics that need it are absent there."""

    output: str | None = None
    """The generated text after the filter; None when nothing was generated, or the sample failed."""
    targets: tuple[str, ...] = ()
    """The right answers, any of which will do."""
    steps: tuple[str, ...] = ()
    """The right steps on the way to the answer."""
    step_separator: str = ", "
    """What stands between the steps of an output."""
    steps_end: str = "Answer:"
    """What stands between its steps and its answer."""
    choices: tuple[str, ...] = ()
    """The answers to choose from, without the delimiter in front of them."""
    choice_logprobs: tuple[float, ...] = ()
    """For each choice, the sum of its continuation's token log-probabilities (nats)."""
    unconditional_logprobs: tuple[float, ...] = ()
    """The same sums without the prompt, behind the start token alone; empty where no metric of the task needs them."""
    gold_choices: frozenset[int] = frozenset()
    """Indices of the right choices."""
    target_logprob: float | None = None
    """Sum of the scored target's token log-probabilities (nats); None when no target was scored, or it failed."""
    target_tokens: int = 0
    """How many tokens that sum has."""
    target_greedy: bool | None = None
    """Whether each of them was the likeliest token at its place."""
    target_logprobs: tuple[float, ...] = ()
    """Each of these tokens' own log-probability, in order."""
    target_start: int = 1
    """How many tokens of its sequence stand before the first of them; a text of its own begins behind one, the start
    token, and its later windows count on from there."""
    target_text: str = ""
    """The scored target, without the delimiter in front of it; its words and bytes are counted here."""
    hits: tuple[str, ...] = ()
    """Ids of the retrieved passages' documents in the order of their ranks."""
    passages: tuple[str, ...] = ()
    """Texts of the passages that the prompt showed."""
    unknown: tuple[str, ...] = ()
    """Answers that say that the prompt does not hold the answer."""
    gold_ids: frozenset[str] = frozenset()
    """Ids of the documents that answer the question; empty where they were withheld."""
    k: int | None = None
    """How many passages the retrieval asked for; None where the row's gold decides."""
    retrieved: bool = False
    """Whether anything was retrieved at all: False without a retrieval block and for the retriever `none`."""


@dataclass(frozen=True)
class Score:
    """What a metric says of one outcome. `weight` is what a ratio divides by (tokens, words, bytes), or None; `parts`
    are what a metric of all samples together is summed from (n-gram counts, say), None for all others."""

    value: float
    weight: float | None = None
    parts: tuple[float, ...] | None = None
