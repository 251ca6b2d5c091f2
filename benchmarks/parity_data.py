"""Rows of real data (and of the worlds that the zoo knows) as JSON Lines, the few that the parity tasks ask about.

The real data is found under $EVALSPEC_TEST_DATA.
"""

from __future__ import annotations

import gzip
import json
import os
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from evalspec.data.rows import load_rows
from evalspec.spec.data import DataBlock

SOURCE = Path(os.environ.get("EVALSPEC_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))

Rows = list[dict[str, Any]]


def write_data(folder: Path, rows: int) -> None:
    """Write `rows` rows of each task (and all the shots) below a folder, as the tasks name them."""
    folder.mkdir(parents=True, exist_ok=True)
    aqua, aqua_dev, copa, svamp = _aqua("test"), _aqua("dev"), _copa(), _svamp()
    gsm8k, labels, dial = _lines("gsm8k/test.jsonl"), _world("labels"), _world("arithmetic")
    nq, sentences, articles, stories = _nq(), _sentences(), _articles(), _stories()
    boolean = json.loads((SOURCE / "bbh/boolean_expressions.json").read_text(encoding="utf-8"))["examples"]
    few = max(2, rows // 3)  # of what takes long
    files: Mapping[str, Rows] = {
        "aqua": aqua[:rows],
        "aqua_dev": aqua_dev[:8],
        "copa": copa[20 : 20 + rows],
        "copa_train": copa[:8],
        "svamp": svamp[20 : 20 + rows],
        "svamp_train": svamp[:8],
        "gsm8k": gsm8k[:few],
        "gsm8k_train": _lines("gsm8k/train_first1000.jsonl")[:8],
        "labels": labels[40 : 40 + rows],
        "labels_train": labels[:40],
        "arithmetic": dial[8 : 8 + rows],
        "arithmetic_train": dial[:8],
        "options": [_with_options(row) for row in dial[8 : 8 + rows]],
        "options_train": [_with_options(row) for row in dial[:8]],
        "boolean": boolean[:few],
        "nq": nq[20 : 20 + few],
        "nq_train": nq[:12],
        "sentences": sentences[:rows],
        "articles": articles[:few],
        "stories": stories[:rows],
    }
    for name, listed in files.items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in listed)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")


def _lines(name: str) -> Rows:
    return [json.loads(line) for line in (SOURCE / name).read_text(encoding="utf-8").split("\n") if line]


def _aqua(split: str) -> Rows:
    return [
        {
            "question": row["question"],
            "options": row["options"],
            "texts": [option.partition(")")[2].strip() or option for option in row["options"]],
            "correct": row["correct"],
        }
        for row in _lines(f"aqua/{split}.json")
    ]


def _copa() -> Rows:
    items = ET.parse(SOURCE / "copa/copa-dev.xml").getroot().iter("item")
    return [
        {
            "premise": item.findtext("p", "").strip(),
            "choice1": item.findtext("a1", "").strip(),
            "choice2": item.findtext("a2", "").strip(),
            "question": item.attrib["asks-for"],
            "label": int(item.attrib["most-plausible-alternative"]) - 1,
        }
        for item in items
    ]


def _svamp() -> Rows:
    rows: Iterable[dict[str, Any]] = json.loads((SOURCE / "svamp/SVAMP.json").read_text(encoding="utf-8"))
    return [{name: row[name] for name in ("Body", "Question", "Answer")} for row in rows]


def _nq() -> Rows:
    with gzip.open(SOURCE / "lost_in_the_middle/nq-open-oracle.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(next(file)) for _ in range(60)]
    return [{"question": row["question"], "answers": row["answers"]} for row in rows]


def _paragraphs() -> list[str]:
    lines = (SOURCE / "wikitext2/valid.txt").read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if len(line) > 200]


def _sentences() -> Rows:
    return [{"text": paragraph.split(" . ")[0]} for paragraph in _paragraphs()]


def _articles() -> Rows:
    """The first 300 letters of paragraphs. The peer sums in float32, whose steps are 1e-4 beyond 1,000 nats."""
    return [{"text": paragraph[:300]} for paragraph in _paragraphs()[:40]]


def _stories() -> Rows:
    texts = [row["text"] for row in _world("passages")]
    return [{"text": " ".join(texts[i : i + 4])} for i in range(0, len(texts) - 4, 4)]


def _with_options(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "choices": list("0123456789"), "letter": f"({'ABCDEFGHIJ'[int(row['answer'])]})"}


def _world(name: str) -> Rows:
    found = load_rows(DataBlock(generate=f"world.{name}", count=120, seed=11), SOURCE)
    return [dict(row.values) for row in found.rows]
