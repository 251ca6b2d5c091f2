"""What both forking backends promise: a plain forward's numbers, whatever the batch, from any state."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer as Fast
from tokenizers import decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    BambaConfig,
    BloomConfig,
    FalconH1Config,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    JambaConfig,
    Lfm2Config,
    LlamaConfig,
    Mamba2Config,
    MambaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen3NextConfig,
    Zamba2Config,
)

from evalspec.errors import RunError
from evalspec.execute.backends.forking import ForkingModel
from evalspec.execute.backends.native import NativeBackend
from evalspec.execute.backends.transformers.backend import TransformersBackend
from evalspec.execute.protocols import DecodeRequest, Output, Span
from evalspec.models.forking import why_fed_again
from evalspec.models.tokens import Tokenizer
from evalspec.plan.forest import Decoding
from evalspec.ssm import checkpoints

VOCABULARY = 61


class Letters(Tokenizer):
    """A real tokenizer of 61 tokens: `a0` … `z1`, `\\n` and such, joined without spaces; 60 is the end token."""

    def __init__(self) -> None:
        super().__init__("letters")
        names = [f"{letter}{digit}" for digit in "01" for letter in "abcdefghijklmnopqrstuvwxyz"]
        names += ["\n", "\n\n", "x\ny", " ", "??", "!!", ".", "<unk>", "<end>"]
        fast = Fast(models.WordLevel({name: number for number, name in enumerate(names)}, unk_token="<unk>"))
        fast.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        fast.decoder = decoders.Fuse()
        self.__dict__["inner"] = PreTrainedTokenizerFast(
            tokenizer_object=fast, unk_token="<unk>", eos_token="<end>", clean_up_tokenization_spaces=False
        )


SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 3,
    "bos_token_id": 1, "eos_token_id": 60, "pad_token_id": 0,
}  # fmt: skip
ATTENTION: dict[str, Any] = {**SMALL, "num_attention_heads": 4, "intermediate_size": 64, "initializer_range": 0.15}
SSD: dict[str, Any] = {
    "mamba_d_state": 8, "mamba_expand": 2, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 2,
    "mamba_chunk_size": 16,
}  # fmt: skip
CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaConfig(**ATTENTION, num_key_value_heads=2),
    "gpt2": lambda: GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=3, n_head=4, n_positions=64, initializer_range=0.3
    ),
    "gpt_neox": lambda: GPTNeoXConfig(**ATTENTION),
    "mistral with a window of 8": lambda: MistralConfig(**ATTENTION, num_key_value_heads=2, sliding_window=8),
    "gemma2 with soft caps": lambda: Gemma2Config(
        **ATTENTION, num_key_value_heads=2, head_dim=8, sliding_window=8, final_logit_softcapping=2.0,
        attn_logit_softcapping=1.0,
    ),
    "bloom with ALiBi": lambda: BloomConfig(
        vocab_size=VOCABULARY, hidden_size=32, n_layer=3, n_head=4, initializer_range=0.3
    ),
    "mamba": lambda: MambaConfig(**SMALL, state_size=8, initializer_range=0.3),
    "mamba2": lambda: Mamba2Config(
        **SMALL, state_size=8, num_heads=8, head_dim=8, n_groups=2, chunk_size=16, initializer_range=0.3
    ),
    # Mamba-2 and attention in turn; both in each layer; short convolutions; the gated delta rule
    "bamba": lambda: BambaConfig(**ATTENTION, **SSD, num_key_value_heads=2, attn_layer_indices=[1]),
    "falcon_h1": lambda: FalconH1Config(**ATTENTION, **SSD, num_key_value_heads=2, head_dim=8, mamba_d_ssm=64),
    "lfm2": lambda: Lfm2Config(**ATTENTION, num_key_value_heads=2, layer_types=["conv", "full_attention", "conv"]),
    "qwen3_next": lambda: Qwen3NextConfig(
        **ATTENTION, num_key_value_heads=2, layer_types=["linear_attention", "full_attention", "linear_attention"],
        head_dim=8, linear_key_head_dim=8, linear_value_head_dim=8, linear_num_key_heads=2, linear_num_value_heads=4,
        num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, shared_expert_intermediate_size=32,
    ),
    # Hybrids that transformers does not continue rightly
    "jamba": lambda: JambaConfig(
        **ATTENTION, num_key_value_heads=2, attn_layer_period=3, attn_layer_offset=1, expert_layer_period=2,
        expert_layer_offset=1, num_experts=4, mamba_d_state=8,
    ),
    "zamba2": lambda: Zamba2Config(
        **ATTENTION, layers_block_type=["mamba", "hybrid", "mamba"], mamba_d_state=8, mamba_expand=2, n_mamba_heads=8,
        mamba_headdim=8, mamba_ngroups=2, chunk_size=16, num_mem_blocks=1, adapter_rank=4,
    ),
}  # fmt: skip
FED_AGAIN = {"mamba", "jamba", "zamba2"}  # through transformers
CASES = [("transformers", name) for name in CONFIGS] + [("native", "mamba"), ("native", "mamba2")]


def drawn(name: str, **settings: Any) -> Any:
    torch.manual_seed(3)
    return AutoModelForCausalLM.from_config(CONFIGS[name](), dtype=torch.float32, **settings).eval()


def peer(name: str) -> Any:
    """The model itself. The default implementation of attention leaves caps of scores out (transformers 5.19)."""
    return drawn(name, **({"attn_implementation": "eager"} if "caps" in name else {}))


def open_case(backend: str, name: str, batch_tokens: int | None = None) -> ForkingModel[Any, Any]:
    model, ends = drawn(name), frozenset({60})
    if backend == "transformers":
        return TransformersBackend(model, Letters(), end_tokens=ends, batch_tokens=batch_tokens)
    native = checkpoints.build(model.config.to_dict())
    native.load_state_dict(model.state_dict())
    return NativeBackend(native.requires_grad_(False), Letters(), end_tokens=ends, batch_tokens=batch_tokens)


@pytest.fixture(scope="module", params=CASES, ids=[f"{backend}: {name}" for backend, name in CASES])
def case(request: pytest.FixtureRequest) -> tuple[ForkingModel[Any, Any], Any]:
    return open_case(*request.param), peer(request.param[1])


def expected(model: Any, tokens: np.ndarray) -> torch.Tensor:
    """Log-probabilities (t, v) by the model's own plain forward of one sequence."""
    with torch.no_grad():
        return (
            model(input_ids=torch.from_numpy(tokens.astype(np.int64))[None], use_cache=False).logits[0].log_softmax(-1)
        )


