"""Rows as a table of text, for a terminal or a file."""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Iterable, Sequence


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], title: str | None = None) -> str:
    """A plain table, as wide as the terminal (a pipe has none). Numbers stand at the right; None is an empty cell."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    listed = [list(row) for row in rows]
    drawn = Table(*(), title=title, title_justify="left", title_style="", box=box.SIMPLE_HEAD, pad_edge=False)
    for number, name in enumerate(columns):
        numeric = any(_is_number(row[number]) for row in listed)
        drawn.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in listed:
        drawn.add_row(*(_text(value) for value in row))
    width = shutil.get_terminal_size((120, 24)).columns if sys.stdout.isatty() else 400
    console = Console(file=io.StringIO(), width=max(60, width), color_system=None, highlight=False, markup=False)
    console.print(drawn)
    return "\n".join(line.rstrip() for line in console.file.getvalue().strip("\n").splitlines())  # type: ignore[attr-defined]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.3f}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)


def bytes_text(count: float | None) -> str | None:
    """A number of bytes with a decimal unit: 13.1 MB."""
    if count is None:
        return None
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return None
