"""The prompt block, with its shots and its right steps: how a row becomes a prompt, and what the right answer is."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from evalspec.spec.base import Block, Misfit, misfits
from evalspec.spec.data import DataBlock


class ShotsBlock(Block):
    """Worked examples in front of the question, from rows that are not evaluated."""

    n: int = Field(default=0, ge=0)
    """How many."""
    sampler: Literal["random", "first", "balanced", "nearest"] = "random"
    """`random`: one order of the pool per (seed, draw). `first`: the pool's own order. `balanced`: as many of each
    label. `nearest`: those whose query text is most like the sample's (BM25)."""
    seed: int = 0
    """Seed of the draw."""
    draws: int = Field(default=1, ge=1)
    """How many independent sets of shots; each sample is evaluated under each."""
    per_sample: bool = False
    """Draw anew for each sample, from (seed, sample id), instead of one set for all."""
    pool: float = Field(default=0.2, gt=0, lt=1)
    """Share of the rows, chosen by a hash of their ids, kept apart as the pool of shots."""
    data: DataBlock | None = None
    """Rows to draw shots from, instead of a part of the evaluated data (a training split, say)."""
    template: str | None = None
    """Template of a shot's question; by default the prompt's."""
    target: str | None = None
    """Template of a shot's answer; by default the right answer."""
    delimiter: str | None = None
    """What stands between a shot's question and its answer; by default the prompt's `delimiter`."""
    label: str | None = None
    """Template of the label that `balanced` balances; by default the target."""
    query: str | None = None
    """Template of the text by which `nearest` compares; by default the retrieval's `query`, else the rendered prompt
    without shots."""
    labels: Literal["right", "wrong", "random"] = "right"
    """A control that separates copying from learning: which answers the shots show. `wrong`: another choice of the
    shot's, or without choices another pool row's target. `random`: any of them, the right one too. Drawn for each shot
    from (seed, draw, its id)."""

    @model_validator(mode="after")
    def _one_answer(self) -> ShotsBlock:
        if self.labels != "right" and self.target is not None:
            raise misfits(
                [(("labels",), "puts other answers in the place of the right one, and `target` does too; drop one")]
            )
        return self


def _shots(value: Any) -> Any:
    return {"n": value} if isinstance(value, int) and not isinstance(value, bool) else value


class StepsBlock(Block):
    """Right steps to compare written ones with. A text is its steps, then `end`, then its answer."""

    right: str
    """Template of the right steps: one text, or an `{{ expression }}` that yields a list."""
    separator: str = Field(default=", ", min_length=1)
    """What stands between steps."""
    end: str = "Answer:"
    """What stands between the steps and the answer (where it comes last); without it there is no answer."""


def _steps(value: Any) -> Any:
    return {"right": value} if isinstance(value, str) else value


class PromptBlock(Block):
    """How a row becomes a prompt, and what the right answer is."""

    template: str | None = None
    """A file under the project's root ending in `.jinja`, or the template itself. It sees the row's columns, and
    `passages` (each with `.id`, `.text`, `.rank`, `.score`). Where it is empty and nothing else stands in front, the
    target is scored as a text of its own, in windows of the model's length."""
    target: str | int | None = None
    """Template of the right answer; for choices and contexts, the index or the text of the right one. A template that
    is a single `{{ expression }}` yielding a list means several right answers."""
    choices: list[str] | str | None = None
    """Answers to choose from: a list of templates, or one `{{ expression }}` that yields a list."""
    contexts: list[str] | str | None = None
    """In place of `template` and `choices`: prompts to choose from, written as choices are. Chosen is the one after
    which `continuation` is likeliest, as WinoGrande asks. They see the row's columns, and no passages."""
    continuation: str | None = None
    """Template of the text that every context is continued with."""
    prefix: str = ""
    """Text with which the answer begins and that the model is given (a template): `The best answer is`. It stands in
    the shots too."""
    shots: Annotated[ShotsBlock | None, BeforeValidator(_shots)] = None
    """Worked examples: a number, or a block. Where they are named, even as 0, a part of the rows is kept apart as their
    pool, so that every number of shots is evaluated on the same samples."""
    options: list[str] | str | None = None
    """Answers that the question offers where one is generated (`decode`), written as choices are, A the first of them:
    a filter's step `option` finds the one that an answer names. The stages' answers may name one too."""
    steps: Annotated[StepsBlock | None, BeforeValidator(_steps)] = None
    """The right steps on the way to the answer, for the metrics that judge written steps: a template, or a block."""
    description: str = ""
    """Text in front of everything, an instruction for example (a template)."""
    separator: str = "\n\n"
    """What stands between shots, and between the last shot and the question."""
    delimiter: str = " "
    """What stands between a prompt and its answer."""
    system: str | None = None
    """System message (a template), for models with `chat: true`."""
    overflow: Literal["truncate", "error"] = "truncate"
    """What happens to a prompt longer than the model can hold: keep its right end (counted and shown), or stop."""
    unknown: list[str] = Field(default_factory=list)
    """Answers that say that the prompt does not hold the answer, `unknown` for example; `abstained` looks for them."""

    @model_validator(mode="after")
    def _one_way_to_ask(self) -> PromptBlock:
        found: list[Misfit] = []
        if self.contexts is None:
            if self.template is None:
                found.append(((), "needs a key `template` (or `contexts`, one prompt a choice)"))
            if self.continuation is not None:
                found.append((("continuation",), "continues `contexts`, which this prompt does not have"))
        else:
            found += [
                ((name,), "and `contexts` exclude each other: a prompt is one for all choices or one a choice")
                for name in ("template", "choices")
                if getattr(self, name) is not None
            ]
            if self.continuation is None:
                found.append((("contexts",), "need a `continuation`, the text that each of them is continued with"))
        if found:
            raise misfits(found)
        return self
