"""`evalspec doctor --selftest`: this device's own rates, our kernels' errors and shares of them, scores by every way.

One command for a person with a device that the project has not seen; what it prints is what the project needs to know.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from evalspec import __version__
from evalspec.doctor.findings import Findings, examine
from evalspec.doctor.generation import Generation, try_vllm
from evalspec.doctor.kernel_trials import Size, Trial, kernel_trials, name_of
from evalspec.doctor.rates import copy_rate, gemm_rates
from evalspec.doctor.score_parity import Parity, score_parity
from evalspec.errors import BackendError, RunError, in_a_line
from evalspec.execute.opening import gpu_name, keep_memory


@dataclass(frozen=True)
class SelfTest:
    """Everything that was tried on one device."""

    findings: Findings
    device: str
    name: str
    copy: float
    """Bytes a second, read and written."""
    gemm: dict[str, float]
    """Operations a second by precision."""
    trials: tuple[Trial, ...]
    parities: tuple[Parity, ...]
    generation: Generation | None
    """None where vLLM is not installed."""
    seconds: float
    threads: int
    """CPU threads."""

    @property
    def right(self) -> bool:
        """Whether everything that was tried came out as it should."""
        scored = all(parity.right for parity in self.parities)
        computed = all(trial.right for trial in self.trials)
        return scored and computed and (self.generation is None or self.generation.right)

    def json(self) -> dict[str, Any]:
        """For machines, and for the project."""
        return {
            "evalspec": __version__,
            "right": self.right,
            "device": self.device,
            "name": self.name,
            "seconds": self.seconds,
            "threads": self.threads,
            "copy_bytes_per_second": self.copy,
            "gemm_operations_per_second": self.gemm,
            "kernels": [asdict(trial) for trial in self.trials],
            "scores": [asdict(parity) | {"right": parity.right} for parity in self.parities],
            "vllm": asdict(self.generation) | {"right": self.generation.right} if self.generation else None,
            "doctor": self.findings.json(),
        }


def device_named(asked: str) -> torch.device:
    """`auto` is the first GPU where there is one. BackendError for a device that is not here, or has no such name."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if asked == "auto":
        return torch.device("cuda", 0) if gpus else torch.device("cpu")
    try:
        device = torch.device(asked)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise BackendError(f"--device {asked}: use auto, cpu, cuda or cuda:N (ROCm's GPUs are called cuda too)")
    if device.type == "cuda" and (device.index or 0) >= gpus:
        raise BackendError(f"--device {asked} is not here: torch sees {gpus} GPUs; `evalspec doctor` says why")
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device


def selftest(
    asked: str = "auto",
    *,
    findings: Findings | None = None,
    size: Size | None = None,
    gemm_size: int | None = None,
    copy_bytes: int | None = None,
    models: tuple[str, ...] = ("transformer", "mamba", "mamba2"),
    say: Callable[[str], None] = lambda _: None,
) -> SelfTest:
    """Try everything on a device, on a machine where evalspec can run; `findings`, if it was looked at already.

    BackendError for a device that is not here; any other fault is a row that says it.
    """
    device = device_named(asked)
    began = time.perf_counter()
    keep_memory()  # as a run does
    if device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)  # as a run of models this small: two threads would mostly wait for each other
    findings = findings or examine()
    say("the device's own rates")
    name = gpu_name(device.index) if device.type == "cuda" else findings.machine.processor
    try:
        copy, gemm = copy_rate(device, copy_bytes), gemm_rates(device, gemm_size)
    except RuntimeError as error:  # no memory is free, or its driver is at odds with torch: nothing else would run
        raise RunError(f"{name} ({device}) cannot even copy its memory: {in_a_line(error)}") from error
    trials = []
    say("kernels: the first call of each compiles it")
    for trial in kernel_trials(device, copy, gemm, size):
        say(f"{trial.kernel} ({trial.form}): {'right' if trial.right else 'WRONG'}")
        trials.append(trial)
    say("scores of the shipped models by every way")
    parities = tuple(score_parity(device, models=models))
    generation = None
    if any(use.name == "vllm" and use.usable for use in findings.backends):
        say("vLLM: starting its engine")
        generation = try_vllm(device)
    return SelfTest(
        findings, str(device), name, copy, {name_of(dtype): rate for dtype, rate in gemm.items()},
        tuple(trials), parities, generation, time.perf_counter() - began, torch.get_num_threads(),
    )  # fmt: skip
