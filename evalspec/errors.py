"""The one family of errors that a user can meet. The library raises them, the command line prints them.

Each says what is wrong, where, and what to do; none of them reaches a user as a traceback.
`exit_code` is the process's: 2 when the user's input is wrong, 1 when something struck in the middle of a run.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass


class EvalspecError(Exception):
    """Base of all errors meant for the user."""

    exit_code = 2


@dataclass(frozen=True)
class Problem:
    """One thing wrong in a spec file. `line` and `column` count from 1; `width` is how many characters to underline."""

    message: str
    file: str = ""
    line: int = 0
    column: int = 0
    width: int = 1
    source: str = ""

    def brief(self) -> str:
        """The place and the message, in a line."""
        where = f"{self.file}:{self.line}:{self.column}: " if self.line else (f"{self.file}: " if self.file else "")
        return where + self.message

    def __str__(self) -> str:
        text = self.brief()
        if self.source.strip():
            gutter = f"{self.line:>5} | "
            text += f"\n{gutter}{self.source}\n{' ' * 5} | {' ' * (self.column - 1)}{'^' * max(1, self.width)}"
        return text


class SpecError(EvalspecError):
    """The spec is wrong: every problem found in it, in the order of the file."""

    def __init__(self, problems: Sequence[Problem] | str) -> None:
        self.problems = (Problem(problems),) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class DataError(EvalspecError):
    """Rows could not be read or are not what the spec says they are."""


class RetrievalError(EvalspecError):
    """A corpus, an index or a retriever cannot do what the spec asks."""


class PromptError(EvalspecError):
    """A template, a target, choices or shots cannot be rendered or encoded."""


class ModelError(EvalspecError):
    """A model directory, its config, its tokenizer or its weights are not usable."""


class BackendError(EvalspecError):
    """A backend cannot run what a cell needs; found when the plan is compiled."""


class StoreError(EvalspecError):
    """The store cannot be opened, read or queried as asked."""


class PluginError(EvalspecError):
    """A package's metric, step, retriever or generator cannot be loaded, fails, or gives what it may not."""


class RunError(EvalspecError):
    """Something struck in the middle of a run; what was finished before is kept."""

    exit_code = 1


@contextmanager
def located(where: str) -> Iterator[None]:
    """Put the key of the spec in front of an error that comes from within and does not name it yet."""
    try:
        yield
    except EvalspecError as error:
        if str(error).startswith("tasks."):
            raise
        raise type(error)(f"{where}: {error}") from None


def suggest(name: str, known: Iterable[str]) -> str:
    """`" Did you mean `x`?"` for the nearest known name (the first of equals), or an empty string when none is near."""
    matcher = difflib.SequenceMatcher(b=str(name))

    def likeness(candidate: str) -> float:
        matcher.set_seq1(candidate)
        return matcher.ratio()

    near = max(known, key=likeness, default="")
    return f" Did you mean `{near}`?" if near and likeness(near) >= 0.6 else ""


def in_a_line(error: BaseException) -> str:
    """The first line of what an error says, or its kind where it says nothing."""
    said = str(error).strip()
    return said.splitlines()[0] if said else type(error).__name__
