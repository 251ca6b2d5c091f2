"""Real lm-eval 0.4.13 and evalspec on the same task files, rows and models: the table of docs/parity.md.

    python -m benchmarks.parity [--rows N] [--cases TASK:MODEL,…] [--peer-python PYTHON] [--json FILE]

The task files are tests/parity/tasks/*.yaml; evalspec imports them (`evalspec import lm-eval`) and runs what comes out.
Parity is: the same token ids, log-probabilities of each request within 1e-4, the same argmax (or text) wherever the
margin exceeds 2e-4, and, where no such near tie arose, the same answer under every filter, and metric values and
standard errors within 1e-6. Of a perplexity that is its logarithm, within 1e-6 of its own size: both are made of sums
in float32, and exp multiplies what rounding leaves in them. The exit code is 1 where it fails.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.compare import Agreement, compare_scores, compare_texts
from benchmarks.harness import find_peer_python, peer_versions
from benchmarks.models import model_folders
from benchmarks.parity_data import write_data
from benchmarks.side import margins_of
from evalspec.importing.lm_eval_metrics import COUNTERPARTS
from evalspec.importing.lm_eval_spec import import_lm_eval, write
from evalspec.importing.lm_eval_task import task_name
from evalspec.models.card import cache_folder, zoo_folder
from evalspec.plan.compile import ModelPlan, compile_plan
from evalspec.runs.run import run
from evalspec.spec import load
from evalspec.spec.needs import metric_of
from evalspec.store import Store

TASKS = Path(__file__).parents[1] / "tests" / "parity" / "tasks"
PEER = Path(__file__).with_name("parity_peer.py")
METRIC_TOLERANCE = 1e-6
ROWS = 10

Outcome = dict[str, Any]


@dataclass(frozen=True)
class Setup:
    """A model: its weights, the length both sides are held to, how many of its requests the peer batches."""

    weights: str
    max_length: int | None = None
    batch: int = 8


# The peer's Mamba generates other texts in other batches (pads enter its state), so it gets one request at a time.
SETUPS: dict[str, Setup] = {
    "llama": Setup("bpe/llama"),
    "llama, 200 tokens": Setup("bpe/llama", 200),
    "llama, 24 tokens": Setup("bpe/llama", 24),
    "mamba": Setup("bpe/mamba", 512, 1),
    "mamba2": Setup("bpe/mamba2", 512, 1),
    "zoo/transformer": Setup("zoo/transformer"),
    "zoo/mamba": Setup("zoo/mamba", 4096, 1),
    "zoo/mamba2": Setup("zoo/mamba2", 4096, 1),
}
CASES: dict[str, tuple[str, ...]] = {
    "llama": (
        *("aqua_letters", "aqua_options_5shot", "aqua_prefix_1shot", "copa_two_choices", "copa_contexts_1shot"),
        *("copa_sentences", "copa_mutual_info", "last_word", "answer_5shot"),
        *("gsm8k_5shot", "boolean_3samples", "answers_10shot"),
        *("python_docs_2shot", "python_contexts_1shot", "python_shots_2shot", "python_samples_2shot", "python_dataset"),
    ),
    "llama, 200 tokens": ("aqua_options_5shot", "gsm8k_5shot"),
    "llama, 24 tokens": ("rolling",),
    "mamba": ("copa_two_choices",),
    "mamba2": ("copa_contexts_1shot", "last_word"),
    "zoo/transformer": ("labels_10shot", "steps_2shot", "option_filter", "direct_fixed_1shot", "rolling_world"),
    "zoo/mamba": ("labels_10shot", "direct_fixed_1shot"),
    "zoo/mamba2": ("labels_10shot",),
}
"""By model, the tasks that both sides run with it."""


@dataclass
class Line:
    """One task with one model."""

    task: str
    model: str
    kind: str
    requests: int
    agreement: Agreement
    values: dict[str, tuple[float, float]] = field(default_factory=dict)
    value_gap: float = 0.0
    stderr_gap: float = 0.0
    tied: bool = False
    answers: str = ""
    answers_differ: bool = False

    @property
    def agrees(self) -> bool:
        """Whether this is parity; a near tie may move a metric, and is told."""
        metrics = max(self.value_gap, self.stderr_gap) <= METRIC_TOLERANCE
        same = metrics and not self.answers_differ
        return self.agreement.agrees and (same or self.tied) and bool(self.values)

    def cells(self) -> tuple[Any, ...]:
        """As shown."""
        shown = ", ".join(f"{name} {ours:.4g}" for name, (ours, _) in self.values.items())
        return (
            self.task,
            self.model,
            self.kind,
            self.requests,
            self.agreement.says + self.answers,
            shown,
            f"{max(self.value_gap, self.stderr_gap):.0e}" if self.value_gap or self.stderr_gap else "0",
            "yes" if self.agrees else "NO",
        )


COLUMNS = ("task", "model", "type", "requests", "log-probabilities, texts, answers", "metrics", "Δ", "parity")


@dataclass(frozen=True)
class Ours:
    """evalspec's side of a case: the plan, what each request came to, what each filter took from each sample, the rows
    of the table `metrics`."""

    part: ModelPlan
    outcomes: list[Outcome]
    answers: Mapping[str, Mapping[str, str]]
    metrics: Sequence[Mapping[str, Any]]


class Parity:
    """Runs both sides on data below one folder."""

    def __init__(self, work: Path, *, rows: int, peer_python: Path, threads: int = 2) -> None:
        self.work, self.peer_python, self.threads = work.resolve(), peer_python, threads
        shutil.rmtree(self.work / "runs", ignore_errors=True)
        (self.work / "runs").mkdir(parents=True)
        write_data(self.work / "data", rows)
        self.notes: list[str] = []

    def weights(self, setup: Setup) -> Path:
        """The directory of a model."""
        place, name = setup.weights.split("/")
        return zoo_folder() / name if place == "zoo" else model_folders(cache_folder() / "benchmarks")[name]

    def theirs(self, cases: Mapping[str, Sequence[str]]) -> dict[str, dict[str, Any]]:
        """The peer's side, by model and task, in a process of its own."""
        folder, jobs = self.work / "runs", []
        for model, tasks in cases.items():
            setup = SETUPS[model]
            weights = str(self.weights(setup))
            arguments: dict[str, Any] = {"pretrained": weights, "tokenizer": weights, "dtype": "float32"}
            arguments |= {"max_length": setup.max_length} if setup.max_length else {}
            job = {"model_args": arguments, "batch_size": setup.batch, "tasks": list(tasks), "include": str(TASKS)}
            jobs.append(job)
        (folder / "jobs.json").write_text(json.dumps(jobs), encoding="utf-8")
        command = [str(self.peer_python), "-P", str(PEER), str(folder / "jobs.json"), str(folder / "peer.json")]
        bare = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "HF_DATASETS_CACHE")}
        offline = dict.fromkeys(("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"), "1")
        own = {"HF_HOME": str(self.work / "huggingface"), "OMP_NUM_THREADS": str(self.threads)}
        done = subprocess.run(command, env=bare | offline | own, cwd=self.work, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"lm-eval failed ({done.returncode}):\n{done.stderr[-3000:]}")
        found = json.loads((folder / "peer.json").read_text(encoding="utf-8"))
        return dict(zip(cases, found, strict=True))

    def ours(self, task: str, model: str) -> Ours:
        """evalspec's side."""
        setup, folder = SETUPS[model], self.work / "runs" / f"{task}-{task_name(model)}"
        weights = self.weights(setup)
        with contextlib.chdir(self.work):  # file names of a task start where the harness is started
            imported = import_lm_eval(str(task_file(task)), out=folder, model=str(weights), run_python=True)
        name = f"models.{task_name(weights.name)}"
        sets = [f"{name}.dtype=float32", f"{name}.device=cpu"]
        sets += [f"{name}.max_length={setup.max_length}"] if setup.max_length else []
        plan = compile_plan(load(write(imported, folder), sets))
        store = Store(folder / "store.duckdb")
        finished = run(plan, store, folder)
        [part] = plan.models
        samples = {(row["sample_id"], row["repeat"]): row for row in store.rows("samples", finished.run_id)}
        answers: dict[str, dict[str, str]] = {}
        for row in store.rows("scores", finished.run_id):
            if row["extracted"] is not None:
                answers.setdefault(row["filter"], {})[row["sample_id"]] = row["extracted"]
        metrics = store.rows("metrics", finished.run_id)
        return Ours(part, list(_outcomes(part, samples)), answers, metrics)

    def lines(self, cases: Mapping[str, Sequence[str]]) -> Iterator[Line]:
        """Every case, model by model."""
        print(f"  lm-eval: {sum(map(len, cases.values()))} cases …", file=sys.stderr, flush=True)
        theirs = self.theirs(cases)
        for model, tasks in cases.items():
            for task in tasks:
                print(f"  evalspec: {task} with {model} …", file=sys.stderr, flush=True)
                yield self.line(task, model, theirs[model][task])

    def line(self, task: str, model: str, theirs: dict[str, Any]) -> Line:
        """Both sides of one task held against each other."""
        ours = self.ours(task, model)
        part, outcomes = ours.part, ours.outcomes
        block = part.cells[0].task
        kind = {"generate": "generate_until", "choose": "multiple_choice", "score": "loglikelihood"}[block.kind]
        kind = "loglikelihood_rolling" if block.prompt.template == "" and block.kind == "score" else kind
        if block.kind == "generate":
            tokenizer, asked = part.model.tokenizer, part.model
            agreement = compare_texts(
                outcomes, theirs["requests"], tokenizer.decode, lambda prefixes: margins_of(asked, prefixes)
            )
        else:
            choices = len(part.samples[0].draft.choices) or 1
            agreement = compare_scores(outcomes, theirs["requests"], choices, unconditional=block.unconditional)
        line = Line(task, model, kind, len(outcomes), agreement, tied=bool(agreement.notes) and agreement.agrees)
        _compare_metrics(line, ours.metrics, theirs["results"])
        _compare_answers(line, ours, theirs["answers"])
        self.notes += [f"{task}, {model}: {note}" for note in agreement.notes]
        return line


