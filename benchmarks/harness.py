"""evalspec against lm-evaluation-harness 0.4.13 (its `hf` backend): the same models, rows, settings and threads.

    python -m benchmarks.harness [--quick] [--works choice,generate,document] [--models llama,mamba,mamba2] [--reuse]

choice    few-shot questions with four choices: the scoring stage, the whole process from the shell, and with room for
          three live states alone
generate  few-shot chain of thought, greedy, to a fixed number of new tokens
document  many questions on long documents, against the same backend with each request from a root of its own

Each measurement is a process of its own, so nothing warm leaks from one to the next: evalspec's are the quickest of
three, the peer's runs once, to its end. The exit code is 1 if the sides disagree about a score.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.compare import Agreement, compare_scores, compare_texts
from benchmarks.lines import COLUMNS, Line
from benchmarks.models import FAMILIES, WIDEST, WIDTH, model_folders
from benchmarks.tasks import Work, write_works
from benchmarks.text import QUICK, Sizes
from evalspec.models.card import cache_folder
from evalspec.models.tokens import Tokenizer
from evalspec.tabular import table

ROOT = Path(__file__).parents[1]
WORKS = ("choice", "generate", "document")
CHOICES = 4
PEER_BATCH = 8
LIVE_STATES = 3
BATCH_ROWS = 1024  # tokens of one batch on a CPU, the rows of a layer's matrix products
BARS = {
    ("choice", "llama"): (20.0, 0.5),
    ("choice", "mamba"): (60.0, 0.35),
    ("choice", "mamba2"): (200.0, 0.35),
    ("process", ""): (5.0, None),
    ("generate", ""): (5.0, None),
    ("document", ""): (25.0, None),
}
"""By work and family (or any): how many times faster, and which share of the GEMM rate."""
MOST_COMPUTED = 1.01
MOST_COMPUTED_WITH_FEW_STATES = 1.5


class Bench:
    """Runs measurements as processes, with the same threads on both sides."""

    def __init__(
        self,
        folder: Path,
        sizes: Sizes,
        *,
        threads: int,
        peer_python: Path,
        reuse: bool = False,
        alone_documents: int | None = None,
    ) -> None:
        self.folder, self.sizes, self.reuse = folder, sizes, reuse
        self.peer_python = peer_python
        self.alone_documents = min(alone_documents or sizes.documents, sizes.documents)
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
        self.threads = dict.fromkeys(names, str(threads))
        self.temporary = folder / "runs"
        shutil.rmtree(self.temporary, ignore_errors=True)
        self.temporary.mkdir(parents=True)
        self.models: dict[str, Path] = {}
        self.versions: dict[str, str] = {}
        self.rates: dict[str, float] = {}
        self.lines: list[Line] = []
        self.documents = False
        self.notes: list[str] = []

    # Processes -------------------------------------------------------------------------------------------------------

    def process(self, says: str, command: Sequence[str], environment: dict[str, str]) -> tuple[float, str]:
        """Run a command to its end: its wall seconds, and what it printed. A failure shows the end of its errors."""
        print(f"  {says} …", end="", file=sys.stderr, flush=True)
        log = self.temporary / "stderr.txt"
        began = time.perf_counter()
        with log.open("w") as errors:
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=ROOT)
        seconds = time.perf_counter() - began
        print(f" {seconds:.1f} s", file=sys.stderr, flush=True)
        if done.returncode:
            tail = "".join(log.read_text(errors="replace").splitlines(keepends=True)[-25:])
            raise RuntimeError(f"{says} failed ({done.returncode}):\n{done.stdout[-2000:]}{tail}")
        return seconds, done.stdout

    def ours(self) -> dict[str, str]:
        """The environment of evalspec's processes."""
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
        return os.environ | self.threads | {"PYTHONPATH": path}

    def side(self, says: str, *arguments: str) -> Any:
        """One measurement of evalspec's side."""
        out = self.temporary / "side.json"
        self.process(f"evalspec: {says}", [sys.executable, "-m", "benchmarks.side", *arguments, str(out)], self.ours())
        return json.loads(out.read_text(encoding="utf-8"))

    def best_walk(self, work: Work, *flags: str, rounds: int | None = None) -> dict[str, Any]:
        """The quickest of several walks, each in a process of its own."""
        says = " ".join(["walk of", work.name, work.family, *flags])
        walks = [self.side(says, "walk", str(work.spec), *flags) for _ in range(rounds or self.sizes.rounds)]
        return min(walks, key=lambda walk: float(walk["seconds"]))

    def whole(self, work: Work) -> tuple[float, float]:
        """evalspec from the shell into a fresh store, with its report: the quickest run's seconds, and the accuracy."""
        quickest, accuracy = float("inf"), float("nan")
        for number in range(self.sizes.rounds):
            store = self.temporary / f"{work.name}-{work.family}-{number}" / "store.duckdb"
            store.parent.mkdir()
            command = [sys.executable, "-m", "evalspec.cli", "run", str(work.spec), "--store", str(store), "--json"]
            seconds, printed = self.process(f"evalspec: whole run of {work.name} {work.family}", command, self.ours())
            quickest = min(quickest, seconds)
            [accuracy] = [row["value"] for row in json.loads(printed)["metrics"] if row["metric"] == "accuracy"]
        return quickest, accuracy

    def peer(self, work: Work) -> dict[str, Any]:
        """lm-eval once: seconds of its scoring stage and of the whole process, every request, and its results."""
        assert work.peer_task is not None
        kept = self.folder / "kept" / f"{self._key(work)}.json"
        if self.reuse and kept.is_file():
            self.notes.append(f"{work.name}, {work.family}: the peer's side was kept from an earlier run (--reuse)")
            found: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
            return found
        record, output = self.temporary / "peer.json", self.temporary / f"peer-{work.name}-{work.family}"
        weights = self._weights(work)
        # -P: this folder must not stand in front of the packages that the peer imports (one is called `kernels`).
        command = [str(self.peer_python), "-P", str(Path(__file__).with_name("peer.py")), str(record)]
        command += ["run", "--model", "hf"]
        arguments = f"pretrained={weights},tokenizer={weights},dtype=float32,add_bos_token=False"
        command += ["--model_args", arguments, "--tasks", work.peer_task, "--include_path", str(work.peer_folder)]
        command += ["--batch_size", str(PEER_BATCH), "--device", "cpu", "--output_path", str(output), "--log_samples"]
        offline = dict.fromkeys(("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"), "1")
        homes = {"HF_HOME": str(self.folder / "huggingface")}
        bare = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "HF_DATASETS_CACHE")}
        seconds, _ = self.process(f"lm-eval: {work.name} {work.family}", command, bare | self.threads | offline | homes)
        [results] = output.glob("**/results_*.json")
        measured: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
        measured["process"] = seconds
        measured["results"] = json.loads(results.read_text(encoding="utf-8"))["results"][work.peer_task]
        kept.parent.mkdir(exist_ok=True)
        kept.write_text(json.dumps(measured), encoding="utf-8")
        return measured

    def _weights(self, work: Work) -> Path:
        return self.models[work.family]

    def _key(self, work: Work) -> str:
        """Names a peer's measurement by everything that it depends on."""
        digest = hashlib.sha256(Path(__file__).with_name("peer.py").read_bytes())
        for path in sorted([*self._weights(work).iterdir(), *work.peer_folder.glob(f"{work.name}.yaml")]):
            digest.update(path.name.encode() + path.read_bytes())
        for path in sorted(work.peer_folder.parent.glob(f"{work.name}*.jsonl")):
            digest.update(path.read_bytes())
        digest.update(json.dumps([self.threads, PEER_BATCH, self.versions, host()], sort_keys=True).encode())
        return f"{work.name}-{work.family}-{digest.hexdigest()[:16]}"

    # The works -------------------------------------------------------------------------------------------------------

    def run(self, models: dict[str, Path], works: Sequence[str]) -> None:
        """Measure all that is wanted, and print the table."""
        self.models = models
        self.versions = peer_versions(self.peer_python)
        written = write_works(self.folder / "data", models, self.sizes)
        shapes = [[BATCH_ROWS, WIDTH, WIDEST[family]] for family in models] + [[2048, 2048, 2048]]
        rates = self.side("float32 matrix products", "gemm", json.dumps(shapes))
        self.rates = dict(zip([*models, "square"], rates, strict=True))
        for work in written:
            if work.name in works:
                getattr(self, work.name)(work)

    def bars(self, name: str, family: str) -> tuple[float, float | None]:
        """The bar of a work: ratio, share."""
        return BARS.get((name, family)) or BARS[name, ""]

    def line(self, says: str, work: Work, walked: dict[str, Any], peer_seconds: float, agreement: Agreement) -> None:
        """Add the row of a stage."""
        ratio, share = self.bars(work.name, work.family)
        self.add(
            Line(
                says,
                work.family,
                peer_seconds,
                walked["seconds"],
                ratio,
                walked["computed"] / walked["distinct"],
                MOST_COMPUTED,
                walked["flops"] / walked["seconds"] / self.rates[work.family] if walked["flops"] else None,
                share,
                agreement,
            )
        )

    def add(self, line: Line) -> None:
        """Keep a row, and what its comparison has to tell."""
        self.lines.append(line)
        if line.agreement:
            self.notes += [f"{line.work}, {line.model}: {note}" for note in line.agreement.notes]

    def choice(self, work: Work) -> None:
        """Few-shot multiple choice."""
        walked = self.best_walk(work)
        whole, accuracy = self.whole(work)
        few = self.best_walk(work, "--states", str(LIVE_STATES), rounds=1)
        peer = self.peer(work)
        agreement = compare_scores(walked["requests"], peer["requests"], CHOICES)
        says = f"{self.sizes.shots}-shot choice, {self.sizes.questions} questions"
        self.line(f"{says}: scoring", work, walked, peer["seconds"], agreement)
        theirs = peer["results"]["acc,none"]
        same = Agreement(abs(theirs - accuracy) < 1e-9, f"accuracy {accuracy:.4f} and {theirs:.4f}")
        self.add(
            Line("the same: whole process", work.family, peer["process"], whole, BARS["process", ""][0], agreement=same)
        )
        unchanged = compare_scores(few["requests"], walked["requests"], CHOICES)
        self.add(
            Line(
                f"the same: {LIVE_STATES} live states",
                work.family,
                seconds=few["seconds"],
                computed=few["computed"] / few["distinct"],
                computed_bar=MOST_COMPUTED_WITH_FEW_STATES,
                agreement=unchanged,
            )
        )
        self.notes.append(
            f"{says}, {work.family}, with room for {LIVE_STATES} live states: {few['alive']} were alive at most"
        )
        self.notes.append(
            f"{says}, {work.family}: {walked['prompt']:,} prompt tokens, {walked['distinct']:,} distinct "
            f"({walked['prompt'] / walked['distinct']:.1f} times fewer)"
        )

    def generate(self, work: Work) -> None:
        """Few-shot generation."""
        walked = self.best_walk(work)
        peer = self.peer(work)
        agreement = compare_texts(
            walked["requests"],
            peer["requests"],
            Tokenizer(str(self._weights(work))).decode,
            lambda prefixes: self.margins(work, prefixes),
        )
        lengths = {request["new"] for request in walked["requests"]}
        if lengths != {self.sizes.new_tokens}:
            self.notes.append(f"generate, {work.family}: answers of {sorted(lengths)} tokens on evalspec's side")
        stopped = sum(len(request["tokens"]) < self.sizes.new_tokens for request in peer["requests"])
        if stopped:
            self.notes.append(f"generate, {work.family}: {stopped} answers stopped early on the peer's side")
        sizes = self.sizes
        says = f"{sizes.generation_shots}-shot, {sizes.new_tokens} new tokens, {sizes.generations} questions"
        self.line(says, work, walked, peer["seconds"], agreement)

    def margins(self, work: Work, prefixes: list[list[int]]) -> list[float]:
        """How far the likeliest next token leads after each prefix."""
        path = self.temporary / "prefixes.json"
        path.write_text(json.dumps(prefixes), encoding="utf-8")
        found = self.side(f"margins where {work.family}'s texts part", "margins", str(work.spec), str(path))
        return [float(margin) for margin in found]

    def document(self, work: Work) -> None:
        """Many questions on each of a few long documents; the peer is evalspec itself without sharing."""
        sizes = self.sizes
        walked = self.best_walk(work)
        self.documents = True
        limit = self.alone_documents * sizes.document_questions
        alone = self.best_walk(work, "--alone", "--limit", str(limit), rounds=1)
        agreement = compare_scores(walked["requests"][:limit], alone["requests"])
        says = f"{sizes.documents} documents, {sizes.document_questions} questions each"
        scale = sizes.documents / self.alone_documents
        self.line(says, work, walked, alone["seconds"] * scale, agreement)

    # The end ---------------------------------------------------------------------------------------------------------

    def report(self) -> str:
        """The table, what it was measured on, and everything that must be told besides."""
        rates = ", ".join(f"{name} {rate / 1e9:.0f}" for name, rate in self.rates.items())
        part = self.alone_documents < self.sizes.documents
        alone = f"{self.alone_documents} of {self.sizes.documents} run, its time scaled" if part else "all of them run"
        lines = [
            table(
                COLUMNS, [line.cells() for line in self.lines], "evalspec against lm-eval's hf backend, float32 on CPU"
            ),
            f"Both sides with {self.threads['OMP_NUM_THREADS']} threads; evalspec the quickest of {self.sizes.rounds}, "
            f"the peer once, to its end; each in a fresh process.",
            *(
                [f"Documents: the peer is evalspec with each request from a root of its own; {alone}."]
                if self.documents
                else []
            ),
            f"GEMM rate, GFLOP/s, at {BATCH_ROWS} x {WIDTH} x the family's widest projection: {rates} (2048^3). "
            "Shares count the operations of distinct tokens only.",
            f"{host()}; peer: {', '.join(f'{name} {version}' for name, version in self.versions.items())}",
            *self.notes,
        ]
        return "\n".join(lines)


