"""What packages bring by entry points: docs/plugins.md's package does what the page says, and a wrong one is named."""

from __future__ import annotations

import random
import re
import shutil
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import evalspec
from evalspec.data.generators import GENERATORS
from evalspec.errors import EvalspecError, PluginError, RunError
from evalspec.metrics import METRIC_FUNCTIONS, STEPS
from evalspec.plan.compile import compile_plan
from evalspec.retrieval.passages import RETRIEVERS
from evalspec.retrieval.retrieve import _built
from evalspec.runs.run import run
from evalspec.spec import load
from evalspec.store import Store

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "plugins.md").read_text()
FILES = dict(re.findall(r"^```(\w+)\n# [\w/.-]+\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))
REGISTRIES: tuple[Any, ...] = (METRIC_FUNCTIONS, STEPS, RETRIEVERS, GENERATORS)
Install = Callable[[str, str], None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Puts a package where this process finds packages: its module, and what installing it writes of its pyproject."""
    folder = tmp_path / "site"

    def forget() -> None:
        sys.modules.pop("my_evaluation", None)
        _built.cache_clear()
        for registry in REGISTRIES:
            for name in ("own", "letters_shared", "last_word", "longest", "sums"):
                registry._entries.pop(name, None)

    def put(pyproject: str, module: str) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "my_evaluation-0.1.dist-info").mkdir(parents=True)
        (folder / "my_evaluation.py").write_text(module)
        project = tomllib.loads(pyproject)["project"]
        points = "".join(
            f"[{group}]\n" + "".join(f"{key} = {value}\n" for key, value in found.items())
            for group, found in project["entry-points"].items()
        )
        about = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
        (folder / "my_evaluation-0.1.dist-info" / "METADATA").write_text(about)
        (folder / "my_evaluation-0.1.dist-info" / "entry_points.txt").write_text(points)
        monkeypatch.syspath_prepend(str(folder))
        forget()

    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # two versions of a file may come in one second
    yield put
    forget()


def spec(tmp_path: Path, text: str) -> Any:
    path = tmp_path / "own.yaml"
    path.write_text(text)
    return load(path, root=ROOT)


def test_the_page_s_package_brings_what_its_spec_names(install: Install, tmp_path: Path) -> None:
    install(FILES["toml"], FILES["python"])
    store = Store(tmp_path / "store.duckdb")
    finished = run(compile_plan(spec(tmp_path, FILES["yaml"])), store, tmp_path)
    assert (finished.status, finished.failed, finished.samples) == ("finished", 0, 40)
    with evalspec.connect(store.path) as connection:
        rows = connection.execute(
            "SELECT task, sample_id, output, target, metric, filter, extracted, value FROM scores "
            "JOIN samples USING (run_id, cell_id, sample_id) JOIN cells USING (run_id, cell_id)"
        ).fetchall()
        found = connection.execute("SELECT sample_id, list(text ORDER BY rank) FROM retrievals GROUP BY ALL").fetchall()
    assert len(rows) == 20 * 2 + 20
    draw = random.Random(1).randint
    sums = {f"sum-{number}": draw(0, 5) + draw(0, 5) for number in range(20)}
    for task, sample, output, target, metric, chain, extracted, value in rows:
        if task == "add":
            assert int(target) == sums[sample]
            assert chain == "last"
            assert extracted == (output.split()[-1] if output.split() else "[invalid]")
        if metric == "letters_shared":
            expected = len({*target} & {*extracted}) / len({*target}) if extracted != "[invalid]" else 0.0
            assert value == pytest.approx(expected)
    assert {metric for *_, metric, _, _, _ in rows} == {"letters_shared", "exact_match"}
    assert len(found) == 20
    assert len({tuple(texts) for _, texts in found}) == 1, "the same longest passages for every question"
    assert all(len(texts) == 3 and len(texts[0]) >= len(texts[1]) >= len(texts[2]) for _, texts in found)


SPEC = """
name: own
models: {{mamba: {{weights: zoo/mamba}}}}
tasks:
  ask:
    data: {{generate: {generator}, count: 3, seed: 7}}
    prompt: {{template: "{{{{ question }}}}", target: "{{{{ answer }}}}"}}
    retrieval:
      {{corpus: {{generate: world.passages, seed: 7}}, query: "{{{{ question }}}}", retriever: {retriever}, k: 2}}
    decode: {{max_tokens: 3}}
    filters: {{own: [{step}]}}
    metrics: [{metric}]
"""
PLAIN = {"metric": "exact_match", "step": "strip", "retriever": "bm25", "generator": "world.questions"}
GROUPS = {"metric": "metrics", "step": "filters", "retriever": "retrievers", "generator": "generators"}
POINTS = """
[project]
name = "mine"
version = "0"
[project.entry-points."evalspec.{group}"]
own = "my_evaluation:mine"
"""
SCORED = """
from evalspec.metrics import Declaration, Metric, Score
def mine(outcome, k):
    {body}
mine = Metric(Declaration("any", "output"), mine, "", "{values}")
"""
FOUND = """
class mine:
    def __init__(self, passages, settings, cache): {init}
    def search(self, queries, k): return {found}
"""
FAULTS = [
    (
        "metric",
        "",
        r"metric `own` \(my_evaluation:mine\): AttributeError: module 'my_evaluation' has no attribute 'mine'$",
    ),
    (
        "metric",
        "import nowhere_at_all",
        r"ModuleNotFoundError: No module named 'nowhere_at_all' \(.*my_evaluation\.py:1\)$",
    ),
    ("metric", "def mine(outcome, k): return 1.0", r"is a function, and should be an evalspec\.metrics\.Metric$"),
    (
        "metric",
        SCORED.format(body="return Score(1 / len(outcome.targets[1:]))", values="unit"),
        r"^tasks\.ask, sample q7-\d+: metric `own` \(my_evaluation:mine\): ZeroDivisionError: .*my_evaluation\.py:4\)",
    ),
    (
        "metric",
        SCORED.format(body="return 1.0", values="unit"),
        r"gave a float, and should give an evalspec\.metrics\.Score",
    ),
    (
        "metric",
        SCORED.format(body="return Score(1.5)", values="unit"),
        r'gave 1\.5, and its `values`, "unit", say a number',
    ),
    (
        "metric",
        SCORED.format(body="return Score(0.5)", values="binary"),
        r'gave 0\.5, and its `values`, "binary", say 0 or 1',
    ),
    ("step", "mine = 5", r"step `own` \(my_evaluation:mine\): is a int, and should be a function"),
    ("step", "def mine(text): return [text]", r"gave a list, and should give a text, or None"),
    ("step", "def mine(text): return text[99]", r"^tasks\.ask, sample q7-\d+: step `own` .*IndexError: .*py:1\)"),
    (
        "retriever",
        FOUND.format(init="1 / 0", found="[]"),
        r"retriever `own` .*ZeroDivisionError: .*my_evaluation\.py:3\)",
    ),
    ("retriever", "def mine(passages, settings, cache): return 5", r"built a int, which has no `search\(queries, k\)`"),
    ("retriever", FOUND.format(init="0", found="[]"), r"`search` gave 0 rankings for 3 queries"),
    (
        "retriever",
        FOUND.format(init="0", found="[[(-1, 0.0)]] * 3"),
        r"`search` found passage -1 of \d+, which count from 0",
    ),
    (
        "retriever",
        FOUND.format(init="0", found="[[(1, 0.0)] * 2] * 3"),
        r"`search` found a passage twice for one query",
    ),
    ("retriever", FOUND.format(init="0", found="[[1, 2]] * 3"), r"retriever `own` .*TypeError: cannot unpack"),
    ("generator", "def mine(seed, count): return [1]", r"generator `own` .*row 1 is a int, and should be a mapping"),
    ("generator", "def mine(seed, count): raise OSError('no disk')", r"generator `own` .*OSError: no disk \(.*py:1\)"),
]


@pytest.mark.parametrize(("kind", "module", "said"), FAULTS, ids=[f"{k}-{n}" for n, (k, _, _) in enumerate(FAULTS)])
def test_a_wrong_plugin_is_named_with_what_is_wrong_and_where(
    install: Install, tmp_path: Path, kind: str, module: str, said: str
) -> None:
    install(POINTS.format(group=GROUPS[kind]), module)
    with pytest.raises(EvalspecError, match=said) as caught:
        run(
            compile_plan(spec(tmp_path, SPEC.format(**{**PLAIN, kind: "own"}))),
            Store(tmp_path / "store.duckdb"),
            tmp_path,
        )
    assert isinstance(caught.value, PluginError | RunError)


def test_a_changed_metric_makes_another_run_with_the_same_answers(install: Install, tmp_path: Path) -> None:
    store, text = Store(tmp_path / "store.duckdb"), SPEC.format(**{**PLAIN, "metric": "own"})
    ran = []
    for value in ("0.25", "0.25", "0.75"):
        install(POINTS.format(group="metrics"), SCORED.format(body=f"return Score({value})", values="unit"))
        ran.append(run(compile_plan(spec(tmp_path, text)), store, tmp_path))
    first, same, changed = ran
    assert (first.computed, same.computed, changed.computed) == (3, 0, 0)
    assert first.run_id == same.run_id != changed.run_id
    with evalspec.connect(store.path) as connection:
        rows = connection.execute("SELECT run_id, value FROM metrics WHERE metric = 'own'").fetchall()
    assert dict(rows) == {first.run_id: 0.25, changed.run_id: 0.75}


def test_what_a_plugin_raises_in_a_run_keeps_what_was_finished(install: Install, tmp_path: Path) -> None:
    install(POINTS.format(group="filters"), "def mine(text): raise KeyError('x')")
    store = Store(tmp_path / "store.duckdb")
    with pytest.raises(RunError, match="What was finished is kept; run the same command again to go on"):
        run(compile_plan(spec(tmp_path, SPEC.format(**{**PLAIN, "step": "own"}))), store, tmp_path)
    assert [row["status"] for row in store.runs()] == ["failed"]
    install(POINTS.format(group="filters"), "def mine(text): return text")
    assert (
        run(compile_plan(spec(tmp_path, SPEC.format(**{**PLAIN, "step": "own"}))), store, tmp_path).status == "finished"
    )
