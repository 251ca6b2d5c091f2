"""Each kernel on this device: does it equal its reference, how long does it take, and what share of the device is that?

Errors are taken on a small forest with given states at full width, in every precision; time on the forest of a choice
task, in the precision that models have on the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from evalspec.doctor.attention_case import attention_case, masked_softmax
from evalspec.doctor.kernel_cases import (
    LARGE,
    ZOO,
    Case,
    Draw,
    Outputs,
    Widths,
    conv_case,
    question_forest,
    scan_case,
    small_forest,
    ssd_case,
    step_cases,
)
from evalspec.doctor.kernel_forms import forms_on, plain_kernels
from evalspec.doctor.rates import seconds
from evalspec.errors import in_a_line
from evalspec.ssm.kernels.choice import Kernels

PAST = (50, 57, 0)
"""Tokens before each given state of the small forest."""


@dataclass(frozen=True)
class Size:
    """How much is tried: widths, the timed forest (trunk, questions, tokens before it), rows of steps."""

    widths: Widths
    trunk: int
    questions: int
    past: int
    rows: int
    step_check_rows: int = 3
    budget: float = 0.5
    """Seconds for the calls that a time is taken from."""


GPU_SIZE = Size(LARGE, trunk=1500, questions=100, past=512, rows=256)
CPU_SIZE = Size(ZOO, trunk=400, questions=12, past=256, rows=32)


@dataclass(frozen=True)
class Trial:
    """What came of one kernel in one form. `failure` says why there are no numbers; `right` is then False."""

    kernel: str
    form: str
    errors: Mapping[str, float]
    """Largest error, of the largest value, in each precision."""
    right: bool
    on: str = ""
    dtype: str = ""
    seconds: float | None = None
    of_copy: float | None = None
    """Share of the copy rate: the bytes that it must move at least, a second."""
    of_gemm: float | None = None
    """Share of the GEMM rate in the precision of its products: its operations a second."""
    failure: str | None = None


def size_on(device: torch.device) -> Size:
    """Full widths on a GPU, the zoo's on a CPU."""
    return GPU_SIZE if device.type == "cuda" else CPU_SIZE


def kernel_trials(
    device: torch.device, copy: float, gemm: Mapping[torch.dtype, float], size: Size | None = None
) -> Iterator[Trial]:
    """Try every kernel in every form that this device has; a form that is not installed is left out.

    Args: copy, the device's bytes a second · gemm, its operations a second, by precision.
    """
    size = size or size_on(device)
    checked_in = (torch.float32, torch.bfloat16)
    timed_in = torch.bfloat16 if device.type == "cuda" else torch.float32
    for form, load in forms_on(device).items():
        try:
            kernels = load()
        except ModuleNotFoundError as error:
            if form == "triton":
                yield Trial("all", form, {}, False, failure=f"cannot be loaded: {in_a_line(error)}")
            continue  # mamba-ssm is not needed
        except Exception as error:  # a library built for another torch raises what it likes
            yield Trial("all", form, {}, False, failure=f"cannot be loaded: {in_a_line(error)}")
            continue
        checked = [(dtype, list(checks(size, Draw(device, dtype), form))) for dtype in checked_in]
        for number, case in enumerate(_timed(size, Draw(device, timed_in), form)):
            pairs = [(dtype, *cases[number]) for dtype, cases in checked]
            yield _trial(kernels, form, case, pairs, device, copy, gemm, size.budget)


LOOSER = {"mamba_ssm": {torch.float32: 1e-3, torch.bfloat16: 3e-2}}
"""They subtract sums of log decays in float32, and round more often than ours: errors that are allowed instead."""

Check = tuple[Case, Callable[[], Outputs]]


def checks(size: Size, draw: Draw, form: str) -> Iterator[Check]:
    """The cases for errors, each with its reference."""
    pack, on = small_forest(), "small forest"
    cases = [
        conv_case(pack, on, size.widths, draw),
        scan_case(pack, on, size.widths, draw),
        ssd_case(pack, on, size.widths, draw),
        *step_cases(size.step_check_rows, size.widths, draw),
    ]
    for case in cases:
        yield case, partial(_plainly, case)
    if form != "mamba_ssm":
        attention = attention_case(pack, on, size.widths, draw, PAST)
        yield attention, lambda: (masked_softmax(pack, attention.inputs, PAST),)


def _plainly(case: Case) -> Outputs:
    return case.run(plain_kernels(), case.fresh())


def _timed(size: Size, draw: Draw, form: str) -> Iterator[Case]:
    """The cases for time, in the order of `checks`; made one by one, so that memory holds one at a time."""
    pack = question_forest(size.trunk, size.questions)
    on = f"forest of {pack.tokens:,} tokens"
    yield conv_case(pack, on, size.widths, draw)
    yield scan_case(pack, on, size.widths, draw)
    yield ssd_case(pack, on, size.widths, draw)
    yield from step_cases(size.rows, size.widths, draw)
    if form != "mamba_ssm":
        yield attention_case(pack, on, size.widths, draw, [size.past])


def _trial(
    kernels: Kernels,
    form: str,
    case: Case,
    checks: Sequence[tuple[torch.dtype, Case, Callable[[], Outputs]]],
    device: torch.device,
    copy: float,
    gemm: Mapping[torch.dtype, float],
    budget: float,
) -> Trial:
    errors: dict[str, float] = {}
    right, dtype = True, name_of(next(t.dtype for t in case.inputs.values() if isinstance(t, Tensor)))
    try:
        with torch.no_grad():
            for kind, small, reference in checks:
                errors[name_of(kind)] = error = error_of(small.run(kernels, small.fresh()), reference())
                right &= error <= LOOSER.get(form, {}).get(kind, small.loose)
            given = case.fresh()
            took = seconds(lambda: case.run(kernels, given), device, budget=budget)
    except Exception as error:  # no compiler for this GPU, too little local memory, a fault: the row says it
        return Trial(case.name, form, errors, False, case.on, dtype, failure=in_a_line(error))
    rate = gemm.get(case.products)
    return Trial(
        case.name, form, errors, right, case.on, dtype, took,
        case.moved / took / copy, None if rate is None else case.operations / took / rate,
    )  # fmt: skip


def error_of(found: Outputs, expected: Outputs) -> float:
    """Largest difference of any output, of that output's largest value; infinite for what is no number."""
    worst = 0.0
    for one, other in zip(found, expected, strict=True):
        if not bool(one.isfinite().all()):
            return float("inf")
        scale = float(other.double().abs().max()) or 1.0
        worst = max(worst, float((one.double() - other.double()).abs().max()) / scale)
    return worst


def name_of(dtype: torch.dtype) -> str:
    """`bfloat16`."""
    return str(dtype).removeprefix("torch.")
