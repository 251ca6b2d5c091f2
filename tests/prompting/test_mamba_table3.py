"""specs/hub/mamba_table3.yaml asks as lm-evaluation-harness does where that calls Python: HellaSwag and WinoGrande."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from evalspec.prompting.templates import compile_template

ROOT = Path(__file__).parents[2]
SPEC = yaml.safe_load((ROOT / "specs/hub/mamba_table3.yaml").read_text(encoding="utf-8"))


def written(task: str, key: str, row: dict[str, Any]) -> Any:
    return compile_template(SPEC["tasks"][task]["prompt"][key], ROOT, key).evaluate(row)


def cleaned(text: str) -> str:
    """lm_eval/tasks/hellaswag/utils.py, `preprocess`."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub("\\[.*?\\]", "", text).replace("  ", " ")


@pytest.mark.parametrize(
    ("ctx_a", "ctx_b"),
    [
        ("A man is sitting on a roof.", "he"),
        ("[header] How to fold [title] Take a sheet. [step] Lay it  flat [substeps] on", "the TABLE"),
        (" leading and trailing  ", ""),
        ("four    blanks", "ÉTÉ in Paris"),
    ],
)
def test_hellaswags_prompts_and_endings_are_cleaned_as_the_harness_cleans_them(ctx_a: str, ctx_b: str) -> None:
    row = {
        "activity_label": "Roof shingle removal", "ctx_a": ctx_a, "ctx_b": ctx_b, "label": "3",
        "endings": [" is using wrap [title] to", "starts  pulling [substeps] up.", "x", "[title] y"],
    }  # fmt: skip
    wanted = cleaned(row["activity_label"] + ": " + ctx_a + " " + ctx_b.capitalize())
    assert written("hellaswag", "template", row) == wanted
    assert written("hellaswag", "choices", row) == [cleaned(ending) for ending in row["endings"]]
    assert written("hellaswag", "target", row) == 3


def test_winogrande_continues_two_beginnings_with_the_rest_of_the_sentence() -> None:
    row = {
        "sentence": "Sarah was a much better surgeon than Maria so _ always got the easier_harder cases.",
        "option1": "Sarah", "option2": "Maria", "answer": "2",
    }  # fmt: skip
    begun = "Sarah was a much better surgeon than Maria so "
    assert written("winogrande", "contexts", row) == [begun + "Sarah", begun + "Maria"]
    assert written("winogrande", "continuation", row) == "always got the easier_harder cases."
    assert written("winogrande", "target", row) == 1


def test_every_published_figure_is_of_a_metric_that_its_task_measures_and_all_ten_models_have_six() -> None:
    models = list(SPEC["models"])
    held: dict[str, list[str]] = {}
    for block in SPEC["published"].values():
        assert block["metric"] in SPEC["tasks"][block["task"]]["metrics"]
        for model in block["values"]:
            held.setdefault(f"{block['task']} {block['metric']}", []).append(model)
    assert len(held) == 7
    assert all(sorted(names) == sorted(models) for names in held.values())
