"""The training mixture: the same sequences for every model, in the formats that the prompts use."""

import hashlib
import re
from pathlib import Path

import numpy as np
import pytest
from jinja2 import Environment, StrictUndefined

from evalspec.data.worlds.rows import labels, questions, records
from evalspec.zoo.mixture import DOCUMENTS, MARK, TASKS, draw_sequence
from evalspec.zoo.sequences import SHORT, difficulty_at, draw_piece, held_out, read_sequences, write_sequences
from evalspec.zoo.tokenizer import build_tokenizer

TOKENIZER = build_tokenizer()
PROMPTS = Path(__file__).parents[2] / "prompts"


def text_of(row: np.ndarray) -> str:
    return str(TOKENIZER.decode((row & (MARK - 1)).tolist(), skip_special_tokens=False))


def answers_of(row: np.ndarray) -> list[str]:
    """The marked stretches, as text."""
    found, now = [], []
    for token in row.tolist():
        if token & MARK:
            now.append(token & (MARK - 1))
        elif now:
            found.append(TOKENIZER.decode(now))
            now = []
    return found


def test_the_stream_is_the_one_that_the_shipped_weights_were_trained_on() -> None:
    rows = [draw_sequence("train", n, 513, difficulty_at(n / 64)) for n in range(64)]
    assert hashlib.sha256(np.stack(rows).astype("<u2").tobytes()).hexdigest()[:16] == "df5a92ee334a5fe9"


def test_a_file_of_sequences_is_the_same_whoever_draws_it(tmp_path: Path) -> None:
    for name, processes in (("one", 1), ("two", 2)):
        write_sequences(tmp_path / name, seed="t", count=40, length=129, processes=processes)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    rows = read_sequences(tmp_path / "one", 129)
    assert rows.shape == (40, 129)
    assert (rows[30] == draw_sequence("t", 30, 129, difficulty_at(30 / 40))).all()


def test_short_sequences_begin_anew() -> None:
    row = draw_piece(0, seed="t", count=1024, length=513)[0]
    for at in range(8):
        part = draw_sequence("t-short", at, SHORT, 0.1)
        assert (row[at * SHORT : (at + 1) * SHORT] == part).all()


def test_difficulty_grows_once_and_stays_full() -> None:
    values = [difficulty_at(p / 100) for p in range(101)]
    assert values[0] == values[24] == pytest.approx(0.1) and values[55:] == [1.0] * 46
    assert values == sorted(values)


@pytest.mark.parametrize("task", TASKS)
def test_marked_is_what_the_model_should_write_and_it_ends_with_a_newline(task: str) -> None:
    for n in range(20):
        row = draw_sequence("t", n, 513, 1.0, task)
        for answer in answers_of(row)[:-1]:
            assert answer.startswith(" ") and answer.endswith("\n") and answer.strip()


def test_most_rag_answers_stand_in_their_passages_and_the_rest_say_unknown() -> None:
    right = unknown = total = 0
    for n in range(60):
        text = text_of(draw_sequence("t", n, 513, 1.0, "rag"))
        for block in text.split("\n\n")[:-1]:
            passages, _, asked = block.partition("Question:")
            for answer in re.findall(r"Answer: ([^\n]*)\n?", asked):
                if "\n" in passages:  # not closed book
                    total += 1
                    right += answer in passages
                    unknown += answer == "unknown"
    assert total > 200 and right + unknown == total and 0.02 < unknown / total < 0.12


def test_held_out_sequences_are_not_in_the_training_stream() -> None:
    seen = {draw_sequence("train", n, 513, 1.0, "rag").tobytes() for n in range(50)}
    assert not seen & {row.tobytes() for row in held_out("rag", 50, 513)}


def test_the_formats_are_those_of_the_prompts() -> None:
    environment = Environment(undefined=StrictUndefined, autoescape=False)

    row = questions(1, 1)[0]
    passages = [{"id": "a", "text": "The pet of Anna Abbott is a cat.", "rank": 1}]
    prompt = environment.from_string((PROMPTS / "rag.jinja").read_text()).render(passages=passages, **row)
    assert prompt == f"- {passages[0]['text']}\nQuestion: {row['question']}\nAnswer:"
    texts = {task: "".join(text_of(draw_sequence("t", n, 513, 1.0, task)) for n in range(4)) for task in DOCUMENTS}
    assert re.search(r"- [^\n]+\.\nQuestion: [^\n]+\?\nAnswer: \w+", texts["rag"])
    prompt = environment.from_string((PROMPTS / "records.jinja").read_text()).render(**records(1, 1, n=3)[0])
    assert re.fullmatch(r"Records:\n(\w+: \w+\n){3}Find:\n\w+:", prompt)
    assert re.search(r"Records:\n(\w+: \w+\n)+Find:\n\w+: \w+\n", texts["records"])
    prompt = environment.from_string((PROMPTS / "labels.jinja").read_text()).render(**labels(1, 1)[0])
    assert re.fullmatch(r"Input: \w+\nLabel:", prompt) and re.search(r"Input: \w+\nLabel: \w+\n\n", texts["labels"])
    assert re.search(r"Question: A dial [^\n]+\nSteps: [\d +=,-]+\. Answer: \d\n\n", texts["arithmetic"])
