"""`evalspec compare RUN_A RUN_B` says what the two runs differ in: real runs of one spec, edited in several ways."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pytest

from evalspec.cli import main
from evalspec.report.differences import run_differences
from evalspec.report.pairing import LeftOut
from evalspec.starter import write_starter
from evalspec.store import Store
from evalspec.store.schema import TABLES

NOTHING = LeftOut({}, {}, {})


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A store, and the ids of its runs by what was changed."""
    folder = tmp_path_factory.mktemp("differences")
    write_starter(folder)
    store, spec = folder / "evalspec.duckdb", folder / "specs" / "first.yaml"
    ids: dict[str, str] = {}

    def go(name: str, *options: str) -> None:
        assert main(["run", str(spec), "--store", str(store), "--limit", "6", *options]) == 0
        with Store(store).connect() as connection:
            [newest] = connection.execute("SELECT run_id FROM runs ORDER BY started_at DESC LIMIT 1").fetchall()
        assert newest[0] not in ids.values()
        ids[name] = newest[0]

    go("plain")
    go("set", "--set", "tasks.reading.prompt.shots=0", "--set", "models.mamba2.weights=zoo/mamba",
       "--set", "sweep={tasks.reading.retrieval.retriever: [none, oracle]}")  # fmt: skip
    go("fewer", "--limit", "4")
    template = folder / "prompts" / "first.jinja"
    template.write_text("Read this.\n" + template.read_text())
    go("template")
    return store, ids


@pytest.fixture
def bare() -> duckdb.DuckDBPyConnection:
    """The store's tables with nothing in them."""
    connection = duckdb.connect()
    for table in TABLES.values():
        connection.execute(table.create(table.name))
    return connection


def compared(runs: tuple[Path, dict[str, str]], a: str, b: str, capsys: pytest.CaptureFixture[str]) -> tuple[str, Any]:
    store, ids = runs
    told = []
    for options in ([], ["--json"]):
        assert main(["compare", ids[a], ids[b], "--store", str(store), *options]) == 0
        told.append(capsys.readouterr().out)
    return told[0], json.loads(told[1])


