"""The walk answers every request once, feeds each distinct token once, and changes no score by how it goes about it.

What it must equal is a plain forward of each request alone, by transformers' own models.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BambaConfig,
    GPTNeoXConfig,
    LlamaConfig,
    Mamba2Config,
    MambaConfig,
    MistralConfig,
)

from evalspec.execute.backends.forking import ForkingModel
from evalspec.execute.backends.kv import Segment
from evalspec.execute.backends.native import NativeBackend
from evalspec.execute.backends.transformers.backend import TransformersBackend
from evalspec.execute.protocols import DecodeRequest, Engine, Extended, Output, Result, Span, State
from evalspec.execute.walk import walk
from evalspec.models.card import zoo_folder
from evalspec.models.tokens import Tokenizer
from evalspec.plan.forest import Decoding, Forest, Request, build_forest
from evalspec.ssm import checkpoints

TOKENIZER = Tokenizer(str(zoo_folder() / "mamba"))
VOCABULARY = 1600
WINDOW = 16
MOST = 4  # tokens of an answer
BATCH = 64  # tokens of a pack: far less than a forest here has
SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
ATTENTION: dict[str, Any] = {**SMALL, "num_attention_heads": 4, "intermediate_size": 64, "initializer_range": 0.15}
CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaConfig(**ATTENTION, num_key_value_heads=2),
    "gpt_neox": lambda: GPTNeoXConfig(**ATTENTION),
    f"mistral with a window of {WINDOW}": lambda: MistralConfig(
        **ATTENTION, num_key_value_heads=2, sliding_window=WINDOW
    ),
    "bamba, a hybrid": lambda: BambaConfig(
        **ATTENTION,
        num_key_value_heads=2,
        attn_layer_indices=[1],
        mamba_n_heads=4,
        mamba_d_head=16,
        mamba_d_state=8,
        mamba_chunk_size=16,
    ),
    "mamba": lambda: MambaConfig(**SMALL, state_size=8, initializer_range=0.3),
    "mamba2": lambda: Mamba2Config(
        **SMALL, state_size=8, num_heads=8, head_dim=8, n_groups=2, chunk_size=16, initializer_range=0.3
    ),
}
CASES = {name: ("native" if name.startswith("mamba") else "transformers", name) for name in CONFIGS}
CASES["mamba2 through transformers"] = ("transformers", "mamba2")


@cache
def peer(name: str) -> Any:
    torch.manual_seed(3)
    return AutoModelForCausalLM.from_config(CONFIGS[name](), dtype=torch.float32).eval()


@cache
def open_case(case: str) -> ForkingModel[Any, Any]:
    kind, name = CASES[case]
    config, weights = CONFIGS[name](), peer(name).state_dict()
    if kind == "transformers":
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model.load_state_dict(weights)
        return TransformersBackend(model, TOKENIZER)
    native = checkpoints.build(config.to_dict())
    native.load_state_dict(weights)
    return NativeBackend(native.requires_grad_(False), TOKENIZER)


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Iterator[str]:
    backend = open_case(request.param)
    usual, backend.batch_tokens = backend.batch_tokens, BATCH
    yield request.param
    backend.batch_tokens = usual


class Words:
    """Token ids from a seed, none of them an end token."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def __call__(self, count: int) -> list[int]:
        return [int(token) for token in self.rng.integers(300, VOCABULARY, count)]


def score(prompt: list[int], targets: list[int]) -> Request:
    return Request(np.asarray(prompt + targets[:-1], np.int32), tuple(targets))


def answer(prompt: list[int]) -> Request:
    return Request(np.asarray(prompt, np.int32), (), Decoding(max_tokens=MOST))


def questions() -> list[Request]:
    """Shots, questions, choices of one to three tokens, and answers that share prompts with scored requests."""
    words, requests = Words(0), []
    shots = words(30)
    for question in range(6):
        prompt = shots[: 30 - 5 * (question % 2)] + words(3 + question)
        requests += [score(prompt, words(length)) for length in (1, 1, 2, 3)]
        requests.append(answer(prompt))
    return requests


