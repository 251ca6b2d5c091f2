"""The three models of the zoo: their configs, matched in parameters, and how training runs them.

A config is what stands in the model's config.json. The Transformer is transformers' own Llama; Mamba and Mamba-2 are
`evalspec.ssm`, whose parameters have Hugging Face's names, so that all three are saved as Hugging Face directories
without conversion.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from evalspec.zoo.tokenizer import BOS, EOS, PAD, vocabulary

FAMILIES = ("transformer", "mamba", "mamba2")
TRAINED_LENGTH = 512
D_MODEL = 192

Hidden = Callable[[Tensor], Tensor]  # token ids (b, l) → hidden vectors after the final norm (b, l, d)


def config_of(family: str) -> dict[str, Any]:
    """The config.json of a family: about 2.1 M parameters each, those of the vocabulary included."""
    ids = vocabulary()
    shared = {
        "vocab_size": -(-len(ids) // 64) * 64,
        "hidden_size": D_MODEL,
        "tie_word_embeddings": True,
        "pad_token_id": ids[PAD],
        "bos_token_id": ids[BOS],
        "eos_token_id": ids[EOS],
        "trained_length": TRAINED_LENGTH,
    }
    if family == "transformer":
        return shared | {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "num_hidden_layers": 5,
            "num_attention_heads": 3,
            "num_key_value_heads": 3,
            "head_dim": 64,
            "intermediate_size": 352,
            "rms_norm_eps": 1e-5,
            # Longer than trained, so that a collapse beyond the trained length is measured and never a truncation.
            "max_position_embeddings": 16 * TRAINED_LENGTH,
            # A slow base leaves more of a head's 64 dimensions to content: with 1e4, 36 turn within 1,024 tokens.
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        }
    if family == "mamba":
        return shared | {
            "architectures": ["MambaForCausalLM"],
            "model_type": "mamba",
            "num_hidden_layers": 7,
            "state_size": 16,
            "expand": 2,
            "intermediate_size": 2 * D_MODEL,
            "conv_kernel": 4,
            "time_step_rank": math.ceil(D_MODEL / 16),
        }
    if family == "mamba2":
        return shared | {
            "architectures": ["Mamba2ForCausalLM"],
            "model_type": "mamba2",
            "num_hidden_layers": 7,
            "state_size": 64,
            "expand": 2,
            "num_heads": 2 * D_MODEL // 64,
            "head_dim": 64,
            "n_groups": 1,
            "conv_kernel": 4,
            "chunk_size": 64,
        }
    raise ValueError(f"the zoo has {', '.join(FAMILIES)}, not {family!r}")


def build(family: str, seed: int) -> nn.Module:
    """A freshly drawn model of the family, in float32 on the CPU; the same seed draws the same weights."""
    torch.manual_seed(seed)
    config = config_of(family)
    if family == "mamba":
        from evalspec.ssm.mamba import Mamba, MambaConfig

        return Mamba(MambaConfig.of(config))
    if family == "mamba2":
        from evalspec.ssm.mamba2 import Mamba2, Mamba2Config

        return Mamba2(Mamba2Config.of(config))
    from transformers import LlamaConfig, LlamaForCausalLM

    model: nn.Module = LlamaForCausalLM(LlamaConfig(**config, attn_implementation="sdpa"))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim < 2:
                continue
            # Fan-in scaling, since transformers' 0.02 for all is made for wider models.
            nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.div_(math.sqrt(2 * config["num_hidden_layers"]))
    return model


def hidden_of(family: str, model: Any) -> Hidden:
    """The forward pass up to the output head, for training."""
    if family == "transformer":
        return lambda ids: model.model(input_ids=ids, use_cache=False).last_hidden_state
    return lambda ids: model(ids)[0]


def layers_of(family: str, model: Any) -> Iterable[nn.Module]:
    """The residual blocks, each of which is compiled on its own: seven equal blocks compile as fast as one."""
    layers: Iterable[nn.Module] = model.model.layers if family == "transformer" else model.backbone.layers
    return layers


def without_decay(name: str, weight: Tensor) -> bool:
    """Whether a parameter must not be decayed: biases, norms, A, D, and embeddings."""
    return weight.ndim < 2 or name.endswith(("A_log", "D", "dt_bias")) or "embed" in name
