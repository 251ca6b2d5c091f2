"""Declarative evaluation of state-space models and Transformers.

From Python, as from the command line:

    plan = evalspec.compile("specs/rag.yaml")
    finished = evalspec.run(plan)
    evalspec.connect().sql("SELECT model, metric, value FROM metrics JOIN cells USING (run_id, cell_id)")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evalspec.api import compile, connect, load, run

__all__ = ["__version__", "compile", "connect", "load", "run"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Imported on first use, so that the command line and the rooms do not pay for what they do not call.
    if name in __all__:
        return getattr(import_module("evalspec.api"), name)
    raise AttributeError(f"module `evalspec` has no attribute {name!r}")
