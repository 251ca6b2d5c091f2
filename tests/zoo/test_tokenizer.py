"""The zoo's tokenizer: lossless for any text, one token a word for the worlds."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from evalspec.data.worlds import lexicon
from evalspec.data.worlds.rows import arithmetic, passages, questions
from evalspec.zoo.tokenizer import BOS, EOS, PAD, build_tokenizer, encode_words, vocabulary

ZOO = Path(__file__).parents[2] / "evalspec" / "zoo"
TOKENIZER = build_tokenizer()


@settings(max_examples=300, deadline=None)
@given(st.text())
def test_decoding_gives_back_any_text(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text).ids, skip_special_tokens=False) == text


@pytest.mark.parametrize("family", ["transformer", "mamba", "mamba2"])
def test_the_shipped_tokenizer_is_the_built_one_and_adds_nothing(family: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(ZOO / family)
    assert tokenizer.get_vocab() == vocabulary()
    assert (tokenizer.pad_token, tokenizer.bos_token, tokenizer.eos_token) == (PAD, BOS, EOS)
    text = "Ünknown  words\tand Anna Abbott plays the cello.\n\nQuestion:"
    ids = tokenizer(text, add_special_tokens=True)["input_ids"]
    assert ids == TOKENIZER.encode(text).ids and tokenizer.decode(ids) == text


@pytest.mark.parametrize("word", [*lexicon.WORDS[::7], *lexicon.LABELS, "Question", "7"])
def test_a_word_is_one_token_after_a_space(word: str) -> None:
    assert len(TOKENIZER.encode(" " + word).ids) == 1


def test_the_fast_encoder_equals_the_library() -> None:
    texts = [row["text"] for row in passages(3)]
    texts += [f"{r['question']}\nSteps: {r['steps']} Answer: {r['answer']}\n\n" for r in arithmetic(3, 20)]
    for text in texts:
        assert encode_words(text) == TOKENIZER.encode(text).ids


def test_the_tokens_of_a_prompt_are_a_prefix_of_the_tokens_with_its_target() -> None:
    for row in questions(2, 50):
        prompt = f"Question: {row['question']}\nAnswer:"
        whole = TOKENIZER.encode(f"{prompt} {row['answer']}\n\n").ids
        ids = TOKENIZER.encode(prompt).ids
        assert whole[: len(ids)] == ids
