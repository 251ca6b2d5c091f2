"""The original `state-spaces/*` checkpoints run natively: a plain reference's numbers, forked or not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evalspec.errors import BackendError, ModelError
from evalspec.execute.backends.hybrid import HybridBackend
from evalspec.execute.backends.native import NativeBackend
from evalspec.execute.protocols import DecodeRequest, Span
from evalspec.models.architectures import architecture_of
from evalspec.models.card import find_model, zoo_folder
from evalspec.models.cost import Cost
from evalspec.models.original_format import translated
from evalspec.models.tokens import Tokenizer
from evalspec.plan.compile import compile_plan
from evalspec.plan.forest import Decoding
from evalspec.plan.price import plan_json
from evalspec.runs.run import run
from evalspec.spec import load
from evalspec.spec.model import ModelBlock
from evalspec.ssm import checkpoints
from evalspec.store import Store
from tests.execute.test_backends import Letters, generate, sequences, whole_span
from tests.ssm.original_checkpoints import CONFIGS, CONVOLVED, HYBRIDS, padded, reference, shapes, write

ROOT = Path(__file__).parents[2]
Case = tuple[Any, dict[str, Any], dict[str, torch.Tensor]]


@pytest.fixture(scope="module", params=list(CONFIGS))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    directory = tmp_path_factory.mktemp("model")
    config, weights = write(request.param, directory)
    ends = frozenset({60})
    if request.param in HYBRIDS:
        return HybridBackend(checkpoints.load_hybrid(directory), Letters(), end_tokens=ends), config, weights
    return NativeBackend(checkpoints.load(directory), Letters(), end_tokens=ends), config, weights


def expected(case: Case, tokens: np.ndarray) -> torch.Tensor:
    return reference(case[1], case[2], torch.from_numpy(tokens.astype(np.int64))).log_softmax(-1)


def test_scores_equal_the_reference(case: Case) -> None:
    batch = sequences(5, 2, 40)
    for tokens, extended in zip(batch, case[0].extend([whole_span(tokens) for tokens in batch]), strict=True):
        wanted = expected(case, tokens)
        assert wanted.shape[1] == padded(case[1]) == 60  # 58 tokens, padded
        targets = torch.from_numpy(tokens[1:].astype(np.int64))
        np.testing.assert_allclose(extended.logprobs, wanted[:-1].gather(1, targets[:, None])[:, 0], atol=1e-4)
        np.testing.assert_array_equal(extended.greedy, (wanted[:-1].argmax(-1) == targets).numpy())


def test_forks_equal_the_reference_of_their_whole_paths(case: Case) -> None:
    """Spans of 1, 3 and 64 tokens from two kept states, then two more levels from the longest, some within one pack."""
    backend = case[0]
    roots = [*sequences(1, 100, 100, seed=1), *sequences(1, 6, 6, seed=2)]  # one longer than attention's units
    parents = backend.extend([Span(tokens, keep=True) for tokens in roots])
    spans, paths = [], []
    for root, parent in zip(roots, parents, strict=True):
        for length in (1, 3, 64):
            new = sequences(1, length, length, seed=length)[0]
            spans.append(Span(new, parent.state, np.arange(-1, length - 1), new.astype(np.int64), keep=True))
            paths.append(np.concatenate([root, new]))
    children = backend.extend(spans)
    for span, path, child in zip(spans, paths, children, strict=True):
        wanted = expected(case, path)[-len(span.tokens) - 1 : -1]
        wanted = wanted[torch.arange(len(span.tokens)), span.tokens.astype(np.int64)]
        np.testing.assert_allclose(child.logprobs, wanted.numpy(), atol=1e-4)
    two = sequences(2, 5, 9, seed=3)
    chain = [
        Span(two[0], children[2].state, keep=True),
        Span(two[1], 0, np.arange(-1, len(two[1]) - 1), two[1].astype(np.int64), keep=True),
        Span(np.array([7], np.int32), 0, np.array([-1]), np.array([7])),
    ]
    _, last, other = backend.extend(chain)
    path = np.concatenate([paths[2], two[0], two[1]])
    wanted = expected(case, path)[-len(two[1]) - 1 : -1][torch.arange(len(two[1])), two[1].astype(np.int64)]
    np.testing.assert_allclose(last.logprobs, wanted.numpy(), atol=1e-4)
    np.testing.assert_allclose(other.logprobs, [expected(case, np.concatenate([paths[2], two[0]]))[-1, 7]], atol=1e-4)


def test_greedy_answers_are_those_of_repeated_reference_forwards(case: Case) -> None:
    prompts = [*sequences(2, 1, 9, seed=4), sequences(1, 20, 20, seed=5)[0]]
    outputs = generate(case[0], prompts, [Decoding(max_tokens=3 + number) for number in range(3)])
    for number, (prompt, output) in enumerate(zip(prompts, outputs, strict=True)):
        tokens, answer = prompt, list[int]()
        while len(answer) < 3 + number and 60 not in answer:
            answer.append(int(expected(case, tokens)[-1].argmax()))
            tokens = np.append(tokens, np.int32(answer[-1]))
        assert output.tokens == tuple(answer)


def test_a_state_that_was_decoded_from_is_unchanged(case: Case) -> None:
    backend = case[0]
    (tokens,) = sequences(1, 9, 9, seed=6)
    (parent,) = backend.extend([Span(tokens, keep=True)])
    child = Span(np.array([7, 8, 9], np.int32), parent.state, np.array([-1, 0, 1]), np.array([7, 8, 9]))
    (before,) = backend.extend([child])
    list(backend.decode([parent.state], [DecodeRequest(Decoding(max_tokens=5), 0)]))
    (after,) = backend.extend([child])
    np.testing.assert_allclose(before.logprobs, after.logprobs, atol=1e-6)


def test_hidden_states_are_the_residual_stream(case: Case) -> None:
    backend, config, weights = case
    (tokens,) = sequences(1, 9, 9, seed=7)
    states = backend.hidden_states(tokens)
    assert len(states) == config["n_layer"] + 1
    for layer, state in enumerate(states):
        wanted = reference(config, weights, torch.from_numpy(tokens.astype(np.int64)), layers=layer)
        np.testing.assert_allclose(state, wanted.numpy(), atol=1e-4)


def beside_a_tokenizer(name: str, directory: Path) -> ModelBlock:
    write(name, directory)
    shutil.copytree(zoo_folder() / "mamba", directory.parent / "tokenizer")
    return ModelBlock(weights=str(directory), tokenizer=str(directory.parent / "tokenizer"))


@pytest.mark.parametrize("name", list(CONFIGS))
def test_the_plan_knows_cost_and_state_before_weights_are_read(name: str, tmp_path: Path) -> None:
    """Parameters are those of the file; state and keys are what the opened model really keeps."""
    model = find_model("m", beside_a_tokenizer(name, tmp_path / "model"), tmp_path)
    assert model.backend == "native" and model.cost is not None
    config, sizes = CONFIGS[name], shapes(CONFIGS[name])
    assert model.recurrent == (name in ("mamba", "mamba2"))
    tied = sizes["lm_head.weight"] if config["tie_embeddings"] else (0, 0)
    count = sum(int(np.prod(shape)) for shape in sizes.values()) - int(np.prod(tied))
    assert model.cost.parameters == count
    if name in HYBRIDS:
        opened = HybridBackend(checkpoints.load_hybrid(tmp_path / "model"))
        assert model.cost.kv_bytes(7, 4) == opened.state_bytes(17) - opened.state_bytes(10)


def test_operations_are_two_a_weight_and_token_and_attentions_own() -> None:
    """Attention scores and mixes, 4 H D a position attended to; a convolution is K products a channel."""
    costs = {name: Cost(architecture_of(translated(CONFIGS[name], name))) for name in CONFIGS}
    sizes = shapes(CONFIGS["transformerpp"])
    matrices = sum(int(np.prod(shape)) for key, shape in sizes.items() if len(shape) == 2 and "layers" in key)
    positions = 1 + 2 + 3
    assert costs["transformerpp"].flops(3) == 2 * 3 * matrices + 3 * 4 * 48 * positions
    own = 2 * (3 * 48 * 32 + 48 * 32 + 3 * 48 * 4) + 4 * 48
    assert costs["mamba2attn"].flops(1) == costs["mamba2"].flops(1) * 2 // 3 + own
    assert costs["mamba with an MLP"].flops(1) > 3 * 6 * 32 * 128


def test_the_published_hybrid_has_its_parameters() -> None:
    """state-spaces/mamba2attn-2.7b, as its config.json says."""
    attention = {**CONVOLVED, "head_dim": 128, "num_heads": 30, "rotary_emb_dim": 64}
    config = {
        "d_model": 2560, "d_intermediate": 0, "n_layer": 64, "vocab_size": 50277, "ssm_cfg": {"layer": "Mamba2"},
        "attn_layer_idx": [9, 18, 27, 36, 45, 56], "attn_cfg": attention, "rms_norm": True, "residual_in_fp32": True,
        "fused_add_norm": True, "pad_vocab_size_multiple": 16, "tie_embeddings": True,
    }  # fmt: skip
    cost = Cost(architecture_of(translated(config, "config.json")))
    assert cost.parameters == sum(
        int(np.prod(shape)) for key, shape in shapes(config).items() if key != "lm_head.weight"
    )
    assert 2.6e9 < cost.parameters < 2.8e9
    assert cost.kv_bytes(1, 2) == 6 * 2 * 30 * 128 * 2


def test_without_a_tokenizer_the_message_names_the_one_that_serves(tmp_path: Path) -> None:
    write("mamba2attn", tmp_path / "model")
    with pytest.raises(ModelError, match=r"ships no tokenizer; say `tokenizer: EleutherAI/gpt-neox-20b`"):
        find_model("m", ModelBlock(weights=str(tmp_path / "model")), tmp_path)


def test_other_backends_are_refused_with_the_one_that_could(tmp_path: Path) -> None:
    block = beside_a_tokenizer("transformerpp", tmp_path / "model").model_copy(update={"backend": "transformers"})
    with pytest.raises(BackendError, match=r"mamba_ssm's own format, which transformers does not read.*native"):
        find_model("m", block, tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rms_norm": False}, "`rms_norm: false`"),
        ({"ssm_cfg": {"layer": "Mamba3"}}, "`ssm_cfg.layer: Mamba3` is not run here; Mamba1 and Mamba2 are"),
        ({"ssm_cfg": {"layer": "Mamba2", "ngroups": 8}}, "`ssm_cfg.ngroups: 8` is not run here"),
        ({"ssm_cfg": {"headdim": 8}}, "`ssm_cfg.headdim` is no key that is known here"),
        ({"attn_cfg": {"num_heads": 2}}, "`attn_cfg.causal` is not true"),
        ({"attn_cfg": {"num_heads": 2, "causal": True, "window": 7}}, "`attn_cfg.window` is no key"),
        ({"attn_layer_idx": [3]}, "`attn_layer_idx` is no list of layers from 0 to 2"),
        ({"n_layer": "many"}, '`n_layer` is "many", no whole number'),
    ],
)
def test_what_is_not_run_is_refused_by_its_name(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    block = beside_a_tokenizer("mamba2attn", tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text(json.dumps({**CONFIGS["mamba2attn"], **change}))
    with pytest.raises(ModelError) as raised:
        find_model("m", block, tmp_path)
    assert said in str(raised.value) and "config.json" in str(raised.value)


@pytest.mark.parametrize("name", ["mamba2attn", "transformerpp"])
def test_a_spec_plans_and_runs_them_and_shares_what_prompts_share(name: str, tmp_path: Path) -> None:
    write(name, tmp_path / "model", vocab_size=len(Tokenizer(str(zoo_folder() / "mamba")).inner))
    labels = {
        "data": {"generate": "world.labels", "count": 24, "seed": 5},
        "prompt": {
            "template": "prompts/labels.jinja", "target": "{{ label }}", "choices": "{{ options }}", "shots": 3,
        },
        "metrics": ["accuracy"],
    }  # fmt: skip
    records = {
        "data": {"generate": "world.records", "count": 4, "seed": 11},
        "prompt": {"template": "prompts/records.jinja", "target": "{{ value }}"},
        "decode": {"max_tokens": 3},
        "metrics": ["exact_match"],
    }
    block = {"weights": str(tmp_path / "model"), "tokenizer": "zoo/mamba"}
    spec = {"name": "original", "models": {"m": block}, "tasks": {"labels": labels, "records": records}}
    plan = compile_plan(load(spec, root=ROOT))
    (price,) = plan_json(plan)["models"]
    assert price["sharing"] > 1.5 and price["flops"] > 0 and price["kv_bytes"] > 0
    store = Store(tmp_path / "store.duckdb")
    done = run(plan, store, tmp_path)
    assert store.rows("runs", done.run_id)[0]["status"] == "finished"
    computed = sum(row["computed_tokens"] for row in store.rows("efficiency", done.run_id))
    assert computed == pytest.approx(price["distinct_tokens"])
    (one,) = [s for s in store.rows("samples", done.run_id) if s["choices"]][:1]
    assert all(np.isfinite(one["logprobs"]))
