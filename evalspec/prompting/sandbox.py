"""The environment that templates run in: it reaches no code, it ends, and it gives the same text each time.

Jinja2's own sandbox bounds `range`; loops within loops, macros that call themselves and powers of numbers it does not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_TURNS = 1_000_000  # turns of loops and calls of macros in one rendering; the longest prompts take some ten thousand
MAX_BITS = 100_000  # of a whole number
MAX_LENGTH = 100_000_000  # of a text or list made by multiplying one

_turns: ContextVar[Iterator[int]] = ContextVar("turns")


class TooMuchError(ValueError):
    """A template would go on without end, or fill the memory."""


@contextmanager
def bounded() -> Iterator[None]:
    """One rendering: within it `MAX_TURNS` are counted."""
    token = _turns.set(iter(range(MAX_TURNS)))
    try:
        yield
    finally:
        _turns.reset(token)


def count_turn() -> bool:
    """Count one turn of a loop; true, so that it can stand in a loop's condition."""
    if next(_turns.get(), None) is None:
        raise TooMuchError(f"its loops and macros take more than {MAX_TURNS:,} turns")
    return True


def _random(*_: Any, **__: Any) -> Any:
    raise TooMuchError("a random choice would give another prompt each time; `shots` and `sweep` draw by seeds")


class Sandbox(ImmutableSandboxedEnvironment):
    """Jinja2's sandbox with an end to everything."""

    intercepted_binops = frozenset(["*", "**"])

    def __init__(self, **options: Any) -> None:
        super().__init__(undefined=jinja2.StrictUndefined, **options)
        self.globals["lipsum"] = self.filters["random"] = _random

    def _generate(self, source: nodes.Template, *where: Any, **how: Any) -> str:
        """Compile a template whose every turn of a loop and every call of a macro is counted."""
        counted = nodes.Call(nodes.ImportedName(f"{__name__}.count_turn"), [], [], None, None)
        for node in list(source.find_all((nodes.For, nodes.Macro, nodes.CallBlock))):
            assert isinstance(node, nodes.For | nodes.Macro | nodes.CallBlock)
            node.body.insert(0, nodes.ExprStmt(counted))
            if isinstance(node, nodes.For) and node.test is not None:  # turns that a condition passes over count too
                node.test = nodes.And(counted, node.test)
        source.set_environment(self)
        return super()._generate(source, *where, **how)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Multiply, or raise to a power, what stays within bounds."""
        if operator == "**" and isinstance(left, int) and isinstance(right, int):
            if left.bit_length() * right > MAX_BITS:
                raise TooMuchError(f"a power of more than {MAX_BITS:,} bits")
        elif operator == "*":
            for many, times in ((left, right), (right, left)):
                if isinstance(many, str | list | tuple) and isinstance(times, int) and len(many) * times > MAX_LENGTH:
                    raise TooMuchError(f"a text or list of more than {MAX_LENGTH:,} items, by multiplying")
        return super().call_binop(context, operator, left, right)
