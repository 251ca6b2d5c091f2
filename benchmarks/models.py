"""The benchmark's models: a Llama, a Mamba and a Mamba-2 with random weights, written once as Hugging Face directories.

All three share a byte-level BPE of 4,096 tokens. Weights are drawn wider than at an ordinary initialisation, so that
the log-probabilities of choices lie apart and an argmax is one. The end token's row of the head is zero: its logit is
0, below the largest of 4,095 others, so that greedy answers run to their full length on both sides.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import shutil
from pathlib import Path
from typing import Any

from benchmarks.text import corpus

FAMILIES = ("llama", "mamba", "mamba2")
VOCABULARY = 4096
SEED = 20261
END = "<|end|>"  # token 0
HEAD_STD = 0.1  # logits of a normalised hidden vector of width 256 then have a standard deviation of 1.6

WIDTH = 256
_SHARED = {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {  # 8.9 M parameters
        "num_hidden_layers": 8,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 64,
        "intermediate_size": 768,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": False,
    },
    "mamba": {  # 5.0 M
        "num_hidden_layers": 9,
        "state_size": 16,
        "expand": 2,
        "conv_kernel": 4,
        "tie_word_embeddings": True,
    },
    "mamba2": {  # 5.6 M
        "num_hidden_layers": 8,
        "state_size": 64,
        "expand": 2,
        "conv_kernel": 4,
        "head_dim": 64,
        "num_heads": 8,
        "n_groups": 1,
        "chunk_size": 256,
        "tie_word_embeddings": False,
    },
}

WIDEST = {"llama": 768, "mamba": 1024, "mamba2": 1160}
"""Columns of each family's widest projection: of the feed-forward network, of the way into the mixer."""


def model_folders(work: Path) -> dict[str, Path]:
    """The directory of each family, made if it is not there."""
    made_by = [inspect.getsource(function) for function in (_tokenizer, _write_model)]
    recipe = json.dumps([CONFIGS, _SHARED, SEED, HEAD_STD, made_by], sort_keys=True)
    texts = hashlib.sha256("\n".join(corpus()).encode()).hexdigest()
    folder = work / f"models-{hashlib.sha256((recipe + texts).encode()).hexdigest()[:12]}"
    if not folder.is_dir():
        aside = folder.with_name(f"{folder.name}.part")
        shutil.rmtree(aside, ignore_errors=True)
        _write_all(aside)
        aside.rename(folder)
    return {family: folder / family for family in FAMILIES}


def _write_all(folder: Path) -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = _tokenizer()
    for number, family in enumerate(FAMILIES):
        _write_model(family, SEED + number, folder / family)
        tokenizer.save_pretrained(folder / family)


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(corpus(), trainer)
    if inner.get_vocab_size() != VOCABULARY:
        raise RuntimeError(f"the tokenizer has {inner.get_vocab_size()} tokens, not {VOCABULARY}")
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token=END, pad_token=END, clean_up_tokenization_spaces=False
    )


def _write_model(family: str, seed: int, folder: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **_SHARED, **CONFIGS[family])).float()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weights in model.named_parameters():
            # Decays, step sizes, convolutions and norms keep their architecture's own initialisation.
            if weights.dim() == 2 and "A_log" not in name and "dt_proj" not in name:
                outer = "embed" in name or "lm_head" in name
                weights.normal_(0.0, HEAD_STD if outer else weights.shape[1] ** -0.5, generator=generator)
        model.get_output_embeddings().weight[0] = 0.0
    model.save_pretrained(folder)
