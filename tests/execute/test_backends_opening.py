"""A model block opens as it asks: its device, precision, kernels, end tokens; what cannot be is said plainly."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer as Fast
from tokenizers import models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, Mamba2Config, MambaConfig, PreTrainedTokenizerFast

from evalspec.errors import BackendError, ModelError
from evalspec.execute.backends.forking import ForkedState
from evalspec.execute.backends.native import NativeBackend, open_native
from evalspec.execute.backends.transformers.backend import TransformersBackend, open_transformers
from evalspec.execute.protocols import DecodeRequest, ForkingBackend, Span
from evalspec.models.card import Model, find_model
from evalspec.plan.forest import Decoding
from evalspec.spec.model import ModelBlock

SMALL: dict[str, Any] = {"vocab_size": 30, "hidden_size": 32, "num_hidden_layers": 2}
CONFIGS = {
    "llama": LlamaConfig(**SMALL, num_attention_heads=2, intermediate_size=32, eos_token_id=[7, 8]),
    "mamba": MambaConfig(**SMALL, state_size=4, eos_token_id=29),
    "mamba2": Mamba2Config(**SMALL, state_size=4, num_heads=4, head_dim=16, n_groups=1, chunk_size=8, eos_token_id=29),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three model directories, each with weights and a tokenizer."""
    folder = tmp_path_factory.mktemp("models")
    fast = Fast(models.WordLevel({f"w{number}": number for number in range(30)}, unk_token="w0"))
    fast.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    for name, config in CONFIGS.items():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder / name)
        PreTrainedTokenizerFast(tokenizer_object=fast, eos_token="w9").save_pretrained(folder / name)
    (folder / "llama" / "generation_config.json").write_text(json.dumps({"eos_token_id": 11}))
    return folder


def model(root: Path, name: str, **settings: Any) -> Model:
    return find_model(name, ModelBlock(weights=name, **settings), root)


def test_each_opens_with_the_end_tokens_that_its_files_name(root: Path) -> None:
    llama, mamba = open_transformers(model(root, "llama")), open_native(model(root, "mamba"))
    assert isinstance(llama, TransformersBackend)
    assert isinstance(mamba, NativeBackend)
    assert isinstance(llama, ForkingBackend)
    assert isinstance(mamba, ForkingBackend)
    assert llama.end_tokens == {7, 8, 9, 11}
    assert mamba.end_tokens == {9, 29}


@pytest.mark.parametrize("name", ["mamba", "mamba2"])
def test_native_and_transformers_give_the_same_scores_and_answers(root: Path, name: str) -> None:
    tokens = np.arange(12, dtype=np.int32)
    span = Span(tokens, None, np.arange(11), tokens[1:].astype(np.int64), keep=True)
    found = []
    for backend in (open_native(model(root, name)), open_transformers(model(root, name, backend="transformers"))):
        (extended,) = backend.extend([span])
        (output,) = backend.decode([extended.state], [DecodeRequest(Decoding(max_tokens=6), 0)])
        found.append((extended.logprobs, output))
    np.testing.assert_allclose(found[0][0], found[1][0], atol=1e-4)
    assert found[0][1] == found[1][1]


@pytest.mark.parametrize("name", list(CONFIGS))
def test_sixteen_bit_models_score_near_their_float32_selves_in_float32(root: Path, name: str) -> None:
    opened = open_transformers if name == "llama" else open_native
    tokens = np.arange(12, dtype=np.int32)
    span = Span(tokens, None, np.arange(11), tokens[1:].astype(np.int64), keep=True)
    (exact,) = opened(model(root, name)).extend([span])
    backend = opened(model(root, name, dtype="bfloat16"))
    (short,) = backend.extend([span])
    assert short.logprobs.dtype == np.float32
    assert backend.identity != opened(model(root, name)).identity
    np.testing.assert_allclose(short.logprobs, exact.logprobs, atol=0.1)


