"""`python -m benchmarks.two_gpus`: the same spec on one GPU and on all of a machine's through `--ray`.

    python -m benchmarks.two_gpus [--shape mamba] [--questions 9000] [--exact 200] [--work FOLDER] [--json OUT.json]

A model of 2.8 B parameters with random weights in bfloat16 answers questions of 150 tokens: it chooses among four
choices of 12 behind four shots, and, for two thirds as many, writes 128 tokens behind two. One GPU runs it in the
process itself, as `evalspec run` does, the others as `evalspec run --ray` does; each run is in a process of its own.
What is timed is the answering: from the opened model to the last committed row. Then the results are compared: in
bfloat16 sums depend on what stands in a batch, so equality is also asked in float32, of `--exact` questions.

`--shape tiny` tries the whole way on a CPU.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evalspec.tabular import table

CLEAR = 0.5  # a question is won clearly if its best choices are that far apart: bfloat16 sums differ by less
TINY = {"model_type": "mamba", "vocab_size": 600, "hidden_size": 64, "num_hidden_layers": 2, "state_size": 8,
        "tie_word_embeddings": True}  # fmt: skip


@dataclass(frozen=True)
class Timed:
    """One run: seconds of answering and of everything, and what it says of itself."""

    answering: float
    whole: float
    samples: int
    computed_tokens: int
    device: str
    said: list[str]


def config_of(shape: str) -> dict[str, Any]:
    if shape == "tiny":
        return dict(TINY)
    from benchmarks.gpu import CONFIGS

    return dict(CONFIGS[shape])


def write_model(shape: str, folder: Path) -> None:
    """Random weights, and a tokenizer of one word a token."""
    if (folder / "tokenizer.json").exists():
        return  # the last thing that is written
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from evalspec.ssm import checkpoints

    config = config_of(shape)
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        drawn = checkpoints.build(config)
    checkpoints.save(drawn, folder, config, dtype=torch.bfloat16)
    words = {f"w{number}": number for number in range(config["vocab_size"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))  # type: ignore[call-arg]
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[attr-defined]
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w0", eos_token="w0").save_pretrained(folder)


def write_questions(path: Path, count: int, words: int, seed: int) -> None:
    rng = np.random.default_rng(seed)

    def draw(length: int) -> str:
        return " ".join(f"w{number}" for number in rng.integers(5, words, length))

    with path.open("w") as stream:
        for number in range(count):
            row = {"id": number, "question": draw(150), "choices": [draw(12) for _ in range(4)], "right": number % 4}
            stream.write(json.dumps(row) + "\n")


def spec_of(work: Path, shape: str, questions: int, dtype: str) -> dict[str, Any]:
    """The spec, with its data written; shots come from questions of their own."""
    words, tokens = config_of(shape)["vocab_size"], 128 if shape != "tiny" else 8
    for name, count, seed in (("shots", 40, 0), ("choose", questions, 1), ("write", 2 * questions // 3, 2)):
        write_questions(work / f"{name}.jsonl", count, words, seed)
    shots = {"data": {"file": "shots.jsonl", "id": "id"}}
    return {
        "name": f"gpus_{dtype}",
        "models": {shape: {"weights": shape, "backend": "native", "dtype": dtype}},
        "tasks": {
            "choose": {
                "data": {"file": "choose.jsonl", "id": "id"},
                "prompt": {"template": "{{ question }} w1", "target": "{{ right }}", "choices": "{{ choices }}",
                           "shots": {"n": 4, **shots}},
                "metrics": ["accuracy"],
            },
            "write": {
                "data": {"file": "write.jsonl", "id": "id"},
                "prompt": {"template": "w2 {{ question }} w3", "target": "{{ choices[right] }}",
                           "shots": {"n": 2, **shots}},
                "decode": {"max_tokens": tokens},
                "metrics": ["exact_match", "token_f1"],
            },
        },
    }  # fmt: skip


def run_once(work: Path, spec: dict[str, Any], name: str, ray: str | None, answer: Any) -> None:
    """One run, in a process of its own."""
    from evalspec.plan.compile import compile_plan
    from evalspec.runs.progress import Quiet
    from evalspec.runs.run import run
    from evalspec.spec import load
    from evalspec.store import Store

    class Watch(Quiet):
        began, seconds = 0.0, 0.0

        def __init__(self) -> None:
            self.said: list[str] = []

        def say(self, text: str) -> None:
            self.said.append(text.strip())

        def begin(self, model: str, tokens: int, samples: int, new_tokens: int = 0) -> None:
            self.say(f"{samples:,} samples, {tokens:,} distinct tokens, at most {new_tokens:,} new ones")
            self.began = time.perf_counter()

        def end(self) -> None:
            self.seconds += time.perf_counter() - self.began

    began, watch = time.perf_counter(), Watch()
    plan = compile_plan(load(spec, root=work))
    store = Store(work / f"{name}.duckdb")
    finished = run(plan, store, work, fresh=True, ray=ray, progress=watch)
    device = store.rows("runs", finished.run_id)[0]["device"]
    whole = time.perf_counter() - began
    answer.put(Timed(watch.seconds, whole, finished.samples, finished.computed_tokens, device, watch.said))


def in_a_process(work: Path, spec: dict[str, Any], name: str, ray: str | None) -> Timed:
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    process = context.Process(target=run_once, args=(work, spec, name, ray, answer))
    process.start()
    while process.is_alive() and answer.empty():
        process.join(0.2)
    if answer.empty():
        raise SystemExit(f"{name} ended with {process.exitcode} and no result")
    found: Timed = answer.get()
    process.join()
    print(f"{name}: {found.answering:.1f} s of answering, {found.whole:.1f} s in all; {found.device}", flush=True)
    for text in found.said:
        print(f"  {text}", flush=True)
    return found


Rows = dict[tuple[str, str, str, int], dict[str, Any]]


def rows_of(work: Path, name: str) -> tuple[Rows, dict[Any, float]]:
    """Samples and scores of the newest run, by what they are of."""
    import evalspec

    with evalspec.connect(work / f"{name}.duckdb") as connection:
        samples = connection.execute(
            "SELECT c.task, s.cell_id, sample_id, repeat, output, logprobs FROM samples s JOIN cells c "
            "USING (run_id, cell_id) WHERE run_id = (SELECT max(run_id) FROM runs)"
        ).fetchall()
        scores = connection.execute(
            "SELECT cell_id, sample_id, repeat, filter, metric, value FROM scores "
            "WHERE run_id = (SELECT max(run_id) FROM runs)"
        ).fetchall()
    found = {row[:4]: {"output": row[4], "logprobs": json.loads(row[5]) if row[5] else []} for row in samples}
    return found, {row[:5]: row[5] for row in scores}


def compare(work: Path, one: str, other: str) -> list[tuple[str, str]]:
    """How far two runs agree, line by line."""
    (ours, our_scores), (theirs, their_scores) = rows_of(work, one), rows_of(work, other)
    assert ours.keys() == theirs.keys() and our_scores.keys() == their_scores.keys(), "each sample once, in both"
    worst, chosen, clear, clear_same, written, begins = 0.0, [], 0, 0, [], []
    for key, row in ours.items():
        match = theirs[key]
        same = row["output"] == match["output"]
        if not row["logprobs"]:
            written.append(same)
            begins.append((row["output"] or "").split()[:1] == (match["output"] or "").split()[:1])
            continue
        differences = [abs(a - b) for x, y in zip(row["logprobs"], match["logprobs"], strict=True)
                       for a, b in zip(x, y, strict=True)]  # fmt: skip
        worst = max([worst, *differences])
        first, second = sorted((sum(part) for part in row["logprobs"]), reverse=True)[:2]
        chosen.append(same)
        if first - second > CLEAR:
            clear, clear_same = clear + 1, clear_same + same
    equal = sum(their_scores[key] == value for key, value in our_scores.items())
    return [
        ("largest difference of a token's log-probability", f"{worst:.2g}"),
        ("same choice", f"{sum(chosen):,} of {len(chosen):,}"),
        (f"same choice where the best two are {CLEAR} apart", f"{clear_same:,} of {clear:,}"),
        ("same answer written", f"{sum(written):,} of {len(written):,}"),
        ("same first token written", f"{sum(begins):,} of {len(begins):,}"),
        ("equal scores", f"{equal:,} of {len(our_scores):,}"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=["mamba", "mamba2", "tiny"], default="mamba")
    parser.add_argument("--questions", type=int, default=9000)
    parser.add_argument("--exact", type=int, default=200, help="questions asked again in float32; 0: none")
    parser.add_argument("--ray", default="local", help="address of a cluster (default: one started here)")
    parser.add_argument("--work", type=Path, help="where models, data and stores go (default: a temporary folder)")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    # Ray's workers are processes of their own: they must find this evalspec too.
    os.environ["PYTHONPATH"] = os.pathsep.join(str(Path(part).resolve()) for part in sys.path)
    with tempfile.TemporaryDirectory() as temporary:
        work = (options.work or Path(temporary)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        told = measure(options, work, lambda text: print(text, flush=True))
    if options.json:
        options.json.write_text(json.dumps(told) + "\n", encoding="utf-8")


def measure(options: argparse.Namespace, work: Path, say: Callable[[str], None]) -> dict[str, Any]:
    write_model(options.shape, work / options.shape)
    dtype = "bfloat16" if options.shape != "tiny" else "float32"
    spec = spec_of(work, options.shape, options.questions, dtype)
    one = in_a_process(work, spec, "one", None)
    ray = in_a_process(work, spec, "ray", options.ray)
    ratio = one.answering / ray.answering
    agreed = compare(work, "one", "ray")
    say(table(("", "answering s", "in all s"), [("one", f"{one.answering:.1f}", f"{one.whole:.1f}"),
              ("through --ray", f"{ray.answering:.1f}", f"{ray.whole:.1f}")], f"{ratio:.2f} times"))  # fmt: skip
    say(table(("what", "one against --ray"), agreed, dtype))
    told = {"one": asdict(one), "ray": asdict(ray), "ratio": ratio, "agreed": dict(agreed)}
    if options.exact:
        spec = spec_of(work, options.shape, options.exact, "float32")
        for name, address in (("exact_one", None), ("exact_ray", options.ray)):
            in_a_process(work, spec, name, address)
        exact = compare(work, "exact_one", "exact_ray")
        say(table(("what", "one against --ray"), exact, "float32"))
        told["exact"] = dict(exact)
    return told


if __name__ == "__main__":
    main()
