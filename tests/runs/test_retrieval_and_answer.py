"""From a spec with gold passages shown, moved and withheld to the views that say whether they were used."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import evalspec
from evalspec.plan.compile import Plan, compile_plan
from evalspec.prompting.squad import normalise
from evalspec.runs.run import run
from evalspec.spec import load
from evalspec.store import Store

ROOT = Path(__file__).parents[2]
PATH = "tasks.ask.retrieval."
SPEC: dict[str, Any] = {
    "name": "used",
    "models": {"mamba2": {"weights": "zoo/mamba2"}},
    "tasks": {
        "ask": {
            "data": {"generate": "world.questions", "count": 20, "seed": 3},
            "prompt": {"template": "prompts/rag.jinja", "target": "{{ answer }}", "shots": 1, "unknown": ["unknown"]},
            "retrieval": {"corpus": {"generate": "world.passages", "seed": 3}, "gold": "{{ gold_ids }}", "k": 3},
            "decode": {"max_tokens": 6, "stop": ["\n"]},
            "metrics": ["exact_match", "grounded", "abstained", "recall"],
        }
    },
    "sweep": {
        "tasks.ask.retrieval": [
            {"retriever": "none"},
            {"retriever": "bm25", "order": ["rank", "reverse"]},
            {"retriever": "bm25", "withhold_gold": True},
            {"retriever": "oracle", "n_distractors": 2, "distractors": ["near", {"same": "{{ attribute }}"}]},
        ]
    },
}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Plan]:
    folder = tmp_path_factory.mktemp("used")
    plan = compile_plan(load(SPEC, root=ROOT))
    assert run(plan, Store(folder / "store.duckdb"), folder).status == "finished"
    return folder / "store.duckdb", plan


def asked(done: tuple[Path, Plan], query: str) -> list[tuple[Any, ...]]:
    with evalspec.connect(done[0]) as connection:
        return connection.execute(query).fetchall()


def test_each_condition_is_a_cell_of_its_own_and_settings_that_change_nothing_are_not(done: tuple[Path, Plan]) -> None:
    assert [
        tuple(str(value) for name, value in cell.params.items() if name.startswith(PATH)) for cell in done[1].cells
    ] == [
        ("none",),
        ("bm25", "rank"),
        ("bm25", "reverse"),
        ("bm25", "True"),
        ("oracle", "2", "near"),
        ("oracle", "2", "{{ attribute }}"),
    ]


def test_the_prompt_shows_the_passages_at_the_places_that_the_store_keeps(done: tuple[Path, Plan]) -> None:
    query = """
        SELECT prompt, list(text ORDER BY place), list(rank ORDER BY place), list(passage_id = document_id)
        FROM samples JOIN retrievals USING (run_id, cell_id, sample_id) JOIN cells USING (run_id, cell_id)
        WHERE params->>'$."tasks.ask.retrieval.order"' = '{}' GROUP BY ALL
    """
    for order in ("rank", "reverse"):
        found = asked(done, query.format(order))
        assert found
        for prompt, texts, ranks, whole in found:
            shown = prompt.split("\n\n")[-1].split("Question:")[0]
            assert shown == "".join(f"- {text}\n" for text in texts)
            assert ranks == sorted(ranks, reverse=order == "reverse")
            assert all(whole)


def test_distractors_share_what_they_were_asked_to_share(done: tuple[Path, Plan]) -> None:
    from evalspec.data.worlds.rows import passages, questions

    attribute = {str(row["id"]): row["attribute"] for row in passages(3)}
    of_question = {str(row["id"]): row["attribute"] for row in questions(3, 20)}
    found = asked(
        done,
        "SELECT sample_id, passage_id, relevant FROM retrievals JOIN cells USING (run_id, cell_id) "
        """WHERE params->>'$."tasks.ask.retrieval.distractors.same"' IS NOT NULL""",
    )
    assert len({sample for sample, *_ in found}) * 3 == len(found)
    assert all(attribute[passage] == of_question[sample] for sample, passage, _ in found)


def test_withheld_gold_is_nowhere_in_the_prompt_not_even_among_the_passages_of_shots(tmp_path: Path) -> None:
    """With ten passages a shot, some of them answer a question of another row: in these worlds half of the prompts."""
    from evalspec.data.worlds.rows import passages, questions

    text = {str(row["id"]): str(row["text"]) for row in passages(3, people=4, towns=2, things=2)}
    gold = {str(row["id"]): text[str(row["gold_ids"][0])] for row in questions(3, people=4, towns=2, things=2)}
    leaks: dict[bool, int] = {}
    for withheld in (False, True):
        spec: dict[str, Any] = json.loads(json.dumps(SPEC)) | {"sweep": {}}
        task, sizes = spec["tasks"]["ask"], {"options": {"people": 4, "towns": 2, "things": 2}}
        task["data"] = {"generate": "world.questions", "seed": 3, **sizes}
        task["retrieval"] |= {"corpus": {"generate": "world.passages", "seed": 3, **sizes}, "k": 10}
        task["retrieval"]["withhold_gold"] = withheld
        whole = compile_plan(load(spec, root=ROOT)).models[0].samples
        leaks[withheld] = sum(gold[sample.draft.sample_id] in sample.draft.prompt.split("\n\n")[0] for sample in whole)
        if withheld:
            assert not any(gold[sample.draft.sample_id] in sample.draft.prompt for sample in whole)
            part = compile_plan(load(spec, root=ROOT), limit=5).models[0].samples
            assert [s.draft.prompt for s in part] == [s.draft.prompt for s in whole[:5]], "a limit changes no prompt"
    assert leaks[False] > 0 == leaks[True]


def test_withheld_gold_is_irrelevant_to_recall_and_a_shot_keeps_its_own(done: tuple[Path, Plan]) -> None:
    cells = """cells USING (run_id, cell_id) WHERE params->>'$."tasks.ask.retrieval.withhold_gold"' = 'true'"""
    assert asked(done, f"SELECT DISTINCT relevant FROM retrievals JOIN {cells}") == [(False,)]
    metrics = asked(done, f"SELECT DISTINCT metric FROM scores JOIN {cells}")
    assert {metric for (metric,) in metrics} <= {"exact_match", "grounded", "abstained"}
    for prompt, answer in asked(done, f"SELECT prompt, target FROM samples JOIN {cells}"):
        shot, question = prompt.split("\n\n")
        told = shot.split("Answer:")[1].strip()
        assert told in shot.split("Question:")[0], "a worked example has its gold"
        assert question.split("Question:")[1].count("Answer:") == 1
        assert answer


def test_the_two_by_two_is_one_query_and_equals_a_count_by_hand(done: tuple[Path, Plan]) -> None:
    names = ("shown_right", "shown_abstained", "shown_wrong", "missing_right", "missing_abstained", "missing_wrong")
    told = {
        cell: dict(zip(("n", *names), counts, strict=True))
        for cell, *counts in asked(
            done, f"SELECT cell_id, n, {', '.join(names)} FROM gold_and_answer WHERE metric = 'exact_match'"
        )
    }
    counted: dict[str, Counter[str]] = {}
    for cell in done[1].cells:
        if cell.params[f"{PATH}retriever"] == "none":
            assert cell.cell_id not in told, "a closed book shows nothing"
            continue
        rows = asked(done, f"SELECT sample_id, output, target FROM samples WHERE cell_id = '{cell.cell_id}'")
        gold = {
            sample
            for (sample,) in asked(
                done, f"SELECT sample_id FROM retrievals WHERE cell_id = '{cell.cell_id}' AND relevant"
            )
        }
        mine = counted[cell.cell_id] = Counter()
        for sample, output, target in rows:
            how = "right" if normalise(output) == normalise(target) else "wrong"
            how = "abstained" if how == "wrong" and normalise(output) == "unknown" else how
            mine[f"{'shown' if sample in gold else 'missing'}_{how}"] += 1
            mine["n"] += 1
    assert {cell: {name: count for name, count in counts.items() if count} for cell, counts in told.items()} == {
        cell: dict(counts) for cell, counts in counted.items()
    }


def test_a_question_costs_its_share_of_the_cell(done: tuple[Path, Plan]) -> None:
    found = asked(
        done,
        "SELECT questions * q.prompt_tokens, c.prompt_tokens, questions * q.seconds, c.seconds "
        "FROM cost_per_question q JOIN efficiency c USING (run_id, cell_id)",
    )
    assert len(found) == len(done[1].cells)
    for tokens, all_tokens, seconds, all_seconds in found:
        assert tokens == pytest.approx(all_tokens)
        assert seconds == pytest.approx(all_seconds)
    fed = asked(done, "SELECT sum(prompt_tokens) FROM samples")[0][0]
    assert sum(tokens for tokens, *_ in found) == pytest.approx(fed)


def test_the_report_draws_what_was_shown_and_used(done: tuple[Path, Plan]) -> None:
    (page,) = done[0].parent.glob("used-*.html")
    text = page.read_text(encoding="utf-8")
    assert "Was the gold passage there, and was it used?" in text
    assert "What a question costs, and what it buys" in text
    assert "With the gold passage withheld (bm25), exact match is" in text
    assert "oracle, n_distractors = 2, same attribute" in text
    assert "gold withheld)" not in text, "no other sentence speaks of what was withheld"
