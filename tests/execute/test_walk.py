"""The walk answers every request once, feeds each distinct token once, and changes no score by how it goes about it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import BambaConfig, BambaForCausalLM, LlamaConfig, LlamaForCausalLM, MambaConfig, MambaForCausalLM

from evalspec.execute.backends.native import NativeBackend
from evalspec.execute.backends.transformers import TransformersBackend
from evalspec.execute.protocols import Engine, ForkingBackend, Result
from evalspec.execute.walk import walk
from evalspec.models.card import zoo_folder
from evalspec.models.tokens import Tokenizer
from evalspec.plan.forest import Decoding, Forest, Request, build_forest
from evalspec.ssm import checkpoints

TOKENIZER = Tokenizer(str(zoo_folder() / "mamba"))
VOCABULARY = 1600


@pytest.fixture(scope="module", params=["llama", "native mamba", "mamba through transformers", "bamba"])
def backend(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ForkingBackend:
    torch.manual_seed(0)
    if request.param == "llama":
        config = LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
        )
        return TransformersBackend(LlamaForCausalLM(config), TOKENIZER)
    if request.param == "bamba":
        hybrid = BambaConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            attn_layer_indices=[1],
            mamba_n_heads=4,
            mamba_d_head=16,
            mamba_d_state=8,
            mamba_chunk_size=16,
        )
        return TransformersBackend(BambaForCausalLM(hybrid), TOKENIZER)
    mamba = MambaForCausalLM(MambaConfig(vocab_size=VOCABULARY, hidden_size=48, state_size=8, num_hidden_layers=2))
    if request.param != "native mamba":
        return TransformersBackend(mamba, TOKENIZER)
    folder = tmp_path_factory.mktemp("mamba")
    mamba.save_pretrained(folder)
    return NativeBackend(checkpoints.load(folder, dtype=torch.float32, device=torch.device("cpu")), TOKENIZER)


def forest() -> Forest:
    """Shots, questions, choices of one to three tokens, and generations that share prompts with scored requests."""
    rng = np.random.default_rng(0)

    def words(count: int) -> list[int]:
        return [int(token) for token in rng.integers(300, VOCABULARY, count)]

    shots, requests = words(30), []
    for question in range(6):
        prompt = shots[: 30 - 5 * (question % 2)] + words(3 + question)
        for length in (1, 1, 2, 3):
            targets = words(length)
            requests.append(Request(np.asarray(prompt + targets[:-1], np.int32), tuple(targets)))
        requests.append(Request(np.asarray(prompt, np.int32), (), Decoding(max_tokens=5)))
    return build_forest(requests)


def scored(results: list[Result]) -> dict[int, np.ndarray]:
    return {result.request: np.asarray(result.logprobs) for result in results if result.text is None}


def test_every_request_is_answered_once_and_every_distinct_token_fed_once(backend: ForkingBackend) -> None:
    trees = forest()
    results = list(walk(trees, backend))
    assert sorted(result.request for result in results) == list(range(len(trees.requests)))
    computed = sum(result.computed_tokens for result in results)
    assert computed == trees.distinct_tokens if backend.forks else computed > trees.distinct_tokens
    assert all(result.seconds >= 0 for result in results)


def test_scores_equal_a_plain_forward_of_each_request_alone(backend: ForkingBackend) -> None:
    trees = forest()
    model = backend.model  # type: ignore[attr-defined]
    for result in walk(trees, backend):
        request = trees.requests[result.request]
        if request.decoding:
            continue
        ids = torch.from_numpy(request.tokens.astype(np.int64))[None]
        with torch.inference_mode():
            if isinstance(backend, NativeBackend):
                logits = model.head(model(ids)[0])[0]
            else:
                logits = model(ids).logits[0]
        expected = logits.float().log_softmax(-1)[-len(request.targets) :]
        taken = expected[range(len(request.targets)), list(request.targets)]
        assert np.allclose(result.logprobs, taken.numpy(), atol=1e-4)
        assert result.greedy == tuple((expected.argmax(-1) == torch.tensor(request.targets)).tolist())


def test_a_small_budget_for_states_changes_no_result(backend: ForkingBackend) -> None:
    trees = forest()
    roomy, tight = list(walk(trees, backend)), list(walk(trees, backend, state_budget=1))
    ours, theirs = scored(roomy), scored(tight)
    assert ours.keys() == theirs.keys()
    assert all(np.allclose(ours[number], theirs[number], atol=1e-4) for number in ours)
    texts = [{r.request: (r.text, r.finish_reason) for r in some if r.text is not None} for some in (roomy, tight)]
    assert texts[0] == texts[1]


def test_an_engine_is_handed_the_whole_forest() -> None:
    class Echo:
        """A real, if simple, engine: it answers each prompt with its length."""

        name, version, identity = "echo", "1", ("echo",)

        def complete(self, forest: Forest):  # type: ignore[no-untyped-def]
            for number, request in enumerate(forest.requests):
                yield Result(number, text=str(len(request.tokens)), computed_tokens=len(request.tokens))

        def peak_memory(self) -> None:
            return None

    trees, engine = forest(), Echo()
    assert isinstance(engine, Engine)
    results = list(walk(trees, engine))
    assert sum(result.computed_tokens for result in results) == trees.prompt_tokens
