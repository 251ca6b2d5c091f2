"""What a plan says of its prompts and right answers that no number would show: likely slips, never errors."""

from __future__ import annotations

from evalspec.plan.compile import Plan
from evalspec.prompting.squad import spoiled


def notes_of(plan: Plan) -> list[str]:
    """One line for each task and slip. `evalspec plan` ends with them, and a run begins with them."""
    return [*_line_breaks(plan), *_spoiled_answers(plan)]


def _line_breaks(plan: Plan) -> list[str]:
    """Templates that end in a line break in front of an answer that begins with a space, as YAML's `|` makes them."""
    notes: dict[str, None] = {}
    for cell in plan.cells:
        blocks = {f"tasks.{cell.task_name}": cell.task.prompt}
        blocks |= {f"tasks.{cell.task_name}.stages.{name}": stage.prompt for name, stage in cell.task.stages.items()}
        for name, prompt in blocks.items():
            if (prompt.template or "").endswith("\n") and prompt.delimiter == " " and not prompt.prefix:
                said = f"{name}.prompt.template: ends in a line break, which models read before the answer"
                notes[f"{said}; YAML's `|` keeps it, `|-` leaves it out"] = None
    return list(notes)


def _spoiled_answers(plan: Plan) -> list[str]:
    """Tasks whose `exact_match` compares after SQuAD's normalisation right answers that this would spoil."""
    notes: dict[str, str] = {}
    for part in plan.models:
        for sample in part.samples:
            name, task = sample.cell.task_name, sample.task
            plain = any(block.metric == "exact_match" and not block.options for block in task.metrics)
            if name not in notes and plain and (what := spoiled(sample.draft.targets)):
                notes[name] = (
                    f"{name}: `exact_match` compares as SQuAD does, which {what}; `{{metric: exact_match, literal: "
                    "true}` compares as written"
                )
    return list(notes.values())
