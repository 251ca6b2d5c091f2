"""What a run tells while it goes on: a bar on a terminal, plain lines elsewhere, nothing for a library."""

from __future__ import annotations

import sys
import time
from typing import Protocol, TextIO

from evalspec.telling import duration


class Progress(Protocol):
    """Hears what a run does."""

    def say(self, text: str) -> None:
        """Something worth a line."""

    def begin(self, model: str, tokens: int, samples: int, new_tokens: int = 0) -> None:
        """A model starts on so many distinct tokens for so many samples, and will generate at most so many new ones."""

    def advance(self, fed: int, generated: int = 0, spared: int = 0) -> None:
        """So many tokens more were fed and generated; an answer that ended early spared some that it was allowed."""

    def end(self) -> None:
        """The model is done."""


class Quiet:
    """Tells nothing."""

    def say(self, text: str) -> None:
        """Nothing."""

    def begin(self, model: str, tokens: int, samples: int, new_tokens: int = 0) -> None:
        """Nothing."""

    def advance(self, fed: int, generated: int = 0, spared: int = 0) -> None:
        """Nothing."""

    def end(self) -> None:
        """Nothing."""


class Lines:
    """Plain lines on a stream, or one line redrawn in place where the stream is a terminal."""

    def __init__(self, stream: TextIO = sys.stderr) -> None:
        self.stream, self.live = stream, stream.isatty()
        self.model, self.tokens, self.new_tokens = "", 0, 0
        self.fed = self.generated = self.spared = 0
        self.began = self.shown = 0.0

    def say(self, text: str) -> None:
        """One line."""
        print(text, file=self.stream, flush=True)

    def begin(self, model: str, tokens: int, samples: int, new_tokens: int = 0) -> None:
        """The model's line."""
        self.model, self.tokens, self.new_tokens = model, tokens, new_tokens
        self.fed = self.generated = self.spared = 0
        self.began = self.shown = time.perf_counter()
        new = f", at most {new_tokens:,} new ones" if new_tokens else ""
        self.say(f"{model}: {samples:,} samples, {tokens:,} distinct tokens{new}")

    def advance(self, fed: int, generated: int = 0, spared: int = 0) -> None:
        """At most two updates a second on a terminal, one in ten seconds elsewhere."""
        self.fed, self.generated, self.spared = self.fed + fed, self.generated + generated, self.spared + spared
        done, now = self.fed + self.generated, time.perf_counter()
        if now - self.shown < (0.5 if self.live else 10) or not done:
            return
        self.shown = now
        rate, left = done / (now - self.began), self._left()
        share = 100 * done / (done + left)
        text = f"  {self.model}: {share:3.0f} %, {rate:,.0f} tokens/s, about {duration(left / rate)} left"
        print(text.ljust(70), end="\r" if self.live else "\n", file=self.stream, flush=True)

    def _left(self) -> float:
        """Tokens still to be fed, and to be generated if answers go on to be as long as they were."""
        answered = self.generated + self.spared
        length = self.generated / answered if answered else 1.0
        # Where memory was short some tokens are fed twice, so there may be more than were expected.
        return max(0, self.tokens - self.fed) + length * max(0, self.new_tokens - answered)

    def end(self) -> None:
        """How long it took."""
        if self.live:
            print(" " * 72, end="\r", file=self.stream)
        self.say(f"{self.model}: done in {time.perf_counter() - self.began:.1f} s")
