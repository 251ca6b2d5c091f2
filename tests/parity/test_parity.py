"""What real lm-eval and evalspec say of the same task files is the same, on a shipped model.

It needs an interpreter with lm-eval: $EVALSPEC_PEER_PYTHON, .venv-bench (`make bench` makes it), or this one. All
tasks, and the untrained models with a tokenizer of their own, are for `python -m benchmarks.parity`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from evalspec.importing.lm_eval_python import makes_rows
from evalspec.importing.lm_eval_yaml import Reader

ROOT = Path(__file__).parents[2]
TASKS = Path(__file__).with_name("tasks")
TEST_DATA = Path(os.environ.get("EVALSPEC_TEST_DATA", ROOT.parent / "shared" / "data"))
CASES = ";".join(
    f"{task}:zoo/transformer"
    for task in ("labels_10shot", "steps_2shot", "rolling_world", "option_filter", "python_dataset", "copa_mutual_info")
)


def peer() -> Path | None:
    """An interpreter that has lm-eval."""
    named, own = os.environ.get("EVALSPEC_PEER_PYTHON"), ROOT / ".venv-bench" / "bin" / "python"
    if named:
        return Path(named)
    if own.exists():
        return own
    return Path(sys.executable) if importlib.util.find_spec("lm_eval") else None


@pytest.mark.slow
@pytest.mark.skipif(peer() is None, reason="no interpreter with lm-eval: make bench, or set EVALSPEC_PEER_PYTHON")
@pytest.mark.skipif(not TEST_DATA.is_dir(), reason=f"no data under {TEST_DATA}: set EVALSPEC_TEST_DATA")
def test_the_harness_and_evalspec_say_the_same(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.parity", "--rows", "4", "--cases", CASES, "--work", str(tmp_path)]
    command += ["--peer-python", str(peer()), "--json", str(tmp_path / "lines.json")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    lines = {line["task"]: line for line in json.loads((tmp_path / "lines.json").read_text())}
    assert {len(line["values"]) for line in lines.values()} == {2, 8, 3}, "every metric under every filter was compared"
    assert lines["steps_2shot"]["values"]["exact_match (answer)"][0] > 0.5, "and the answers are ones that can differ"


def test_every_task_file_says_what_it_is_and_whether_it_calls_python() -> None:
    for path in TASKS.glob("[!_]*.yaml"):
        config = Reader().read(path)
        assert config.values["task"] == path.stem
        assert bool(makes_rows(config)) == path.stem.startswith("python_")
