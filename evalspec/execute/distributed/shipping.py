"""What travels between the driver and its workers: pieces of a forest out, results back. Values only, no Ray.

A request holds all its tokens, those of its piece share most of theirs: so the piece's nodes travel, and the worker
reads each request's tokens off its path.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from evalspec import errors
from evalspec.errors import EvalspecError
from evalspec.execute.protocols import Result
from evalspec.plan.forest import Decoding, Forest, Ints, Request, Tokens
from evalspec.spec.model import ModelBlock


@dataclass(frozen=True)
class Asked:
    """A model to open: its block, the folder that relative paths start at, and the hash that its weights must have.

    `folder` is where the weights are for the driver, if its block names a directory and no hub id: a worker that sees
    no such directory must not ask the hub for a model of that name.
    """

    name: str
    block: ModelBlock
    root: Path
    weights_hash: str
    folder: Path | None = None


@dataclass(frozen=True)
class Opened:
    """A worker's backend stands ready. `identity` and `forks` are the backend's, and must be every worker's."""

    node: str
    name: str
    version: str
    identity: tuple[str, ...]
    forks: bool
    evalspec: str


@dataclass(frozen=True, eq=False)
class Shipment:
    """A forest without its requests' tokens; arrays as `Forest` has them, `asked` is (targets, decoding, repeat)."""

    tokens: Tokens
    start: Ints
    length: Ints
    parent: Ints
    leaf: Ints
    asked: tuple[tuple[tuple[int, ...], Decoding | None, int], ...]

    @classmethod
    def of(cls, forest: Forest) -> Shipment:
        """Load a forest."""
        asked = tuple((request.targets, request.decoding, request.repeat) for request in forest.requests)
        return cls(forest.tokens, forest.start, forest.length, forest.parent, forest.leaf, asked)

    def forest(self) -> Forest:
        """Unload it."""
        bare = Forest(self.tokens, self.start, self.length, self.parent, self.leaf, ())
        paths = {leaf: bare.path(leaf) for leaf in dict.fromkeys(self.leaf.tolist())}
        requests = tuple(
            Request(paths[leaf], *asked) for leaf, asked in zip(self.leaf.tolist(), self.asked, strict=True)
        )
        return Forest(self.tokens, self.start, self.length, self.parent, self.leaf, requests)


@dataclass(frozen=True)
class Reported:
    """Results since the last report, numbered within the piece; whether it is done; the most device memory so far."""

    results: tuple[Result, ...]
    done: bool
    peak_memory: int | None


@dataclass(frozen=True)
class Trouble:
    """An error for the user, on its way from a worker to the driver."""

    kind: str
    text: str

    @classmethod
    def of(cls, error: EvalspecError, node: str) -> Trouble:
        """An error that a worker met, with the node's name in front."""
        return cls(type(error).__name__, f"node {node}: {error}")

    def error(self) -> EvalspecError:
        """The error again, of the kind that it was."""
        kind = getattr(errors, self.kind, EvalspecError)
        found: EvalspecError = kind(self.text)
        return found
