"""The self-test: it finds our kernels right, a wrong one wrong, and says of what it cannot try why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from evalspec.doctor import kernel_trials as trials
from evalspec.doctor.attention_case import attention_case, masked_softmax
from evalspec.doctor.generation import try_vllm
from evalspec.doctor.kernel_cases import (
    ZOO,
    Draw,
    Widths,
    conv_case,
    question_forest,
    scan_case,
    small_forest,
    ssd_case,
    step_cases,
)
from evalspec.doctor.kernel_forms import compiled_kernels
from evalspec.doctor.kernel_trials import PAST, Size, error_of, kernel_trials
from evalspec.doctor.rates import copy_rate, gemm_rate, gemm_rates
from evalspec.doctor.score_parity import Parity
from evalspec.doctor.selftest import device_named, selftest
from evalspec.doctor.selftest_page import selftest_text
from evalspec.errors import BackendError
from evalspec.models.layer_cost import AttentionLayer, Mamba2Layer, MambaLayer

CPU = torch.device("cpu")
SMALL = Widths(
    "small", channels=16, state=8, conv=4, heads=2, head=8, dual_state=8, attention_heads=2, attention_head=16
)
SIZE = Size(SMALL, trunk=30, questions=2, past=9, rows=3, budget=0.02)
KERNELS = {
    "convolution", "selective scan", "SSD", "convolution, a step", "selective scan, a step", "SSD, a step", "attention",
}  # fmt: skip


def test_on_this_cpu_everything_is_right() -> None:
    found = selftest("cpu", size=SIZE, gemm_size=64, copy_bytes=1 << 20, models=("transformer", "mamba"))
    assert found.right
    assert {trial.kernel for trial in found.trials} == KERNELS
    assert all(set(trial.errors) == {"float32", "bfloat16"} for trial in found.trials)
    assert all(trial.of_copy and trial.of_gemm and trial.seconds for trial in found.trials)
    assert [(parity.model, parity.way) for parity in found.parities] == [
        ("transformer", "transformers"),
        *(("mamba", way) for way in ("native, torch", "native, auto", "transformers")),
    ]
    page = selftest_text(found)
    assert "everything tried is right" in page
    assert "Send this page" in page
    assert found.json()["right"]


@pytest.mark.parametrize("name", ["scan", "ssd", "convolve", "scan_step", "ssd_step", "convolve_step"])
def test_a_kernel_that_forgets_its_state_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = compiled_kernels()
    function: Callable[..., Any] = getattr(honest, name)

    def forgetful(*tensors: Tensor, state: Tensor, **given: Any) -> Any:
        return function(*tensors, state=torch.zeros_like(state), **given)

    monkeypatch.setattr(trials, "forms_on", lambda device: {"compiled": lambda: replace(honest, **{name: forgetful})})
    wrong = {trial.kernel for trial in kernel_trials(CPU, 1e9, {torch.float32: 1e9}, SIZE) if not trial.right}
    kernel = {"scan": "selective scan", "ssd": "SSD", "conv": "convolution"}[name.split("_")[0].removesuffix("olve")]
    assert wrong == {kernel + (", a step" if name.endswith("step") else "")}


def test_a_kernel_that_fails_is_a_row_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*tensors: Tensor, **given: Any) -> Any:
        raise RuntimeError("out of resource: shared memory\nRequired: 98304")

    kernels = replace(compiled_kernels(), ssd=failing)
    monkeypatch.setattr(trials, "forms_on", lambda device: {"compiled": lambda: kernels})
    rows = {trial.kernel: trial for trial in kernel_trials(CPU, 1e9, {torch.float32: 1e9}, SIZE)}
    assert rows["SSD"].failure == "out of resource: shared memory"
    assert [name for name, row in rows.items() if not row.right] == ["SSD"]


def test_a_form_that_cannot_be_loaded_is_a_row_unless_it_is_not_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Any:
        raise ModuleNotFoundError("No module named 'x'")

    def broken() -> Any:
        raise OSError("undefined symbol")

    monkeypatch.setattr(trials, "forms_on", lambda device: {"triton": missing, "mamba_ssm": missing, "third": broken})
    rows = [(trial.form, trial.right, trial.failure) for trial in kernel_trials(CPU, 1e9, {}, SIZE)]
    assert rows == [
        ("triton", False, "cannot be loaded: No module named 'x'"),
        ("third", False, "cannot be loaded: undefined symbol"),
    ]


def test_the_attention_that_is_timed_equals_a_masked_softmax_and_counts_its_pairs() -> None:
    pack = small_forest()
    case = attention_case(pack, "", SMALL, Draw(CPU, torch.float32), PAST)
    truth = masked_softmax(pack, case.inputs, PAST)
    assert error_of(case.run(None, case.inputs), (truth,)) < 1e-5
    t = np.arange(pack.tokens)
    own = int(((t[None, :] <= t[:, None]) & (t[:, None] < pack.reach[None, :])).sum())
    before = int(np.asarray(PAST)[np.repeat(pack.origin, pack.length)].sum())
    assert case.operations == 4 * SMALL.attention_heads * SMALL.attention_head * (own + before)


def test_operations_are_those_of_the_cost_formulas() -> None:
    """Of a layer's operations, what its matrices do not do; one sequence, of one chunk for SSD."""
    from evalspec.plan.pack import Pack

    draw, widths, length = Draw(CPU, torch.float32), ZOO, 64
    pack, lengths, starts = Pack.of([length], [-1], 1, [0]), np.array([float(length)]), np.array([0.0])
    e, n, d, rank, k = widths.channels, widths.state, 192, 12, widths.conv
    layer = MambaLayer(d, e, n, k, rank)
    matrices = length * (6 * d * e + 2 * e * (rank + 2 * n) + 2 * rank * e)
    scan = scan_case(pack, "", widths, draw).operations
    assert scan + length * 2 * k * e == layer.flops(lengths, starts, stepwise=False)[0] - matrices
    dual = Mamba2Layer(d, e, widths.dual_state, k, widths.heads, 1, 64)
    convolved = e + 2 * widths.dual_state
    outside = length * (2 * d * (e + convolved + widths.heads) + 2 * k * convolved + 2 * e * d + 8 * e)
    assert ssd_case(pack, "", widths, draw).operations == dual.flops(lengths, starts, stepwise=False)[0] - outside
    heads, size = widths.attention_heads, widths.attention_head
    attention = AttentionLayer(d, heads, heads, size, 352, True)
    without = AttentionLayer(d, heads, heads, size, 352, True, window=0)
    expected = attention.flops(lengths, starts, stepwise=False) - without.flops(lengths, starts, stepwise=False)
    assert attention_case(pack, "", widths, draw, [0]).operations == expected[0]