def sequences(count: int, shortest: int, longest: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 52, rng.integers(shortest, longest + 1)).astype(np.int32) for _ in range(count)]


def whole_span(tokens: np.ndarray, *, keep: bool = False) -> Span:
    """Score every token but the first."""
    return Span(tokens, None, np.arange(len(tokens) - 1), tokens[1:].astype(np.int64), keep)


def test_scores_equal_the_plain_forward_of_each_sequence(case: tuple[ForkingModel[Any, Any], Any]) -> None:
    backend, model = case
    batch = sequences(9, 2, 40)
    for tokens, extended in zip(batch, backend.extend([whole_span(tokens) for tokens in batch]), strict=True):
        reference = expected(model, tokens)
        targets = torch.from_numpy(tokens[1:].astype(np.int64))
        np.testing.assert_allclose(
            extended.logprobs, reference[:-1].gather(1, targets[:, None])[:, 0].numpy(), atol=2e-5
        )
        np.testing.assert_array_equal(extended.greedy, (reference[:-1].argmax(-1) == targets).numpy())


def test_children_of_one_parent_equal_the_plain_forward_of_their_paths(
    case: tuple[ForkingModel[Any, Any], Any],
) -> None:
    """Two levels of forks, different parents in one batch, spans of 1, 3 and 20 tokens, scores from −1 on."""
    backend, model = case
    roots = sequences(3, 1, 12, seed=1)
    parents = backend.extend([Span(tokens, keep=True) for tokens in roots])
    spans, paths = [], []
    for root, parent in zip(roots, parents, strict=True):
        for length in (1, 3, 20):
            span = sequences(1, length, length, seed=length)[0]
            offsets = np.arange(-1, length - 1)
            spans.append(Span(span, parent.state, offsets, span.astype(np.int64), keep=True))
            paths.append(np.concatenate([root, span]))
    fresh = sequences(1, 7, 7, seed=9)[0]
    spans.append(whole_span(fresh))  # a new sequence beside continued ones
    children = backend.extend(spans)
    for span, path, child in zip(spans[:-1], paths, children[:-1], strict=True):
        reference = expected(model, path)[-len(span.tokens) - 1 : -1]
        np.testing.assert_allclose(
            child.logprobs, reference[torch.arange(len(span.tokens)), span.tokens.astype(np.int64)].numpy(), atol=3e-5
        )
    np.testing.assert_allclose(
        children[-1].logprobs, expected(model, fresh)[torch.arange(6), fresh[1:].astype(np.int64)].numpy(), atol=3e-5
    )
    grandchildren = backend.extend(
        [
            Span(np.array([5, 6], np.int32), child.state, np.array([-1, -1, 0]), np.array([5, 9, 6]))
            for child in children[:-1]
        ]
    )
    for path, grandchild in zip(paths, grandchildren, strict=True):
        reference = expected(model, np.concatenate([path, [5]]))
        np.testing.assert_allclose(
            grandchild.logprobs, [reference[-2, 5], reference[-2, 9], reference[-1, 6]], atol=3e-5
        )


