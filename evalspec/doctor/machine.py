"""The machine: processor, memory, GPUs with their driver, what of them is visible, whether they tell energy."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from evalspec.errors import in_a_line
from evalspec.execute.processor import processor_name

VISIBLE = ("HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL")
"""What may hide GPUs from a process. On ROCm ROCR_VISIBLE_DEVICES does, and of what it leaves HIP_VISIBLE_DEVICES or,
where that is unset or empty, CUDA_VISIBLE_DEVICES; GPU_DEVICE_ORDINAL was HIP's once, and is OpenCL's."""


@dataclass(frozen=True)
class Gpu:
    """One GPU as torch sees it. Bytes are None where the device did not tell; `failure` says why."""

    index: int
    name: str
    architecture: str
    """`gfx90a` on ROCm (as the compiler is told, with its features), `sm_90` on CUDA."""
    total_bytes: int | None
    free_bytes: int | None
    lanes: int | None
    """Of a wavefront or warp: 64 on AMD's data-centre GPUs, 32 on NVIDIA's."""
    failure: str | None = None


@dataclass(frozen=True)
class Machine:
    """What computes here. `torch` is None where torch cannot be imported, and `torch_failure` says why."""

    python: str
    system: str
    processor: str
    cores: int
    total_bytes: int | None
    free_bytes: int | None
    """Of memory; None where psutil cannot be imported."""
    torch: str | None
    platform: str | None
    """`CUDA 13.0`, `ROCm 7.15.26333`, or None where torch is built for the CPU alone."""
    driver: str | None
    gpus: tuple[Gpu, ...]
    visible: Mapping[str, str]
    energy: str
    """`yes` with what tells it, or `no` with the reason."""
    torch_failure: str | None = None
    gpu_failure: str | None = None


def machine() -> Machine:
    """Look at the machine; raises nothing for what is broken."""
    total, free = _memory()
    visible = {name: os.environ[name] for name in VISIBLE if name in os.environ}
    version = platform_name = torch_failure = gpu_failure = None
    gpus: tuple[Gpu, ...] = ()
    energy = "no: CPUs count the whole package, and reading that needs rights"
    try:
        import torch

        version = str(torch.__version__)
        platform_name = platform_of(torch.version.hip, torch.version.cuda)
        gpus, gpu_failure = _gpus(platform_name)
        if gpus:
            energy = _energy()
    except Exception as error:  # a half-installed torch fails in ways of its own
        torch_failure = f"{type(error).__name__}: {in_a_line(error)}"
    return Machine(
        python=platform.python_version(),
        system=f"{platform.system()} {platform.release()}",
        processor=processor_name(),
        cores=os.cpu_count() or 1,
        total_bytes=total,
        free_bytes=free,
        torch=version,
        platform=platform_name,
        driver=_driver(),
        gpus=gpus,
        visible=visible,
        energy=energy,
        torch_failure=torch_failure,
        gpu_failure=gpu_failure,
    )


def _memory() -> tuple[int | None, int | None]:
    """All of the machine's memory and what is free of it, in bytes."""
    try:
        import psutil

        memory = psutil.virtual_memory()
    except Exception:  # that it is broken is said among the packages
        return None, None
    return int(memory.total), int(memory.available)


def platform_of(hip: str | None, cuda: str | None) -> str | None:
    """What torch is built for, by its name."""
    return f"ROCm {hip}" if hip else (f"CUDA {cuda}" if cuda else None)


def _gpus(platform_name: str | None) -> tuple[tuple[Gpu, ...], str | None]:
    """What torch sees, and why it sees nothing."""
    import torch

    if platform_name is None:
        return (), "torch is a CPU build"
    try:
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    except RuntimeError as error:
        return (), in_a_line(error)
    if not count:
        return (), f"torch is built for {platform_name}, but sees no GPU"
    return tuple(_gpu(index) for index in range(count)), None


def _gpu(index: int) -> Gpu:
    import torch

    try:
        facts = torch.cuda.get_device_properties(index)
        architecture = getattr(facts, "gcnArchName", "") if torch.version.hip else f"sm_{facts.major}{facts.minor}"
        free = None
        failure = None
        try:
            free = int(torch.cuda.mem_get_info(index)[0])
        except RuntimeError as error:  # another process holds all of it, or the driver is at odds with torch
            failure = in_a_line(error)
        lanes = getattr(facts, "warp_size", None)
        return Gpu(index, facts.name, architecture, int(facts.total_memory), free, lanes, failure)
    except (RuntimeError, AssertionError) as error:
        return Gpu(index, "unknown", "", None, None, None, in_a_line(error))


def _energy() -> str:
    from evalspec.execute.meters import energy_source

    source, reason = energy_source(0)
    return f"yes, by {source}" if reason is None else f"no: {reason}"


def _driver() -> str | None:
    """The kernel driver, as the system states it; both may be loaded."""
    found = []
    for name, path in (("amdgpu", "/sys/module/amdgpu/version"), ("nvidia", "/sys/module/nvidia/version")):
        try:
            found.append(f"{name} {Path(path).read_text(encoding='utf-8').strip()}")
        except OSError:  # not loaded; or loaded and, as part of the system's own kernel, without a version
            if Path(path).parent.is_dir():
                found.append(f"{name} of the kernel {platform.release()}")
    return ", ".join(found) or None
