"""A number that was swept has an axis on which its places stand apart, and its zero begins the line of every panel."""

from __future__ import annotations

from collections.abc import Callable

import duckdb
import pytest

from evalspec.report.answer import answer_of
from evalspec.report.charts import bynumber
from evalspec.report.data import read_results
from evalspec.report.marks import by_ratio

RUN = "r-20261122-0930"


@pytest.mark.parametrize(
    ("places", "logarithmic"),
    [
        ([128, 256, 512, 1024, 2048], True),
        ([1, 2, 4, 8], True),
        ([8, 32, 128, 230], True),
        ([1, 3, 5, 10], False),
        ([2, 6, 10, 16], False),
        ([0, 1, 4, 16], False),
        ([1, 20], False),
    ],
)
def test_places_that_double_stand_on_a_logarithmic_axis(places: list[float], logarithmic: bool) -> None:
    assert by_ratio(places) is logarithmic


def test_zero_shots_begin_the_line_of_every_kind_of_labels(filled: Callable[..., duckdb.DuckDBPyConnection]) -> None:
    connection = filled(count=12)
    shots, retriever = "tasks.open_book.prompt.shots", "split_part(cell_id, '-', 2)"
    connection.execute(
        f"""UPDATE cells SET params = CASE {retriever} WHEN 'none' THEN json_object('{shots}.n', 0)
            ELSE json_object('{shots}.n', split_part(cell_id, '-', 3)::INT, '{shots}.labels', {retriever}) END"""
    )
    figure = bynumber(read_results(connection, RUN), "open_book", "shots")
    assert figure is not None
    assert figure.panels == 4
    drawn = [(row[0], row[1]) for row in figure.rows if row[2] == "mamba"]
    for labels in ("bm25", "dense", "fusion", "oracle"):
        assert {at for panel, at in drawn if panel == f"labels = {labels}"} == {"0", "1", "3", "5", "10"}


def test_answers_to_the_same_sample_are_not_counted_as_samples(
    filled: Callable[..., duckdb.DuckDBPyConnection],
) -> None:
    connection = filled(count=12)
    connection.execute("UPDATE metrics SET n = 36 WHERE NOT contains(cell_id, 'none')")  # three draws of the shots
    connection.execute(
        """INSERT INTO samples SELECT samples.* REPLACE (repeat + n AS repeat) FROM samples, range(1, 3) AS draws(n)
        WHERE NOT contains(cell_id, 'none')"""
    )
    results = read_results(connection, RUN)
    figure = bynumber(results, "open_book", "k")
    assert figure is not None
    assert figure.caption.startswith("Mean over 12 samples of 3 answers a point;")
    answer = answer_of(results, "open_book")
    assert answer and answer.n == "12 samples of 1 to 3 answers"


def test_a_tasks_first_metric_is_its_main_one_also_with_options(
    filled: Callable[..., duckdb.DuckDBPyConnection],
) -> None:
    connection = filled(count=12)
    renamed = "exact_match(ignore_case)"
    connection.execute("UPDATE metrics SET metric = ? WHERE metric = 'exact_match'", [renamed])
    connection.execute(
        "UPDATE runs SET spec = replace(spec, 'metrics: [exact_match,', "
        "'metrics: [{metric: exact_match, ignore_case: true},')"
    )
    main = read_results(connection, "r-20261122-0930").main["open_book"]
    assert (main.name, main.share, main.higher_is_better) == (renamed, True, True)
