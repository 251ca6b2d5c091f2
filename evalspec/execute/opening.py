"""Opening a backend for a model, and the names of devices."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterable

import psutil

from evalspec.errors import BackendError
from evalspec.execute.processor import processor_name
from evalspec.execute.protocols import Closing, Engine, ForkingBackend
from evalspec.models.card import Model

SMALL = 5_000_000  # parameters


def open_backend(model: Model, *, alone: int | None = None) -> ForkingBackend | Engine:
    """Load a model's weights and make them ready to run, or reach its server. Raises ModelError or BackendError.

    `alone`: CPU threads, for timing; an engine then answers nothing from a cache. `close_backend` when it is done.
    """
    if model.served:
        from evalspec.execute.backends.server.engine import open_server

        return open_server(model)
    if model.backend == "vllm":
        from evalspec.execute.backends.vllm.opening import open_vllm

        threads = alone or int(os.environ.get("OMP_NUM_THREADS") or threads_for([model]))
        return open_vllm(model, threads=threads, prefix_caching=alone is None)
    import torch

    _settle_threads(model)
    keep_memory()
    if model.backend == "native":
        from evalspec.execute.backends.native import open_native

        threads = torch.get_num_threads()
        opened = open_native(model)
        torch.set_num_threads(threads)  # the first compiled kernel starts numba's threads, and torch's with them
        return opened
    from transformers.utils import logging

    from evalspec.execute.backends.transformers.backend import open_transformers

    logging.disable_progress_bar()  # a run has one progress line, its own
    return open_transformers(model)


def close_backend(backend: ForkingBackend | Engine) -> None:
    """Give back what a backend holds outside this process's own memory: an engine's processes."""
    if isinstance(backend, Closing):
        backend.close()


def _settle_threads(model: Model) -> None:
    """One thread for a small model on a CPU, all for others, and what OMP_NUM_THREADS says where it is set.

    The steps of a small model are too short to share: two threads gain a third on an idle machine, but where another
    process holds a core they wait for each other, and the same run was seen to take 17 times as long.
    """
    import torch

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(threads_for([model]))


def threads_for(models: Iterable[Model]) -> int:
    """CPU threads for models that are to be treated alike: one if all are small, else all cores."""
    small = all(model.cost is not None and model.cost.parameters < SMALL for model in models)
    return 1 if small else psutil.cpu_count(logical=False) or os.cpu_count() or 1


def keep_memory() -> None:
    """Let the C library keep what is freed for what comes next, where it is glibc.

    It would hand large blocks back to the system and ask for them again at each operation of each layer; on a CPU the
    page faults were seen to cost more than the arithmetic.
    """
    if platform.system() != "Linux":
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        mmap_threshold, trim_threshold = -3, -1  # the names of malloc.h
        library.mallopt(mmap_threshold, 32 * 2**20)  # the most that it takes
        library.mallopt(trim_threshold, 2**30)


def describe_device(device: str) -> str:
    """What a model block's `device` means here: `NVIDIA H200`, `AMD Instinct MI210 (gfx90a)`, the processor.

    BackendError for a GPU that is not here.
    """
    import torch

    if device == "cpu" or not torch.cuda.is_available():
        if device not in ("auto", "cpu"):
            raise BackendError(f"`device: {device}`: torch sees no GPU here; use `auto` or `cpu`")
        threads = torch.get_num_threads()
        return f"CPU ({processor_name()}, {threads} thread{'s' * (threads != 1)})"
    _, sign, index = device.partition(":")
    count = torch.cuda.device_count()
    if sign and int(index) >= count:
        raise BackendError(f"`device: {device}`: torch sees {count} GPUs here; `evalspec doctor` lists them")
    if sign:
        return gpu_name(int(index))
    return f"{count} × {gpu_name(0)}" if count > 1 else gpu_name(0)


def gpu_name(index: int) -> str:
    """A GPU's name; on ROCm with its architecture, since drivers call some GPUs `AMD Radeon Graphics`, or nothing."""
    import torch

    facts = torch.cuda.get_device_properties(index)
    architecture = getattr(facts, "gcnArchName", "").partition(":")[0] if torch.version.hip else ""
    return " ".join(filter(None, [facts.name, f"({architecture})" if architecture else ""])) or f"GPU {index}"