def test_batch_size_and_order_change_no_score(case: tuple[ForkingModel[Any, Any], Any]) -> None:
    backend, _ = case
    batch = sequences(16, 2, 40, seed=2)
    together = backend.extend([whole_span(tokens) for tokens in batch])
    backwards = backend.extend([whole_span(tokens) for tokens in reversed(batch)])[::-1]
    for tokens, one, other in zip(batch, together, backwards, strict=True):
        (alone,) = backend.extend([whole_span(tokens)])
        np.testing.assert_allclose(one.logprobs, alone.logprobs, atol=1e-5)
        np.testing.assert_allclose(other.logprobs, alone.logprobs, atol=1e-5)


def generate(
    backend: ForkingModel[Any, Any], prompts: Sequence[np.ndarray], decoding: Sequence[Decoding]
) -> list[Output]:
    states = [extended.state for extended in backend.extend([Span(tokens, keep=True) for tokens in prompts])]
    requests = [DecodeRequest(settings, number, stream=1000 + number) for number, settings in enumerate(decoding)]
    return sorted(backend.decode(states, requests), key=lambda output: output.request)


def test_greedy_answers_are_those_of_repeated_plain_forwards(case: tuple[ForkingModel[Any, Any], Any]) -> None:
    backend, model = case
    prompts = sequences(5, 1, 12, seed=4)
    outputs = generate(backend, prompts, [Decoding(max_tokens=8 + number) for number in range(5)])
    for number, (prompt, output) in enumerate(zip(prompts, outputs, strict=True)):
        tokens, answer = prompt, []
        while len(answer) < 8 + number and 60 not in answer:
            answer.append(int(expected(model, tokens)[-1].argmax()))
            tokens = np.append(tokens, np.int32(answer[-1]))
        assert output.tokens == tuple(answer)
        assert output.finish_reason == ("stop" if answer[-1] == 60 else "length")


