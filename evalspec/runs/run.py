"""The top of the house: compile, ask for results, score them, commit them, report.

    plan ──► for each model, stage by stage: pending samples ──► walk ──► rows ──► store (a segment every few seconds)
                                                                                     └──► aggregates ──► report

A run that was cut off goes on where it stopped; a finished one is not run again.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml

import evalspec
from evalspec.data.interrupting import keyboard
from evalspec.errors import BackendError, EvalspecError, RunError, StoreError, located
from evalspec.execute.distributed.cluster import place_of
from evalspec.execute.places import Place
from evalspec.execute.protocols import Engine, ForkingBackend, Result
from evalspec.execute.walk import walk
from evalspec.metrics.intervals import aggregate
from evalspec.metrics.outcome import Score
from evalspec.metrics.registry import METRIC_FUNCTIONS
from evalspec.models.card import Model
from evalspec.plan.compile import ModelPlan, Plan, Sample, SampleKey, forest_of
from evalspec.plan.forest import Forest
from evalspec.plan.measurements import MeasurePlan, Point
from evalspec.plan.notes import notes_of
from evalspec.plan.stages import keys_at, levels, stage_samples
from evalspec.runs.answered import earlier_stages, votes
from evalspec.runs.efficiency import Meter
from evalspec.runs.measuring import run_measurements, speed_verdicts, still_missing, threads_of
from evalspec.runs.progress import Progress, Quiet
from evalspec.runs.provenance import git_commit, versions
from evalspec.runs.published import published_rows
from evalspec.runs.scoring import Answer, Row, cache_key, load_scoring, retrieval_rows, sample_row, score_rows
from evalspec.runs.verdicts import check_hypotheses, verdict_rows
from evalspec.spec import Cell, LoadedSpec
from evalspec.spec.needs import metric_of
from evalspec.store import RunWriter, Store
from evalspec.store.scores import read_scores

COMMIT_SECONDS = 2.0
COMMIT_SAMPLES = 500
MERGE_COMMITS = 100


@dataclass(frozen=True)
class Finished:
    """What a run came to."""

    run_id: str
    status: str
    samples: int
    failed: int
    computed: int
    """Samples computed now; 0 when an earlier run had them all."""
    cached: int
    """Samples whose answers came from earlier runs."""
    measured: int
    """Timings of models running alone that were made now."""
    computed_tokens: int
    seconds: float
    report: Path


@keyboard()
def run(
    plan: Plan,
    store: Store,
    reports: Path,
    *,
    fresh: bool = False,
    measure: bool = True,
    ray: str | None = None,
    progress: Progress | None = None,
) -> Finished:
    """Run a plan to its end and write its report: in this process, or with `ray` on a Ray cluster (`cluster.place_of`).

    Resumes an unfinished run of the same plan and weights, computes nothing when a finished one has no failures, and
    reuses answers that earlier runs paid for; `fresh` forces all. What the spec's `measure` block asks is timed when
    all samples are answered, and never taken from another run; without `measure` it waits for a later call, and so it
    does on a cluster that was joined, since a model is timed alone on the machine that the run was started on. Raises
    RunError when something strikes in the middle: what was finished before is kept. KeyboardInterrupt is passed on
    after the run was marked interrupted.
    """
    check_hypotheses(plan)
    progress = progress or Quiet()
    began = time.perf_counter()
    models = [part.model for part in plan.models] + [one.model for one in plan.measured]
    weights = {(model.name, model.weights_hash) for model in models}
    earlier = None if fresh else store.find(plan.plan_id, weights)
    timings = store.rows("measurements", earlier["run_id"]) if earlier and plan.measured else []
    if measure and plan.measured and ray not in (None, "local"):
        progress.say("`measure` is left to a run without `--ray`, on the machine that is to be measured")
        measure = False
    load_scoring(cell.task for part in plan.models for cell in part.cells)
    if measure and plan.measured:
        threads_of(plan.measured)  # says now what this machine does not have
    missing = [(one, still_missing(one, timings)) for one in plan.measured if measure]
    answered = earlier is not None and len(store.finished(earlier["run_id"])) == plan.samples
    if earlier and earlier["status"] == "finished" and answered and not any(points for _, points in missing):
        progress.say(f"nothing to compute: run {earlier['run_id']} has every answer (--fresh runs it again)")
        return _summary(earlier["run_id"], plan, store, reports, began)
    if earlier:
        progress.say(f"going on with run {earlier['run_id']}, which was {earlier['status']}")
    for note in notes_of(plan):
        progress.say(f"note: {note}")
    with place_of(ray, plan.loaded.root, progress.say) as place:
        writer = store.resume(earlier["run_id"]) if earlier else store.begin(_run_row(plan, place), _cell_rows(plan))
        work = _Work(plan, store, writer, place, fresh, progress)
        try:
            with keyboard():
                work.all(missing)
        except KeyboardInterrupt:
            _give_up(writer, "interrupted")
            raise
        except EvalspecError as error:
            _give_up(writer, "failed")
            raise RunError(f"{error}\nWhat was finished is kept; run the same command again to go on.") from error
        except BaseException:
            _give_up(writer, "failed")
            raise
    writer.finish("failed" if failures(store, writer.run_id) else "finished")
    try:
        store.merge()
    except StoreError as error:
        progress.say(f"{error}")  # the segments hold everything; the next run merges them
    return _summary(writer.run_id, plan, store, reports, began, work)


def _give_up(writer: RunWriter, status: Literal["interrupted", "failed"]) -> None:
    """Mark how a run ended, if that can still be written; a run that says nothing reads as interrupted."""
    try:
        writer.finish(status)
    except StoreError:
        writer.close()


def failures(store: Store, run_id: str) -> int:
    """How many samples of a run have an error instead of an answer."""
    with store.connect() as connection:
        found = connection.execute(
            "SELECT count(*) FROM samples WHERE run_id = ? AND error IS NOT NULL", [run_id]
        ).fetchone()
    return int(found[0]) if found else 0


class _Work:
    """One pass over all models, and the counts that the summary tells."""

    def __init__(
        self, plan: Plan, store: Store, writer: RunWriter, place: Place, fresh: bool, progress: Progress
    ) -> None:
        self.plan, self.store, self.writer, self.place = plan, store, writer, place
        self.fresh, self.progress = fresh, progress
        self.done = {(key.cell_id, key.sample_id, key.repeat, key.stage) for key in store.finished(writer.run_id)}
        self.before = {str(row["cell_id"]): row for row in store.rows("efficiency", writer.run_id)}
        self.computed = self.cached = self.computed_tokens = self.commits = self.measured = 0

    def all(self, missing: Sequence[tuple[MeasurePlan, Mapping[Point, Sequence[int]]]]) -> None:
        """Every model's answers, what follows from them, and the timings that are missing."""
        store, writer, plan = self.store, self.writer, self.plan
        for part in plan.models:
            self.model(part)
        writer.commit({"scores": votes(store, writer.run_id, plan)})
        writer.commit({"metrics": aggregates(store, writer.run_id)})
        writer.commit({"verdicts": verdict_rows(store, writer.run_id, plan)})
        writer.commit({"verdicts": published_rows(store, writer.run_id, plan)})
        for one, points in missing:
            self.measured += run_measurements(one, points, threads_of(plan.measured), writer, self.progress)
        if missing:
            writer.commit({"verdicts": speed_verdicts(store, writer.run_id)})

    def model(self, part: ModelPlan) -> None:
        """Everything that is still to be answered by one model: its tasks, then their stages, level by level."""
        unfinished = [level for level in range(levels(part)) if not self.done.issuperset(keys_at(part, level))]
        if not unfinished:
            return
        meter: Meter | None = None
        with self.place.open(part.model, part.forest.distinct_tokens + part.forest.new_tokens) as backend:
            for level in range(unfinished[-1] + 1):
                samples = part.samples
                if level:
                    samples = stage_samples(part, level, earlier_stages(self.store, self.writer.run_id, part))
                meter = self._level(part, level, samples, backend, meter)

    def _level(
        self,
        part: ModelPlan,
        level: int,
        samples: Sequence[Sample],
        backend: ForkingBackend | Engine,
        counted: Meter | None,
    ) -> Meter:
        """What is still to be answered of one level, in one forest; `counted` is the meter of the level before."""
        pending = [sample for sample in samples if sample.key not in self.done]
        nothing = [sample for sample in pending if not sample.requests]
        pending = [sample for sample in pending if sample.requests]
        # The tokenizer turns the tokens of an answer into its text.
        asked = (part.model.block.kernels, part.model.tokenizer.fingerprint)
        answering = [part.model.weights_hash, *backend.identity, *asked]
        # What a server answered is no other run's: its weights may have changed behind the same name.
        keys = {} if part.model.served else {sample.key: cache_key(sample, answering) for sample in pending}
        known = {} if self.fresh else self.store.cached(list(keys.values()))
        reused = [sample for sample in pending if keys.get(sample.key) in known]
        pending = [sample for sample in pending if keys.get(sample.key) not in known]
        forest = forest_of(pending) if pending else None
        meter = Meter(part, samples, pending, forest, self.before, counted)
        self._commit([(sample, Answer.of_nothing(sample)) for sample in nothing], keys, meter)
        self._commit([(s, Answer.from_row(known[keys[s.key]])) for s in reused], keys, meter)
        self.cached += len(reused)
        if forest is None:
            return meter
        name = part.model.name + (f", stage {level + 1}" if level else "")
        self.progress.begin(name, forest.distinct_tokens, len(pending), forest.new_tokens)
        batch: list[tuple[Sample, Answer]] = []
        last = time.perf_counter()
        try:
            for sample, answer in _answers(pending, forest, walk(forest, backend), meter, self.progress):
                batch.append((sample, answer))
                if len(batch) >= COMMIT_SAMPLES or time.perf_counter() - last > COMMIT_SECONDS:
                    meter.peak = backend.peak_memory()
                    self._commit(batch, keys, meter)
                    batch, last = [], time.perf_counter()
        except (RunError, BackendError):  # the engine or server is gone, or lets nobody in; what it answered is not
            self._commit(batch, keys, meter)
            raise
        meter.peak = backend.peak_memory()
        self._commit(batch, keys, meter)
        self.computed += len(pending)
        self.computed_tokens += meter.computed
        self.progress.end()
        return meter

    def _commit(self, batch: Sequence[tuple[Sample, Answer]], keys: Mapping[SampleKey, str], meter: Meter) -> None:
        """Make a batch durable: its samples, scores and passages, and the counts so far."""
        if not batch:
            return
        rows: dict[str, list[Row]] = {"samples": [], "scores": [], "retrievals": [], "efficiency": meter.rows()}
        for sample, answer in batch:
            rows["samples"].append(sample_row(sample, answer, keys.get(sample.key)))
            rows["scores"] += score_rows(sample, answer)
            rows["retrievals"] += retrieval_rows(sample)
        self.writer.commit(rows)
        self.commits += 1
        if self.commits % MERGE_COMMITS == 0:
            self.store.merge()  # a long run leaves many small segments, and readers are slower the more there are


