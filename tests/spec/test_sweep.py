"""What a sweep yields: points, cells, their identity and their params."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from evalspec.errors import SpecError
from evalspec.spec import Cell, LoadedSpec, loads

SPEC = """
name: t
models:
  a: {weights: zoo/mamba}
  b: {weights: zoo/transformer}
tasks:
  qa:
    data: {generate: world.questions, count: 3}
    prompt: {template: "{{ question }}", target: "{{ answer }}"}
    retrieval: {corpus: {generate: world.passages}, gold: "{{ gold_ids }}"}
    decode: {max_tokens: 4}
    metrics: [exact_match, recall]
  labels:
    data: {generate: world.labels}
    prompt: {template: "{{ text }}", target: "{{ label }}", choices: "{{ labels }}", shots: 2}
    metrics: [accuracy]
"""


def load(sweep: str, *sets: str) -> LoadedSpec:
    return loads(SPEC + "sweep:\n" + sweep, sets)


def params(loaded: LoadedSpec, model: str = "a", task: str = "qa") -> list[dict[str, Any]]:
    return [dict(cell.params) for cell in loaded.cells if (cell.model_name, cell.task_name) == (model, task)]


def only(loaded: LoadedSpec, task: str = "qa") -> Cell:
    (cell,) = [cell for cell in loaded.cells if (cell.model_name, cell.task_name) == ("a", task)]
    return cell


def test_without_a_sweep_there_is_one_cell_for_each_model_and_task() -> None:
    cells = loads(SPEC).cells
    assert [(c.model_name, c.task_name, c.params) for c in cells] == [
        ("a", "qa", {}),
        ("a", "labels", {}),
        ("b", "qa", {}),
        ("b", "labels", {}),
    ]
    assert len({cell.cell_id for cell in cells}) == 4
    assert all(len(cell.cell_id) == 12 and int(cell.cell_id, 16) >= 0 for cell in cells)


def test_paths_are_a_product_in_the_order_written() -> None:
    loaded = load("  tasks.qa.retrieval.k: [1, 2]\n  tasks.qa.decode.max_tokens: [4, 8, 16]\n")
    expected = itertools.product([1, 2], [4, 8, 16])
    assert params(loaded) == [{"tasks.qa.retrieval.k": k, "tasks.qa.decode.max_tokens": most} for k, most in expected]


def test_a_cell_has_only_the_params_of_its_model_and_task() -> None:
    loaded = load("  tasks.qa.retrieval.k: [1, 2]\n  models.b.dtype: [float32, bfloat16]\n")
    assert params(loaded, "a", "qa") == [{"tasks.qa.retrieval.k": 1}, {"tasks.qa.retrieval.k": 2}]
    assert params(loaded, "a", "labels") == [{}]
    assert len(params(loaded, "b", "qa")) == 4
    assert params(loaded, "b", "labels") == [{"models.b.dtype": "float32"}, {"models.b.dtype": "bfloat16"}]


def test_the_demonstration_has_one_cell_without_passages_and_sixteen_with() -> None:
    loaded = load("""  tasks.qa.retrieval:
    - {retriever: none}
    - {retriever: [bm25, dense, fusion, oracle], k: [1, 3, 5, 10]}