def test_kernels_are_as_asked_and_those_that_cannot_serve_are_refused(root: Path) -> None:
    tokens = np.arange(9, dtype=np.int32)
    span = Span(tokens, None, np.arange(8), tokens[1:].astype(np.int64))
    (plain,) = open_native(model(root, "mamba", kernels="torch", device="cpu")).extend([span])
    (auto,) = open_native(model(root, "mamba", device="cpu")).extend([span])
    np.testing.assert_allclose(plain.logprobs, auto.logprobs, atol=1e-6)
    for name in ("mamba", "mamba2"):
        for kernels in ("triton", "mamba_ssm"):
            with pytest.raises(BackendError, match=f"`kernels: {kernels}` runs on a GPU, not on `device: cpu`"):
                model(root, name, kernels=kernels, device="cpu")
            assert model(root, name, kernels=kernels).backend == "native"  # what `auto` finds is seen when it is opened
    with pytest.raises(BackendError, match="belongs to `backend: native`"):
        model(root, "llama", kernels="torch")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
@pytest.mark.parametrize("kernels", ["triton", "mamba_ssm"])
def test_kernels_for_a_gpu_are_refused_where_there_is_none(root: Path, kernels: str) -> None:
    with pytest.raises(BackendError, match=f"`kernels: {kernels}` needs a GPU, which is not here; say `auto`"):
        open_native(model(root, "mamba2", kernels=kernels))


def test_missing_packages_of_kernels_are_said_with_how_to_get_them(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evalspec.execute.backends.native.device_of", lambda model: torch.device("cuda"))
    monkeypatch.setitem(sys.modules, "causal_conv1d", None)
    with pytest.raises(BackendError, match=r"causal_conv1d.*pip install 'evalspec\[mamba\]'"):
        open_native(model(root, "mamba", kernels="mamba_ssm"))


def backend_of(root: Path, name: str = "mamba", **settings: Any) -> NativeBackend:
    return open_native(model(root, name, device="cpu", **settings))


@pytest.mark.parametrize("name", ["mamba", "mamba2"])
def test_states_in_bfloat16_take_half_the_bytes_and_change_scores_by_their_rounding(root: Path, name: str) -> None:
    tokens = np.arange(24, dtype=np.int32) % 30
    wide, narrow = backend_of(root, name), backend_of(root, name, state_dtype="bfloat16")
    found = []
    for backend in (wide, narrow):
        (first,) = backend.extend([Span(tokens[:12], keep=True)])
        assert isinstance(first.state, ForkedState)
        child = Span(tokens[12:], first.state, np.arange(11), tokens[13:].astype(np.int64), keep=True)
        (second,) = backend.extend([child])
        (output,) = backend.decode([second.state], [DecodeRequest(Decoding(max_tokens=6), 0)])
        found.append((first.state.memory, second.logprobs, output))
    (exact, exact_scores, exact_output), (rounded, scores, output) = found
    assert (exact.ssm.dtype, rounded.ssm.dtype) == (torch.float32, torch.bfloat16)
    assert exact.conv.dtype == rounded.conv.dtype
    assert rounded.ssm.nbytes * 2 == exact.ssm.nbytes == 2 * (wide.state_bytes(9) - narrow.state_bytes(9))
    torch.testing.assert_close(rounded.ssm.float(), exact.ssm, atol=0, rtol=2**-8)
    np.testing.assert_allclose(scores, exact_scores, atol=5e-3)
    assert not np.array_equal(scores, exact_scores)
    assert output.text == exact_output.text
    assert narrow.identity != wide.identity


def test_states_in_bfloat16_are_the_native_backends_alone(root: Path) -> None:
    for name, backend in (("llama", "auto"), ("mamba", "transformers")):
        with pytest.raises(BackendError, match="`state_dtype: bfloat16` belongs to `backend: native`"):
            model(root, name, backend=backend, state_dtype="bfloat16")


def test_a_device_that_is_not_here_is_said(root: Path) -> None:
    for name, opened in (("llama", open_transformers), ("mamba", open_native)):
        with pytest.raises(BackendError, match="device `cuda:99` is not here"):
            opened(model(root, name, device="cuda:99"))


def test_a_directory_without_weights_is_said(root: Path, tmp_path: Path) -> None:
    for name, opened in (("llama", open_transformers), ("mamba", open_native)):
        CONFIGS[name].save_pretrained(tmp_path / name)
        with pytest.raises(ModelError):
            opened(model(tmp_path, name))


@pytest.mark.parametrize("name", list(CONFIGS))
def test_a_checkpoint_that_lacks_a_weight_is_refused_and_not_filled_with_random_numbers(
    root: Path, tmp_path: Path, name: str
) -> None:
    shutil.copytree(root / name, tmp_path / name)
    weights = load_file(tmp_path / name / "model.safetensors")
    lost = next(key for key in weights if "norm" in key)
    save_file({key: value for key, value in weights.items() if key != lost}, tmp_path / name / "model.safetensors")
    for opened, backend in ((open_native, "native"), (open_transformers, "transformers")):
        if name != "llama" or backend == "transformers":
            with pytest.raises(ModelError, match=lost.replace(".", r"\.")):
                opened(model(tmp_path, name, backend=backend))


def test_a_config_with_fewer_layers_than_the_weights_is_refused_and_no_layer_left_out(
    root: Path, tmp_path: Path
) -> None:
    shutil.copytree(root / "llama", tmp_path / "llama")
    config = json.loads((root / "llama" / "config.json").read_text())
    (tmp_path / "llama" / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))
    with pytest.raises(ModelError, match=r"more layers than its config\.json names: nothing takes model\.layers\.1\."):
        open_transformers(model(tmp_path, "llama"))


