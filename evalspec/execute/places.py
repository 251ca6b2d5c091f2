"""Where models run: in this process, or on the workers of a Ray cluster. What asks for results does not see which."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

from evalspec.execute.opening import close_backend, describe_device, open_backend
from evalspec.execute.protocols import Engine, ForkingBackend
from evalspec.models.card import Model


class Place(Protocol):
    """Opens models, one at a time."""

    def open(self, model: Model, tokens: int) -> AbstractContextManager[ForkingBackend | Engine]:
        """A model for about so many tokens, fed or generated; it is let go at the end of the context."""
        ...

    def describe(self, model: Model) -> str:
        """The device that it would run on. Raises BackendError for one that is not there."""
        ...


class Here:
    """This process."""

    @contextmanager
    def open(self, model: Model, tokens: int) -> Iterator[ForkingBackend | Engine]:
        """The model's own backend."""
        backend = open_backend(model)
        try:
            yield backend
        finally:
            close_backend(backend)

    def describe(self, model: Model) -> str:
        """The device's name."""
        return describe_device(model.block.device)


@contextmanager
def place_of(ray: str | None, root: Path, say: Callable[[str], None]) -> Iterator[Place]:
    """This process, or with `ray` (an address, `auto`, or `local` for a cluster of this run's own) a Ray cluster.

    `root` is where relative paths of models start; `say` hears what happens to workers.
    """
    if ray is None:
        yield Here()
        return
    from evalspec.execute.distributed.cluster import RayCluster

    cluster = RayCluster(ray, root, say)
    try:
        yield cluster
    finally:
        cluster.close()
