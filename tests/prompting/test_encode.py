"""Encoding by lm-evaluation-harness's rules, on the shipped tokenizer and on a subword one made here."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Inner
from tokenizers import decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from evalspec.errors import PromptError
from evalspec.models.card import zoo_folder
from evalspec.models.tokens import Tokenizer
from evalspec.prompting.encode import encode_pairs, encode_prompts, encode_windows

ZOO = Tokenizer(str(zoo_folder() / "mamba"))
ZOO.encode(["loaded before any test is timed"])


@pytest.fixture(scope="module")
def subwords(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("bpe")
    inner = Inner(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    text = [path.read_text() for path in Path(__file__).parent.glob("*.py")]
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    inner.train_from_iterator(text, trainer)
    PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>").save_pretrained(folder)
    return Tokenizer(str(folder))


words = st.text(alphabet="ab c.\n", max_size=12)


@given(words, words.filter(lambda text: bool(text.strip())))
def test_what_is_fed_and_scored_is_the_encoding_of_the_whole(context: str, continuation: str) -> None:
    [pair] = encode_pairs(ZOO, [(context, continuation)], max_length=None)
    [whole] = ZOO.encode([context + continuation])
    start = [] if context.rstrip() else [ZOO.start]
    assert [*pair.tokens.tolist(), pair.targets[-1]] == [*start, *whole]
    assert pair.targets == tuple([*start, *whole][-len(pair.targets) :])


def test_trailing_white_space_of_the_context_moves_to_the_continuation(subwords: Tokenizer) -> None:
    pairs = [("the question ", "number"), ("the question", " number")]
    [spaced, plain] = encode_pairs(subwords, pairs, max_length=None)
    assert spaced.tokens.tolist() == plain.tokens.tolist()
    assert spaced.targets == plain.targets
    assert subwords.decode(plain.targets) == " number"


def test_an_empty_context_becomes_the_start_token(subwords: Tokenizer) -> None:
    [pair] = encode_pairs(subwords, [("", "number of rows")], max_length=None)
    assert pair.tokens[0] == subwords.start == subwords.inner.bos_token_id
    assert list(pair.targets) == subwords.encode(["number of rows"], special=False)[0]


def test_truncation_keeps_the_right_end_and_is_counted() -> None:
    context = " ".join(["Question"] * 20)
    [full] = encode_pairs(ZOO, [(context, " Answer")], max_length=None)
    [cut] = encode_pairs(ZOO, [(context, " Answer")], max_length=8)
    assert cut.tokens.tolist() == full.tokens.tolist()[-8:]
    assert cut.truncated == len(full.tokens) - 8
    assert cut.targets == full.targets
    [prompt] = encode_prompts(ZOO, [context], max_length=10, new_tokens=4)
    assert len(prompt.tokens) == 6
    assert prompt.truncated == 14


def test_no_room_for_the_answer_is_an_error() -> None:
    with pytest.raises(PromptError, match="max_tokens"):
        encode_prompts(ZOO, ["Question"], max_length=8, new_tokens=8)


def test_a_continuation_without_tokens_is_an_error() -> None:
    with pytest.raises(PromptError, match="no tokens"):
        encode_pairs(ZOO, [("Question", "")], max_length=None)


@given(st.integers(1, 40), st.integers(1, 12))
def test_windows_score_every_token_once_and_the_last_one_is_filled_up_with_context(length: int, width: int) -> None:
    text = " ".join(["Question", "Answer", "Label"][number % 3] for number in range(length))
    [ids] = ZOO.encode([text], special=False)
    windows = encode_windows(ZOO, text, max_length=width)
    assert [token for window in windows for token in window.targets] == ids
    whole, end = [ZOO.start, *ids], 0
    for window in windows:
        end += len(window.targets)
        assert window.tokens.tolist() == whole[:end][-width:], "what stands before its last target, as much as fits"
    assert all(len(window.tokens) == width for window in windows) or len(windows) == 1


def test_a_text_that_begins_with_the_start_token_gets_no_second_one(tmp_path: Path, subwords: Tokenizer) -> None:
    subwords.inner.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $0", special_tokens=[("<s>", subwords.start)]
    )
    subwords.inner.save_pretrained(tmp_path)
    adding = Tokenizer(str(tmp_path))
    [plain, started] = adding.encode(["number", "<s>number"])
    assert plain == started == [adding.start, *adding.encode(["number"], special=False)[0]]
