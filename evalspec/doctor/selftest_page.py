"""The self-test as text of a person's width."""

from __future__ import annotations

from evalspec.doctor.findings import machine_lines
from evalspec.doctor.score_parity import BOUND
from evalspec.doctor.selftest import SelfTest
from evalspec.tabular import table

SEND = (
    "Send this page, or the file that `evalspec doctor --selftest --json > selftest.json` writes, as an issue of the\n"
    "project: it fills this device's row in docs/rocm.md. It names no machine and no user; reasons of failures may\n"
    "name paths."
)


def selftest_text(found: SelfTest) -> str:
    """Rates, kernels, scores, vLLM, and the line that says what to send."""
    gemm = ", ".join(f"{name} {_scaled(rate, 'OP/s')}" for name, rate in found.gemm.items())
    lines = [
        *machine_lines(found.findings.machine),
        "",
        f"self-test on {found.device}: {found.name}{_threads(found)}, {found.seconds:.0f} s",
        f"copies    {_scaled(found.copy, 'B/s')} (read and written)",
        f"products  {gemm}",
        table(
            ("kernel", "form", "error float32", "bfloat16", "right", "on", "ms", "of copy", "of product"),
            [
                (
                    trial.kernel,
                    trial.form,
                    _error(trial.errors.get("float32")),
                    _error(trial.errors.get("bfloat16")),
                    "yes" if trial.right else "NO",
                    f"{trial.on}, {trial.dtype}" if trial.dtype else trial.on,
                    None if trial.seconds is None else f"{trial.seconds * 1e3:.3g}",
                    _share(trial.of_copy),
                    _share(trial.of_gemm),
                )
                for trial in found.trials
            ],
        ),
        *(f"  {trial.kernel} ({trial.form}): {trial.failure}" for trial in found.trials if trial.failure),
        table(
            ("scores", "by", "differ by at most", "same choice", "right"),
            [
                (
                    parity.model,
                    parity.way,
                    _error(parity.difference),
                    f"{parity.same} of {parity.questions}",
                    "yes" if parity.right else "NO",
                )
                for parity in found.parities
            ],
        ),
        *(f"  {parity.model} by {parity.way}: {parity.failure}" for parity in found.parities if parity.failure),
        f"  (log-probabilities in float32 against plain forward passes of transformers; {BOUND:g} is allowed)",
        "",
        f"vLLM      {_vllm(found)}",
        "",
        "everything tried is right" if found.right else "NOT everything is right: see the rows marked NO",
        SEND,
    ]
    return "\n".join(lines)


def _threads(found: SelfTest) -> str:
    return f", {found.threads} thread{'s' * (found.threads != 1)}" if found.device == "cpu" else ""


def _vllm(found: SelfTest) -> str:
    one = found.generation
    if one is None:
        (use,) = (use for use in found.findings.backends if use.name == "vllm")
        return f"not tried: {use.reason}"
    if one.failure:
        return f"NO: {one.failure}"
    said = f"{one.same} of {one.tokens} tokens as the transformers backend generates them"
    return f"{'yes' if one.right else 'NO'}: {said}, {one.seconds:.0f} s with its start ({one.version})"


def _error(value: float | None) -> str | None:
    return None if value is None else f"{value:.1e}"


def _share(value: float | None) -> str | None:
    if value is None:
        return None
    return f"{value:.0%}" if value >= 0.095 else f"{value:.1%}"


def _scaled(value: float, unit: str) -> str:
    for prefix in ("", "k", "M", "G", "T"):
        if value < 1000 or prefix == "T":
            return f"{value:.3g} {prefix}{unit}"
        value /= 1000
    return ""