""")
    mine = params(loaded)
    assert mine[0] == {"tasks.qa.retrieval.retriever": "none"}
    assert [tuple(point.values()) for point in mine[1:]] == list(
        itertools.product(["bm25", "dense", "fusion", "oracle"], [1, 3, 5, 10])
    )
    cell = next(cell for cell in loaded.cells if cell.params.get("tasks.qa.retrieval.k") == 10)
    assert cell.task.retrieval is not None
    assert (cell.task.retrieval.retriever, cell.task.retrieval.k) == ("bm25", 10)
    assert cell.task.retrieval.corpus is not None  # conditions are merged into the block


def test_no_retriever_is_one_cell_however_it_is_swept() -> None:
    crossed = load("  tasks.qa.retrieval.retriever: [none, bm25]\n  tasks.qa.retrieval.k: [1, 3, 5]\n")
    assert len(params(crossed)) == 1 + 3
    assert params(crossed)[0] == {"tasks.qa.retrieval.retriever": "none"}
    alone = load("  tasks.qa.retrieval: [{retriever: none, k: 7, stemmer: none}]\n")
    assert only(alone).cell_id == next(cell.cell_id for cell in crossed.cells if cell.model_name == "a")


@pytest.mark.parametrize(
    ("retriever", "path", "values", "cells"),
    [
        ("bm25", "retrieval.encoder", "[one, two]", 1),
        ("bm25", "retrieval.stemmer", "[english, none]", 2),
        ("bm25", "retrieval.seed", "[1, 2]", 1),
        ("dense", "retrieval.stemmer", "[english, none]", 1),
        ("dense", "retrieval.encoder", "[one, two]", 2),
        ("dense", "retrieval.rank_constant", "[10, 60]", 1),
        ("fusion", "retrieval.rank_constant", "[10, 60]", 2),
        ("fusion", "retrieval.encoder", "[one, two]", 2),
        ("oracle", "retrieval.distractors", "[near, random]", 2),
        ("oracle", "retrieval.gold_at", "[1, 3, random]", 3),
        ("oracle", "retrieval.encoder", "[one, two]", 1),
        ("oracle", "retrieval.distractors", '[near, random, {same: "{{ a }}"}, {same: "{{ b }}"}]', 4),
        ("oracle", "retrieval.n_distractors", "[0, 4, null]", 3),
        ("oracle", "retrieval.rerank", "[null, {model: some/model}]", 1),
        ("oracle", "retrieval.withhold_gold", "[true, false]", 2),
        ("bm25", "retrieval.n_distractors", "[0, 4]", 1),
        ("bm25", "retrieval.distractors", '[near, {same: "{{ a }}"}]', 1),
        ("bm25", "retrieval.order", "[rank, reverse, random]", 3),
        ("bm25", "retrieval.chunk", "[null, {words: 20}, {words: 20, overlap: 5}]", 3),
        ("bm25", "retrieval.rerank", "[null, {model: some/model}, {model: some/model, depth: 9}]", 3),
        ("bm25", "retrieval.withhold_gold", "[true, false]", 2),
        ("none", "retrieval.order", "[rank, reverse]", 1),
        ("none", "retrieval.withhold_gold", "[true, false]", 1),
        ("none", "retrieval.chunk", "[null, {words: 20}]", 1),
        ("none", "retrieval.corpus.seed", "[1, 2]", 1),
        ("bm25", "retrieval.corpus.seed", "[1, 2]", 2),
        ("bm25", "decode.top_p", "[0.5, 1.0]", 1),  # greedy decoding reads no top_p
        ("bm25", "decode.seed", "[1, 2]", 1),
        ("bm25", "prompt.shots", "[0, 1]", 2),
        ("bm25", "prompt.shots.seed", "[1, 2]", 1),  # no shots, no seed
        ("bm25", "prompt.shots.pool", "[0.1, 0.2]", 2),  # but other rows are evaluated
    ],
)
def test_settings_that_change_nothing_make_no_cells(retriever: str, path: str, values: str, cells: int) -> None:
    loaded = load(f"  tasks.qa.{path}: {values}\n", f"tasks.qa.retrieval.retriever={retriever}")
    found = params(loaded)
    assert len(found) == cells
    assert (f"tasks.qa.{path}" in found[0] or f"tasks.qa.{path}.n" in found[0]) == (cells > 1)


def test_a_seed_is_read_where_something_is_random() -> None:
    conditions = "[{order: random, seed: [1, 2]}, {order: reverse, seed: [1, 2]}]"
    found = params(load(f"  tasks.qa.retrieval: {conditions}\n"))
    assert [point.get("tasks.qa.retrieval.seed") for point in found] == [1, 2, None]


def test_a_fusion_reads_what_it_fuses() -> None:
    sets = ("tasks.qa.retrieval.retriever=fusion", "tasks.qa.retrieval.of=[bm25]")
    assert len(params(load("  tasks.qa.retrieval.encoder: [one, two]\n", *sets))) == 1
    assert len(params(load("  tasks.qa.retrieval.stemmer: [english, none]\n", *sets))) == 2


def test_equal_points_are_one_cell() -> None:
    assert len(params(load("  tasks.qa.retrieval.k: [1, 5, 1]\n"))) == 2
    conditions = "  tasks.qa.retrieval: [{k: 5}, {retriever: bm25}, {retriever: bm25, k: 5}]\n"
    assert len(params(load(conditions))) == 1


def test_a_default_written_out_is_the_same_cell() -> None:
    assert only(load("  tasks.qa.retrieval.k: [5]\n")).cell_id == loads(SPEC).cells[0].cell_id


def test_names_are_part_of_a_cell() -> None:
    other = loads(SPEC.replace("  a: {", "  c: {"))
    assert other.cells[0].cell_id != loads(SPEC).cells[0].cell_id
    assert other.cells[2].cell_id == loads(SPEC).cells[2].cell_id


def test_zipped_paths_advance_together() -> None:
    loaded = load("""  zip:
    tasks.qa.retrieval.k: [1, 2, 3]
    tasks.qa.decode.max_tokens: [4, 8, 16]
