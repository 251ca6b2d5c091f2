"""`evalspec compare` on real stores: which cells meet, what is said and kept, and the page."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest

from evalspec.cli import main
from evalspec.errors import EvalspecError, StoreError
from evalspec.metrics.significance import holm
from evalspec.report.units import p_text
from evalspec.runs.compare import compare, comparison_json
from evalspec.store import Store, query

SPEC = """name: quiz
models: {alpha: {weights: a}, beta: {weights: b}, gamma: {weights: c}}
tasks:
  quiz: {data: {file: x.jsonl}, prompt: {template: t, target: t}, decode: {max_tokens: 1}, metrics: [exact_match, bleu]}
"""
RIGHT = {"alpha": 0.9, "beta": 0.55, "gamma": 0.5}
Make = Callable[..., str]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "evalspec.duckdb")


@pytest.fixture
def make(store: Store) -> Make:
    """A finished run: each model's answers at each k, right by chance, the same questions for all."""

    def made(
        run_id: str, right: dict[str, float] = RIGHT, *, n: int = 60, metric: str = "exact_match", **more: Any
    ) -> str:
        rng = random.Random(run_id)
        params = [{"tasks.quiz.retrieval.k": k} for k in more.get("ks", (1, 5))]
        cells = [
            {"cell_id": f"{run_id}-{model}-{at}", "model": model, "task": "quiz", "params": value}
            for model in right
            for at, value in enumerate(params)
        ]
        samples, scores, metrics = [], [], []
        for cell in cells:
            share = right[str(cell["model"])]
            for number in range(*more.get("numbers", (0, 60))):
                key = {"cell_id": cell["cell_id"], "sample_id": f"q{number}", "repeat": 0, "draw": 0, "stage": "main"}
                choices = more.get("choices")
                samples.append({**key, "prompt": "?", "choices": choices, "cluster": more.get("cluster")})
                value = float(rng.random() < share)
                scores.append({**key, "filter": "default", "metric": metric, "value": value})
            metrics.append({"cell_id": cell["cell_id"], "filter": "default", "metric": metric, "value": share, "n": 60})
        spec = more.get("spec", SPEC)
        run = {"run_id": run_id, "spec_name": "quiz", "spec": spec, "plan_id": "p", "device": "cpu"}
        with store.begin(run, cells) as writer:
            writer.commit({"samples": samples, "scores": scores, "metrics": metrics})
            writer.finish()
        return run_id

    return made


def test_all_models_of_a_run_meet_at_each_condition_with_mcnemars_test(store: Store, make: Make) -> None:
    make("r1")
    found = compare(store, "r1").comparisons
    assert [(c.model_a, c.model_b, c.condition.label) for c in found[:3]] == [
        ("alpha", "beta", "k = 1"), ("alpha", "gamma", "k = 1"), ("beta", "gamma", "k = 1"),
    ]  # fmt: skip
    assert len(found) == 6 and {c.compared for c in found} == {6}
    first = found[0].pair
    with store.connect() as connection:
        a, b = (
            np.array(connection.execute(
                "SELECT value FROM scores WHERE cell_id = ? ORDER BY sample_id", [f"r1-{model}-0"]
            ).fetchall())[:, 0]
            for model in ("alpha", "beta")
        )  # fmt: skip
    expected = binomtest(int((a > b).sum()), int((a != b).sum())).pvalue
    assert first.method == "McNemar" and first.p_value == pytest.approx(expected)
    assert (first.a_ahead, first.b_ahead) == ((a > b).sum(), (a < b).sum())
    assert [c.p_holm for c in found] == holm([c.pair.p_value for c in found])
    assert found[0].winner == "alpha" and found[2].winner is None and found[2].verdict.reason == "overlap"


def test_a_metric_with_options_is_compared_under_its_name(store: Store, make: Make) -> None:
    make("r1", metric="exact_match(ignore_case,regexes_to_ignore=5a1f0c)")
    [first, *_] = compare(store, "r1").comparisons
    assert first.family.measured.name == "exact_match" and first.pair.method == "McNemar"
    assert compare(store, "r1", metrics=["exact_match"]).comparisons[0].pair == first.pair


def test_verdicts_are_rows_and_asking_again_replaces_them(store: Store, make: Make) -> None:
    make("r1")
    compare(store, "r1")
    compare(store, "r1")
    rows = query(
        store,
        "SELECT hypothesis, verdict, reason, model_a, p_holm >= p_value, statistic, value_a - value_b, n FROM verdicts "
        "ORDER BY ALL",
    ).rows
    assert len(rows) == 6
    said = {row[0]: row for row in rows}["alpha is better than beta: exact_match on quiz, k = 1"]
    assert said[1:5] == ("supported", None, "alpha", True) and said[5] == pytest.approx(said[6]) and said[7] == 60
    assert query(store, "SELECT status FROM runs").rows == [("finished",)]


