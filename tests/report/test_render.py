"""What a page says, without a browser: the answer, what is chosen, what is honest, and that the file is whole."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import duckdb
import pytest

from evalspec.errors import StoreError
from evalspec.report import render, render_index
from evalspec.report.answer import answer_of
from evalspec.report.charts import figures_of
from evalspec.report.comparisons import compare_models
from evalspec.report.data import gold_places, gold_uses, read_results
from evalspec.report.marks import place_bins
from evalspec.report.page import queries
from evalspec.report.samples import samples_of, shared_starts
from evalspec.spec.conditions import condition_of
from evalspec.spec.params import short_names
from evalspec.store import Store
from evalspec.store.schema import TABLES

RUN = "r-20261122-0930"
Filled = Callable[..., duckdb.DuckDBPyConnection]


def test_the_answer_is_what_the_store_says(filled: Filled) -> None:
    connection = filled()
    connection.execute(
        "UPDATE metrics SET value = 0.975, ci_low = 0.93, ci_high = 0.99 "
        "WHERE cell_id = 'transformer-oracle-5' AND metric = 'exact_match'"
    )
    answer = answer_of(read_results(connection, RUN), "open_book")
    assert answer is not None
    assert answer.sentences[0].startswith(
        "With the gold passage given (oracle, k = 5), exact match is 97.5% [93.0,\u00a099.0] for transformer, "
    )
    assert "Without passages it is" in answer.sentences[0]
    assert [row.label for row in answer.rows][:3] == ["no passages", "bm25, k = 1", "bm25, k = 3"]
    assert answer.models == ("transformer", "mamba", "mamba2")
    connection.execute("DELETE FROM cells WHERE contains(cell_id, 'oracle')")
    without = answer_of(read_results(connection, RUN), "open_book")
    assert without and without.sentences[0].startswith("Without passages exact match is ")


def test_who_is_better_is_decided_by_paired_tests_on_the_same_samples(filled: Filled) -> None:
    connection = filled(count=40)
    connection.execute("UPDATE scores SET value = hash(sample_id) % 2")  # every model is right on the same half
    results = read_results(connection, RUN)
    answer = answer_of(results, "open_book", compare_models(connection, RUN))
    assert answer and answer.sentences[-1] == (
        "On the same samples, over 17 conditions, paired tests leave every comparison undecided (overlap in 51)."
    )
    assert not any(cell.best for row in answer.rows for cell in row.cells if cell)

    connection.execute("UPDATE scores SET value = 1 WHERE cell_id = 'mamba-bm25-5'")
    answer = answer_of(results, "open_book", compare_models(connection, RUN))
    assert answer and "mamba better than transformer in 1 and mamba better than mamba2 in 1" in answer.sentences[-1]
    assert answer.sentences[-1].endswith("; the rest is undecided (overlap in 49).")
    best = [(row.label, at) for row in answer.rows for at, cell in enumerate(row.cells) if cell and cell.best]
    assert best == [("bm25, k = 5", 1)]


def test_models_at_the_ceiling_or_the_floor_are_undecided_and_the_page_says_why(filled: Filled) -> None:
    connection = filled(count=40)
    connection.execute("UPDATE scores SET value = if(starts_with(cell_id, 'mamba2'), 1, 0)")
    connection.execute("UPDATE scores SET value = 1 WHERE cell_id LIKE '%oracle%'")
    connection.execute("UPDATE scores SET value = 0 WHERE cell_id LIKE '%none-0'")
    answer = answer_of(read_results(connection, RUN), "open_book", compare_models(connection, RUN))
    assert answer and "mamba2 better than transformer in 12 and mamba2 better than mamba in 12" in answer.sentences[-1]
    assert "floor in 15, ceiling in 12" in answer.sentences[-1]  # transformer and mamba are both at 0 in 12 more


def test_of_many_models_sentences_say_the_range(filled: Filled) -> None:
    """Five seeds of three architectures, say: a sentence of fifteen values is read by nobody."""
    connection = filled(count=12)
    k = """json_extract(params, '$."tasks.open_book.retrieval.k"')::VARCHAR"""
    connection.execute(f"UPDATE cells SET model = model || '-s' || {k} WHERE {k} IS NOT NULL")
    connection.execute("""UPDATE cells SET params = json_object('tasks.open_book.retrieval.retriever', 'oracle')
        WHERE contains(cell_id, 'oracle')""")
    answer = answer_of(read_results(connection, RUN), "open_book", compare_models(connection, RUN))
    assert answer and len(answer.models) == 15
    means = connection.execute(
        "SELECT value, model FROM metrics JOIN cells USING (cell_id) WHERE contains(cell_id, 'oracle') "
        "AND metric = 'exact_match' ORDER BY value"
    ).fetchall()
    assert answer.sentences[0].startswith("With the gold passage given (oracle), exact match is from ")
    assert f"{means[0][0]:.1%}" in answer.sentences[0] and f"to {means[-1][0]:.1%}" in answer.sentences[0]
    assert sum(f"{model}" in answer.sentences[0].split("Without")[0] for _, model in means) == 2


def test_stages_stand_beside_their_task_against_the_one_number_that_was_swept(filled: Filled) -> None:
    connection = filled(count=12)
    assert not [f for f in figures_of(read_results(connection, RUN), "open_book", []) if f.name.endswith("by-stage")]
    connection.execute(
        "UPDATE runs SET spec = replace(spec, '    metrics: [exact_match', "
        "'    stages: {judge: {prompt: {template: x}, decode: {}, metrics: [contains]}}\n    metrics: [exact_match')"
    )
    connection.execute(
        "INSERT INTO metrics BY NAME SELECT * REPLACE ('judge' AS stage, 'contains' AS metric) FROM metrics "
        "WHERE metric = 'exact_match' AND cell_id LIKE '%-bm25-%'"
    )
    found = {figure.name: figure for figure in figures_of(read_results(connection, RUN), "open_book", [])}
    rows = found["open_book-by-stage"].rows
    assert {row[0] for row in rows} == {"main", "judge"}
    judged = {row[1:] for row in rows if row[0] == "judge"}
    assert len(judged) == 4 * 3
    assert judged <= {row[1:] for row in rows if row[0] == "main"}, "the numbers of the stage are its own rows'"


def test_a_sweep_without_retrieval_gets_its_own_figures(filled: Filled) -> None:
    connection = filled(count=12)
    connection.execute("DELETE FROM cells WHERE NOT contains(cell_id, '-bm25-')")
    connection.execute("DELETE FROM retrievals")
    connection.execute("DELETE FROM metrics WHERE NOT starts_with(metric, 'exact')")
    shots = """json_object('tasks.open_book.prompt.shots', params -> '$."tasks.open_book.retrieval.k"')"""
    connection.execute(f"UPDATE cells SET params = {shots}")
    results = read_results(connection, RUN)
    figures = figures_of(results, "open_book", gold_places(connection, RUN, results.main["open_book"]))
    assert [figure.name for figure in figures] == ["open_book-by-shots"]
    assert {row[1] for row in figures[0].rows} == {"1", "3", "5", "10"}

    connection.execute("UPDATE cells SET params = json_object('tasks.open_book.prompt.template', cell_id)")
    results = read_results(connection, RUN)
    figures = figures_of(results, "open_book", [])
    assert [figure.name for figure in figures] == ["open_book-conditions"]
    answer = answer_of(results, "open_book")
    assert answer and answer.sentences[0].startswith("Exact match over 12 conditions: transformer ")


def test_gold_places_agree_with_a_count_by_hand(filled: Filled) -> None:
    connection = filled(count=30)
    main = read_results(connection, RUN).main["open_book"]
    found = {(p.cell_id, p.place): (p.n, p.value) for p in gold_places(connection, RUN, main)}
    ranks = dict(
        connection.execute(
            "SELECT sample_id, rank FROM retrievals WHERE cell_id = 'mamba-bm25-3' AND relevant"
        ).fetchall()
    )
    values = dict(
        connection.execute(
            "SELECT sample_id, value FROM scores WHERE cell_id = 'mamba-bm25-3' AND metric = 'exact_match'"
        ).fetchall()
    )
    for place in (1, 2, 3, None):
        here = [value for sample, value in values.items() if ranks.get(sample) == place]
        if here:
            assert found["mamba-bm25-3", place] == (len(here), pytest.approx(sum(here) / len(here)))
    assert not any(cell.endswith("none-0") for cell, _ in found)


def test_the_queries_on_the_page_give_the_numbers_on_the_page(filled: Filled) -> None:
    connection = filled(count=12)
    results = read_results(connection, RUN)
    (_, metrics), (_, costs), (_, places), (_, used) = queries(results)
    assert len(connection.execute(metrics).fetchall()) == len(results.estimates)
    assert {row[0] for row in connection.execute(costs).fetchall()} == set(results.models)
    assert len(connection.execute(places).fetchall()) == len(gold_places(connection, RUN, results.main["open_book"]))
    assert len(connection.execute(used).fetchall()) == len(gold_uses(connection, results, "open_book")) == 48


def test_beyond_two_thousand_samples_a_part_is_chosen_and_the_page_says_so(filled: Filled, tmp_path: Path) -> None:
    connection = filled()
    results = read_results(connection, RUN)
    chosen = samples_of(connection, results)
    assert chosen.total == 6120 and 1900 < chosen.shown <= 2000
    per_cell: dict[int, list[bool]] = {}
    for sample in chosen.payload["samples"]:
        per_cell.setdefault(sample["cell"], []).append(bool(sample.get("failed")))
    assert len(per_cell) == 51 and {len(found) for found in per_cell.values()} == {2000 // 51}
    for cell, found in zip(results.cells, (per_cell[at] for at in range(51)), strict=True):
        right = connection.execute(
            "SELECT count(*) FROM scores WHERE cell_id = ? AND metric = 'exact_match' AND value >= 0.5", [cell.cell_id]
        ).fetchall()[0][0]
        assert sum(found) == min(120 - right, max(len(found) - len(found) // 4, len(found) - right))
    assert samples_of(connection, results).payload == chosen.payload
    text = render(connection, RUN, tmp_path).read_text(encoding="utf-8")
    assert f"{chosen.shown:,} of 6,120 samples are in this page" in text
    assert len(text.encode()) < 3_000_000


def test_very_long_prompts_make_the_part_smaller(filled: Filled) -> None:
    connection = filled(count=12)
    connection.execute("UPDATE samples SET prompt = repeat(prompt, 1 + 150000 // length(prompt))")
    chosen = samples_of(connection, read_results(connection, RUN))
    assert 51 <= chosen.shown < 612


def test_prompts_survive_being_stored_by_their_shared_starts() -> None:
    texts = sorted(["", "abc", "abd", "ab𝄞c", "ab𝄞d", "ab𝄞d and more", "é"])
    rebuilt, before = [], b""
    for units, rest in shared_starts(texts):
        before = before[: 2 * units] + rest.encode("utf-16-le")
        rebuilt.append(before.decode("utf-16-le"))
    assert rebuilt == texts


def test_an_unfinished_run_and_failed_samples_are_said_at_the_top(filled: Filled, tmp_path: Path) -> None:
    connection = filled(count=12, status="interrupted")
    connection.execute("DELETE FROM metrics")
    connection.execute("UPDATE samples SET error = 'out of memory' WHERE cell_id = 'mamba-none-0'")
    text = render(connection, RUN, tmp_path).read_text(encoding="utf-8")
    head = text[text.index("<header>") : text.index("</header>")]
    assert "This run is interrupted." in head
    assert "12 of 612 samples failed" in head
    assert "No aggregate is stored yet." in text


def test_a_run_that_is_not_there_is_named_with_the_nearest_one(filled: Filled, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"no run `r-20261122-0931`. Did you mean `r-20261122-0930`\?"):
        render(filled(count=12), "r-20261122-0931", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_numbers_that_json_has_no_word_for_leave_the_page_readable(filled: Filled, tmp_path: Path) -> None:
    connection = filled(count=12)
    connection.execute("UPDATE metrics SET value = 'inf' WHERE cell_id = 'mamba-none-0'")
    connection.execute("UPDATE metrics SET value = 'nan', ci_low = 'nan' WHERE cell_id = 'mamba-bm25-1'")
    connection.execute("UPDATE scores SET value = '-inf' WHERE cell_id = 'mamba-none-0'")
    text = render(connection, RUN, tmp_path).read_text(encoding="utf-8")
    for block in re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', text, re.DOTALL):
        json.loads(block, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))


def test_the_page_holds_the_spec_and_where_the_numbers_come_from(filled: Filled, tmp_path: Path) -> None:
    path = render(filled(count=12), RUN, tmp_path)
    assert path == tmp_path / f"rag-{RUN}.html"
    text = path.read_text(encoding="utf-8")
    for said in ("p-3f1c9a5e20", "166f97c", "torch 2.13.0", "retriever: [bm25, dense, fusion, oracle]", "sha256:"):
        assert said in text
    assert "Do state-space models read what a retriever finds?" in text
    assert list(tmp_path.iterdir()) == [path]


def test_the_index_lists_runs_newest_first_and_links_only_pages_that_exist(filled: Filled, tmp_path: Path) -> None:
    connection = filled(count=12)
    connection.execute(
        "INSERT INTO runs (run_id, spec_name, spec, status, started_at) "
        "VALUES ('r-later', 'later', '', 'running', TIMESTAMP '2026-12-01 08:00:00')"
    )
    page = render(connection, RUN, tmp_path)
    text = render_index(connection, tmp_path).read_text(encoding="utf-8")
    assert text.index("r-later") < text.index(RUN)
    assert f'<a href="{page.name}">rag</a>' in text
    assert text.count("<a href") == 1
    assert "exact match" in text


def test_a_page_comes_from_the_real_store_while_the_run_is_going_and_after(filled: Filled, tmp_path: Path) -> None:
    made = filled(count=6)
    store = Store(tmp_path / "evalspec.duckdb")

    def made_rows(table: str) -> list[dict[str, object]]:
        found = made.execute(f"SELECT * FROM {table}")
        names = [column[0] for column in found.description or ()]
        rows = [dict(zip(names, row, strict=True)) for row in found.fetchall()]
        json_columns = [column.name for column in TABLES[table].columns if column.type == "JSON"]
        return [{n: json.loads(v) if n in json_columns and v else v for n, v in row.items()} for row in rows]

    (run,) = made_rows("runs")
    with store.begin(run, made_rows("cells")) as writer:
        tables = ("samples", "scores", "metrics", "retrievals", "efficiency")
        writer.commit({table: made_rows(table) for table in tables})
        with store.connect() as connection:
            assert "This run is running." in render(connection, RUN, tmp_path).read_text(encoding="utf-8")
        writer.finish()
    store.merge()
    with store.connect() as connection:
        path = render(connection, RUN, tmp_path)
        index = render_index(connection, tmp_path)
    assert "This run is" not in path.read_text(encoding="utf-8")
    assert path.name in index.read_text(encoding="utf-8")
    plain = render(made, RUN, tmp_path / "plain").read_text(encoding="utf-8")
    from_store = path.read_text(encoding="utf-8")
    assert from_store[: from_store.index('id="provenance"')] == plain[: plain.index('id="provenance"')]


def test_short_names_tell_swept_keys_apart() -> None:
    paths = ["tasks.qa.retrieval.k", "tasks.qa.retrieval.seed", "tasks.qa.decode.seed", "models.mamba.dtype"]
    assert short_names(["tasks.qa.prompt.shots.n"]) == {"tasks.qa.prompt.shots.n": "shots"}
    assert list(short_names(paths).values()) == ["k", "retrieval.seed", "decode.seed", "dtype"]
    condition = condition_of({"tasks.qa.retrieval.k": 5, "tasks.qa.retrieval.retriever": "bm25"},
                             {"tasks.qa.retrieval.k": "k", "tasks.qa.retrieval.retriever": "retriever"})  # fmt: skip
    assert condition.label == "bm25, k = 5"


def test_bins_of_places_cover_each_place_once() -> None:
    assert place_bins(10) == [("1", 1, 1), ("2", 2, 2), ("3", 3, 3), ("4–5", 4, 5), ("6–10", 6, 10)]
    for deepest in range(1, 60):
        covered = [place for _, low, high in place_bins(deepest) for place in range(low, high + 1)]
        assert covered == list(range(1, deepest + 1))