WEIGHTS, CONFIG = "model.safetensors", "config.json"
BROKEN = {
    "a truncated file of weights": {WEIGHTS: 2000},
    "an empty file of weights": {WEIGHTS: 0},
    "an index that lists nothing": {WEIGHTS: None, "model.safetensors.index.json": "{}"},
    "an index of files that are not there": {
        WEIGHTS: None,
        "model.safetensors.index.json": '{"metadata": {}, "weight_map": {"a": "nowhere.safetensors"}}',
    },
    "a .bin that is no pickle": {WEIGHTS: None, "pytorch_model.bin": "junk"},
    "a generation config that is not JSON": {"generation_config.json": "{"},
    "a generation config that is a list": {"generation_config.json": "[]"},
    "a config with too few numbers": {CONFIG: '{"model_type": "%s", "hidden_size": 7}'},
    "a config with a zero": {CONFIG: '{"model_type": "%s", "num_attention_heads": 0, "conv_kernel": 0, "expand": 0}'},
    "a config with a word for a number": {CONFIG: '{"model_type": "%s", "num_hidden_layers": "two"}'},
}


@pytest.mark.parametrize("broken", list(BROKEN))
@pytest.mark.parametrize("name", ["llama", "mamba", "mamba2"])
def test_a_damaged_model_directory_is_an_error_that_names_it(
    root: Path, tmp_path: Path, name: str, broken: str
) -> None:
    folder = tmp_path / name
    shutil.copytree(root / name, folder)
    for file, damage in BROKEN[broken].items():
        if damage is None:
            (folder / file).unlink()
        elif isinstance(damage, int):
            (folder / file).write_bytes((folder / file).read_bytes()[:damage])
        else:
            (folder / file).write_text(damage % name if "%s" in damage else damage)
    with pytest.raises(ModelError, match=re.escape(name)):
        (open_transformers if name == "llama" else open_native)(model(tmp_path, name))


def test_float64_forks_within_its_own_rounding(root: Path) -> None:
    """The norms of transformers' Llama round to float32 in any precision: here they round the same numbers."""
    exact = open_transformers(model(root, "llama", dtype="float64", device="cpu"))
    tokens = np.arange(24, dtype=np.int32) % 30
    with torch.inference_mode():
        logits = exact.model(torch.from_numpy(tokens.astype(np.int64))[None]).logits[0]
    assert logits.dtype == torch.float64
    expected = logits.log_softmax(-1)[range(12, 23), tokens[13:]]
    (first,) = exact.extend([Span(tokens[:12], keep=True)])
    assert isinstance(first.state, ForkedState)
    (second,) = exact.extend([Span(tokens[12:], first.state, np.arange(11), tokens[13:].astype(np.int64))])
    # What is stored is float32, so that the last digits of a float32 are all that may differ.
    np.testing.assert_allclose(second.logprobs, expected.numpy(), rtol=2**-22, atol=0)


def test_float64_is_the_transformers_backends_alone(root: Path) -> None:
    with pytest.raises(BackendError, match="`dtype: float64` needs `backend: transformers`; mamba runs on native"):
        model(root, "mamba", dtype="float64")
    assert model(root, "mamba", dtype="float64", backend="transformers").backend == "transformers"