def test_keys_weights_and_cells_that_one_run_alone_has_are_said(
    runs: tuple[Path, dict[str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    text, told = compared(runs, "plain", "set", capsys)
    lines = [line.strip() for line in text.splitlines()]
    assert "models.mamba2.weights: zoo/mamba2 → zoo/mamba" in lines
    assert "tasks.reading.prompt.shots.n: 2 → 0" in lines
    assert f"A: run {runs[1]['plain']}, B: run {runs[1]['set']}" in lines
    store = Store(runs[0])
    hashes = [{row["model"]: row["weights_hash"] for row in store.rows("cells", runs[1][name])} for name in runs[1]]
    assert f"weights of mamba2: {hashes[0]['mamba2'][:12]} → {hashes[1]['mamba2'][:12]}" in lines
    assert "weights of transformer" not in text and "torch" not in text
    assert "Left out, since only one run has them: 6 cells (reading 6) of A and 2 cells (reading 2) of B." in lines
    assert told["differences"]["left_out"] == {"only_a": {"reading": 6}, "only_b": {"reading": 2}, "unscored": {}}
    assert {"key": "tasks.reading.prompt.shots.n", "a": 2, "b": 0} in told["differences"]["spec"]
    keys = [difference["key"] for difference in told["differences"]["spec"]]
    assert not any(key.startswith(("tasks.reading.data", "tasks.reading.metrics", "name")) for key in keys)


def test_the_same_spec_is_called_the_same(
    runs: tuple[Path, dict[str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    text, told = compared(runs, "plain", "plain", capsys)
    assert "  The two specs are the same.\n" in text and "Left out" not in text
    assert told["differences"]["spec"] == told["differences"]["runs"] == []


def test_a_template_that_was_edited_shows_in_the_prompts(
    runs: tuple[Path, dict[str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    text, told = compared(runs, "plain", "template", capsys)
    n = told["differences"]["asked"]["samples"]
    assert told["differences"] | {"runs": []} == {
        "spec": [], "runs": [], "asked": {"samples": n, "changed": n},
        "left_out": {"only_a": {}, "only_b": {}, "unscored": {}},
    }  # fmt: skip
    assert f"The two specs are the same, but {n} of {n} samples that both runs have were asked with another" in text


def test_fewer_samples_of_the_same_spec_are_no_other_question(
    runs: tuple[Path, dict[str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    text, told = compared(runs, "plain", "fewer", capsys)
    assert told["differences"]["asked"]["changed"] == 0 < told["differences"]["asked"]["samples"]
    assert "the plans are not: `--limit`" in text


def test_runs_with_nothing_in_common_say_what_differs(
    runs: tuple[Path, dict[str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    store, ids = runs
    names = ["compare", ids["plain"], ids["set"], "--store", str(store), "--model", "transformer=mamba2"]
    assert main(names) == 0
    capsys.readouterr()
    assert main([*names, "--metric", "recall@3"]) == 2
    said = capsys.readouterr().err
    assert "share no cell" in said and "tasks.reading.prompt.shots.n: 2 → 0" in said


def test_of_what_a_store_lacks_nothing_is_said(bare: duckdb.DuckDBPyConnection) -> None:
    bare.execute("INSERT INTO runs (run_id, spec_name) VALUES ('a', 'x'), ('b', 'x')")
    bare.execute("INSERT INTO cells (run_id, cell_id, model) VALUES ('a', 'c', 'm'), ('b', 'c', 'm')")
    found = run_differences(bare, "a", "b", NOTHING)
    assert (found.spec, found.runs, found.sentence, found.lines()) == (None, (), None, [])


def test_versions_commit_and_device_are_said_where_they_differ(bare: duckdb.DuckDBPyConnection) -> None:
    facts: list[tuple[Any, ...]] = [
        ("a", "0.1.0", "1" * 40, "cpu", '{"python": "3.11.7", "torch": "2.12.0", "numpy": "2.0"}'),
        ("b", "0.2.0", "1" * 39 + "2+", "NVIDIA H200", '{"python": "3.11.7", "torch": "2.13.0", "vllm": "0.11"}'),
    ]
    bare.executemany(
        "INSERT INTO runs (run_id, evalspec_version, git_commit, device, versions) VALUES (?, ?, ?, ?, ?)", facts
    )
    bare.execute("INSERT INTO cells (run_id, cell_id, model, backend) VALUES ('a', 'c', 'm', 'native')")
    bare.execute("INSERT INTO cells (run_id, cell_id, model, backend) VALUES ('b', 'c', 'm', 'vllm')")
    assert [difference.words for difference in run_differences(bare, "a", "b", NOTHING).runs] == [
        "backend of m: native → vllm",
        "evalspec: 0.1.0 → 0.2.0",
        "git commit: 111111111111 → 111111111111+",
        "device: cpu → NVIDIA H200",
        "torch: 2.12.0 → 2.13.0",
        "numpy: only in A, 2.0",
        "vllm: only in B, 0.11",
    ]


@pytest.mark.browser
def test_the_page_shows_what_differs(
    runs: tuple[Path, dict[str, str]], tmp_path: Path, visit: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    store, ids = runs
    names = ["compare", ids["plain"], ids["set"], "--store", str(store), "--reports", str(tmp_path), "--html"]
    assert main(names) == 0
    [page] = tmp_path.glob("compare-*.html")
    seen = visit(page)
    rows = seen.page.locator("#differences tbody tr").all_inner_texts()
    assert ["tasks.reading.prompt.shots.n", "2", "0"] in [row.split("\t") for row in rows]
    assert "6 cells (reading 6) of A" in seen.page.locator("#differences").inner_text()
