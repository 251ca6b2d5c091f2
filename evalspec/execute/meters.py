"""What a device tells of itself while a model runs alone: memory in use, and energy.

Memory. On a GPU: bytes that torch has allocated, weights included, whose peak is set back before each run. On a CPU
(Linux): the process's resident memory, whose peak the kernel keeps (VmHWM) and sets back on request; freed memory has
to be given back to the system first, or the next run would take it unseen. Elsewhere nothing is told.

Energy. The GPU's own counter since its driver was loaded, by NVML (package nvidia-ml-py) or amdsmi (comes with ROCm).
It moves some ten times a second: what takes less than a second gets no number, since that would be mostly the counter's
step (`energy` makes it take longer). It counts the whole board, others' work included, and so once for all GPUs that
are parts of one board. A counter that stands still or goes back has told nothing.
"""

from __future__ import annotations

import ctypes
import platform
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from evalspec.errors import in_a_line

ENERGY_SECONDS = 1.0
"""Shortest run that gets a number of joules."""


@dataclass(frozen=True)
class Counter:
    """A board's energy counter. `read` tells joules, or raises what the vendor's library raises."""

    board: str
    read: Callable[[], float]


class Meters(Protocol):
    """Memory and energy of one device."""

    memory_is_free: bool
    """Whether watching memory costs no time, so that it can be watched in what is timed."""

    def memory_now(self) -> int | None:
        """Bytes in use."""
        ...

    def reset_memory(self) -> None:
        """Forget the peak."""
        ...

    def peak_memory(self) -> int | None:
        """Most bytes in use since then."""
        ...

    def joules(self) -> float | None:
        """The energy counter."""
        ...

    def joules_since(self, before: float | None, seconds: float) -> float | None:
        """Joules since the counter stood at `before`, `seconds` ago; None where that says nothing."""
        ...


class GpuMeters:
    """The GPUs that a model stands on; their bytes and joules are summed."""

    memory_is_free = True

    def __init__(self, gpus: Sequence[int]) -> None:
        self._gpus = gpus
        self._counters = of_boards([energy_counter(index) for index in gpus])

    def memory_now(self) -> int | None:
        """Bytes that torch has allocated."""
        return sum(torch.cuda.memory_allocated(index) for index in self._gpus)

    def reset_memory(self) -> None:
        """Set torch's peaks back."""
        for index in self._gpus:
            torch.cuda.reset_peak_memory_stats(index)

    def peak_memory(self) -> int | None:
        """Most bytes that torch had allocated."""
        return sum(torch.cuda.max_memory_allocated(index) for index in self._gpus)

    def joules(self) -> float | None:
        """Sum over the GPUs' boards; None unless all of them tell."""
        try:
            return sum(counter.read() for counter in self._counters) if self._counters else None
        except Exception:  # the vendor's own: a counter that is lost amid a run must not end it
            return None

    def joules_since(self, before: float | None, seconds: float) -> float | None:
        """See `Meters`."""
        now = self.joules() if before is not None and seconds >= ENERGY_SECONDS else None
        return None if now is None or before is None or now <= before else now - before


class EngineMeters(GpuMeters):
    """GPUs on which another process runs an engine: joules alone. The memory it takes at its start says nothing."""

    def memory_now(self) -> int | None:
        """None."""
        return None

    def reset_memory(self) -> None:
        """Nothing to set back."""

    def peak_memory(self) -> int | None:
        """None."""
        return None


class ProcessMeters:
    """This process on a CPU. Energy is not told: what CPUs count is the whole package, and reading it needs rights."""

    memory_is_free = False

    def __init__(self) -> None:
        self._status, self._clear = Path("/proc/self/status"), Path("/proc/self/clear_refs")
        self._told = False
        self._trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if platform.system() == "Linux" else None

    def memory_now(self) -> int | None:
        """Resident bytes, what was freed given back first."""
        if self._trim is not None:
            self._trim(0)
        return self._read("VmRSS")

    def reset_memory(self) -> None:
        """Have the kernel forget the peak (writing 5, see proc(5))."""
        try:
            self._clear.write_text("5")
            self._told = True
        except OSError:
            self._told = False  # not Linux, or not allowed: the peak would be the whole process's

    def peak_memory(self) -> int | None:
        """Most resident bytes."""
        return self._read("VmHWM") if self._told else None

    def joules(self) -> float | None:
        """None."""
        return None

    def joules_since(self, before: float | None, seconds: float) -> float | None:
        """None."""
        return None

    def _read(self, name: str) -> int | None:
        try:
            found = re.search(rf"^{name}:\s+(\d+) kB$", self._status.read_text(), re.MULTILINE)
        except OSError:
            return None
        return int(found[1]) * 1024 if found else None


