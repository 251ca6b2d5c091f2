"""Costs against published totals, and against what transformers' own models hold, cache and multiply."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from torch.utils.flop_counter import FlopCounterMode

from evalspec.models.cost import Cost, cost_of, why_no_cost

MAMBA_28B = {"model_type": "mamba", "hidden_size": 2560, "num_hidden_layers": 64, "vocab_size": 50280, "state_size": 16}
MAMBA2_27B = {
    "model_type": "mamba2",
    "hidden_size": 2560,
    "num_hidden_layers": 64,
    "vocab_size": 50280,
    "state_size": 128,
    "num_heads": 80,
    "n_groups": 1,
    "tie_word_embeddings": True,
}
PYTHIA_28B = {
    "model_type": "gpt_neox",
    "hidden_size": 2560,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "intermediate_size": 10240,
    "vocab_size": 50304,
}
GROUPED_3B = {
    "model_type": "llama",
    "hidden_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 24,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 8192,
    "vocab_size": 128256,
    "tie_word_embeddings": True,
}

# One tiny config a family, each with an option that changes its parameters, and every default in use somewhere.
SMALL: dict[str, Any] = {"hidden_size": 48, "num_hidden_layers": 3, "vocab_size": 101}
HEADS = {**SMALL, "num_attention_heads": 4, "intermediate_size": 80}
TINY = [
    hf.LlamaConfig(**HEADS, num_key_value_heads=2),
    hf.LlamaConfig(**HEADS, head_dim=20, attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
    hf.MistralConfig(**HEADS, num_key_value_heads=2),
    hf.Qwen2Config(**HEADS, num_key_value_heads=2),
    hf.Qwen3Config(**HEADS, num_key_value_heads=2, head_dim=16),
    hf.GemmaConfig(**HEADS, num_key_value_heads=1, head_dim=16),
    hf.Gemma2Config(**HEADS, num_key_value_heads=2, head_dim=16),
    hf.Gemma3TextConfig(**HEADS, num_key_value_heads=2, head_dim=16),
    hf.GPTNeoXConfig(**HEADS),
    hf.GPT2Config(n_embd=48, n_layer=3, n_head=4, vocab_size=101, n_positions=64),
    hf.OPTConfig(
        hidden_size=48, num_hidden_layers=3, num_attention_heads=4, ffn_dim=80, vocab_size=101, word_embed_proj_dim=48
    ),
    hf.MambaConfig(**SMALL),
    hf.MambaConfig(
        **SMALL, state_size=8, use_bias=True, use_conv_bias=False, time_step_rank=5, tie_word_embeddings=False
    ),
    hf.Mamba2Config(**SMALL, num_heads=6, head_dim=16, state_size=8, n_groups=2),
    hf.Mamba2Config(**SMALL, num_heads=16, head_dim=6, use_bias=True, use_conv_bias=False, tie_word_embeddings=True),
]
IDS = [f"{i}-{config.model_type}" for i, config in enumerate(TINY)]
PLAIN_ATTENTION = [c for c in TINY if c.model_type not in ("mamba", "mamba2")]


def cost(config: Any) -> Cost:
    found = cost_of(config if isinstance(config, dict) else config.to_dict())
    assert found is not None
    return found


def test_published_state_sizes() -> None:
    assert cost(MAMBA_28B).state_bytes(9999, 2) / 1e6 == pytest.approx(13.1, abs=0.05)
    assert cost(MAMBA_28B).state_bytes(1, 2, 4) / 1e6 == pytest.approx(23.6, abs=0.05)
    assert cost(MAMBA2_27B).state_bytes(1, 2) / 1e6 == pytest.approx(86.6, abs=0.05)
    assert cost(MAMBA2_27B).state_bytes(1, 2, 4) / 1e6 == pytest.approx(170.5, abs=0.05)
    assert cost(PYTHIA_28B).kv_bytes(1, 2) == 327_680
    assert cost(GROUPED_3B).kv_bytes(1, 2) == 114_688
    assert cost(MAMBA_28B).kv_bytes(1000, 2) == 0


@pytest.mark.parametrize(
    ("recurrent", "attention", "ssm_bytes", "tokens"),
    [
        (MAMBA_28B, PYTHIA_28B, 2, 40),
        (MAMBA2_27B, PYTHIA_28B, 2, 264),
        (MAMBA_28B, PYTHIA_28B, 4, 72),
        (MAMBA2_27B, PYTHIA_28B, 4, 520),
        (MAMBA_28B, GROUPED_3B, 4, 206),
        (MAMBA2_27B, GROUPED_3B, 4, 1487),
    ],
)
def test_published_lengths_at_which_a_state_is_as_large_as_a_kv_cache(
    recurrent: dict[str, Any], attention: dict[str, Any], ssm_bytes: int, tokens: int
) -> None:
    assert round(cost(recurrent).state_bytes(1, 2, ssm_bytes) / cost(attention).kv_bytes(1, 2)) == tokens


def test_published_operations_a_token() -> None:
    assert cost(MAMBA_28B).step_flops(1) / 1e9 == pytest.approx(5.57, abs=0.005)
    assert cost(MAMBA2_27B).step_flops(1) / 1e9 == pytest.approx(5.66, abs=0.005)


def test_published_parameter_counts() -> None:
    assert cost(PYTHIA_28B).parameters == 2_775_208_960
    assert cost(MAMBA_28B).parameters == 2_768_345_600
    assert cost(GROUPED_3B).parameters == 3_212_749_824


@pytest.mark.parametrize("config", TINY, ids=IDS)
def test_parameters_are_those_of_the_model_that_transformers_builds(config: Any) -> None:
    with torch.device("meta"):
        model = hf.AutoModelForCausalLM.from_config(config)
    assert cost(config).parameters == model.num_parameters()


@pytest.mark.parametrize("family", sorted({type(config) for config in TINY}, key=lambda c: c.model_type))
def test_what_an_old_config_leaves_out_has_the_value_of_its_class(family: Any) -> None:
    full = family().to_dict()
    stated = (
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "vocab_size",
        "model_type",
    )
    sparse = {key: full[key] for key in (*stated, "n_embd", "n_layer", "n_head", "ffn_dim") if key in full}
    assert cost(sparse) == cost(full)


@pytest.mark.parametrize("config", TINY, ids=IDS)
def test_state_bytes_are_those_of_transformers_cache(config: Any) -> None:
    model = hf.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        output = model(torch.zeros(1, 7, dtype=torch.long), use_cache=True)
    layers = (output["cache_params"] if "cache_params" in output else output["past_key_values"]).layers
    held = [value for layer in layers for value in vars(layer).values()]
    held += [value for mapping in held if isinstance(mapping, dict) for value in mapping.values()]
    sizes = [t.numel() * 4 for t in held if isinstance(t, torch.Tensor) and t.dim() > 1]
    assert sizes and cost(config).state_bytes(7, 4) == sum(sizes)


@pytest.mark.parametrize("config", PLAIN_ATTENTION, ids=lambda c: c.model_type)
def test_a_transformers_step_costs_what_torch_counts(config: Any) -> None:
    config._attn_implementation = "eager"
    model = hf.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        past = model(torch.zeros(1, 9, dtype=torch.long), use_cache=True).past_key_values
        before = counter.get_total_flops()
        model(torch.zeros(1, 1, dtype=torch.long), past_key_values=past)
    rotary = counter.get_total_flops() - before - cost(config).step_flops(10)
    assert 0 <= rotary <= 2 * 64 * 4  # the outer product of positions and frequencies is counted there, and not here


@pytest.mark.parametrize("config", [MAMBA_28B, MAMBA2_27B, PYTHIA_28B, GROUPED_3B], ids=lambda c: c["model_type"])
def test_steps_add_up_and_spans_can_be_split(config: dict[str, Any]) -> None:
    model = cost(config)
    assert model.decode_flops(5, 3) == sum(model.step_flops(position) for position in range(4, 9))
    if config["model_type"] != "mamba2":  # a chunk of SSD costs more the longer it is
        assert model.flops(100) == model.flops(40) + model.flops(60, 40)
        assert model.flops(5, 3, scored=5) == model.decode_flops(5, 3)


def test_chunked_ssd_costs_what_its_formula_says() -> None:
    d, E, N, G, H, Q = 2560, 5120, 128, 1, 80, 256
    outside = 2 * d * (2 * E + 2 * G * N + H) + 2 * 4 * (E + 2 * G * N) + 2 * E * d + 8 * E
    inside = 2 * Q * G * N + 2 * Q * E + 4 * E * N + 2 * E * N / Q
    assert cost(MAMBA2_27B).flops(1024) == pytest.approx(64 * 1024 * (outside + inside))


def test_a_window_bounds_what_a_token_attends_to_and_what_is_kept() -> None:
    config = {**GROUPED_3B, "model_type": "mistral", "sliding_window": 8}
    model, full = cost(config), cost({**config, "sliding_window": None})
    assert model.step_flops(100) == model.step_flops(8) == full.step_flops(8)
    assert model.kv_bytes(100, 2) == full.kv_bytes(8, 2)
    assert model.flops(20) == sum(model.flops(1, start) for start in range(20))


def test_arrays_of_spans_cost_what_their_sum_costs() -> None:
    model = cost(GROUPED_3B)
    lengths, starts = np.array([5, 9, 1]), np.array([0, 5, 14])
    apart = [model.flops(int(n), int(s), scored=1) for n, s in zip(lengths, starts, strict=True)]
    assert model.flops(lengths, starts, scored=np.ones(3)) == sum(apart)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"model_type": "rwkv"}, "no formulas for model_type `rwkv`"),
        ({}, "no formulas for model_type `None`"),
        ({**MAMBA_28B, "hidden_size": None}, "`hidden_size: None`"),
        ({**PYTHIA_28B, "num_attention_heads": 0}, "`num_attention_heads: 0`"),
        ({**PYTHIA_28B, "vocab_size": "many"}, "`vocab_size: 'many'`"),
    ],
)
def test_what_is_not_covered_has_no_cost_and_a_reason(config: dict[str, Any], reason: str) -> None:
    assert cost_of(config) is None
    assert reason in (why_no_cost(config) or "")
    assert why_no_cost(PYTHIA_28B) is None
