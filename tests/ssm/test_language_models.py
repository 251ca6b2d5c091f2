"""The language models equal transformers', read and write its checkpoints, and continue rightly from any state."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, Mamba2Config, MambaConfig

from evalspec.errors import ModelError
from evalspec.ssm import checkpoints
from evalspec.ssm.language_model import RecurrentLanguageModel
from evalspec.ssm.state import RecurrentState, select, split, stack
from tests.ssm.packs import PACKS, paths

SMALL: dict[str, Any] = {
    "vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 3, "state_size": 8, "initializer_range": 0.2,
}  # fmt: skip
CONFIGS = {
    "mamba": MambaConfig(**SMALL),
    "mamba, untied, with biases": MambaConfig(**SMALL, use_bias=True, tie_word_embeddings=False, conv_kernel=3),
    "mamba, no convolution bias, wide rank": MambaConfig(**SMALL, use_conv_bias=False, time_step_rank=7, expand=3),
    "mamba2": Mamba2Config(**SMALL, num_heads=8, head_dim=8, n_groups=2, chunk_size=16),
    "mamba2, tied, one group": Mamba2Config(
        **SMALL, num_heads=4, head_dim=16, n_groups=1, chunk_size=32, tie_word_embeddings=True
    ),
    "mamba2, bounded steps": Mamba2Config(
        **SMALL, num_heads=8, head_dim=8, n_groups=1, chunk_size=16, time_step_limit=(0.01, 0.3), use_bias=True
    ),
}


@pytest.fixture(scope="module", params=list(CONFIGS))
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[RecurrentLanguageModel, Any]:
    """Ours, read from what transformers wrote, and transformers' own."""
    torch.manual_seed(1)
    peer = AutoModelForCausalLM.from_config(CONFIGS[request.param], dtype=torch.float32).eval()
    directory = tmp_path_factory.mktemp("model")
    peer.save_pretrained(directory)
    return checkpoints.load(directory), peer


def tokens(rows: int, length: int) -> Tensor:
    return torch.randint(0, 97, (rows, length), generator=torch.Generator().manual_seed(length))


@torch.inference_mode()
def logits(model: RecurrentLanguageModel, ids: Tensor, state: RecurrentState | None = None) -> Tensor:
    return model.head(model(ids, state)[0])


