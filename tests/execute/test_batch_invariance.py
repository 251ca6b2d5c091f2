"""`batch_invariant`: the same numbers to the last bit, however a forest is cut into batches.

On a GPU if there is one.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    GptOssConfig,
    LlamaConfig,
    Mamba2Config,
    MambaConfig,
    MistralConfig,
    MixtralConfig,
)

from evalspec.errors import BackendError, ModelError
from evalspec.execute.backends.batch_invariance import ROWS, Invariant
from evalspec.execute.backends.native import NativeBackend
from evalspec.execute.backends.transformers.backend import TransformersBackend, open_transformers
from evalspec.execute.opening import open_backend
from evalspec.execute.protocols import Result
from evalspec.execute.walk import walk
from evalspec.models.card import find_model, zoo_folder
from evalspec.models.tokens import Tokenizer
from evalspec.plan.forest import Decoding, Forest, Request, alone, build_forest
from evalspec.spec.model import ModelBlock
from evalspec.ssm import checkpoints

Backend = TransformersBackend | NativeBackend
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOKENIZER = Tokenizer(str(zoo_folder() / "mamba"))
VOCABULARY = 1600
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 160, "num_hidden_layers": 3, "num_attention_heads": 4,
    "intermediate_size": 352, "initializer_range": 0.1, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
GROUPED = {**SHAPE, "num_key_value_heads": 2}
CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaConfig(**GROUPED),
    "gpt2": lambda: GPT2Config(vocab_size=VOCABULARY, n_embd=160, n_layer=3, n_head=4, initializer_range=0.1),
    "gpt_neox": lambda: GPTNeoXConfig(**SHAPE),
    "mistral with a window of 16": lambda: MistralConfig(**GROUPED, sliding_window=16),
    "gemma2 with soft caps": lambda: Gemma2Config(
        **GROUPED, head_dim=40, sliding_window=16, attn_logit_softcapping=5.0, final_logit_softcapping=20.0
    ),
    "mixtral of 4 experts": lambda: MixtralConfig(**GROUPED, num_local_experts=4, num_experts_per_tok=2),
    "gpt_oss with sinks": lambda: GptOssConfig(
        **GROUPED, head_dim=40, num_local_experts=4, num_experts_per_tok=2, sliding_window=16
    ),
}

RECURRENT: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 160, "num_hidden_layers": 3, "initializer_range": 0.3,
}  # fmt: skip
NATIVE: dict[str, Callable[[], Any]] = {
    "mamba": lambda: MambaConfig(**RECURRENT, state_size=16),
    "mamba2": lambda: Mamba2Config(**RECURRENT, state_size=32, num_heads=10, head_dim=32, n_groups=2),
}


def build(config: Any, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(3)
    return AutoModelForCausalLM.from_config(config, dtype=dtype).to(DEVICE).eval()


def forest(long: int = 150) -> Forest:
    """Shots, questions, choices of one to three tokens; answers, greedy and sampled; one question with shots of its
    own, longer than a unit of attention."""
    rng, requests = np.random.default_rng(0), []

    def draw(count: int) -> list[int]:
        return [int(token) for token in rng.integers(300, VOCABULARY, count)]

    shots = draw(long)
    for number in range(12):
        prompt = (draw(long) if number == 5 else shots[: long - 5 * (number % 3)]) + draw(3 + number)
        for length in (1, 1, 2, 3):
            targets = draw(length)
            requests.append(Request(np.asarray(prompt + targets[:-1], np.int32), tuple(targets)))
        decoding = Decoding(max_tokens=12, temperature=0.8 * (number % 2))
        requests.append(Request(np.asarray(prompt, np.int32), (), decoding))
    return build_forest(requests)


def native(name: str, dtype: torch.dtype, **settings: Any) -> NativeBackend:
    config = NATIVE[name]()
    model = checkpoints.build(config.to_dict())
    torch.manual_seed(3)
    model.load_state_dict(AutoModelForCausalLM.from_config(config, dtype=torch.float32).state_dict())
    return NativeBackend(model.to(DEVICE, dtype).requires_grad_(False), TOKENIZER, **settings)


def answers(backend: Backend, asked: Forest, **settings: Any) -> dict[str, Result]:
    """By request; `batch_tokens`, `most_rows` and the walk's `state_budget` may be set."""
    usual = backend.batch_tokens, backend.most_rows
    backend.batch_tokens = settings.pop("batch_tokens", usual[0])
    backend.most_rows = settings.pop("most_rows", usual[1])
    found = {asked.requests[result.request].key: result for result in walk(asked, backend, **settings)}
    backend.batch_tokens, backend.most_rows = usual
    return found


def logprobs(found: dict[str, Result], like: dict[str, Result]) -> np.ndarray:
    return np.concatenate([np.asarray(found[key].logprobs) for key in like])


def otherwise(backend: Backend, asked: Forest) -> dict[str, dict[str, Result]]:
    return {
        "packs of 64": answers(backend, asked, batch_tokens=64),
        "packs of 301": answers(backend, asked, batch_tokens=301),
        "each request by itself": answers(backend, alone(asked)),
        "a row at a time": answers(backend, asked, most_rows=1),
        "3 rows, states fed again": answers(backend, asked, most_rows=3, state_budget=1),
    }