""")
    assert [tuple(point.values()) for point in params(loaded)] == [(1, 4), (2, 8), (3, 16)]


def test_a_zip_and_a_path_are_a_product_and_zips_may_be_several() -> None:
    loaded = load("""  tasks.qa.prompt.shots: [0, 1]
  zip:
    - {tasks.qa.retrieval.k: [1, 2], tasks.qa.decode.max_tokens: [4, 8]}
    - {models.a.dtype: [float32, float16], models.a.max_length: [64, 128]}
""")
    assert len(params(loaded)) == 2 * 2 * 2
    assert params(loaded, "b") == params(loaded, "b")
    assert len(params(loaded, "b")) == 2 * 2


def test_a_zip_over_two_models_gives_each_its_own_part() -> None:
    loaded = load("  zip: {models.a.dtype: [float32, float16], models.b.max_length: [64, 128]}\n")
    assert params(loaded, "a") == [{"models.a.dtype": "float32"}, {"models.a.dtype": "float16"}]
    assert params(loaded, "b") == [{"models.b.max_length": 64}, {"models.b.max_length": 128}]


def test_a_star_stands_for_each_and_params_name_which() -> None:
    loaded = load("  tasks.*.prompt.shots: [0, 4]\n")
    assert params(loaded, task="qa") == [{"tasks.qa.prompt.shots.n": 0}, {"tasks.qa.prompt.shots.n": 4}]
    assert params(loaded, task="labels") == [{"tasks.labels.prompt.shots.n": n} for n in (0, 4)]


def test_a_star_skips_tasks_that_lack_the_block() -> None:
    loaded = load("  tasks.*.retrieval.k: [1, 2]\n")
    assert len(params(loaded, task="qa")) == 2
    assert only(loaded, "labels").task.retrieval is None


def test_shots_swept_by_number_keep_the_rest_of_their_block() -> None:
    loaded = load("  tasks.labels.prompt.shots.n: [1, 8]\n", "tasks.labels.prompt.shots.sampler=balanced")
    shots = [cell.task.prompt.shots for cell in loaded.cells if cell.task_name == "labels" and cell.model_name == "a"]
    assert [(block.n, block.sampler) for block in shots if block] == [(1, "balanced"), (8, "balanced")]


def test_wrong_labels_are_a_condition_only_where_shots_show_them() -> None:
    swept = load("  tasks.labels.prompt.shots: {n: [0, 2], labels: [right, wrong, random]}")
    assert params(swept, task="labels").count({"tasks.labels.prompt.shots.n": 0}) == 1
    assert len(params(swept, task="labels")) == 4
    # Shots in the pool's own order have no draw of their own, but the wrong answers they show do.
    first = load("  tasks.labels.prompt.shots: {sampler: first, draws: [1, 3], labels: [right, wrong]}")
    assert len(params(first, task="labels")) == 3


def test_a_list_is_many_values_and_a_list_in_a_list_is_one() -> None:
    loaded = load('  tasks.qa.decode.stop: [["\\n"], ["\\n", "."]]\n')
    assert params(loaded) == [{"tasks.qa.decode.stop": ["\n"]}, {"tasks.qa.decode.stop": ["\n", "."]}]
    fused = load("  tasks.qa.retrieval: [{retriever: fusion, of: [[bm25, dense], [bm25]]}]\n")
    assert [point["tasks.qa.retrieval.of"] for point in params(fused)] == [["bm25", "dense"], ["bm25"]]


def test_a_single_condition_needs_no_list() -> None:
    loaded = load("  tasks.qa.retrieval: {retriever: [bm25, dense], k: [1, 2]}\n")
    assert len(params(loaded)) == 4


def test_conditions_reach_into_inner_blocks_and_name_leaves() -> None:
    loaded = load("  tasks.qa: [{retrieval: {corpus: {seed: [1, 2]}}, prompt: {shots: 3}}]\n")
    assert params(loaded) == [{"tasks.qa.retrieval.corpus.seed": seed, "tasks.qa.prompt.shots.n": 3} for seed in (1, 2)]


def test_null_in_a_condition_takes_a_key_away() -> None:
    loaded = load("  tasks.qa: [{cluster: '{{ town }}'}, {retrieval: null, metrics: [[exact_match]]}]\n")
    tasks = [cell.task for cell in loaded.cells if cell.model_name == "a" and cell.task_name == "qa"]
    assert [task.retrieval is None for task in tasks] == [False, True]
    assert params(loaded)[1] == {"tasks.qa.retrieval": None, "tasks.qa.metrics": ["exact_match"]}


def test_a_sweep_of_null_is_no_sweep() -> None:
    assert len(loads(SPEC + "sweep:\n").cells) == 4


def test_the_weights_themselves_can_be_swept() -> None:
    loaded = load("  models.a.weights: [zoo/mamba, zoo/mamba2]\n")
    weights = [cell.model.weights for cell in loaded.cells if (cell.model_name, cell.task_name) == ("a", "qa")]
    assert weights == ["zoo/mamba", "zoo/mamba2"]


def test_a_swept_template_must_exist_too() -> None:
    with pytest.raises(SpecError, match=r"spec:20:48: tasks\.qa\.prompt\.template: there is no file .*nowhere\.jinja"):
        load("\n\n  tasks.qa.prompt.template: ['{{ question }}', prompts/nowhere.jinja]\n")


def test_canonical_content_does_not_depend_on_how_a_sweep_is_written() -> None:
    one = load("  tasks.qa.retrieval.k: [1, 2]\n  tasks.qa.decode.max_tokens: [4]\n")
    two = load("  tasks.qa: [{retrieval: {k: [1, 2]}}]\n")
    assert one.canonical == two.canonical
    assert one.canonical != load("  tasks.qa.retrieval.k: [1, 3]\n").canonical


def test_a_hundred_thousand_points_of_other_tasks_do_not_multiply() -> None:
    many = "[" + ", ".join(map(str, range(1, 301))) + "]"
    loaded = load(f"  tasks.qa.retrieval.k: {many}\n  tasks.labels.prompt.shots.seed: {many}\n")
    assert len(loaded.cells) == 2 * (300 + 300)
