"""What a spec cannot say of a task, and what is worth telling, gathered while its keys are carried over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from evalspec.errors import Problem
from evalspec.importing.lm_eval_yaml import Config

HARMLESS = {
    "task_alias": "a name for tables",
    "tag": "names under which tasks are called together",
    "metadata": "version and remarks",
    "version": "version",
    "task_list": "the harness does not read it here",
    "should_decontaminate": "only for a run that looks for contamination",
    "doc_to_decontamination_query": "only for a run that looks for contamination",
    "unsafe_code": "nothing that a spec asks for runs code",
}
"""Keys that change no prompt and no score; they are left out, and named at the top of the spec."""

FOREIGN = {
    "class": "the task is a Python class",
    "custom_dataset": "its rows are made by Python",
    "process_docs": "its rows are changed by Python",
    "process_results": "its scores are computed by Python",
    "doc_to_image": "images have no place in a spec",
    "doc_to_audio": "sound has no place in a spec",
    "use_prompt": "promptsource's templates are code of their own; copy the template into `doc_to_text`",
}
"""Keys that no spec can say."""


@dataclass
class Findings:
    """The problems and notes of one task."""

    config: Config
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def refuse(self, key: str, message: str) -> None:
        """`message` at the line of a key."""
        self.problems.append(self.config.place(key).problem(f"`{key}`: {message}"))

    def note(self, text: str) -> None:
        """Something that whoever reads the spec must know."""
        if text not in self.notes:
            self.notes.append(text)

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key; null counts as absent, as it does in the harness."""
        value = self.config.values.get(key)
        return default if value is None else value

    def typed(self, key: str, kind: type | tuple[type, ...], default: Any, says: str) -> Any:
        """The value of a key that must be of some type; a problem, and the default, where it is not."""
        value = self.get(key, default)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is int):
            self.refuse(key, f"must be {says}, not {value!r}")
            return default
        return value


Refuse = Callable[[str], None]
