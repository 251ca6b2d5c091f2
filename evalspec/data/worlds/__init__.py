"""Generated worlds: rows whose facts change with the seed, so that knowledge must come from the context.

A generator is a function (seed, count, **options) → rows. The same seed gives the same rows on every machine and
Python version, and the first rows of a larger count are the rows of a smaller one. Plugins add generators through the
entry point `evalspec.generators`.
"""

from __future__ import annotations

from evalspec.data.worlds.rows import GENERATORS, Generator, generate

__all__ = ["GENERATORS", "Generator", "generate"]
