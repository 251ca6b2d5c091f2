"""Where models run: in this process, or on the workers of a Ray cluster. What asks for results does not see which."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
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
