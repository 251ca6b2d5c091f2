"""The four experiments run without change on models of the user's own, and judge what they claim."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, BambaConfig, GPTNeoXConfig, LlamaConfig, Mamba2Config

from evalspec.plan.compile import compile_plan
from evalspec.runs.run import Finished, run
from evalspec.spec import LoadedSpec, load
from evalspec.store import Store
from evalspec.zoo.tokenizer import save_tokenizer, vocabulary

ROOT = Path(__file__).parents[1]
SHARED = {
    "vocab_size": len(vocabulary()),
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "eos_token_id": 2,
    "bos_token_id": 1,
}
ATTENTION = {"num_attention_heads": 2, "intermediate_size": 48, "max_position_embeddings": 8192}
SSD = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_expand": 2}
CONFIGS = {
    "transformer": LlamaConfig(**SHARED, **ATTENTION, num_key_value_heads=2),
    "mamba": GPTNeoXConfig(**SHARED, **ATTENTION),
    "mamba2": Mamba2Config(**SHARED, state_size=8, num_heads=4, head_dim=16, n_groups=1, expand=2, chunk_size=32),
    "hybrid": BambaConfig(**SHARED, **ATTENTION, **SSD, num_key_value_heads=2, attn_layer_indices=[1]),
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Untrained models in directories of their own: a Llama, a GPT-NeoX, a Mamba-2 and a hybrid of both kinds."""
    folders = {}
    for name, config in CONFIGS.items():
        torch.manual_seed(0)
        folders[name] = tmp_path_factory.mktemp(name)
        AutoModelForCausalLM.from_config(config).save_pretrained(folders[name])
        save_tokenizer(folders[name])
    return folders


SPECS = ("few_shot", "long_context", "rag", "chain_of_thought")


def finished(spec: str, sets: list[str], folder: Path) -> tuple[LoadedSpec, Store, Finished]:
    loaded = load(ROOT / "specs" / f"{spec}.yaml", sets)
    store = Store(folder / "store.duckdb")
    done = run(compile_plan(loaded, limit=1), store, folder)
    assert (done.status, done.failed) == ("finished", 0)
    assert {row["cell_id"] for row in store.rows("metrics", done.run_id)} == {cell.cell_id for cell in loaded.cells}
    return loaded, store, done


@pytest.mark.parametrize("spec", SPECS)
def test_an_experiment_runs_on_other_models_without_change(spec: str, weights: dict[str, Path], tmp_path: Path) -> None:
    sets = [f"models.{name}.weights={weights[name]}" for name in ("transformer", "mamba", "mamba2")]
    loaded, store, done = finished(spec, sets, tmp_path)
    judged = {row["hypothesis"].partition(" (")[0] for row in store.rows("verdicts", done.run_id)}
    assert judged <= set(loaded.spec.hypotheses)
    assert judged


@pytest.mark.parametrize("spec", SPECS)
def test_an_experiment_runs_on_a_hybrid_alone(spec: str, weights: dict[str, Path], tmp_path: Path) -> None:
    sets = [f"models.transformer.weights={weights['hybrid']}", "models.mamba=null", "models.mamba2=null"]
    finished(spec, [*sets, "hypotheses=null"], tmp_path)