def test_batch_size_and_order_change_no_answer_greedy_or_sampled(case: tuple[ForkingModel[Any, Any], Any]) -> None:
    backend, _ = case
    prompts = sequences(16, 1, 12, seed=5)
    settings = [
        Decoding(max_tokens=4 + number % 9, temperature=0.8 * (number % 2), top_k=[0, 20][number % 3 == 1], top_p=0.9)
        for number in range(16)
    ]
    together = generate(backend, prompts, settings)
    for number in range(16):
        states = [extended.state for extended in backend.extend([Span(prompts[number], keep=True)])]
        (alone,) = backend.decode(states, [DecodeRequest(settings[number], number, stream=1000 + number)])
        assert alone == together[number]
    rows = backend.most_rows
    backend.most_rows = 3  # requests join as others finish
    try:
        assert generate(backend, prompts, settings) == together
    finally:
        backend.most_rows = rows


def test_repeats_of_one_request_differ_and_each_comes_again() -> None:
    backend = open_case("native", "mamba")
    (extended,) = backend.extend([Span(np.array([1, 2, 3], np.int32), keep=True)])
    settings = Decoding(max_tokens=12, temperature=1.0)
    requests = [DecodeRequest(settings, 0, repeat, stream=repeat) for repeat in range(6)]
    first = {output.repeat: output.tokens for output in backend.decode([extended.state] * 6, requests)}
    again = {output.repeat: output.tokens for output in backend.decode([extended.state] * 6, requests[::-1])}
    assert first == again
    assert len(set(first.values())) == 6


def test_a_stop_text_within_or_across_tokens_ends_the_answer_before_it() -> None:
    backend = open_case("transformers", "llama")
    prompt = [np.array([3, 1, 4], np.int32)]
    (free,) = generate(backend, prompt, [Decoding(max_tokens=10)])
    pieces = [Letters().decode([token]) for token in free.tokens]
    across = pieces[2][-1:] + pieces[3][:1]
    text = "".join(pieces)
    (stopped,) = generate(backend, prompt, [Decoding(max_tokens=10, stop=("not there", across))])
    assert stopped.finish_reason == "stop"
    assert stopped.text == text[: text.index(across)]
    assert free.finish_reason == "length"
    assert free.text == text


def test_hidden_states_are_the_residual_stream_from_embedding_to_last_block(
    case: tuple[ForkingModel[Any, Any], Any],
) -> None:
    """Its differences are what blocks add; transformers' own list agrees in the middle, where all families do."""
    backend, model = case
    (tokens,) = sequences(1, 9, 9, seed=6)
    states = backend.hidden_states(tokens)
    assert states.shape == (4, 9, 32)
    with torch.no_grad():
        listed = model(
            input_ids=torch.from_numpy(tokens.astype(np.int64))[None], output_hidden_states=True, use_cache=False
        ).hidden_states
    shift = 1 if model.config.model_type.startswith("mamba") else 0  # transformers' Mamba omits the embedding
    for layer in (1, 2):
        np.testing.assert_allclose(states[layer], listed[layer - shift][0].numpy(), atol=1e-4)


