"""What the store holds of a run's answers, for what is made of several: votes over repeats, prompts of later stages.

It is read from the store, and not kept from the walk, so that a resumed run sees what its earlier part answered.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

from evalspec.metrics.filters import extract, vote
from evalspec.plan.compile import ModelPlan, Plan, Sample, SampleKey
from evalspec.plan.stages import Earlier, levels, stage_at, stage_samples, task_at
from evalspec.prompting.stages import Said
from evalspec.runs.scoring import Row, vote_rows
from evalspec.spec.blocks import MAIN, TaskBlock
from evalspec.spec.extraction import votes_of
from evalspec.store import Store

ANSWERED = """
    SELECT cell_id, sample_id, repeat, stage, if(stage = 'main', NULL, prompt), output, finish_reason, error
    FROM samples WHERE run_id = ? AND list_contains(?, cell_id)
"""


class _Answered(NamedTuple):
    prompt: str | None
    output: str | None
    finish_reason: str | None
    error: str | None


def _answered(store: Store, run_id: str, cells: Sequence[str]) -> dict[SampleKey, _Answered]:
    with store.connect() as connection:
        rows = connection.execute(ANSWERED, [run_id, list(cells)]).fetchall()
    return {(cell, sample, repeat, stage): _Answered(*rest) for cell, sample, repeat, stage, *rest in rows}


def _repeats(samples: Sequence[Sample]) -> dict[tuple[str, str, int], list[Sample]]:
    """Samples by what they repeat: (cell_id, sample_id, draw), each in the order of its repeats."""
    groups: dict[tuple[str, str, int], list[Sample]] = {}
    for sample in sorted(samples, key=lambda sample: sample.repeat):
        groups.setdefault((sample.cell.cell_id, sample.draft.sample_id, sample.draft.draw), []).append(sample)
    return groups


def _outputs(samples: Sequence[Sample], stage: str, found: dict[SampleKey, _Answered]) -> list[str]:
    """The outputs of one sample's repeats in a stage, up to the first that has none."""
    answers = (found.get((*sample.key[:3], stage)) for sample in samples)
    outputs = (answer.output if answer and answer.error is None else None for answer in answers)
    return list(itertools.takewhile(lambda output: output is not None, outputs))  # type: ignore[arg-type]


def earlier_stages(store: Store, run_id: str, part: ModelPlan) -> Earlier:
    """What the stages that are done said of each of a model's samples."""
    cells = [cell.cell_id for cell in part.cells if cell.task.stages]
    found = _answered(store, run_id, cells)
    groups = _repeats([sample for sample in part.samples if sample.cell.task.stages])
    tasks = {
        (cell.cell_id, stage): task_at(cell.task, stage) for cell in part.cells for stage in (MAIN, *cell.task.stages)
    }

    def said(sample: Sample, stage: str) -> Said | str | None:
        answer = found.get((*sample.key[:3], stage))
        if answer is None or answer.error is not None:
            return "it was not asked" if answer is None else answer.error or ""
        if answer.finish_reason == "skipped":
            return None
        task = tasks[sample.cell.cell_id, stage]
        extracted: dict[str, str] = {}
        for name, chain in task.chains.items() if answer.output is not None and task.decode else ():
            if votes_of(chain) is None:
                extracted[name] = extract(answer.output or "", chain, sample.draft.options).text
            else:
                repeats = groups[sample.cell.cell_id, sample.draft.sample_id, sample.draft.draw]
                verdict = vote(_outputs(repeats, stage, found), chain, sample.draft.options)
                extracted |= {name: verdict.text} if verdict else {}
        prompt = sample.draft.plain if stage == MAIN else answer.prompt or ""
        return Said(prompt, answer.output, extracted)

    return said


def votes(store: Store, run_id: str, plan: Plan) -> list[Row]:
    """The scores of all votes over repeats. One is absent where one of the repeats that it takes has no answer.

    The targets of a stage's vote are those of the first repeat, should they depend on what the stage before it said.
    """
    rows: list[Row] = []
    for part in plan.models:
        for level in range(levels(part)):
            named = [(cell, stage_at(cell.task, level)) for cell in part.cells]
            voting = {cell.cell_id for cell, stage in named if stage and _votes(task_at(cell.task, stage))}
            if not voting:
                continue
            found = _answered(store, run_id, sorted(voting))
            samples = part.samples
            if level:
                samples = stage_samples(part, level, earlier_stages(store, run_id, part))
            of_votes = [sample for sample in samples if sample.cell.cell_id in voting]
            for repeats in _repeats(of_votes).values():
                rows += vote_rows(repeats[0], _outputs(repeats, repeats[0].stage, found))
    return rows


def _votes(task: TaskBlock) -> bool:
    return task.decode is not None and any(votes_of(chain) for chain in task.chains.values())
