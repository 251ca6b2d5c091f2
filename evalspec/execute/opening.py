"""Opening a backend for a model, and the names of devices."""

from __future__ import annotations

import platform

from evalspec.errors import BackendError
from evalspec.execute.protocols import ForkingBackend
from evalspec.models.card import Model


def open_backend(model: Model) -> ForkingBackend:
    """Load a model's weights and make them ready to run. Raises ModelError or BackendError."""
    if model.backend == "native":
        from evalspec.execute.backends.native import open_native

        return open_native(model)
    from transformers.utils import logging

    from evalspec.execute.backends.transformers import open_transformers

    logging.disable_progress_bar()  # a run has one progress line, its own
    return open_transformers(model)


def describe_device(device: str) -> str:
    """The device that a model block's `device` means here: `NVIDIA H200`, `AMD Instinct MI210`, or the processor."""
    import torch

    if device == "cpu" or not torch.cuda.is_available():
        if device not in ("auto", "cpu"):
            raise BackendError(f"`device: {device}`: torch sees no GPU here; use `auto` or `cpu`")
        return f"CPU ({platform.machine()}, {torch.get_num_threads()} threads)"
    count = torch.cuda.device_count()
    name = torch.cuda.get_device_name(0)
    return f"{count} × {name}" if count > 1 else name