def nested() -> list[Request]:
    """The same question after 0 … 16 shots of 7 tokens: each prompt with k shots goes on from the one of k − 1."""
    words, requests = Words(1), []
    shots = [words(7) for _ in range(16)]
    for count in range(17):
        for _ in range(2):
            prompt = [token for shot in shots[:count] for token in shot] + words(4)
            requests += [score(prompt, words(length)) for length in (1, 2)]
        requests.append(answer(prompt))
    return requests


def several_roots() -> list[Request]:
    """Three sets of shots, prompts that share nothing, and whole texts scored from their second token on."""
    words, requests = Words(2), []
    for _ in range(3):
        shots = words(20)
        requests += [score(shots + words(3), words(2)) for _ in range(4)]
    for length in (1, 9, 40):
        text = words(length + 1)
        requests.append(Request(np.asarray(text[:-1], np.int32), tuple(text[1:])))
        requests.append(answer(words(length)))
    return requests


def choices() -> list[Request]:
    """Ordinary few-shot multiple choice."""
    words, requests = Words(3), []
    shots = words(100)
    for _ in range(20):
        prompt = shots + words(11)
        requests += [score(prompt, words(length)) for length in (2, 3, 3, 4)]
    return requests


FORESTS = {made.__name__: made for made in (questions, nested, several_roots, choices)}


def tree(name: str) -> Forest:
    return build_forest(FORESTS[name]())


def computed(results: list[Result]) -> int:
    return sum(result.computed_tokens for result in results)


def plain(model: Any, sequences: Sequence[np.ndarray]) -> list[torch.Tensor]:
    """Log-probabilities (t, v) of each sequence by transformers' plain forward. Rows know nothing of each other, and
    padding on the right is behind all that is looked at."""
    ids = torch.zeros(len(sequences), max(map(len, sequences)), dtype=torch.long)
    for row, tokens in enumerate(sequences):
        ids[row, : len(tokens)] = torch.from_numpy(tokens.astype(np.int64))
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
    return [logits[row, : len(tokens)].log_softmax(-1) for row, tokens in enumerate(sequences)]


@cache
def alone(name: str, forest: str) -> tuple[dict[int, torch.Tensor], dict[int, list[int]]]:
    """By request: log-probabilities at the scored positions, or the greedy answer, each sequence fed as a whole."""
    requests, model = FORESTS[forest](), peer(name)
    scored = [number for number, request in enumerate(requests) if request.targets]
    answers = {number: requests[number].tokens for number, request in enumerate(requests) if request.decoding}
    logprobs = {
        number: found[-len(requests[number].targets) :]
        for number, found in zip(scored, plain(model, [requests[number].tokens for number in scored]), strict=True)
    }
    for _ in range(MOST):
        if answers:
            for number, found in zip(answers, plain(model, list(answers.values())), strict=True):
                answers[number] = np.append(answers[number], np.int32(found[-1].argmax()))
    return logprobs, {number: tokens[-MOST:].tolist() for number, tokens in answers.items()}


def check_against_alone(name: str, forest: str, results: list[Result]) -> None:
    requests = FORESTS[forest]()
    assert sorted(result.request for result in results) == list(range(len(requests)))
    logprobs, answers = alone(name, forest)
    for result in results:
        targets = list(requests[result.request].targets)
        if not targets:
            assert result.text == TOKENIZER.decode(answers[result.request])
            assert result.output_tokens == MOST
            continue
        reference = logprobs[result.request]
        np.testing.assert_allclose(result.logprobs, reference[range(len(targets)), targets].numpy(), atol=1e-4)
        assert result.greedy == tuple((reference.argmax(-1) == torch.tensor(targets)).tolist())


@pytest.mark.parametrize("forest", FORESTS)
def test_forked_equals_each_request_alone(case: str, forest: str) -> None:
    check_against_alone(CASES[case][1], forest, list(walk(tree(forest), open_case(case))))


