"""From what a model wrote to what is scored: named chains of steps, stored in the column `filter`.

A chain stands under `filters:` of a task; its steps are applied one after the other, each to the text that the one
before it left. A step that finds nothing leaves its `fallback` (`[invalid]`), on which the steps after it go on: the
answer then counts as not found, `scores.extracted` holds what was left, and every metric that is a share gives 0.

- `strip`, `remove_whitespace`: without the white space at both ends. `lower`, `upper`: in that case.
- `first_line`: the first line that is not blank, stripped.
- `last_number`: as the answers of GSM8K are cleansed (Kojima et al. 2022, arXiv 2205.11916): commas are removed, here
  the signs $, €, £ and ¥ too, and the last match of `-?\\d+\\.?\\d*` is taken, without a full stop at its end.
  `$1,234.` is `1234`; `18.00` stays as it is.
- `choice_letter`: a capital letter A to Z as a word of its own. The last one after `answer is`, `answer:` or `answer`
  (in any case, with or without parentheses); else the last in parentheses, `(B)`; else the last that stands alone,
  where I and an A in front of a word do not count.
- `regex`: lm-evaluation-harness 0.4's filter of that name. All matches are found as Python's `re.findall` finds them,
  `pick` takes one (`group_select` there), of several groups the first that is not empty, and the text is stripped.
  Nothing is found where nothing matches, where `pick` lies beyond the matches, or where every group is empty. `group`
  takes one group instead; it is found where it took part in the match.
- `option`: lm-evaluation-harness 0.4's filter `multi_choice_regex`. Its regular expression first, as `regex` would find
  it; then the text of one of `prompt.options`, the longest first, of which the letter `(A)` is taken (`pick` counts
  these matches too; `ignore`, `ignore_case` and `ignore_punctuation` say what does not matter); then a letter after a
  colon.
- `json_field`: the field of the first JSON object in the text that has it, wherever the object begins (in a code block,
  say). A text stands as it is, anything else as JSON; null is nothing found.
- `replace`: Python's `re.sub`.
- `map`: from whole texts to what they mean.
- `vote`: the text that most of the first n repeats came to, the first seen of equals (self-consistency, arXiv
  2203.11171; `majority_vote` of lm-evaluation-harness). An answer that was not found votes as its fallback, as it does
  there; with `abstain: true` it does not, unless none was found. It is one score a sample, with `repeat` NULL; where
  one of the n repeats failed there is none.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from evalspec.patterns import matches, replaced
from evalspec.prompting.steps import last_number
from evalspec.registry import Plugin, Registry
from evalspec.spec.extraction import StepBlock, votes_of

Step = Callable[[str], str | None]
"""From a text to a text, None where it finds nothing."""


def _adopted(step: Step, plugin: Plugin) -> Step:
    """A plugin's step, of which a text or None is taken."""

    def text(given: object) -> object:
        if given is not None and not isinstance(given, str):
            raise plugin.error(f"gave a {type(given).__name__}, and should give a text, or None where it finds nothing")
        return given

    return plugin.guarded(step, text)


STEPS: Registry[Step] = Registry("step", "evalspec.filters", _adopted)

_AFTER_ANSWER = re.compile(r"(?i:\banswer(?:\s+is|\s*:)?)\s*:?\s*\(?([A-Z])\b")
_IN_PARENTHESES = re.compile(r"\(([A-Z])\)")
_ALONE = re.compile(r"\b(?!A\s+[a-z]|I\b)([A-Z])\b(?!')")


@dataclass(frozen=True)
class Extraction:
    """What a chain took from an output, and whether every step of it found something."""

    text: str
    found: bool = True


def extract(text: str, chain: Sequence[StepBlock], options: Sequence[str] = ()) -> Extraction:
    """What a chain makes of one output; its vote, if it ends in one, is for `majority`. `options` are the prompt's."""
    found = True
    for block in chain:
        if block.vote is not None:
            continue
        taken = step_of(block, options)(text)
        found &= taken is not None
        text = block.fallback if taken is None else taken
    return Extraction(text, found)


def majority(answers: Sequence[Extraction]) -> Extraction:
    """What most of a sample's answers say; the first seen of those that are as many. At least one is needed."""
    counts = Counter(answer.text for answer in answers)
    winner = max(counts, key=counts.__getitem__)  # both keep the order of the answers
    return next(answer for answer in answers if answer.text == winner)