def _compare_answers(line: Line, ours: Ours, theirs: Mapping[str, Sequence[str]]) -> None:
    """What every filter took from every row's answer."""
    order = [sample.draft.sample_id for sample in ours.part.samples]
    pairs = [
        (ours.answers[chain][sample], text)
        for chain, texts in theirs.items()
        for sample, text in zip(order, texts, strict=True)
    ]
    same = sum(our == their for our, their in pairs)
    line.answers = f", answers {same}/{len(pairs)}" if pairs else ""
    line.answers_differ = same < len(pairs)


def markdown(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table as docs/parity.md has it."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)


def task_file(task: str) -> Path:
    """The file of a task, which is called after it."""
    return TASKS / f"{task}.yaml"


def _outcomes(part: ModelPlan, samples: Mapping[tuple[str, int], Mapping[str, Any]]) -> Iterator[Outcome]:
    for sample in part.samples:
        row = samples[sample.draft.sample_id, sample.repeat]
        for number, request in enumerate(sample.requests):
            ids = request.tokens.tolist()
            if request.decoding:
                yield {"ids": ids, "text": row["output"]}
                continue
            yield {
                "ids": [*ids, request.targets[-1]],
                "targets": len(request.targets),
                "logprob": math.fsum(row["logprobs"][number]),
                "greedy": row["greedy"][number],
            }


def _compare_metrics(line: Line, ours: Sequence[Mapping[str, Any]], theirs: Mapping[str, Any]) -> None:
    """Every metric that the peer gives, with its standard error where it has one."""
    for key, value in theirs.items():
        name, _, chain = key.partition(",")
        if name.endswith("_stderr"):
            continue
        called = COUNTERPARTS[line.kind][name][0]
        chain = chain if line.kind == "generate_until" else "default"
        [row] = [row for row in ours if metric_of(row["metric"]) == called and row["filter"] == chain]
        shown = name if chain in ("default", "none") else f"{name} ({chain})"
        line.values[shown] = (row["value"], float(value))
        perplexity = name.endswith("perplexity")
        gap = row["value"] - float(value)
        if perplexity:
            loss = math.log(value)
            gap = (math.log(row["value"]) - loss) / max(1.0, abs(loss))
        line.value_gap = max(line.value_gap, abs(gap))
        stderr = theirs.get(f"{name}_stderr,{key.partition(',')[2]}")
        if not perplexity and isinstance(stderr, int | float):
            line.stderr_gap = max(line.stderr_gap, abs(row["stderr"] - stderr))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=ROWS, help="of most tasks; a third of what takes long")
    parser.add_argument("--cases", help="a part of the cases: task:model, several by `;`")
    parser.add_argument("--work", type=Path, default=cache_folder() / "parity", help="where data and runs go")
    parser.add_argument("--peer-python", type=Path, default=find_peer_python(), help="an interpreter with lm-eval")
    parser.add_argument("--json", type=Path, help="write the rows there too")
    options = parser.parse_args(arguments)
    cases: dict[str, list[str]] = {model: list(tasks) for model, tasks in CASES.items()}
    if options.cases:
        cases = {}
        for case in options.cases.split(";"):
            task, _, model = case.partition(":")
            cases.setdefault(model, []).append(task)
    began = time.perf_counter()
    versions = peer_versions(options.peer_python)
    parity = Parity(options.work, rows=options.rows, peer_python=options.peer_python)
    lines = list(parity.lines(cases))
    print(markdown(COLUMNS, [line.cells() for line in lines]), end="\n\n")
    print(
        "evalspec against lm-eval's hf backend, float32 on a CPU; "
        + ", ".join(f"{name} {version}" for name, version in versions.items())
    )
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu = sum(one.ru_utime + one.ru_stime for one in used)
    seconds = time.perf_counter() - began
    print(f"{len({line.task for line in lines})} tasks, {len(lines)} cases; {cpu:.0f} s of CPU in {seconds:.0f} s")
    for note in parity.notes:
        print(note)
    if options.json:
        options.json.write_text(json.dumps([asdict(line) for line in lines], indent=1), encoding="utf-8")
    return 0 if all(line.agrees for line in lines) else 1


if __name__ == "__main__":
    sys.exit(main())