def host() -> str:
    """The machine, as far as it names itself."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        name = next(line for line in text.splitlines() if line.startswith("model name")).split(":")[1].strip()
    return f"{name}, {os.cpu_count()} cores"


def peer_versions(python: Path) -> dict[str, str]:
    """Versions in the peer's environment; RuntimeError if lm-eval is not there."""
    names = ["lm_eval", "torch", "transformers"]
    code = f"import json; from importlib.metadata import version; print(json.dumps({{n: version(n) for n in {names}}}))"
    done = subprocess.run([str(python), "-c", code], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{python} has no lm-eval: `make bench` installs it into .venv-bench")
    found: dict[str, str] = json.loads(done.stdout)
    return found


def find_peer_python() -> Path:
    """Where lm-eval is: $EVALSPEC_PEER_PYTHON, else .venv-bench, else this environment."""
    if os.environ.get("EVALSPEC_PEER_PYTHON"):
        return Path(os.environ["EVALSPEC_PEER_PYTHON"])
    own = ROOT / ".venv-bench" / "bin" / "python"
    return Path(sys.executable) if importlib.util.find_spec("lm_eval") and not own.exists() else own


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; the exit code is 1 if scores disagree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that all of it runs")
    parser.add_argument("--works", default=",".join(WORKS), help="a part of the works")
    parser.add_argument("--models", default=",".join(FAMILIES), help="a part of the models")
    parser.add_argument("--threads", type=int, default=2, help="of both sides")
    parser.add_argument("--reuse", action="store_true", help="take the peer's times from an earlier run like this one")
    parser.add_argument("--work", type=Path, default=cache_folder() / "benchmarks", help="where models and data go")
    parser.add_argument("--peer-python", type=Path, default=find_peer_python(), help="an interpreter with lm-eval")
    parser.add_argument("--alone-documents", type=int, help="run the unshared side of only so many, and scale its time")
    parser.add_argument("--json", type=Path, help="write the rows there too")
    options = parser.parse_args(arguments)
    sizes = QUICK if options.quick else Sizes()
    work = options.work.resolve()
    models = {name: path for name, path in model_folders(work).items() if name in options.models.split(",")}
    folder = work / ("quick" if options.quick else "full")
    bench = Bench(
        folder,
        sizes,
        threads=options.threads,
        peer_python=options.peer_python,
        reuse=options.reuse,
        alone_documents=options.alone_documents,
    )
    bench.run(models, options.works.split(","))
    print(bench.report())
    if options.json:
        rows = [asdict(line) | {"ratio": line.ratio, "short": line.short} for line in bench.lines]
        options.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return 0 if all(line.agreement.agrees for line in bench.lines if line.agreement) else 1


if __name__ == "__main__":
    sys.exit(main())
