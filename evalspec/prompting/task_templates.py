"""A task's templates, compiled."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evalspec.prompting.templates import Template, compile_template, constant
from evalspec.spec.blocks import TaskBlock
from evalspec.spec.prompt import ShotsBlock
from evalspec.spec.retrieval import SameBlock


@dataclass(frozen=True, eq=False)
class Templates:
    """The compiled templates of one task, each naming its key of the spec in errors."""

    question: Template | None
    description: Template
    target: Template | None
    choices: tuple[Template, ...] | Template | None
    contexts: tuple[Template, ...] | Template | None
    options: tuple[Template, ...] | Template | None
    continuation: Template | None
    prefix: Template | None
    shot_question: Template | None
    shot_answer: Template | None
    system: Template | None
    label: Template | None
    shot_query: Template | None
    query: Template | None
    gold: Template | None
    passage: Template | None
    kind: Template | None
    cluster: Template | None
    steps: Template | None = None
    when: Template | None = None

    @property
    def texts(self) -> list[str]:
        """The source of each template, in a fixed order."""
        found = []
        for value in vars(self).values():
            found += [template.text for template in (value if isinstance(value, tuple) else (value,)) if template]
        return found

    @classmethod
    def of(cls, name: str, task: TaskBlock, root: Path, when: str | None = None) -> Templates:
        """Compile all templates of a task; raises PromptError for the first that is missing or malformed."""

        def at(key: str, source: str | int | None) -> Template | None:
            where = f"tasks.{name}.{key}"
            if source is None:
                return None
            return constant(str(source), where) if isinstance(source, int) else compile_template(source, root, where)

        prompt, retrieval = task.prompt, task.retrieval
        same = retrieval.distractors if retrieval else None
        shots = prompt.shots or ShotsBlock()

        def several(key: str, source: list[str] | str | None) -> tuple[Template, ...] | Template | None:
            if source is None or isinstance(source, str):
                return at(key, source)
            listed = [at(f"{key}.{number}", item) for number, item in enumerate(source)]
            return tuple(template for template in listed if template)

        description = at("prompt.description", prompt.description)
        assert description is not None
        return cls(
            question=at("prompt.template", prompt.template),
            description=description,
            target=at("prompt.target", prompt.target),
            choices=several("prompt.choices", prompt.choices),
            contexts=several("prompt.contexts", prompt.contexts),
            options=several("prompt.options", prompt.options),
            continuation=at("prompt.continuation", prompt.continuation),
            prefix=at("prompt.prefix", prompt.prefix or None),
            shot_question=at("prompt.shots.template", shots.template),
            shot_answer=at("prompt.shots.target", shots.target),
            system=at("prompt.system", prompt.system),
            label=at("prompt.shots.label", shots.label),
            shot_query=at("prompt.shots.query", shots.query),
            query=at("retrieval.query", retrieval.query if retrieval else None),
            gold=at("retrieval.gold", retrieval.gold if retrieval else None),
            passage=at("retrieval.text", retrieval.text if retrieval else None),
            kind=at("retrieval.distractors.same", same.same if isinstance(same, SameBlock) else None),
            cluster=at("cluster", task.cluster),
            steps=at("prompt.steps.right", prompt.steps.right if prompt.steps else None),
            when=at("when", when),
        )


def texts_of(value: Any) -> tuple[str, ...]:
    """A list's items as texts, or the one value's."""
    return tuple(str(item) for item in value) if isinstance(value, list | tuple) else (str(value),)
