"""How each ask is put to vLLM: its prompt, and the `SamplingParams` that make its answer hold what is wanted."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from vllm import SamplingParams
from vllm.inputs.engine import tokens_input
from vllm.sampling_params import RequestOutputKind

from evalspec.execute.backends.vllm.asks import Ask
from evalspec.execute.backends.vllm.forced import KEY
from evalspec.execute.walk import stream_of
from evalspec.plan.forest import Request, Tokens


def as_prompt(tokens: Tokens) -> Any:
    """Token ids as the engine takes them."""
    return tokens_input(tokens.tolist())


def settings_of(ask: Ask, request: Request | None, end_tokens: Collection[int]) -> Any:
    """The `SamplingParams` of an ask; `request` is what a `generate` answers."""
    settings: dict[str, Any] = {"temperature": 0.0, "max_tokens": 1, "detokenize": False, "ignore_eos": True}
    settings["output_kind"] = RequestOutputKind.FINAL_ONLY
    if ask.kind == "position":
        settings["logprob_token_ids"] = list(dict.fromkeys(ask.targets))
    elif ask.kind == "chain":
        settings |= {"max_tokens": len(ask.targets), "logprobs": 1, "extra_args": {KEY: list(ask.targets)}}
    elif ask.kind == "prompt":
        settings |= {"prompt_logprobs": 1, "logprobs": 1, "extra_args": {KEY: [ask.targets[-1]]}}
    elif request is not None:
        settings |= _decoding(request, end_tokens)
    return SamplingParams(**settings)


def _decoding(request: Request, end_tokens: Collection[int]) -> dict[str, Any]:
    """How an answer is decoded. Its log-probabilities are asked for because NaN shows in them alone."""
    decoding = request.decoding
    assert decoding is not None
    settings: dict[str, Any] = {
        "max_tokens": decoding.max_tokens,
        "stop_token_ids": sorted(end_tokens),
        "logprobs": 0,
    }
    if decoding.stop:  # looked for in the text, token by token, as every backend does
        settings["output_kind"] = RequestOutputKind.DELTA
    if decoding.temperature > 0:
        settings |= {
            "temperature": decoding.temperature,
            "top_p": decoding.top_p,
            "top_k": decoding.top_k,
            "seed": stream_of(request),  # of its own, so that it depends on no batch and no order
        }
    return settings


def timing_settings(new_tokens: int) -> Any:
    """Generate so many tokens whatever they are, and tell each as it comes."""
    return SamplingParams(
        temperature=0.0,
        max_tokens=new_tokens,
        ignore_eos=True,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
    )
