"""What `evalspec doctor` says: the machine, what can be used on it and why not, what is missing and how to get it."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from evalspec import __version__
from evalspec.doctor.machine import Machine, machine
from evalspec.doctor.parts import Found, look_at
from evalspec.tabular import bytes_text, table


@dataclass(frozen=True)
class Use:
    """A backend, or a kind of kernels: whether it can be used here, else why not."""

    name: str
    usable: bool
    runs: str
    reason: str = ""


@dataclass(frozen=True)
class Findings:
    """Everything that was found."""

    machine: Machine
    core: tuple[Found, ...]
    extras: tuple[Found, ...]
    backends: tuple[Use, ...]
    kernels: tuple[Use, ...]

    @property
    def can_run(self) -> bool:
        """Whether evalspec can run at all: its own needs are met, and a backend is there."""
        return all(found.usable for found in self.core) and self.machine.torch_failure is None

    def json(self) -> dict[str, Any]:
        """For machines."""
        return {
            "evalspec": __version__,
            "can_run": self.can_run,
            "machine": asdict(self.machine),
            "backends": [asdict(use) for use in self.backends],
            "kernels": [asdict(use) for use in self.kernels],
            "packages": [
                {
                    "name": found.package.name,
                    "version": found.version,
                    "failure": found.failure,
                    "for": found.package.purpose,
                    "get": None if found.usable else found.package.how,
                }
                for found in (*self.core, *self.extras)
            ],
        }

    def text(self) -> str:
        """For people."""
        if not all(found.usable for found in self.core if found.package.name == "rich"):
            return "\n".join([*machine_lines(self.machine), "", self.verdict])  # rich draws the tables
        rows = [(use.name, "yes" if use.usable else "no", use.runs, use.reason) for use in self.backends]
        kinds = [(use.name, "yes" if use.usable else "no", use.runs, use.reason) for use in self.kernels]
        packages = [
            (found.package.name, _state(found), found.package.purpose, "" if found.usable else found.package.how)
            for found in self.extras
        ]
        return "\n".join(
            [
                *machine_lines(self.machine),
                table(("backend", "usable", "runs", "why not"), rows),
                table(("kernels", "usable", "runs", "why not"), kinds),
                table(("package", "version", "for", "get it"), packages),
                "",
                self.verdict,
            ]
        )

    @property
    def verdict(self) -> str:
        """The last line."""
        if self.can_run:
            return "evalspec can run here; `evalspec doctor --selftest` checks and times its kernels"
        wrong = [
            f"{found.package.name} {found.failure} ({found.package.how})" for found in self.core if not found.usable
        ]
        return "evalspec cannot run here: " + "; ".join(wrong or [f"torch: {self.machine.torch_failure}"])


def examine() -> Findings:
    """Look at everything; raises nothing for what is broken."""
    with ThreadPoolExecutor(1) as apart:
        looking = apart.submit(look_at)  # it waits for another process, while torch is imported here
        here = machine()
        core, extras = looking.result()
    by_name = {found.package.name: found for found in (*core, *extras)}
    return Findings(here, core, extras, _backends(here, by_name), _kernels(here, by_name))


def machine_lines(here: Machine) -> list[str]:
    """The machine, a line for each side of it."""
    lines = [
        f"evalspec {__version__}, Python {here.python}, torch {here.torch or 'missing'}"
        f"{f' for {here.platform}' if here.platform else ''}, {here.system}",
        f"processor {here.processor}, {here.cores} cores, {bytes_text(here.total_bytes) or 'unknown'} memory, "
        f"{bytes_text(here.free_bytes) or 'an unknown part'} free",
    ]
    if here.torch_failure:
        lines.append(f"torch     cannot be imported: {here.torch_failure}")
    for gpu in here.gpus:
        free = bytes_text(gpu.free_bytes) or "an unknown part"
        memory = f"{bytes_text(gpu.total_bytes) or 'unknown'} memory, {free} free"
        lanes = f", {gpu.lanes} lanes" if gpu.lanes else ""
        wrong = f"; {gpu.failure}" if gpu.failure else ""
        lines.append(f"GPU {gpu.index}     {gpu.name} ({gpu.architecture}{lanes}), {memory}{wrong}")
    if not here.gpus and not here.torch_failure:
        lines.append(f"GPU       none: {here.gpu_failure}")
    hidden = ", ".join(f"{name}={value or '(empty)'}" for name, value in here.visible.items())
    lines.append(f"driver    {here.driver or 'no driver of a GPU is loaded'}; {hidden or 'no variable hides GPUs'}")
    lines.append(f"energy    {here.energy}")
    return lines


def _backends(here: Machine, packages: Mapping[str, Found]) -> tuple[Use, ...]:
    without_torch = f"torch: {here.torch_failure}" if here.torch_failure else ""
    theirs = packages.get("transformers")
    broken = without_torch or ("" if theirs is None or theirs.usable else f"transformers: {theirs.failure}")
    vllm = _why_not(packages["vllm"])
    return (
        Use("native", not without_torch, "Mamba, Mamba-2", without_torch),
        Use("transformers", not broken, "any causal language model that transformers loads", broken),
        Use("vllm", not vllm, "Transformers, Mamba-2 and, on a GPU, Mamba", vllm),
        Use("server", True, "any OpenAI-compatible server, by its `url`"),
    )


def _kernels(here: Machine, packages: Mapping[str, Found]) -> tuple[Use, ...]:
    without_torch = f"torch: {here.torch_failure}" if here.torch_failure else ""
    without_gpu = without_torch or ("" if here.gpus else f"they need a GPU ({here.gpu_failure})")
    ours = without_gpu or _why_not(packages["triton"])
    theirs = without_gpu or _why_not(packages["mamba-ssm"]) or _why_not(packages["causal-conv1d"])
    loops = without_torch or _why_not(packages.get("numba"))
    return (
        Use("torch", not without_torch, "everywhere, slowly: for comparison", without_torch),
        Use("compiled", not loops, "`auto` on a CPU", loops),
        Use("triton", not ours, "`auto` on a GPU", ours),
        Use("mamba_ssm", not theirs, "where it is asked for", theirs),
    )


def _why_not(found: Found | None) -> str:
    if found is None or found.usable:
        return ""
    return f"{found.package.name} {f'cannot be used: {found.failure}' if found.version else 'is missing'}"


def _state(found: Found) -> str:
    if found.version is None:
        return "missing"
    return f"{found.version}, broken: {found.failure}" if found.failure else found.version
