"""Generators: functions that make rows from a seed, by the names that specs use.

A generator is called as `generator(seed, count, **options)` and returns one mapping a row. The same seed gives the same
rows on every machine. `count` None means as many as the generator thinks right. One that reads files has a parameter
`root`, the folder where relative names start; it is filled in and no option. Plugins join through the entry-point group
`evalspec.generators`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from evalspec.errors import DataError, suggest
from evalspec.registry import Plugin, Registry

ROOT = "root"

Generator = Callable[..., list[dict[str, Any]]]


def _adopted(generator: Generator, plugin: Plugin) -> Generator:
    """A plugin's generator."""

    def rows(given: Any) -> list[dict[str, Any]]:
        found = list(given)
        for number, row in enumerate(found, start=1):
            if not isinstance(row, Mapping):
                raise plugin.error(f"row {number} is a {type(row).__name__}, and should be a mapping, {{name: value}}")
        return found

    return plugin.guarded(generator, rows)


GENERATORS: Registry[Generator] = Registry("generator", "evalspec.generators", _adopted)


def generate(
    name: str, seed: int, count: int | None, options: Mapping[str, Any], root: Path = Path()
) -> list[dict[str, Any]]:
    """Rows of the generator called `name`; relative file names among its options start at `root`.

    Raises EvalspecError for an unknown name, DataError for an option that the generator lacks or one that it needs.
    """
    generator = GENERATORS.get(name)
    parameters = [p for p in list(inspect.signature(generator).parameters.values())[2:] if p.name != ROOT]
    known = [parameter.name for parameter in parameters if parameter.kind is not inspect.Parameter.VAR_KEYWORD]
    takes_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)
    for option in options:
        if option not in known and not takes_any:
            has = f"Known: {', '.join(known)}" if known else "It has none"
            raise DataError(f"generator `{name}` has no option `{option}`.{suggest(option, known)} {has}")
    for parameter in parameters:
        if (
            parameter.kind is parameter.KEYWORD_ONLY
            and parameter.default is parameter.empty
            and parameter.name not in options
        ):
            raise DataError(f"generator `{name}` needs the option `{parameter.name}`")
    reads_files = ROOT in inspect.signature(generator).parameters
    return generator(seed, count, **options, **({ROOT: root} if reads_files else {}))
