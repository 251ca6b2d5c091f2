"""A model before it runs: its files are looked at, and what they lack is said before anything is computed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from evalspec.errors import BackendError, ModelError
from evalspec.models.card import Model, find_model, zoo_folder
from evalspec.spec.model import ModelBlock

SHIPPED = zoo_folder() / "mamba"


def copied(folder: Path, **config: Any) -> Path:
    """A copy of a shipped model's config and tokenizer, with other values in its config."""
    folder.mkdir()
    for file in SHIPPED.glob("*.json"):
        shutil.copy(file, folder)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return folder


def model(root: Path, **block: Any) -> Model:
    return find_model("m", ModelBlock(weights="here", **block), root)


def test_a_folder_without_tokenizer_files_is_refused_and_not_read_as_an_empty_vocabulary(tmp_path: Path) -> None:
    folder = copied(tmp_path / "here")
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ModelError, match=r"here: its tokenizer (knows no text|cannot be loaded)"):
        model(tmp_path).tokenizer.encode(["hello"])
    (folder / "tokenizer_config.json").write_text("[]")
    with pytest.raises(ModelError, match="its tokenizer cannot be loaded"):
        model(tmp_path).tokenizer.encode(["hello"])


def test_a_tokenizer_from_elsewhere_is_shipped_or_under_the_projects_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied(tmp_path / "here")
    shutil.copytree(copied(tmp_path / "other"), tmp_path / "tokenizers" / "mine")
    expected = model(tmp_path).tokenizer.encode(["hello"])
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")  # where the command was called from does not matter
    for name in ("zoo/mamba", "tokenizers/mine", "./tokenizers/mine"):
        assert model(tmp_path, tokenizer=name, revision="step1000").tokenizer.encode(["hello"]) == expected


@pytest.mark.parametrize("key", ["max_position_embeddings", "trained_length"])
def test_a_length_that_is_no_number_is_named_with_its_file(tmp_path: Path, key: str) -> None:
    copied(tmp_path / "here", **{key: "lots"})
    with pytest.raises(ModelError, match=rf"models\.m\.weights: `{key}` in .*config\.json is \"lots\""):
        model(tmp_path)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"conv_kernel": 5}, "causal-conv1d has filters of 2 to 4 inputs, not of 5"),
        ({"hidden_size": 130}, "causal-conv1d needs a number of channels that 8 divides, and there are 260"),
        ({"state_size": 512}, "mamba-ssm has states of at most 256, not of 512"),
    ],
)
def test_what_the_packages_have_no_kernel_for_is_refused_before_anything_is_computed(
    tmp_path: Path, config: dict[str, int], reason: str
) -> None:
    copied(tmp_path / "here", **config)
    assert model(tmp_path).backend == "native"
    with pytest.raises(BackendError, match=rf"`kernels: mamba_ssm` cannot serve here: {reason}; say `auto`"):
        model(tmp_path, kernels="mamba_ssm")


def test_a_folder_called_like_weights_is_no_weights(tmp_path: Path) -> None:
    (copied(tmp_path / "here") / "model.safetensors").mkdir()
    with pytest.raises(ModelError, match="holds no weights"):
        assert model(tmp_path).weights_hash