def test_bytes_are_what_goes_in_and_out_once() -> None:
    pack, draw = small_forest(), Draw(CPU, torch.bfloat16)
    t, given, kept, ends = pack.tokens, pack.given, len(pack.keep), len(pack.ends)
    e, n, before = SMALL.channels, SMALL.state, SMALL.conv - 1
    assert conv_case(pack, "", SMALL, draw).moved == 2 * (2 * t * e + (given + kept) * before * e)
    assert scan_case(pack, "", SMALL, draw).moved == 2 * (4 * t * e + 2 * t * n) + 4 * (given + ends) * e * n
    h, p, m = SMALL.heads, SMALL.head, SMALL.dual_state
    states = 4 * (given + ends) * h * p * m
    assert ssd_case(pack, "", SMALL, draw).moved == 2 * (2 * t * h * p + 2 * t * m) + 4 * t * h + states
    assert scan_case(pack, "", SMALL, draw, started=False).moved == 2 * (4 * t * e + 2 * t * n) + 4 * ends * e * n
    steps = {case.name: case for case in step_cases(5, SMALL, draw)}
    assert steps["convolution, a step"].moved == 2 * (2 * 5 * e + 2 * 5 * before * e)
    assert steps["SSD, a step"].moved == 2 * 2 * 5 * h * p + 4 * 2 * 5 * h * p * m


def test_the_forest_of_a_choice_task() -> None:
    pack = question_forest(100, 7)
    assert len(pack.length) == 1 + 7 * 5
    assert np.bincount(pack.depth).tolist() == [1, 7, 28]


def test_an_error_is_a_share_of_the_largest_value_and_no_number_is_infinitely_wrong() -> None:
    one = torch.tensor([1.0, -4.0])
    assert error_of((one,), (torch.tensor([1.0, -4.0]),)) == 0
    assert error_of((one,), (torch.tensor([1.5, -5.0]),)) == pytest.approx(0.2)
    assert error_of((torch.tensor([torch.nan, 1.0]),), (one,)) == float("inf")


def test_rates_are_positive_and_those_of_what_the_device_can() -> None:
    assert copy_rate(CPU, 1 << 20) > 1e6
    assert gemm_rate(CPU, torch.float32, 64) > 1e5
    assert torch.float32 in gemm_rates(CPU, 32)


def test_scores_are_right_within_the_bound_and_with_the_same_choices() -> None:
    assert Parity("mamba", "native", 9e-4, 6, 6).right
    assert not Parity("mamba", "native", 2e-3, 6, 6).right
    assert not Parity("mamba", "native", 1e-6, 5, 6).right
    assert not Parity("mamba", "native", failure="no").right


def test_devices_that_are_not_here_are_said_so() -> None:
    assert device_named("cpu") == CPU
    for asked, said in (("cuda:97", "torch sees"), ("tpu", "use auto, cpu, cuda"), ("hip", "use auto, cpu, cuda")):
        with pytest.raises(BackendError, match=said):
            device_named(asked)


def test_an_engine_that_cannot_start_is_a_line() -> None:
    assert "no shipped model `zoo/nothing`" in str(try_vllm(CPU, "nothing").failure)
