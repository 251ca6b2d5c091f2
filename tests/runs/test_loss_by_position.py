"""The loss by position equals a plain forward pass of the model, on real text, across windows."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import evalspec
from evalspec.models.card import zoo_folder
from evalspec.plan.compile import compile_plan
from evalspec.runs.run import run
from evalspec.spec import load
from evalspec.store import Store

TEST_DATA = Path(os.environ.get("EVALSPEC_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
WIKITEXT = TEST_DATA / "wikitext2" / "valid.txt"
OCTAVES = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]
WINDOW = 80


@pytest.mark.skipif(not WIKITEXT.is_file(), reason=f"no test data at {WIKITEXT} (EVALSPEC_TEST_DATA)")
def test_the_loss_by_position_of_wikitext_equals_a_plain_forward_pass(tmp_path: Path) -> None:
    lines = [line.strip() for line in WIKITEXT.read_text(encoding="utf-8").splitlines()]
    texts = [line[:220] for line in lines if len(line) > 200][:3]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"id": n, "text": t}) + "\n" for n, t in enumerate(texts)))
    task = {
        "data": {"file": "rows.jsonl"},
        "prompt": {"template": "", "target": "{{ text }}"},
        "metrics": [*(f"nll@{k}" for k in OCTAVES), "perplexity"],
    }
    models = {"m": {"weights": "zoo/transformer", "max_length": WINDOW}}
    plan = compile_plan(load({"name": "x", "models": models, "tasks": {"t": task}}, root=tmp_path))
    run(plan, Store(tmp_path / "store.duckdb"), tmp_path)
    with evalspec.connect(tmp_path / "store.duckdb") as connection:
        found = dict(connection.execute("SELECT metric, value FROM metrics").fetchall())

    tokenizer = AutoTokenizer.from_pretrained(zoo_folder() / "transformer")
    model = AutoModelForCausalLM.from_pretrained(zoo_folder() / "transformer", dtype=torch.float32)
    losses: list[tuple[int, float]] = []
    for text in texts:
        ids = [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]
        assert len(ids) > WINDOW, "the test must cross a window"
        for start in range(0, len(ids) - 1, WINDOW):
            end = min(start + WINDOW, len(ids) - 1)
            fed = torch.tensor(ids[max(0, end - WINDOW) : end])  # a short last window is filled up from the left
            with torch.no_grad():
                logprobs = model(fed[None]).logits[0, start - end :].float().log_softmax(-1)
            for at, token in enumerate(ids[start + 1 : end + 1]):
                losses.append((start + at + 1, -float(logprobs[at, token])))
    for k in OCTAVES:
        inside = [loss for position, loss in losses if k / 2 < position <= k]
        if inside:
            assert found[f"nll@{k}"] == pytest.approx(sum(inside) / len(inside), abs=1e-4)
        else:
            assert f"nll@{k}" not in found
    assert found["perplexity"] == pytest.approx(math.exp(sum(loss for _, loss in losses) / len(losses)), rel=1e-4)