def meters_of(gpus: Sequence[int], *, elsewhere: bool = False) -> Meters:
    """What tells of a model on these GPUs, or on none; `elsewhere`: it runs in another process."""
    if elsewhere:
        return EngineMeters(gpus)
    return GpuMeters(gpus) if gpus else ProcessMeters()


def of_boards(counters: Sequence[Counter | None]) -> list[Counter]:
    """Each board's counter once, of those of some GPUs; none of them where one GPU has none."""
    found = {counter.board: counter for counter in counters if counter is not None}
    return [] if None in counters else list(found.values())


def energy_counter(index: int) -> Counter | None:
    """The energy counter of the board of torch's GPU `index`; None where nothing tells it."""
    return _found_counter(index)[0]


def energy_source(index: int) -> tuple[str, str | None]:
    """Which library reads the energy of torch's GPU `index`, and why it cannot (None if it can)."""
    return "amdsmi" if torch.version.hip else "NVML (nvidia-ml-py)", _found_counter(index)[1]


def _found_counter(index: int) -> tuple[Counter | None, str | None]:
    try:
        return (_amd_counter(index) if torch.version.hip else _nvidia_counter(index)), None
    except ImportError as error:
        how = "it comes with ROCm" if torch.version.hip else "pip install nvidia-ml-py"
        return None, f"{in_a_line(error)}; {how}"
    except Exception as error:  # vendors raise errors of their own: a driver too old, a missing right, a vGPU
        return None, in_a_line(error)


def _nvidia_counter(index: int) -> Counter:
    import pynvml

    pynvml.nvmlInit()
    uuid = f"GPU-{torch.cuda.get_device_properties(index).uuid}"
    handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
    pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)  # raises where the GPU has no counter

    def joules() -> float:
        return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1000  # millijoules

    return Counter(uuid, joules)


def _amd_counter(index: int) -> Counter:
    import amdsmi

    amdsmi.amdsmi_init()
    here: Any = torch.cuda.get_device_properties(index)
    return amd_counter(amdsmi, here.pci_domain_id, here.pci_bus_id, here.pci_device_id)


def amd_counter(amdsmi: Any, domain: int, bus: int, device: int) -> Counter:
    """The counter of the GPU at this place on the PCI bus (amdsmi's own numbers know nothing of HIP_VISIBLE_DEVICES).

    Partitions of an MI300 are functions of one place, of which the first counts for the whole. Of an MI250's two GPUs,
    which have places of their own, one counts for both and the other's counter stands at 0: LookupError, as where
    amdsmi knows no GPU at the place.
    """
    place = f"{domain:04x}:{bus:02x}:{device:02x}"
    handles = {str(amdsmi.amdsmi_get_gpu_device_bdf(one)).lower(): one for one in amdsmi.amdsmi_get_processor_handles()}
    functions = sorted(name for name in handles if name.startswith(place))
    if not functions:
        raise LookupError(f"amdsmi knows no GPU at {place}")
    handle = handles[functions[0]]

    def joules() -> float:
        return amd_joules(amdsmi.amdsmi_get_energy_count(handle))

    if not joules():
        raise LookupError(f"the counter of the GPU at {place} stands at 0; an MI250's other GPU counts for both")
    return Counter(place, joules)


def amd_joules(told: Mapping[str, Any]) -> float:
    """What `amdsmi_get_energy_count` tells, in joules: counts of so many microjoules each (`power` before ROCm 6.4)."""
    count = told["energy_accumulator"] if "energy_accumulator" in told else told["power"]
    return float(count) * float(told["counter_resolution"]) * 1e-6
