"""Dockerfile.rocm keeps what its base brings, and its pip steps that need no ROCm resolve for the image's Python.

No image is built here. The base's list of packages below is made of what AMD's documentation and vLLM's requirements
state of that image; the real one is read when it is built.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from evalspec.doctor.base_image import MOVABLE, WITHOUT_NEEDS, frozen, main, requirements

ROOT = Path(__file__).parents[1]
SOURCES = ("rouge-score",)
"""Needs that come as sources only; they are Python alone, so that a wheel made here serves everywhere."""
BASE = """
torch==2.12.0+rocm10.0.0
torchvision==0.27.0+rocm10.0.0
torchaudio==2.11.0+rocm10.0.0
triton==3.7.0+rocm10.0.0
vllm==0.27.1.dev5+gf46a9dfe2
flash_attn==2.8.3
amd-aiter==0.1.20.post1
numba==0.65.0
llvmlite==0.47.0
transformers==5.5.3
tokenizers==0.22.2
pydantic==2.12.5
pydantic_core==2.41.5
PyYAML==6.0.3
psutil==7.2.2
# Editable install with no version control (something==1)
"""


def steps() -> list[str]:
    """The shell commands of the RUN instructions."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile.rocm").read_text(encoding="utf-8"), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    runs = [line.removeprefix("RUN ") for line in lines if line.startswith("RUN ")]
    return [" ".join(part.split()) for run in runs for part in run.split("&&")]


def pip_steps() -> list[list[str]]:
    """The arguments of each `pip install`."""
    prefix = "python3 -m pip install "
    return [shlex.split(step.removeprefix(prefix)) for step in steps() if step.startswith(prefix)]


def project() -> dict[str, object]:
    table: dict[str, object] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return table


def test_the_base_is_pinned_by_tag_and_digest() -> None:
    (base,) = re.findall(r"^FROM (\S+)", (ROOT / "Dockerfile.rocm").read_text(encoding="utf-8"), re.MULTILINE)
    assert re.fullmatch(
        r"rocm/vllm:rocm[\d.]+_ubuntu[\d.]+_py3\.\d+_pytorch_[\d.]+_vllm_[\d.]+@sha256:[0-9a-f]{64}", base
    )


def test_nothing_that_is_built_for_rocm_is_moved() -> None:
    base, lock = frozen(BASE), frozen((ROOT / "requirements.lock").read_text(encoding="utf-8"))
    needs, constraints, conflicts = requirements(project(), base, lock)
    assert conflicts == []
    names = {Requirement(need).name for need in needs}
    assert not names & {"torch", "triton", "vllm", "numba", "pydantic"}
    assert {"transformers", "duckdb", "altair"} <= names  # too old in the base, and missing there
    held = frozen("\n".join(constraints))
    assert held["torch"] == "2.12.0+rocm10.0.0"
    assert held["numba"] == "0.65.0" != lock["numba"]
    assert all(held[name] == lock[name] for name in MOVABLE if name in lock)
    assert held["duckdb"] == lock["duckdb"]


def test_a_base_that_cannot_carry_evalspec_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = tmp_path / "base.txt"
    files = str(ROOT / "pyproject.toml"), str(ROOT / "requirements.lock")
    old.write_text("torch==2.4.0\npydantic==1.10\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        assert main(str(old), *files) == 1
        old.write_text("numpy==2.1.0\n")
        assert main(str(old), *files) == 1
    said = capsys.readouterr().err
    assert "the base has torch 2.4.0, and evalspec needs >=2.11" in said
    assert "the base has pydantic 1.10" in said
    assert "names no torch" in said


def test_what_is_installed_without_its_needs_is_the_locks_version() -> None:
    lock = frozen((ROOT / "requirements.lock").read_text(encoding="utf-8"))
    bare = [
        step for step in pip_steps() if "--no-deps" in step and "." not in step and "--no-build-isolation" not in step
    ]
    (step,) = bare
    pins = frozen("\n".join(argument for argument in step if "==" in argument))
    assert set(pins) == set(WITHOUT_NEEDS)
    assert pins == {name: lock[name] for name in pins}


def test_mamba_ssm_is_built_for_both_architectures_and_new_enough() -> None:
    text = (ROOT / "Dockerfile.rocm").read_text(encoding="utf-8")
    assert 'PYTORCH_ROCM_ARCH="gfx90a;gfx942"' in text
    assert 'HIP_ARCHITECTURES="gfx90a,gfx942"' in text
    (step,) = (step for step in pip_steps() if any(argument.startswith("mamba-ssm==") for argument in step))
    pins = frozen("\n".join(step))
    for need in map(Requirement, project()["optional-dependencies"]["mamba"]):  # type: ignore[index]
        assert need.specifier.contains(pins[need.name])


def test_the_image_says_whether_it_is_well_and_is_not_root() -> None:
    text = (ROOT / "Dockerfile.rocm").read_text(encoding="utf-8")
    assert re.search(r'^HEALTHCHECK .*CMD \["evalspec", "doctor"\]$', text, re.MULTILINE)
    assert re.findall(r"^USER (\S+)", text, re.MULTILINE) == ["10001"]


@pytest.mark.slow
def test_the_steps_that_need_no_rocm_resolve_for_the_images_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pip itself, with the very arguments of the Dockerfile, for the base's Python on Linux; nothing is installed."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.txt").write_text(BASE)
    (tmp_path / "base_image.py").write_text((ROOT / "evalspec/doctor/base_image.py").read_text(encoding="utf-8"))
    for name in ("pyproject.toml", "requirements.lock"):
        (tmp_path / name).write_text((ROOT / name).read_text(encoding="utf-8"))
    (prepare,) = (step for step in steps() if step.startswith("python3 base_image.py"))
    subprocess.run([sys.executable, *shlex.split(prepare)[1:]], check=True)
    python = re.findall(r"_py(3\.\d+)_", (ROOT / "Dockerfile.rocm").read_text(encoding="utf-8"))[0]
    target = ["--python-version", python, "--implementation", "cp", "--only-binary", ":all:", "--target", "x"]
    for platform in ("manylinux_2_28_x86_64", "manylinux2014_x86_64", "manylinux1_x86_64"):
        target += ["--platform", platform]
    lock = frozen((ROOT / "requirements.lock").read_text(encoding="utf-8"))
    sources = [f"{name}=={lock[name]}" for name in SOURCES]  # for another Python pip takes wheels only
    subprocess.run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", "wheels", *sources], check=True)
    target += ["--find-links", "wheels"]
    resolvable = [step for step in pip_steps() if "--no-build-isolation" not in step]
    assert len(resolvable) == 2
    for step in resolvable:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", *target, *step]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