def test_two_runs_are_joined_on_task_condition_and_model(store: Store, make: Make) -> None:
    make("r1", {"alpha": 0.4, "beta": 0.5}, numbers=(0, 60))
    make("r2", {"alpha": 0.9, "delta": 0.5}, numbers=(10, 80))
    found = compare(store, "r1", "r2").comparisons
    assert [(c.model_a, c.model_b, c.run_b) for c in found] == [("alpha", "alpha", "r2")] * 2
    assert (found[0].pair.n, found[0].pair.only_a, found[0].pair.only_b) == (50, 10, 20)
    assert found[0].verdict.word == "refuted"
    text = compare(store, "r1", "r2").text
    assert (
        "left out: at most 10 of A and 20 of B (alpha on quiz, k = 1)." in text
        and "B is better" in text
        and "is better than" not in text  # what is only the name of a comparison would read as its outcome
    )
    renamed = compare(store, "r1", "r2", models=[("beta", "delta")]).comparisons
    assert {(c.model_a, c.model_b) for c in renamed} == {("beta", "delta")}


def test_a_choice_is_judged_against_chance(store: Store, make: Make) -> None:
    spec = SPEC.replace("decode: {max_tokens: 1}, metrics: [exact_match, bleu]", "metrics: [accuracy]")
    make("r1", {"alpha": 0.3, "beta": 0.25}, metric="accuracy", choices=["a", "b", "c", "d"], spec=spec)
    assert {c.verdict.reason for c in compare(store, "r1").comparisons} == {"floor"}


def test_clusters_are_the_units(store: Store, make: Make) -> None:
    make("r1", cluster="one")
    [first, *_] = compare(store, "r1").comparisons
    assert first.pair.units == 1 and first.verdict.reason == "undefined"


def test_several_seeds_make_a_claim_about_architectures(store: Store, make: Make) -> None:
    models = {f"mamba-s{seed}": 0.8 for seed in range(5)} | {f"llama-s{seed}": 0.5 for seed in range(4)}
    make("r1", models, ks=(1,))
    [found] = compare(store, "r1", architectures={"mamba": "mamba-*", "llama": "llama-*"}).comparisons
    assert (found.model_a, found.model_b, found.winner, found.pair.method) == (
        "mamba",
        "llama",
        "mamba",
        "hierarchical",
    )
    assert found.hierarchical and (found.hierarchical.seeds_a, found.hierarchical.seeds_b) == (5, 4)
    components = query(store, "SELECT components ->> 'seeds', n FROM verdicts").rows
    assert float(components[0][0]) > 0 and components[0][1] == 60
    with pytest.raises(StoreError, match="no model of run r1 is called like `rwkv-"):
        compare(store, "r1", architectures={"mamba": "mamba-*", "rwkv": "rwkv-*"})
    with pytest.raises(StoreError, match="is in two architectures"):
        compare(store, "r1", architectures={"mamba": "mamba-*", "all": "*"})
    with pytest.raises(EvalspecError, match="at least two"):
        compare(store, "r1", architectures={"mamba": "mamba-*"})


SEEDS = SPEC.replace(
    "{alpha: {weights: a}, beta: {weights: b}, gamma: {weights: c}}",
    "{_m: {weights: m, seed_of: mamba}, m1: {extends: _m}, m2: {extends: _m}, m3: {extends: _m, seed_of: null}, "
    "l1: {weights: l, seed_of: llama}, l2: {weights: l, seed_of: llama}}",
)


