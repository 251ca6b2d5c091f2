"""`evalspec doctor` says what can be used and why not, whatever is broken; it never ends in a traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from evalspec.doctor.machine import platform_of
from evalspec.doctor.parts import EXTRAS, _own_need, import_failures, own_needs

ROOT = Path(__file__).parents[2]


def doctor(*arguments: str, code: int = 0, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "evalspec.cli", "doctor", *arguments],
        cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert "Traceback" not in done.stdout + done.stderr
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def broken(folder: Path, **modules: str) -> str:
    """A folder of packages that do this when they are imported, in front of everything else on the path."""
    for name, source in modules.items():
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(source)
    return os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH", "")]))


def test_it_says_what_can_be_used_here() -> None:
    found = json.loads(doctor("--json", HIP_VISIBLE_DEVICES="0,1"))
    assert found["can_run"]
    assert {use["name"] for use in found["backends"]} == {"native", "transformers", "vllm", "server"}
    assert {use["name"] for use in found["kernels"]} == {"torch", "compiled", "triton", "mamba_ssm"}
    assert all(use["usable"] or use["reason"] for use in [*found["backends"], *found["kernels"]])
    assert all(package["version"] or package["get"] for package in found["packages"])
    assert found["machine"]["visible"]["HIP_VISIBLE_DEVICES"] == "0,1"
    assert found["machine"]["total_bytes"] >= found["machine"]["free_bytes"] > 0
    said = {package["name"]: package["version"] for package in found["packages"]}
    assert said["torch"].split("+")[0] == found["machine"]["torch"].split("+")[0]


def test_a_broken_package_is_a_line_with_its_reason(tmp_path: Path) -> None:
    path = broken(
        tmp_path,
        ray="raise ImportError('libray.so: undefined symbol: _ZN3ray')",
        triton="import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
        vllm="import sys; sys.exit(3)",
        mamba_ssm="raise OSError('libcudart.so.11.0: cannot open shared object file')",
        causal_conv1d='print(\'["hello"\'); print("I am here")',
    )
    found = json.loads(doctor("--json", PYTHONPATH=path))
    failures = {package["name"]: package["failure"] for package in found["packages"]}
    assert failures["ray"] == "ImportError: libray.so: undefined symbol: _ZN3ray"
    assert failures["triton"] == "its import ends the process (signal 11)"
    assert failures["vllm"] == "SystemExit: 3"
    assert failures["mamba-ssm"] == "OSError: libcudart.so.11.0: cannot open shared object file"
    assert failures["causal-conv1d"] is None
    (vllm,) = (use for use in found["backends"] if use["name"] == "vllm")
    assert vllm == {**vllm, "usable": False, "reason": "vllm cannot be used: SystemExit: 3"}


@pytest.mark.parametrize("module", ["torch", "duckdb", "psutil", "rich"])
def test_where_evalspec_cannot_run_the_exit_code_is_1(module: str, tmp_path: Path) -> None:
    path = broken(tmp_path, **{module: "raise OSError('a library is missing')"})
    said = doctor(code=1, PYTHONPATH=path)
    assert f"evalspec cannot run here: {module} OSError: a library is missing (pip install '{module}>=" in said


@pytest.mark.parametrize("module", ["torch", "transformers"])
def test_where_evalspec_cannot_run_no_selftest_is_tried(module: str, tmp_path: Path) -> None:
    path = broken(tmp_path, **{module: "raise OSError('a library is missing')"})
    said = doctor("--selftest", code=1, PYTHONPATH=path)
    assert f"evalspec cannot run here: {module} OSError: a library is missing" in said


def test_an_import_that_never_ends_is_given_up_and_the_others_are_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", broken(tmp_path, asleep="import time; time.sleep(60)", wrong="1 / 0"))
    assert import_failures(["json", "asleep", "wrong"], limit=2) == {
        "asleep": "its import does not end within 2 s",
        "wrong": "ZeroDivisionError: division by zero",
    }


def test_a_need_that_is_too_old_is_said() -> None:
    assert _own_need("numpy>=2").usable
    assert _own_need("numpy>=99").failure == "evalspec needs >=99"
    assert _own_need("no-such-package>=1").failure == "is not installed"
    assert any(need.startswith("torch>=") for need in own_needs())


def test_names_of_platforms_and_packages() -> None:
    assert platform_of("7.15.26333", None) == "ROCm 7.15.26333"
    assert platform_of(None, "13.0") == "CUDA 13.0"
    assert platform_of(None, None) is None
    assert {"ray", "vllm", "amdsmi", "nvidia-ml-py", "mamba-ssm"} <= {package.name for package in EXTRAS}