def vote(outputs: Sequence[str], chain: Sequence[StepBlock], options: Sequence[str] = ()) -> Extraction | None:
    """The verdict of a chain that ends in a vote on a sample's outputs, in the order of their repeats.

    None where it wants more than there are.
    """
    wanted = votes_of(chain)
    if wanted is None or len(outputs) < wanted:
        return None
    answers = [extract(output, chain, options) for output in outputs[:wanted]]
    voting = [answer for answer in answers if answer.found] if chain[-1].abstain else answers
    return majority(voting or answers)


def step_of(block: StepBlock, options: Sequence[str] = ()) -> Step:
    """The function of a step. Raises EvalspecError for a name that no step has."""
    if block.regex is not None:
        return _regex(re.compile(block.regex), block.pick, block.group)
    if block.option is not None:
        return _option(block, options)
    if block.json_field is not None:
        path = block.json_field
        return lambda text: _json_field(text, path)
    if block.replace is not None:
        pattern, by = re.compile(block.replace), block.by
        return lambda text: replaced(pattern, by, text)
    if block.map is not None:
        return block.map.get
    assert block.step is not None
    return STEPS.get(block.step)


STEPS.register("strip")(str.strip)
STEPS.register("remove_whitespace")(str.strip)
STEPS.register("lower")(str.lower)
STEPS.register("upper")(str.upper)
STEPS.register("last_number")(last_number)


@STEPS.register("first_line")
def first_line(text: str) -> str | None:
    """The first line that is not blank, stripped."""
    return next((line.strip() for line in text.splitlines() if line.strip()), None)


@STEPS.register("choice_letter")
def choice_letter(text: str) -> str | None:
    """The letter of the choice that a text names."""
    for pattern in (_AFTER_ANSWER, _IN_PARENTHESES, _ALONE):
        found = pattern.findall(text)
        if found:
            return str(found[-1])
    return None


def _regex(pattern: re.Pattern[str], pick: str | int, group: int | str | None) -> Step:
    place = {"first": 0, "last": -1}.get(pick, pick) if isinstance(pick, str) else pick
    assert isinstance(place, int)

    def take(text: str) -> str | None:
        found = matches(pattern, text)
        if not -len(found) <= place < len(found):
            return None
        match = found[place]
        if group is not None:
            taken = match.group(group)
        elif pattern.groups > 1:
            taken = next((part for part in match.groups() if part), None)
        else:
            taken = match.group(pattern.groups) or ""  # findall gives a group that took no part as an empty text
        return None if taken is None else taken.strip()

    return take


def _option(block: StepBlock, options: Sequence[str]) -> Step:
    def plain(text: str) -> str:
        for pattern in block.ignore:
            text = replaced(re.compile(pattern), "", text)
        text = text.lower() if block.ignore_case else text
        if block.ignore_punctuation:
            text = "".join(sign for sign in text if not unicodedata.category(sign).startswith("P"))
        return text

    letters = [chr(ord("A") + number) for number in range(len(options))]
    named = {plain(option.strip()): f"({letter})" for option, letter in zip(options, letters, strict=True)}
    # A shorter option may begin a longer one, and of alternatives the first that fits is taken.
    ranked = sorted(map(re.escape, named), key=len, reverse=True)
    by_pattern = _regex(re.compile(block.option or ""), block.pick, None)
    by_text = _regex(re.compile("|".join(ranked)), block.pick, None)
    by_letter = _regex(re.compile(rf":\s*({'|'.join(map(re.escape, letters))})"), block.pick, None)

    def take(text: str) -> str | None:
        if found := by_pattern(text):
            return found
        if found := by_text(plain(text)):
            return named.get(found, found)
        return f"({found})" if (found := by_letter(text)) else None

    return take


def _json_field(text: str, path: str) -> str | None:
    for found in _objects(text):
        value = found
        for key in path.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if value is not None:
            return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return None


def _objects(text: str) -> Iterator[object]:
    """The JSON objects in a text, in the order in which they begin; inner ones too."""
    decoder = json.JSONDecoder()
    for brace in re.finditer(r"\{", text):
        try:
            yield decoder.raw_decode(text, brace.start())[0]
        except (ValueError, RecursionError):
            continue