def test_a_model_that_cannot_fork_is_fed_again_and_counted_so() -> None:
    backend = TransformersBackend(peer("mamba"), TOKENIZER, batch_tokens=BATCH)
    results = list(walk(tree("questions"), backend))
    check_against_alone("mamba", "questions", results)
    assert not backend.forks
    distinct = {request.tokens.tobytes(): len(request.tokens) for request in tree("questions").requests}
    assert computed(results) == sum(distinct.values())


@pytest.mark.parametrize("tokens", [1, 7, 4096])
@pytest.mark.parametrize("forest", ["questions", "several_roots"])
def test_the_size_of_packs_changes_no_result(case: str, forest: str, tokens: int) -> None:
    trees, backend = tree(forest), open_case(case)
    backend.batch_tokens = tokens
    results = list(walk(trees, backend))
    check_against_alone(CASES[case][1], forest, results)
    assert computed(results) == trees.distinct_tokens
    assert all(result.seconds >= 0 for result in results)


@pytest.mark.parametrize("states", [1, 3])
@pytest.mark.parametrize("forest", ["questions", "nested"])
def test_room_for_few_states_changes_nothing_but_the_computed_tokens(case: str, forest: str, states: int) -> None:
    trees, backend = tree(forest), open_case(case)
    results = list(walk(trees, backend, state_budget=states * backend.state_bytes(longest(trees))))
    check_against_alone(CASES[case][1], forest, results)
    assert computed(results) >= trees.distinct_tokens


def longest(forest: Forest) -> int:
    return max(len(request.tokens) for request in forest.requests)


@pytest.mark.parametrize("name", ["mamba", "mamba2", "llama"])
@pytest.mark.parametrize("batch_tokens", [16, 64, 2048])
def test_a_few_shot_task_is_computed_once_also_with_room_for_three_states(name: str, batch_tokens: int) -> None:
    trees, backend = tree("choices"), open_case(name)
    usual, backend.batch_tokens = backend.batch_tokens, batch_tokens
    try:
        ample = computed(list(walk(trees, backend)))
        few = computed(list(walk(trees, backend, state_budget=3 * backend.state_bytes(longest(trees)))))
    finally:
        backend.batch_tokens = usual
    assert ample <= 1.01 * trees.distinct_tokens
    assert few <= 1.5 * trees.distinct_tokens


class Counting:
    """A real backend, with every state counted that it has given out and that is still held by anybody."""

    def __init__(self, backend: ForkingModel[Any, Any]) -> None:
        self.backend = backend
        self.states = self.bytes = self.most_states = self.most_bytes = 0
        self.known: set[int] = set()
        self.decoded: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)

    def extend(self, spans: Sequence[Span]) -> Sequence[Extended]:
        extended = self.backend.extend(spans)
        for one in extended:
            if one.state is not None:
                self._count(one.state, 1, 0)
                for part in one.state.memory.chain() if isinstance(one.state.memory, Segment) else ():
                    for tensor in (*part.planes, *part.states):
                        self._count(tensor, 0, tensor.nbytes)
        self.most_states, self.most_bytes = max(self.most_states, self.states), max(self.most_bytes, self.bytes)
        return extended

    def _count(self, thing: Any, states: int, size: int) -> None:
        if id(thing) not in self.known:
            self.known.add(id(thing))
            self.states, self.bytes = self.states + states, self.bytes + size
            weakref.finalize(thing, self._gone, id(thing), states, size)

    def _gone(self, name: int, states: int, size: int) -> None:
        self.known.remove(name)
        self.states, self.bytes = self.states - states, self.bytes - size

    def decode(self, states: Sequence[State], requests: Sequence[DecodeRequest]) -> Iterator[Output]:
        self.decoded.append(len({id(state) for state in states}))
        yield from self.backend.decode(states, requests)

    def hidden_states(self, tokens: Any) -> Any:
        return self.backend.hidden_states(tokens)

    def state_bytes(self, length: int) -> int:
        return self.backend.state_bytes(length)

    def peak_memory(self) -> int | None:
        return None