def test_without_being_asked_architectures_are_those_that_seed_of_names(
    store: Store, make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make("r1", {"m1": 0.8, "m2": 0.9, "m3": 0.1, "l1": 0.4, "l2": 0.5}, ks=(1,), spec=SEEDS)
    said = (
        "Architectures, as `seed_of` names them: mamba (2 seeds), llama (2 seeds). Without m3: no `seed_of`. "
        "Models are compared with --model A=B."
    )
    asked = compare(store, "r1", architectures={"mamba": "m1,m2", "llama": "l*"})
    found = compare(store, "r1", page=tmp_path)
    assert found.comparisons == asked.comparisons and said in found.text and said not in asked.text
    assert found.page is not None and "m3: no `seed_of`" in found.page.read_text(encoding="utf-8")
    assert comparison_json(found)["seed_of"] == {"mamba": ("m1", "m2"), "llama": ("l1", "l2")}
    pairs = compare(store, "r1", models=[("m1", "m2")])
    assert [(c.model_a, c.model_b) for c in pairs.comparisons] == [("m1", "m2")] and pairs.seeds is None
    assert compare(store, "r1", "r1").seeds is None  # of two runs the same models meet
    with pytest.raises(StoreError, match="no metric"):
        compare(store, "r1", metrics=["nll"])
    assert main(["compare", "r1", "--store", str(store.path)]) == 0
    assert said in capsys.readouterr().out


def test_one_checkpoint_of_each_architecture_is_compared_as_a_checkpoint(store: Store, make: Make) -> None:
    make("r1", {"m1": 0.8, "l1": 0.4}, ks=(1,), spec=SEEDS)
    found = compare(store, "r1")
    assert found.seeds is None and [c.pair.method for c in found.comparisons] == ["McNemar"]


def test_cells_of_two_runs_without_a_common_score_are_counted(store: Store, make: Make) -> None:
    make("r1", ks=(1, 5))
    make("r2", ks=(1,), metric="bleu")
    with pytest.raises(StoreError, match=r"no score of theirs is in both runs: 3 cells \(quiz 3\)"):
        compare(store, "r1", "r2")
    make("r3", ks=(1,))
    found = compare(store, "r1", "r3", models=[("alpha", "beta")])
    assert found.differences is not None and found.differences.left_out.sentences == [
        "Left out, since only one run has them: 1 cell (quiz 1) of A."
    ]


@pytest.mark.parametrize(
    ("p", "words"),
    [(None, ""), (0.0, "< 0.0001"), (0.00009999, "< 0.0001"), (0.0001, "0.0001"), (0.03125, "0.0312"), (1.0, "1.0000")],
)
def test_a_small_p_is_never_zero(p: float | None, words: str) -> None:
    assert p_text(p) == words
    assert p_text(p, "p") == ("" if p is None else f"p {words}" if "<" in words else f"p = {words}")


def test_a_task_without_means_is_left_out_of_architectures_and_said(store: Store, make: Make) -> None:
    models = {f"{name}-s{seed}": 0.5 for name in ("mamba", "llama") for seed in range(3)}
    seeds = {"mamba": "mamba-*", "llama": "llama-*"}
    spec = "".join(line for line in SPEC.splitlines(True) if "quiz: {" not in line)
    spec += "  quiz: {data: {file: x.jsonl}, prompt: {template: t, target: t}, metrics: [nll]}\n"
    make("r1", models, ks=(1,), metric="nll", spec=spec)
    with pytest.raises(StoreError, match="`nll` of task `quiz` is no mean of samples"):
        compare(store, "r1", architectures=seeds)


def test_mistakes_name_what_is_there(store: Store, make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    make("r1")
    make("r2", {"omega": 0.5}, ks=(1,))
    for arguments, said in (
        (["--metric", "exact_mach"], "has no metric `exact_mach`. Did you mean `exact_match`?"),
        (["--task", "exam"], "has no task `exam`. It has: quiz."),
        (["--filter", "vote5"], "has no filter `vote5`. It has: default."),
        (["--model", "alpha"], "--model alpha: write it as A=B"),
        (["--model", "alpha=betta"], "has no model `betta`. Did you mean `beta`?"),
        (["r2"], "share no cell"),
        (["r9"], "there is no run `r9`"),
    ):
        assert main(["compare", "r1", *arguments, "--store", str(store.path)]) == 2
        assert said in capsys.readouterr().err
    assert main(["compare", "r2", "--store", str(store.path)]) == 2
    assert "has nothing to compare" in capsys.readouterr().err


def test_the_command_prints_a_table_json_and_a_page(
    store: Store, make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make("r1")
    assert main(["compare", "r1", "--store", str(store.path), "--html"]) == 0
    text = capsys.readouterr().out
    assert "alpha is better" in text and "undecided: overlap" in text and "h = +" in text
    assert "quiz, exact match: of 6 paired comparisons alpha is better in 4, undecided in 2 (overlap 2)." in text
    page = tmp_path / "compare-quiz-r1.html"
    assert f"page: {page}" in text and "alpha is better" in page.read_text(encoding="utf-8")
    assert main(["compare", "r1", "--store", str(store.path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["comparisons"][0]["p_holm"] < 0.05 and told == json.loads(
        json.dumps(comparison_json(compare(store, "r1")))
    )


def test_a_run_that_is_being_written_is_compared_and_its_verdicts_are_not_kept(store: Store, make: Make) -> None:
    make("r1")
    writer = store.resume("r1")
    found = compare(store, "r1")
    writer.finish()
    assert len(found.comparisons) == 6 and "verdicts were not kept" in found.problems[0]


@pytest.mark.browser
def test_the_page_of_a_comparison_draws_its_forest_plot(
    store: Store, make: Make, tmp_path: Path, visit: Callable[..., Any]
) -> None:
    make("r1")
    seen = visit(compare(store, "r1", page=tmp_path).page)
    assert seen.complaints == [] and seen.requests == []
    assert seen.page.locator("#fig-differences-0 svg.marks").count() == 1
    assert seen.page.locator("tbody tr").count() == 6


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 1024, 680])
def test_nothing_of_the_table_is_cut_on_a_screen_or_on_paper(
    store: Store, make: Make, tmp_path: Path, visit: Callable[..., Any], width: int
) -> None:
    models = {"a-transformer-of-370m": 1.0, "mamba-2-370m-of-the-pile": 0.01}
    make("r1", models, cluster="document", ks=("a condition of many words", 5))
    seen = visit(compare(store, "r1", page=tmp_path).page, width=width)
    if width == 680:  # A4 with margins of 15 mm
        seen.page.emulate_media(media="print")
    assert seen.page.evaluate(
        "[document.documentElement, ...document.querySelectorAll('.scroll')].every(e => e.scrollWidth <= e.clientWidth)"
    )
    heads = seen.page.locator(".compared thead th").all_inner_texts()
    assert heads.index("verdict") == heads.index("A − B, 95% interval") + 1
