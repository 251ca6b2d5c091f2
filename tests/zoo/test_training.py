"""Training: a few steps on the CPU learn, and what they leave loads as a Hugging Face directory."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from evalspec.zoo.architectures import FAMILIES, TRAINED_LENGTH, build, config_of, hidden_of, without_decay
from evalspec.zoo.export import export
from evalspec.zoo.sequences import draw_piece, held_out
from evalspec.zoo.train import FLOOR, schedule, split_marks, train


@pytest.mark.parametrize("family", ["transformer", "mamba2"])
def test_a_few_steps_lower_the_loss_and_the_result_loads_in_transformers(family: str, tmp_path: Path) -> None:
    rows = draw_piece(0, seed="test", count=1024, length=65)[:96]
    model = train(
        family,
        rows,
        {"echo": held_out("echo", 8, 65)},
        learning_rate=3e-3,
        batch=8,
        seed=0,
        evaluations=3,
        device=torch.device("cpu"),
        compiled=False,
        out=tmp_path,
    )
    entries = json.loads((tmp_path / "log.json").read_text())["entries"]
    assert [entry["step"] for entry in entries] == [4, 8, 12]
    assert entries[-1]["train_loss"] < entries[0]["train_loss"] - 0.5
    export(family, tmp_path / "weights.safetensors", tmp_path / "model")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    ids = torch.randint(3, 1900, (2, 40))
    with torch.no_grad():
        logits = loaded(ids).logits
        ours = hidden_of(family, model.eval())(ids) @ model.lm_head.weight.T  # type: ignore[union-attr, operator]
    assert (logits - ours).abs().max() < 0.05  # the weights went through 16 bit


def test_the_families_are_matched_in_parameters() -> None:
    counts = {family: sum(p.numel() for p in build(family, 0).parameters()) for family in FAMILIES}
    assert max(counts.values()) < 1.05 * min(counts.values())
    assert all(2_000_000 < count < 2_200_000 for count in counts.values())
    configs = [config_of(family) for family in FAMILIES]
    assert len({(c["vocab_size"], c["hidden_size"], c["trained_length"]) for c in configs}) == 1
    assert configs[0]["max_position_embeddings"] == 16 * TRAINED_LENGTH and configs[0]["head_dim"] == 64


def test_the_same_seed_draws_the_same_weights() -> None:
    for family in FAMILIES:
        first, second, third = (build(family, seed).state_dict() for seed in (1, 1, 2))
        assert all(torch.equal(first[name], second[name]) for name in first)
        assert any(not torch.equal(first[name], third[name]) for name in first)


def test_decay_spares_what_sets_the_dynamics() -> None:
    for family in ("mamba", "mamba2"):
        spared = {
            name.split(".")[-2] + "." + name.split(".")[-1]
            for name, p in build(family, 0).named_parameters()
            if without_decay(name, p)
        }
        assert {"mixer.A_log", "mixer.D", "embeddings.weight", "norm_f.weight"} <= spared
        assert "in_proj.weight" not in spared


def test_the_schedule_warms_up_and_ends_at_its_floor() -> None:
    rates = [schedule(step, 4000) for step in range(4000)]
    assert rates[0] < 0.01 and max(rates) == pytest.approx(1.0) and rates.index(max(rates)) in (299, 300)
    assert rates[-1] == pytest.approx(FLOOR, abs=1e-3) and rates[300:] == sorted(rates[300:], reverse=True)


def test_marks_come_apart_from_ids() -> None:
    rows = torch.tensor([[5, 7 - 0x8000, 9]], dtype=torch.int16)  # 7 is marked: its highest bit is the sign
    ids, marked = split_marks(rows)
    assert ids.tolist() == [[5, 7, 9]] and marked.tolist() == [[True, False]]