def _answers(
    pending: Sequence[Sample], forest: Forest, results: Iterator[Result], meter: Meter, progress: Progress
) -> Iterator[tuple[Sample, Answer]]:
    """Samples whose requests all have results, as soon as they have them. One result may serve many samples."""
    place = {request.key: number for number, request in enumerate(forest.requests)}
    waiting: dict[int, list[int]] = {}
    missing: list[int] = []
    for number, sample in enumerate(pending):
        needed = {place[request.key] for request in sample.requests}
        missing.append(len(needed))
        for request in needed:
            waiting.setdefault(request, []).append(number)
    found: dict[int, Result] = {}
    for result in results:
        found[result.request] = result
        meter.add(result.computed_tokens, result.seconds)
        decoding = forest.requests[result.request].decoding
        spared = decoding.max_tokens - result.output_tokens if decoding else 0
        progress.advance(result.computed_tokens, result.output_tokens, spared)
        users = waiting.pop(result.request, [])
        meter.answered([pending[user].cell.cell_id for user in users], result.output_tokens, result.request)
        for number in users:
            missing[number] -= 1
            if not missing[number]:
                sample = pending[number]
                yield sample, Answer.from_results([found[place[request.key]] for request in sample.requests])


def aggregates(store: Store, run_id: str) -> list[Row]:
    """The rows of the table `metrics`, from all scores of the run that the store holds."""
    rows: list[Row] = []
    with store.connect() as connection:
        scores = read_scores(connection, run_id)
    for (cell, stage, filter_, name), columns in scores.items():
        found = aggregate(
            METRIC_FUNCTIONS.get(metric_of(name)),
            [Score(*score) for score in zip(columns.values, columns.weights, columns.parts, strict=True)],
            columns.samples,
            columns.clusters,
        )
        rows.append(
            {
                "cell_id": cell,
                "stage": stage,
                "filter": filter_,
                "metric": name,
                "value": found.value,
                "stderr": found.stderr,
                "ci_low": found.ci_low,
                "ci_high": found.ci_high,
                "n": found.n,
            }
        )
    return rows