@torch.inference_mode()
def test_logits_equal_transformers(pair: tuple[RecurrentLanguageModel, Any]) -> None:
    model, peer = pair
    ids = tokens(3, 150)
    torch.testing.assert_close(logits(model, ids), peer(ids, use_cache=False).logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("more", [1, 3, 64])
@torch.inference_mode()
def test_continuing_from_a_state_equals_one_pass(pair: tuple[RecurrentLanguageModel, Any], more: int) -> None:
    model, _ = pair
    ids = tokens(3, 50 + more)
    _, state = model(ids[:, :50])
    torch.testing.assert_close(logits(model, ids[:, 50:], state), logits(model, ids)[:, 50:], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["a forest", "few-shot", "one token"])
@torch.inference_mode()
def test_a_pack_equals_each_of_its_paths_alone(pair: tuple[RecurrentLanguageModel, Any], name: str) -> None:
    model, _ = pair
    pack = PACKS[name]
    ids = tokens(1, pack.tokens)[0]
    _, before = model(tokens(pack.given, 5))
    hidden, state = model(ids, before, pack)
    kept = pack.keep.tolist()
    for number, (origin, path) in enumerate(paths(pack)):
        alone, alone_state = model(ids[None, path], select(before, [origin]))
        torch.testing.assert_close(hidden[path], alone[0], atol=2e-5, rtol=1e-5)
        if number in kept:
            for ours, theirs in zip(select(state, [kept.index(number)]).layers, alone_state.layers, strict=True):
                torch.testing.assert_close(ours.conv, theirs.conv, atol=2e-5, rtol=1e-5)
                torch.testing.assert_close(ours.ssm, theirs.ssm, atol=2e-5, rtol=1e-5)


@torch.inference_mode()
def test_states_split_and_stack_back(pair: tuple[RecurrentLanguageModel, Any]) -> None:
    model, _ = pair
    _, state = model(tokens(3, 9))
    again = stack(split(state))
    assert again.batch == 3
    assert again.nbytes == state.nbytes
    for one, other in zip(state.layers, again.layers, strict=True):
        assert torch.equal(one.conv, other.conv)
        assert torch.equal(one.ssm, other.ssm)


def test_what_is_saved_here_transformers_reads(pair: tuple[RecurrentLanguageModel, Any], tmp_path: Path) -> None:
    model, peer = pair
    checkpoints.save(model, tmp_path, {**peer.config.to_dict(), "trained_length": 512})
    read = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert read.config.trained_length == 512
    ids = tokens(2, 20)
    with torch.inference_mode():
        assert torch.equal(read(ids, use_cache=False).logits, peer(ids, use_cache=False).logits)
        assert torch.equal(logits(checkpoints.load(tmp_path), ids), logits(model, ids))


def test_bin_files_and_shards_are_read(pair: tuple[RecurrentLanguageModel, Any], tmp_path: Path) -> None:
    model, peer = pair
    ids = tokens(2, 20)
    peer.config.save_pretrained(tmp_path / "bin")
    torch.save(peer.state_dict(), tmp_path / "bin" / "pytorch_model.bin")
    peer.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert (tmp_path / "shards" / "model.safetensors.index.json").is_file()
    for name in ("bin", "shards"):
        assert torch.equal(logits(checkpoints.load(tmp_path / name), ids), logits(model, ids))


def test_sixteen_bit_weights_leave_decays_in_float32(pair: tuple[RecurrentLanguageModel, Any], tmp_path: Path) -> None:
    model, peer = pair
    peer.save_pretrained(tmp_path)
    short = checkpoints.load(tmp_path, dtype=torch.bfloat16)
    for name, parameter in short.named_parameters():
        exact = name.endswith(("A_log", "D", "dt_bias", "dt_proj.bias"))
        assert parameter.dtype == (torch.float32 if exact else torch.bfloat16)
    checkpoints.save(model, tmp_path / "short", peer.config.to_dict(), dtype=torch.bfloat16)
    for one, other in zip(short.parameters(), checkpoints.load(tmp_path / "short").parameters(), strict=True):
        assert torch.equal(one.float(), other)
    ids = tokens(2, 40)
    assert (logits(short, ids).argmax(-1) == logits(model, ids).argmax(-1)).float().mean() > 0.8


@pytest.mark.parametrize("name", ["mamba", "mamba2"])
def test_training_lowers_the_loss_and_every_parameter_learns(name: str) -> None:
    model = checkpoints.build(CONFIGS[name].to_dict())
    before = {key: parameter.detach().clone() for key, parameter in model.named_parameters()}
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    ids = tokens(4, 24)
    losses = []
    for _ in range(12):
        predicted = model.head(model(ids[:, :-1])[0])
        loss = torch.nn.functional.cross_entropy(predicted.flatten(0, 1), ids[:, 1:].flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.5
    assert not [key for key, parameter in model.named_parameters() if torch.equal(parameter, before[key])]


def test_fresh_parameters_are_drawn_as_in_the_papers() -> None:
    mamba = checkpoints.build({**CONFIGS["mamba"].to_dict(), "hidden_size": 256})
    mixer: Any = mamba.backbone.layers[0].mixer
    torch.testing.assert_close(mixer.A_log.exp(), torch.arange(1.0, 9.0).repeat(512, 1))
    steps = torch.nn.functional.softplus(mixer.dt_proj.bias)
    assert 1e-3 <= steps.min().item() < 2e-3 < 0.05 < steps.max().item() <= 0.1001
    assert abs(steps.log().mean().item() - math.log(1e-2)) < 0.2  # log-uniform: its middle is √(1e-3 · 0.1)
    mamba2: Any = checkpoints.build(CONFIGS["mamba2"].to_dict()).backbone.layers[0].mixer
    assert 1.0 <= mamba2.A_log.exp().min().item() <= mamba2.A_log.exp().max().item() <= 16.0


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda d: (d / "config.json").unlink(), "it has no config.json"),
        (lambda d: (d / "config.json").write_text("{"), "is not JSON"),
        (lambda d: (d / "config.json").write_text('{"model_type": "llama"}'), r"runs model_type mamba and mamba2, not"),
        (lambda d: (d / "config.json").write_text('{"model_type": "mamba"}'), r"missing .* 'vocab_size'"),
        (lambda d: (d / "model.safetensors").unlink(), "holds no weights"),
        (lambda d: (d / "model.safetensors").write_bytes(b"x" * 100), "model.safetensors cannot be read"),
    ],
)
def test_what_is_no_checkpoint_is_said_plainly(break_it: Any, message: str, tmp_path: Path) -> None:
    AutoModelForCausalLM.from_config(CONFIGS["mamba"]).save_pretrained(tmp_path)
    break_it(tmp_path)
    with pytest.raises(ModelError, match=message):
        checkpoints.load(tmp_path)


def test_weights_of_another_shape_name_the_parameter(tmp_path: Path) -> None:
    AutoModelForCausalLM.from_config(CONFIGS["mamba"]).save_pretrained(tmp_path)
    MambaConfig(**{**SMALL, "state_size": 4}).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"mixer\.A_log"):
        checkpoints.load(tmp_path)
