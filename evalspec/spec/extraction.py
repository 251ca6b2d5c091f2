"""`filters:` – the steps by which an answer is taken from what a model wrote; `evalspec.metrics.filters` takes them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from evalspec.spec.base import NAME, Block, Misfit, misfits

# Each kind of step, and the settings that mean something to it.
SETTINGS_OF_STEP: dict[str, tuple[str, ...]] = {
    "step": ("fallback",),
    "regex": ("pick", "group", "fallback"),
    "option": ("pick", "fallback", "ignore", "ignore_case", "ignore_punctuation"),
    "json_field": ("fallback",),
    "replace": ("by",),
    "map": ("fallback",),
    "vote": ("abstain",),
}


class StepBlock(Block):
    """One step from text to text: a name by itself (`last_number`), or exactly one of `step`, `regex`, `option`,
    `json_field`, `replace`, `map` and `vote`."""

    step: str | None = None
    """A named step; written by itself it needs no key: `[strip, last_number]`."""
    regex: str | None = None
    """Take what this regular expression (Python's) finds. Where it has several groups, the first that is not empty."""
    pick: Literal["first", "last"] | int = "first"
    """Regex, option: which of the matches; a number counts from 0, a negative one from the end."""
    group: int | str | None = None
    """Regex: take this group, by number from 1 (0: the whole match) or by name."""
    option: str | None = None
    """Take one of `prompt.options`: what this regular expression finds, `(\\([A-Z]\\))` say; where it finds nothing,
    the letter `(A)` of the option whose text stands there, or else that of a letter after a colon."""
    ignore: list[str] = Field(default_factory=list)
    """Option: regular expressions for what counts for nothing where an option's text is looked for."""
    ignore_case: bool = False
    """Option: an option's text is looked for in any case."""
    ignore_punctuation: bool = False
    """Option: an option's text is looked for without punctuation."""
    json_field: str | None = None
    """Take this field of the first JSON object in the text that has it; a dot goes into an inner object."""
    replace: str | None = None
    """Replace all that this regular expression finds."""
    by: str = ""
    """Replace: what stands there instead (`\\1` is the first group)."""
    map: dict[str, str] | None = None
    """From whole texts to what they mean: `{yes: "A", no: "B"}`. A text that is not there is no answer."""
    vote: int | None = Field(default=None, ge=1)
    """The text that most of a sample's first so many repeats came to, the first seen of equals: one score a sample."""
    abstain: bool = False
    """Vote: an answer that was not found does not vote, unless none was."""
    fallback: str = "[invalid]"
    """What stands for the answer where nothing is found; it is counted, and scored as wrong."""

    @model_validator(mode="after")
    def _one_step(self) -> StepBlock:
        given = [name for name in SETTINGS_OF_STEP if getattr(self, name) is not None]
        if len(given) != 1:
            kinds = ", ".join(f"`{name}`" for name in SETTINGS_OF_STEP)
            found_kinds = " and ".join(f"`{name}`" for name in given) or "none"
            raise misfits([((), f"needs exactly one of {kinds}; found {found_kinds}")])
        found: list[Misfit] = [
            ((setting,), f"belongs to another kind of step than `{given[0]}`")
            for setting in dict.fromkeys(name for names in SETTINGS_OF_STEP.values() for name in names)
            if setting in self.model_fields_set and setting not in SETTINGS_OF_STEP[given[0]]
        ]
        for key in ("regex", "option", "replace"):
            pattern = getattr(self, key)
            if pattern is not None:
                found += _pattern_misfits(key, pattern, self.by, self.group)
        for number, pattern in enumerate(self.ignore):
            found += [(("ignore", number), said) for _, said in _pattern_misfits("ignore", pattern, "", None)]
        if found:
            raise misfits(found)
        return self


def _pattern_misfits(key: str, pattern: str, by: str, group: int | str | None) -> list[Misfit]:
    """What is wrong with a regular expression, or with what refers to its groups."""
    try:
        compiled = re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        return [((key,), f"is not a regular expression: {error}")]
    if key == "replace":
        try:
            compiled.sub(by, "")
        except (re.error, IndexError) as error:
            return [(("by",), f"cannot stand for what `replace` finds: {error}")]
    if key == "regex" and group is not None and group not in [*range(compiled.groups + 1), *compiled.groupindex]:
        has = f"groups 0 to {compiled.groups}" + "".join(f", `{name}`" for name in compiled.groupindex)
        return [(("group",), f"is {group}, but the expression has {has}")]
    return []


def _step(value: Any) -> Any:
    return {"step": value} if isinstance(value, str) else value


Step = Annotated[StepBlock, BeforeValidator(_step)]
Chain = list[Step]
Filters = dict[Annotated[str, Field(pattern=NAME)], Chain]

PLAIN: Mapping[str, Sequence[StepBlock]] = {"default": (StepBlock(step="strip"),)}
"""The chains of a task that names none: the whole output, without the white space around it."""


def votes_of(chain: Sequence[StepBlock]) -> int | None:
    """How many repeats a chain's vote takes; None for a chain that scores each repeat."""
    return chain[-1].vote if chain else None


def chain_misfits(
    filters: Mapping[str, Sequence[StepBlock]], *, generates: bool, repeats: int, options: bool
) -> list[Misfit]:
    """Chains that cannot work in their task: without an output to take from, or options to find; votes out of place or
    too large."""
    if filters and not generates:
        said = "take an answer from what is generated; without `decode` there is nothing to take it from"
        return [(("filters",), said)]
    found: list[Misfit] = []
    for name, chain in filters.items():
        for index, step in enumerate(chain):
            where = ("filters", name, index)
            if step.option is not None and not options:
                found.append((where, "looks for one of `prompt.options`, which is missing"))
            if step.vote is None:
                continue
            if index < len(chain) - 1:
                found.append((where, "votes before the chain ends; `vote` stands last, over what its steps took"))
            elif step.vote > repeats:
                said = f"takes {step.vote} votes, but `decode.repeats` gives {repeats} answer{'s' * (repeats != 1)}"
                found.append((where, said))
    return found
