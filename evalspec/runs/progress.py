"""What a run tells while it goes on: a bar on a terminal, plain lines elsewhere, nothing for a library."""

from __future__ import annotations

import sys
import time
from typing import Protocol, TextIO


class Progress(Protocol):
    """Hears what a run does."""

    def say(self, text: str) -> None:
        """Something worth a line."""

    def begin(self, model: str, tokens: int, samples: int) -> None:
        """A model starts on so many distinct tokens for so many samples."""

    def advance(self, tokens: int) -> None:
        """So many tokens more were computed."""

    def end(self) -> None:
        """The model is done."""


class Quiet:
    """Tells nothing."""

    def say(self, text: str) -> None:
        """Nothing."""

    def begin(self, model: str, tokens: int, samples: int) -> None:
        """Nothing."""

    def advance(self, tokens: int) -> None:
        """Nothing."""

    def end(self) -> None:
        """Nothing."""


class Lines:
    """Plain lines on a stream, or one line redrawn in place where the stream is a terminal."""

    def __init__(self, stream: TextIO = sys.stderr) -> None:
        self.stream, self.live = stream, stream.isatty()
        self.model, self.total, self.done = "", 0, 0
        self.began = self.shown = 0.0

    def say(self, text: str) -> None:
        """One line."""
        print(text, file=self.stream, flush=True)

    def begin(self, model: str, tokens: int, samples: int) -> None:
        """The model's line."""
        self.model, self.total, self.done = model, tokens, 0
        self.began = self.shown = time.perf_counter()
        self.say(f"{model}: {samples:,} samples, {tokens:,} distinct tokens")

    def advance(self, tokens: int) -> None:
        """At most two updates a second on a terminal, one in ten seconds elsewhere."""
        self.done += tokens
        now = time.perf_counter()
        if now - self.shown < (0.5 if self.live else 10) or not self.done:
            return
        self.shown = now
        rate = self.done / (now - self.began)
        left = (self.total - self.done) / rate
        text = f"  {self.model}: {100 * self.done / self.total:3.0f} %, {rate:,.0f} tokens/s, about {left:.0f} s left"
        print(text.ljust(70), end="\r" if self.live else "\n", file=self.stream, flush=True)

    def end(self) -> None:
        """How long it took."""
        if self.live:
            print(" " * 72, end="\r", file=self.stream)
        self.say(f"{self.model}: done in {time.perf_counter() - self.began:.1f} s")