def _run_row(plan: Plan, place: Place) -> Row:
    """The row of the table `runs`."""
    loaded = plan.loaded
    devices = []
    models = [part.model for part in plan.models] + [one.model for one in plan.measured]
    for model in models:  # all of them before anything runs: a GPU that is missing is no surprise for the second
        with located(f"models.{model.name}"):
            devices.append(f"server {model.block.url}" if model.served else place.describe(model))
    return {
        "spec_name": loaded.spec.name,
        "spec": spec_text(loaded),
        "plan_id": plan.plan_id,
        "evalspec_version": evalspec.__version__,
        "git_commit": git_commit(loaded.root),
        "host": platform.node(),
        "device": ", ".join(dict.fromkeys(devices)),
        "versions": versions(),
    }


def spec_text(loaded: LoadedSpec) -> str:
    """The spec as it is run: its own text, or with includes and `--set` resolved where it has any."""
    if len(loaded.texts) == 1 and not loaded.sets:
        return next(iter(loaded.texts.values()))
    asked = loaded.spec.model_dump(mode="json", exclude_unset=True, exclude={"include"})
    return yaml.safe_dump(asked, sort_keys=False, allow_unicode=True, width=110)


def _cell_rows(plan: Plan) -> list[Row]:
    """The rows of the table `cells`; a model that is measured alone is one without a task."""

    def row(cell: Cell | MeasurePlan, model: Model, task: str | None) -> Row:
        return {
            "cell_id": cell.cell_id,
            "model": model.name,
            "weights_hash": model.weights_hash,
            "task": task,
            "params": cell.params,
            "backend": model.backend,
            "dtype": model.block.dtype,
            "trained_length": model.trained_length,
        }

    tasks = [row(cell, part.model, cell.task_name) for part in plan.models for cell in part.cells]
    return tasks + [row(one, one.model, None) for one in plan.measured]


def _summary(run_id: str, plan: Plan, store: Store, reports: Path, began: float, work: _Work | None = None) -> Finished:
    """Render the report, and say what the run came to; without `work` nothing was computed."""
    from evalspec.report import render, render_index

    try:
        with store.connect() as connection:
            page = render(connection, run_id, reports)
            render_index(connection, reports)
    except OSError as error:
        raise RunError(
            f"{reports}: the report cannot be written: {error.strerror}. All results are in the store; "
            "`evalspec report` renders it again"
        ) from error
    failed = failures(store, run_id)
    return Finished(
        run_id=run_id,
        status="failed" if failed else "finished",
        samples=plan.samples,
        failed=failed,
        computed=work.computed if work else 0,
        cached=work.cached if work else 0,
        measured=work.measured if work else 0,
        computed_tokens=work.computed_tokens if work else 0,
        seconds=time.perf_counter() - began,
        report=page,
    )
