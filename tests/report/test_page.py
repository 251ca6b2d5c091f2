"""A page in a real browser: it draws, filters and links with no network, and model outputs stay text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import duckdb
import pytest

from evalspec.report import render, render_index

RUN = "r-20261122-0930"
pytestmark = pytest.mark.browser

Filled = Callable[..., duckdb.DuckDBPyConnection]
HOSTILE = "</script><script>window.owned=1</script><img src=x onerror='window.owned=1'> <b>bold</b> {{ 7*7 }}"


def test_every_chart_is_drawn_with_no_network_and_no_complaint(
    filled: Filled, visit: Callable[..., Any], tmp_path: Path
) -> None:
    path = render(filled(count=40), RUN, tmp_path)
    for width in (1280, 400):
        seen = visit(path, width=width)
        charts = seen.page.locator("[data-chart]")
        assert charts.count() == 8
        for at in range(charts.count()):
            marks = charts.nth(at).locator("svg .mark-symbol path, svg .mark-rect path")
            assert marks.count() >= 3, charts.nth(at).get_attribute("data-chart")
            box = charts.nth(at).locator("svg.marks").bounding_box()
            assert box and box["width"] <= width and box["height"] > 50
        assert seen.complaints == []
        assert seen.requests == []
        assert seen.page.evaluate("document.documentElement.scrollWidth") <= width


def test_all_panels_and_models_of_the_main_figure_have_their_points(
    filled: Filled, visit: Callable[..., Any], tmp_path: Path
) -> None:
    seen = visit(render(filled(count=12), RUN, tmp_path))
    figure = seen.page.locator('[data-chart="open_book-by-k"]')
    assert figure.locator("svg .role-mark.mark-symbol path").count() == 3 * 4 * 4
    for label in ("bm25", "dense", "fusion", "oracle", "transformer", "mamba", "mamba2"):
        assert figure.locator("svg text", has_text=label).count() >= 1


def test_axes_name_the_numbers_that_were_swept_and_keys_of_many_models_fit(
    filled: Filled, visit: Callable[..., Any], tmp_path: Path
) -> None:
    connection = filled(count=12)
    path = """'tasks.open_book.retrieval.k'"""
    connection.execute(
        f"""UPDATE cells SET params = json_object({path}, ((params -> '$."tasks.open_book.retrieval.k"')::INT + 1) * 64)
        WHERE NOT contains(cell_id, 'none')"""
    )
    connection.execute(
        "UPDATE cells SET model = split_part(cell_id, '-', 1) || '-read-' || split_part(cell_id, '-', 2)"
    )
    seen = visit(render(connection, RUN, tmp_path))
    figure = seen.page.locator('[data-chart="open_book-by-k"]')
    assert set(figure.locator("svg .role-axis-label text").all_text_contents()) >= {"128", "256", "384", "704"}
    keys, drawing = figure.locator("svg .role-legend text"), figure.locator("svg.marks").bounding_box()
    assert keys.count() == 15
    boxes = [keys.nth(at).bounding_box() for at in range(15)]
    assert drawing and all(box["x"] + box["width"] <= drawing["x"] + drawing["width"] for box in boxes if box)
    assert seen.complaints == []


def test_failures_only_lists_failures_and_nothing_else(
    filled: Filled, visit: Callable[..., Any], tmp_path: Path
) -> None:
    connection = filled(count=12)
    failed = connection.execute("SELECT count(*) FROM scores WHERE metric = 'exact_match' AND value < 0.5").fetchone()
    page = visit(render(connection, RUN, tmp_path)).page
    page.check("input[name=failures]")
    assert failed and page.inner_text("#matching") == f"{failed[0]:,} of {12 * 51:,}"
    assert set(page.locator("#list li > span").all_inner_texts()) == {"✗"}
    page.select_option("select[name=model]", "mamba")
    page.select_option("select[name=condition]", "no passages")
    rows = page.locator("#list .where").all_inner_texts()
    assert rows and all(row.startswith("mamba · no passages") for row in rows)


def test_search_and_keys_and_links_find_a_sample(filled: Filled, visit: Callable[..., Any], tmp_path: Path) -> None:
    connection = filled(count=12)
    path = render(connection, RUN, tmp_path)
    page = visit(path).page
    first = page.inner_text("#detail h3")
    page.keyboard.press("j")
    second = page.inner_text("#detail h3")
    assert first != second and "sample=" in page.url
    page.keyboard.press("k")
    assert page.inner_text("#detail h3") == first
    page.keyboard.press("/")
    page.keyboard.type("q7-0007")
    assert page.inner_text("#matching") == f"51 of {12 * 51:,}"

    link = "#sample=" + quote("mamba2|open_book|oracle, k = 5|q7-0005|main", safe="")
    page = visit(path, hash=link).page
    assert "mamba2 · oracle, k = 5 · q7-0005" in page.inner_text("#detail h3")
    gold, output = connection.execute(
        "SELECT text, output FROM retrievals JOIN samples USING (run_id, cell_id, sample_id) "
        "WHERE cell_id = 'mamba2-oracle-5' AND sample_id = 'q7-0005' AND relevant"
    ).fetchall()[0]
    assert page.inner_text("#detail .prompt mark") == gold
    assert page.locator("#detail .prompt .passage").count() == 5
    assert page.inner_text("#detail .output") == output
    assert "★" in page.inner_text("#detail .passages tr.gold")


def test_a_hostile_output_is_shown_as_text(filled: Filled, visit: Callable[..., Any], tmp_path: Path) -> None:
    connection = filled(count=12)
    connection.execute("UPDATE samples SET output = ?, prompt = ?, error = ?", [HOSTILE, HOSTILE, HOSTILE])
    connection.execute("UPDATE scores SET extracted = ?", [HOSTILE])
    connection.execute("UPDATE cells SET model = ? WHERE model = 'mamba'", [HOSTILE])
    connection.execute("UPDATE runs SET spec = spec || ?", ["\n# " + HOSTILE])
    connection.execute("UPDATE retrievals SET text = ?, passage_id = ?", [HOSTILE, HOSTILE])
    path = render(connection, RUN, tmp_path)
    render_index(connection, tmp_path)
    seen = visit(path)
    seen.page.keyboard.press("j")
    assert seen.page.inner_text("#detail .output") == HOSTILE
    assert seen.page.inner_text("#detail .prompt") == HOSTILE
    assert seen.page.locator("#detail img, #detail b, #list img").count() == 0
    index = visit(tmp_path / "index.html", charts=False)
    for opened in (seen, index):
        assert opened.page.evaluate("window.owned") is None
        assert opened.complaints == []
        assert opened.requests == []


def test_choices_show_log_probabilities_even_infinite_ones(
    filled: Filled, visit: Callable[..., Any], tmp_path: Path
) -> None:
    connection = filled(count=12)
    connection.execute(
        """UPDATE samples SET choices = '["red","blue"]', logprobs = '[["-Infinity"],[-0.5,-0.25]]', target = 'blue'"""
    )
    page = visit(render(connection, RUN, tmp_path)).page
    shown = [text.split("\t") for text in page.locator("#detail table tr").all_inner_texts()]
    assert ["red", "-Infinity", ""] in shown
    assert ["blue", "-0.750", "likeliest, target"] in shown


def test_what_a_choice_has_without_its_prompt_stands_beside_it_and_is_not_the_likeliest(
    filled: Filled, visit: Callable[..., Any], tmp_path: Path
) -> None:
    connection = filled(count=12)
    connection.execute("""UPDATE samples SET choices = '["red","blue"]', logprobs = '[[-3.0],[-2.0],[-0.5],[-4.0]]'""")
    page = visit(render(connection, RUN, tmp_path)).page
    shown = [text.split("\t") for text in page.locator("#detail table tr").all_inner_texts()]
    assert ["red", "-3.000", "-0.500", ""] in shown
    assert ["blue", "-2.000", "-4.000", "likeliest"] in shown


def test_tables_sort_by_number_and_filter_by_words(filled: Filled, visit: Callable[..., Any], tmp_path: Path) -> None:
    page = visit(render(filled(count=12), RUN, tmp_path)).page
    page.fill("input.filter", "mamba2 bm25 exact")
    shown = page.locator("#all-metrics tbody tr:not([hidden])")
    assert shown.count() == 4
    page.click("#all-metrics th:nth-child(5)")
    values = [float(text) for text in page.locator("#all-metrics tbody td:nth-child(5)").all_text_contents()]
    assert values == sorted(values) and len(values) > 100