@pytest.mark.parametrize(("states", "batch_tokens"), [(1, 64), (2, 16), (3, 64), (3, 4096), (8, 64)])
@pytest.mark.parametrize("forest", FORESTS)
def test_no_more_states_live_than_the_budget_or_two(forest: str, states: int, batch_tokens: int) -> None:
    trees, backend = tree(forest), Counting(open_case("mamba"))
    usual, backend.backend.batch_tokens = backend.backend.batch_tokens, batch_tokens
    try:
        results = list(walk(trees, backend, state_budget=states * backend.state_bytes(1)))
    finally:
        backend.backend.batch_tokens = usual
    assert len(results) == len(trees.requests)
    assert backend.most_states <= max(2, states)
    assert all(decoded <= states for decoded in backend.decoded)
    assert backend.states == 0


@pytest.mark.parametrize(
    ("name", "states"), [("llama", 1), ("llama", 3), ("bamba, a hybrid", 2), ("bamba, a hybrid", 4)]
)
@pytest.mark.parametrize("forest", FORESTS)
def test_keys_and_values_stay_within_the_budget_and_one_pack(forest: str, name: str, states: int) -> None:
    """What branches share counts once, so room for one longest sequence holds many of the prompts that wait. A pack
    may leave its own tokens more, until those that wait are answered."""
    trees, backend = tree(forest), Counting(open_case(name))
    usual, backend.backend.batch_tokens = backend.backend.batch_tokens, BATCH
    budget = states * backend.state_bytes(longest(trees))
    try:
        results = list(walk(trees, backend, state_budget=budget))
    finally:
        backend.backend.batch_tokens = usual
    assert computed(results) == trees.distinct_tokens or name.startswith("bamba")
    assert 0 < backend.most_bytes <= budget + backend.state_bytes(BATCH)
    assert backend.bytes == 0


def test_ample_memory_keeps_no_more_states_than_the_path_and_what_waits() -> None:
    backend, trees = Counting(open_case("mamba")), tree("choices")
    list(walk(trees, backend))
    assert backend.most_states <= 2  # after the shots, and after a question that a pack cuts


def test_a_deep_forest_is_fed_again_no_more_than_its_budget_makes_it() -> None:
    """Seventeen nested prompts: with room for few of their states, the rest is fed again from the nearest one."""
    trees = build_forest([request for request in nested() if request.targets])
    backend = NativeBackend(open_case("mamba").model, TOKENIZER, batch_tokens=32)
    ratios = [
        computed(list(walk(trees, backend, state_budget=states * backend.state_bytes(1)))) / trees.distinct_tokens
        for states in (2, 3, 5, 9, 17)
    ]
    print("computed / distinct:", ratios)
    assert ratios == sorted(ratios, reverse=True)
    assert ratios[1] < 2
    assert ratios[-1] == 1


def test_equal_requests_and_repeats_of_one_prompt_have_results_of_their_own() -> None:
    prompt, backend = np.asarray([400, 500, 600], np.int32), open_case("mamba2")
    requests = [Request(prompt, (), Decoding(max_tokens=6, temperature=1.0), repeat) for repeat in range(3)]
    requests += [Request(prompt, (7,)), Request(prompt, (7,)), Request(prompt, (8,))]
    results = sorted(walk(build_forest(requests), backend), key=lambda result: result.request)
    assert [result.request for result in results] == list(range(6))
    assert len({result.text for result in results[:3]}) > 1
    assert results[3].logprobs == results[4].logprobs != results[5].logprobs
    assert computed(results) == 3


def test_an_engine_is_handed_the_whole_forest() -> None:
    class Echo:
        """A real, if simple, engine: it answers each prompt with its length."""

        name, version, identity = "echo", "1", ("echo",)

        def complete(self, forest: Forest):  # type: ignore[no-untyped-def]
            for number, request in enumerate(forest.requests):
                yield Result(number, text=str(len(request.tokens)), computed_tokens=len(request.tokens))

        def peak_memory(self) -> None:
            return None

    trees, engine = tree("questions"), Echo()
    assert isinstance(engine, Engine)
    results = list(walk(trees, engine))
    assert computed(results) == trees.prompt_tokens
