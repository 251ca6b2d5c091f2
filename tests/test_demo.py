"""The demonstration itself: `evalspec run specs/rag.yaml` from YAML to a page that a real browser opens."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import evalspec

ROOT = Path(__file__).parents[1]
FILLED = ("runs", "cells", "samples", "scores", "metrics", "retrievals", "efficiency")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the store and the report of the demonstration, on a part of its questions."""
    folder = tmp_path_factory.mktemp("demo")
    command = [sys.executable, "-m", "evalspec.cli", "run", "specs/rag.yaml", "--limit", "16", "--json"]
    done = subprocess.run([*command, "--store", folder / "e.duckdb"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (folder / "said.json").write_text(done.stdout)
    return folder


def test_every_table_with_a_producer_has_rows(demo: Path) -> None:
    with evalspec.connect(demo / "e.duckdb") as connection:
        counts = {name: connection.execute(f"SELECT count(*) FROM {name}").fetchall()[0][0] for name in FILLED}
        assert all(counts.values()), counts
        assert counts["cells"] == 105
        assert counts["samples"] == 105 * 16
        failed = connection.execute("SELECT count(*) FROM samples WHERE error IS NOT NULL").fetchall()
        assert failed == [(0,)]


def test_the_answer_is_the_one_that_the_zoo_was_trained_for(demo: Path) -> None:
    """With the gold passage alone every model answers; without passages none knows."""
    metrics = json.loads((demo / "said.json").read_text())["metrics"]
    found = {
        (
            row["model"],
            row["params"].get("tasks.open_book.retrieval.retriever"),
            row["params"].get("tasks.open_book.retrieval.k"),
        ): row["value"]
        for row in metrics
        if row["metric"] == "exact_match"
    }
    for model in ("transformer", "mamba", "mamba2"):
        assert found[model, "oracle", 1] >= 0.75
        assert found[model, "none", None] <= 0.25


@pytest.mark.browser
def test_the_report_opens_offline_with_all_charts_and_no_complaint(demo: Path, visit: Callable[..., Any]) -> None:
    [page] = demo.glob("rag-*.html")
    seen = visit(page)
    charts = seen.page.locator("[data-chart]")
    assert charts.count() >= 16
    for at in range(charts.count()):
        assert charts.nth(at).locator("svg .mark-symbol path, svg .mark-rect path").count() >= 3
    assert seen.complaints == []
    assert seen.requests == []
    index = visit(demo / "index.html", charts=False)
    assert page.name in index.page.content()