def test_out_of_memory_halves_the_batch_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = open_case("native", "mamba")
    batch = sequences(8, 4, 9, seed=7)
    want = backend.extend([whole_span(tokens) for tokens in batch])
    settings = [Decoding(max_tokens=6)] * 8
    answers = generate(backend, batch, settings)
    fed: list[int] = []

    def scarce(real: Callable[..., Any], most: int) -> Callable[..., Any]:
        def run(tokens: torch.Tensor, *rest: Any) -> Any:
            if len(tokens) > most:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
            fed.append(len(tokens))
            return real(tokens, *rest)

        return run

    monkeypatch.setattr(backend, "_feed", scarce(backend._feed, 5))  # a pack of 5 tokens: spans are cut, too
    monkeypatch.setattr(backend, "_step", scarce(backend._step, 3))
    for one, other in zip(want, backend.extend([whole_span(tokens) for tokens in batch]), strict=True):
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-5)
    assert 1 < max(fed) <= 5
    assert generate(backend, batch, settings) == answers

    def none(*rest: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr(backend, "_feed", none)
    with pytest.raises(RunError, match="one token alone does not fit"):
        backend.extend([whole_span(batch[0])])


def test_a_parent_stays_usable_after_its_children(case: tuple[ForkingModel[Any, Any], Any]) -> None:
    backend, _ = case
    (tokens,) = sequences(1, 6, 6, seed=8)
    (parent,) = backend.extend([Span(tokens, keep=True)])
    child = Span(np.array([7, 8, 9], np.int32), parent.state, np.array([-1, 0, 1]), np.array([7, 8, 9]))
    (before,) = backend.extend([child])
    list(backend.decode([parent.state] * 2, [DecodeRequest(Decoding(max_tokens=5), n) for n in range(2)]))
    (after,) = backend.extend([child])
    np.testing.assert_array_equal(before.logprobs, after.logprobs)


@pytest.mark.parametrize("name", list(CONFIGS))
def test_what_transformers_continues_wrongly_is_never_forked_and_known_beforehand(name: str) -> None:
    config = peer(name).config
    assert open_case("transformers", name).forks == (name not in FED_AGAIN)
    assert (why_fed_again(json.loads(config.to_json_string())) is None) == (name not in FED_AGAIN)


@pytest.mark.parametrize("name", ["mamba", "mamba2", "bamba", "jamba"])
def test_sixteen_bits_hide_no_state_that_is_lost(name: str) -> None:
    """By default weights, whose short texts hardly depend on what was read long before."""
    config = CONFIGS[name]()
    config.initializer_range = 0.02
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    assert TransformersBackend(model).forks == (name not in FED_AGAIN)


def test_time_steps_that_are_bounded_are_not_forked() -> None:
    """transformers bounds them for several tokens and not for one: a state fed token by token would be another."""
    config = Mamba2Config(**CONFIGS["mamba2"]().to_dict() | {"time_step_limit": (0.01, 0.2)})
    assert not TransformersBackend(AutoModelForCausalLM.from_config(config)).forks
    assert "bounds its time steps" in str(why_fed_again(json.loads(config.to_json_string())))


def test_few_spans_a_pack_change_no_score() -> None:
    """Recurrent states of one pack's spans stand in memory together, so that their number is bounded."""
    backend = open_case("transformers", "bamba")
    batch = [whole_span(tokens, keep=True) for tokens in sequences(7, 2, 20, seed=13)]
    batch.insert(1, Span(np.array([5, 6], np.int32), 0, np.array([-1, 0]), np.array([5, 6])))
    want = backend.extend(batch)
    backend.most_spans = 2
    for one, other in zip(want, backend.extend(batch), strict=True):
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-5)


def test_a_model_that_is_fed_again_decodes_from_its_cache() -> None:
    backend = open_case("transformers", "jamba")
    fed: list[int] = []
    hook = backend.model.get_input_embeddings().register_forward_pre_hook(  # type: ignore[attr-defined]
        lambda module, args: fed.append(args[0].shape[1])
    )
    generate(backend, sequences(3, 9, 9), [Decoding(max_tokens=5)] * 3)
    hook.remove()
    assert sum(length > 1 for length in fed) == 2  # the prompts for their state, and once more for a cache


@pytest.mark.parametrize("name", ["mamba", "mamba2"])
def test_long_spans_fed_in_pieces_equal_one_pass(name: str) -> None:
    batch = [*sequences(3, 150, 200, seed=11), *sequences(2, 3, 70, seed=12)]
    whole = open_case("native", name, batch_tokens=1 << 20).extend([whole_span(tokens, keep=True) for tokens in batch])
    pieces = open_case("native", name, batch_tokens=64)
    alone = pieces.extend([whole_span(tokens, keep=True) for tokens in batch])
    pieces.batch_tokens = 5 * 200
    together = pieces.extend([whole_span(tokens, keep=True) for tokens in batch])
    for one, *others in zip(whole, alone, together, strict=True):
        for other in others:
            np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-5)
            torch.testing.assert_close(one.state.memory.ssm, other.state.memory.ssm, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(one.state.memory.conv, other.state.memory.conv, atol=1e-5, rtol=1e-5)
