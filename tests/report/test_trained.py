"""Figures say where prompts become longer than what the models were trained at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import duckdb
import pytest

from evalspec.report.charts import bynumber
from evalspec.report.context_charts import heat_map
from evalspec.report.data import read_results
from evalspec.report.marks import Figure
from evalspec.report.results import Results
from evalspec.report.trained import trained_at

RUN = "r-20261122-0930"
Fill = Callable[..., duckdb.DuckDBPyConnection]


@pytest.fixture
def results(filled: Fill) -> Results:
    """The made-up run over `n` alone, with 10 tokens an entry and 12 beside them; models were trained at 62 tokens."""
    connection = filled(count=12)
    connection.execute(
        """UPDATE cells SET trained_length = 62, params = CASE WHEN contains(cell_id, 'none') THEN '{}'
        ELSE json_object('tasks.open_book.data.options.n', split_part(cell_id, '-', 3)::INT,
                         'tasks.open_book.data.options.from', split_part(cell_id, '-', 2)) END"""
    )
    connection.execute(
        """UPDATE samples SET choices = NULL, prompt_tokens = 12 + 10 *
        CASE WHEN contains(cell_id, 'none') THEN 0 ELSE split_part(cell_id, '-', 3)::INT END"""
    )
    return read_results(connection, RUN)


def trained(figure: Figure | None) -> list[dict[str, object]]:
    assert figure is not None
    [points] = figure.vega_lite["datasets"].values()
    return [datum for datum in points if datum.get("trained") is not None]


def lines(results: Results) -> list[dict[str, object]]:
    return trained(bynumber(results, "open_book", "n"))


def test_the_line_stands_where_prompts_have_the_trained_length(results: Results) -> None:
    assert {(line["panel"], line["trained"]) for line in lines(results)} == {
        (f"from = {name}", 5.0) for name in ("bm25", "dense", "fusion", "oracle")
    }
    figure = bynumber(results, "open_book", "n")
    assert figure is not None and "Dotted: where prompts reach the trained length, 62 tokens." in figure.caption


def test_models_of_other_lengths_have_lines_of_their_own(results: Results) -> None:
    longer = tuple(replace(cell, trained_length=87) if cell.model == "mamba" else cell for cell in results.cells)
    drawn = {(line.get("model"), line["trained"]) for line in lines(replace(results, cells=longer))}
    assert drawn == {("transformer", 5.0), ("mamba", 7.5), ("mamba2", 5.0)}


def test_no_line_is_guessed(results: Results) -> None:
    unknown = tuple(replace(cell, trained_length=None) for cell in results.cells)
    shorter = tuple(replace(cell, trained_length=500) for cell in results.cells)
    assert lines(replace(results, cells=unknown)) == lines(replace(results, cells=shorter)) == []
    same = {cell.condition: [replace(cell, prompt_tokens=62.0)] for cell in results.cells if cell.model == "mamba"}
    assert trained_at(same, "n") is None  # prompts that do not grow with the number


def test_a_figure_whose_prompts_are_all_longer_says_so(results: Results) -> None:
    far = replace(results, cells=tuple(replace(cell, trained_length=8) for cell in results.cells))
    figure = bynumber(far, "open_book", "n")
    assert figure is not None and figure.caption.endswith("All prompts are longer than the trained length, 8 tokens.")


def test_a_map_has_the_line_before_the_first_column_of_that_length(filled: Fill) -> None:
    connection = filled(count=12)
    place = "list_position(['bm25', 'dense', 'fusion', 'oracle'], split_part(cell_id, '-', 2))"
    connection.execute("UPDATE cells SET trained_length = 62")
    connection.execute(
        f"""UPDATE cells SET params = json_object('tasks.open_book.data.options.n', split_part(cell_id, '-', 3)::INT,
        'tasks.open_book.data.options.depth', {place}) WHERE NOT contains(cell_id, 'none')"""
    )
    connection.execute(
        """UPDATE samples SET prompt_tokens = 13 + 10 * split_part(cell_id, '-', 3)::INT
        WHERE NOT contains(cell_id, 'none')"""
    )
    figure = heat_map(read_results(connection, RUN), "open_book")
    assert figure is not None and "62 tokens" in figure.caption
    drawn = [(datum["panel"], datum["x"]) for datum in trained(figure)]
    assert drawn == [(m, "5") for m in ("transformer", "mamba", "mamba2")]
