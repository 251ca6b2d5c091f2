"""The benchmark's tasks, written for both sides: rows as JSON Lines, an evalspec spec, a task YAML of lm-eval.

python -m benchmarks.tasks FOLDER       writes them there, with their models, and says where the specs are
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.models import model_folders
from benchmarks.text import STOP, Row, Sizes, choice_rows, document_rows, reasoning_rows

QUESTION = "Question: {{ question }}\nAnswer:"


@dataclass(frozen=True)
class Work:
    """One task for one model: what evalspec runs, and what lm-eval runs (None where it is no peer)."""

    name: str
    family: str
    spec: Path
    peer_task: str | None
    peer_folder: Path


def _write_rows(path: Path, rows: Sequence[Row]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def write_works(folder: Path, models: dict[str, Path], sizes: Sizes) -> list[Work]:
    """Write data and both sides' files; the works, task by task."""
    folder.mkdir(parents=True, exist_ok=True)
    peer = folder / "peer"
    peer.mkdir(exist_ok=True)
    blocks = {
        "choice": _choice(folder, peer, sizes),
        "generate": _generate(folder, peer, sizes),
        "document": _document(folder, sizes),
    }
    works = []
    for name, block in blocks.items():
        for family, weights in models.items():
            spec = folder / f"{name}-{family}.yaml"
            content = {
                "name": f"bench-{name}-{family}",
                "models": {family: {"weights": str(weights), "dtype": "float32", "device": "cpu"}},
                "tasks": {name: block},
            }
            spec.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")
            works.append(Work(name, family, spec, None if name == "document" else f"bench_{name}", peer))
    return works


def _write_peer(folder: Path, name: str, rows: str, shots: str, count: int, **rest: Any) -> None:
    content = {
        "task": f"bench_{name}",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"train": shots, "test": rows}},
        "test_split": "test",
        "fewshot_split": "train",
        "num_fewshot": count,
        "fewshot_config": {"sampler": "first_n"},
        "doc_to_text": QUESTION,
        **rest,
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")


def _choice(folder: Path, peer: Path, sizes: Sizes) -> dict[str, Any]:
    rows = _write_rows(folder / "choice.jsonl", choice_rows("q", sizes.questions))
    shots = _write_rows(folder / "choice-shots.jsonl", choice_rows("s", sizes.shots))
    _write_peer(
        peer,
        "choice",
        rows,
        shots,
        sizes.shots,
        output_type="multiple_choice",
        doc_to_choice="choices",
        doc_to_target="gold",
        metric_list=[{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    )
    return {
        "data": {"file": rows},
        "prompt": {
            "template": QUESTION,
            "choices": "{{ choices }}",
            "target": "{{ gold }}",
            "shots": {"n": sizes.shots, "sampler": "first", "data": {"file": shots}},
        },
        "metrics": ["accuracy"],
    }


def _generate(folder: Path, peer: Path, sizes: Sizes) -> dict[str, Any]:
    rows = _write_rows(folder / "generate.jsonl", reasoning_rows("q", sizes.generations))
    shots = _write_rows(folder / "generate-shots.jsonl", reasoning_rows("s", sizes.generation_shots))
    _write_peer(
        peer,
        "generate",
        rows,
        shots,
        sizes.generation_shots,
        output_type="generate_until",
        doc_to_target="answer",
        generation_kwargs={"until": [STOP], "do_sample": False, "max_gen_toks": sizes.new_tokens},
        metric_list=[{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    )
    return {
        "data": {"file": rows},
        "prompt": {
            "template": QUESTION,
            "target": "{{ answer }}",
            "shots": {"n": sizes.generation_shots, "sampler": "first", "data": {"file": shots}},
        },
        "decode": {"max_tokens": sizes.new_tokens, "stop": [STOP]},
        "metrics": ["exact_match"],
    }


def _document(folder: Path, sizes: Sizes) -> dict[str, Any]:
    made = document_rows(sizes.documents, sizes.document_words, sizes.document_questions)
    return {
        "data": {"file": _write_rows(folder / "document.jsonl", made)},
        "prompt": {"template": "{{ document }}\n\n" + QUESTION, "target": "{{ answer }}"},
        "metrics": ["perplexity"],
    }


if __name__ == "__main__":
    work = Path(sys.argv[1]).resolve()
    for written in write_works(work / "data", model_folders(work), Sizes()):
        print(written.spec)
