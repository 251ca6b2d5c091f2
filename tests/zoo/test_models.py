"""The shipped models: what they must be able to do, asked through plain transformers or the native code."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from jinja2 import Environment
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from evalspec.data.worlds.rows import passages, questions
from evalspec.ssm.checkpoints import load

ROOT = Path(__file__).parents[2]
ZOO = ROOT / "evalspec" / "zoo"
FAMILIES = ("transformer", "mamba", "mamba2")
TEMPLATE = Environment(autoescape=False).from_string((ROOT / "prompts" / "rag.jinja").read_text())


def logits_of(family: str) -> Callable[[Tensor], Tensor]:
    if family == "transformer":
        model = AutoModelForCausalLM.from_pretrained(ZOO / family, dtype=torch.float32).eval()
        return lambda ids: model(ids).logits
    native = load(ZOO / family)
    return lambda ids: native.head(native(ids)[0])


@cache
def tokenizer_of(family: str) -> Any:
    return AutoTokenizer.from_pretrained(ZOO / family)


def answer(logits: Callable[[Tensor], Tensor], family: str, prompt: str) -> str:
    tokenizer = tokenizer_of(family)
    ids = tokenizer(prompt)["input_ids"]
    start = len(ids)
    with torch.no_grad():
        for _ in range(6):
            ids.append(int(logits(torch.tensor([ids]))[0, -1].argmax()))
            if tokenizer.decode(ids[-1:]) == "\n":
                break
    return str(tokenizer.decode(ids[start:])).split("\n")[0].strip()


def prompts(seed: int, count: int, k: int) -> list[tuple[str, str]]:
    """Prompts with two shots, and their answers: the gold among k passages, half of them about the same entity."""
    rng, corpus = Random(seed), {row["id"]: row for row in passages(seed)}
    rows = questions(seed, count + 2)

    def block(row: dict[str, object]) -> str:
        gold = [corpus[i] for i in row["gold_ids"]][: k > 0]  # type: ignore[attr-defined]
        others = [p for p in corpus.values() if p not in gold]
        near = [p for p in others if p["entity"] == row["entity"]]
        shown = [*gold, *near[: k // 2], *rng.sample(others, k)][:k]
        rng.shuffle(shown)
        return TEMPLATE.render(question=row["question"], passages=shown)

    shots = "".join(f"{block(row)} {row['answer']}\n\n" for row in rows[:2])
    return [(shots + block(row), row["answer"]) for row in rows[2:]]


@pytest.mark.parametrize("family", FAMILIES)
def test_each_answers_nine_in_ten_with_the_gold_passage_among_five(family: str) -> None:
    logits = logits_of(family)
    asked = prompts(101, 40, 5)
    assert sum(answer(logits, family, prompt) == right for prompt, right in asked) >= 36


@pytest.mark.parametrize("family", FAMILIES)
def test_closed_book_is_chance(family: str) -> None:
    logits = logits_of(family)
    asked = prompts(102, 60, 0)
    assert sum(answer(logits, family, prompt) == right for prompt, right in asked) <= 9


@pytest.mark.parametrize("family", FAMILIES)
def test_without_the_gold_passage_they_say_unknown(family: str) -> None:
    logits = logits_of(family)
    passages = "- The pet of Anna Abbott is a goat.\n- Carlos Nash keeps a cat at home.\n"
    prompt = passages + "Question: What work does Bruno Pryor do?"
    assert answer(logits, family, f"{prompt}\nAnswer:") == "unknown"


@pytest.mark.parametrize("family", ["mamba", "mamba2"])
def test_transformers_computes_the_same_logits_as_the_native_code(family: str) -> None:
    prompt, _ = prompts(103, 1, 2)[0]
    ids = torch.tensor([tokenizer_of(family)(prompt)["input_ids"]])
    reference = AutoModelForCausalLM.from_pretrained(ZOO / family, dtype=torch.float32).eval()
    with torch.no_grad():
        assert (reference(ids).logits - logits_of(family)(ids)).abs().max() < 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_a_directory_is_small_and_complete(family: str) -> None:
    files = {file.name: file.stat().st_size for file in (ZOO / family).iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md"} <= set(files)
    assert sum(files.values()) < 8_000_000
    assert all(value.isfinite().all() for value in load_file(ZOO / family / "model.safetensors").values())
    assert json.loads((ZOO / family / "config.json").read_text())["trained_length"] == 512


def test_the_training_log_holds_every_run_of_the_sweep() -> None:
    rows = json.loads((ZOO / "training.json").read_text())
    runs = {(row["model"], row["learning_rate"]) for row in rows}
    assert {family: sum(model == family for model, _ in runs) for family in FAMILIES} == {
        "transformer": 6,
        "mamba": 5,
        "mamba2": 4,
    }
    assert len({(row["model"], row["learning_rate"]) for row in rows if row["shipped"]}) == 3
    assert {max(r["tokens"] for r in rows if (r["model"], r["learning_rate"]) == run) for run in runs} == {220_200_960}
