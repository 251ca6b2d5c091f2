"""What a worker does: open a model once, walk piece after piece, tell what it found every moment. No Ray in here.

It reports as it goes, so that what it had answered is not lost with it.
"""

from __future__ import annotations

import gc
import platform
import time
from collections.abc import Iterator

import evalspec
from evalspec.errors import EvalspecError, ModelError, RunError
from evalspec.execute.distributed.shipping import Asked, Opened, Reported, Shipment, Trouble
from evalspec.execute.protocols import Engine, ForkingBackend, Result
from evalspec.execute.walk import walk
from evalspec.models.card import find_model


class Worker:
    """One process on one GPU (or some CPUs). Its methods are called one at a time, and return errors as values."""

    def __init__(self) -> None:
        self.node = platform.node()
        self.backend: ForkingBackend | Engine | None = None
        self.results: Iterator[Result] = iter(())
        self.left = 0

    def open(self, asked: Asked) -> Opened | Trouble:
        """Load a model in place of the one before it."""
        from evalspec.execute.backends.memory import is_out_of_memory, release_memory
        from evalspec.execute.opening import close_backend, open_backend

        if self.backend is not None:
            close_backend(self.backend)
        self.backend, self.results = None, iter(())
        gc.collect()
        release_memory()
        try:
            if asked.folder is not None and not asked.folder.is_dir():
                raise ModelError(
                    f"models.{asked.name}.weights: there is no directory {asked.folder}; copy it there, or let all "
                    "nodes see one folder"
                )
            model = find_model(asked.name, asked.block, asked.root)
            if model.weights_hash != asked.weights_hash:
                raise ModelError(
                    f"models.{asked.name}.weights: {model.directory} holds other weights than the same path does where "
                    "the run was started; copy them, or let all nodes see one folder"
                )
            self.backend = backend = open_backend(model)
        except EvalspecError as error:
            return Trouble.of(error, self.node)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return Trouble.of(RunError(f"models.{asked.name} does not fit in memory: {_first_line(error)}"), self.node)
        forks = getattr(backend, "forks", True)
        return Opened(self.node, backend.name, backend.version, backend.identity, forks, evalspec.__version__)

    def walk(self, shipment: Shipment | None, seconds: float) -> Reported | Trouble:
        """Walk a new piece, or go on with the one at hand, until it is done or so many seconds have passed."""
        from evalspec.execute.backends.memory import is_out_of_memory

        assert self.backend is not None
        found: list[Result] = []
        try:
            if shipment is not None:
                forest = shipment.forest()
                self.results, self.left = walk(forest, self.backend), len(forest.requests)
            until = time.perf_counter() + seconds
            while self.left and time.perf_counter() < until:
                found.append(next(self.results))
                self.left -= 1
        except EvalspecError as error:
            return Trouble.of(error, self.node)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return Trouble.of(RunError(f"out of memory: {_first_line(error)}"), self.node)
        return Reported(tuple(found), self.left == 0, self.backend.peak_memory())


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
