"""When memory runs out: knowing it, and giving back what the failed attempt held."""

from __future__ import annotations

import gc

import torch


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out, on a GPU or on the CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def release_memory() -> None:
    """Give back what an aborted pack held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
