"""Values of command-line options: what argparse may take, and what it says of the rest."""

from __future__ import annotations

import argparse


def positive(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text!r}")
    return int(text)


def address(text: str) -> str:
    """A cluster's address. `run --ray SPEC` would take the spec for one."""
    if text.endswith((".yaml", ".yml")):
        raise argparse.ArgumentTypeError(f"{text} is no address; let `--ray` stand behind the specs")
    return text