# In 16 bits the near ties of a random router fall otherwise in transformers' own pass, which is what a way is held to.
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        (name, dtype)
        for name in CONFIGS
        for dtype in (torch.float32, torch.bfloat16)
        if dtype == torch.float32 or "experts" not in name
    ],
)
def test_no_batch_changes_a_bit(name: str, dtype: torch.dtype) -> None:
    hold_equal(TransformersBackend(build(CONFIGS[name](), dtype), TOKENIZER, batch_invariant=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", NATIVE)
def test_no_batch_changes_a_bit_of_a_state_space_model(name: str, dtype: torch.dtype) -> None:
    hold_equal(native(name, dtype, batch_invariant=True))


def hold_equal(backend: Backend) -> None:
    asked = forest()
    whole = answers(backend, asked)
    for way, found in otherwise(backend, asked).items():
        np.testing.assert_array_equal(logprobs(found, whole), logprobs(whole, whole), err_msg=way)
        assert [found[key].text for key in whole] == [result.text for result in whole.values()], way


@pytest.mark.parametrize("name", ["llama", "mamba2"])
def test_without_it_batches_do_change_bits(name: str) -> None:
    """So that the tests above have something to find."""
    plain = TransformersBackend(build(CONFIGS["llama"]()), TOKENIZER)
    backend: Backend = plain if name == "llama" else native(name, torch.float32)
    asked = forest()
    whole = answers(backend, asked)
    assert any((logprobs(found, whole) != logprobs(whole, whole)).any() for found in otherwise(backend, asked).values())


def test_it_changes_what_is_computed_by_rounding_alone() -> None:
    model, asked = build(CONFIGS["llama"]()), forest()
    usual = answers(TransformersBackend(model, TOKENIZER), asked)
    invariant = answers(TransformersBackend(model, TOKENIZER, batch_invariant=True), asked)
    np.testing.assert_allclose(logprobs(invariant, usual), logprobs(usual, usual), atol=2e-5)


@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 2 * ROWS[DEVICE]])
def test_products_of_one_shape_are_the_products(count: int) -> None:
    tokens = torch.randn(2, count, 40, device=DEVICE, dtype=torch.float64)
    linear = nn.Linear(40, 24, device=DEVICE, dtype=torch.float64)
    weight, bias = linear.weight.T, linear.bias
    with torch.inference_mode():
        expected = [linear(tokens), tokens[0] @ weight, torch.addmm(bias, tokens[0], weight, beta=2, alpha=3)]
        with Invariant():
            found = [linear(tokens), tokens[0] @ weight, torch.addmm(bias, tokens[0], weight, beta=2, alpha=3)]
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        torch.testing.assert_close(one, other)


def block(weights: str, **settings: Any) -> Any:
    return find_model("mine", ModelBlock(weights=weights, **settings), Path.cwd())


@pytest.mark.parametrize("name", ["transformer", "mamba2"])
def test_answers_with_and_without_it_are_kept_apart(name: str) -> None:
    plain, invariant = (
        cast(Backend, open_backend(block(f"zoo/{name}", device="cpu", batch_invariant=asked)))
        for asked in (False, True)
    )
    assert set(invariant.identity) == {*plain.identity, "batch_invariant"}


@pytest.mark.parametrize(
    ("weights", "settings", "said"),
    [
        ("zoo/mamba2", {"kernels": "torch"}, "has kernels of its own, which `kernels: torch` would not be"),
        ("zoo/mamba", {"backend": "transformers"}, "is `backend: native`'s for zoo/mamba; transformers runs it"),
        ("zoo/mamba", {"state_dtype": "bfloat16"}, "keeps states in float32, not in `state_dtype: bfloat16`"),
        ("gpt-4", {"backend": "server", "url": "http://localhost:8000/v1", "tokenizer": "zoo/mamba"},
         "needs `native` or `transformers`; gpt-4 runs on server"),
    ],
)  # fmt: skip
def test_what_cannot_be_had_is_said_before_anything_is_loaded(
    weights: str, settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(BackendError, match=f"models.mine: `batch_invariant: true` {said}"):
        block(weights, batch_invariant=True, **settings)


@pytest.fixture
def bloom(tmp_path: Path) -> str:
    """Its attention is its own (ALiBi)."""
    config = BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4)
    build(config).save_pretrained(tmp_path / "bloom")
    TOKENIZER.inner.save_pretrained(tmp_path / "bloom")
    return str(tmp_path / "bloom")


def test_a_model_whose_attention_cannot_be_taken_over_is_refused(bloom: str) -> None:
    said = "models.mine: `batch_invariant: true` cannot be had of BloomForCausalLM: its attention cannot be taken over"
    with pytest.raises(ModelError, match=re.escape(said)):
        open_transformers(block(bloom, batch_invariant=True))


class Meeting(nn.Module):
    """A layer in which tokens meet, by so little that only the last bits tell."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, tokens: Tensor) -> Tensor:
        return self.inner(tokens) * (1 + 1e-6 * tokens.mean())


def test_a_model_in_which_tokens_meet_outside_of_attention_is_refused() -> None:
    model = build(CONFIGS["llama"]())
    model.model.layers[1].mlp = Meeting(model.model.layers[1].mlp)
    with pytest.raises(ModelError, match=r"1 token in a row come out otherwise than among \d+; leave it out, or say "):
        TransformersBackend(model, TOKENIZER, batch_invariant=True)


def test_several_requests_for_one_prompt_are_unaffected() -> None:
    """A request's repeats draw from numbers of their own, whatever their batch."""
    backend = TransformersBackend(build(CONFIGS["llama"]()), TOKENIZER, batch_invariant=True)
    prompt = np.arange(300, 340, dtype=np.int32)
    asked = build_forest(
        replace(Request(prompt, (), Decoding(max_tokens=8, temperature=1.0)), repeat=repeat) for repeat in range(5)
    )
    one, other = answers(backend, asked), answers(backend, asked, most_rows=2)
    assert {key: result.text for key, result in one.items()} == {key: result.text for key, result in other.items()}
