"""docs/language.md: below its hand-written introduction, tables of every block and name, made from the blocks.

`python -m evalspec.spec.reference` writes them anew; what stands above the line `BELOW` is kept.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from evalspec.spec.base import Block
from evalspec.spec.blocks import DecodeBlock, Spec, StageBlock, TaskBlock
from evalspec.spec.data import DataBlock
from evalspec.spec.extraction import StepBlock
from evalspec.spec.grammar import expected, slot_of
from evalspec.spec.hypotheses import HypothesisBlock, SideBlock
from evalspec.spec.measure import MeasureBlock
from evalspec.spec.metric import MetricBlock
from evalspec.spec.model import ModelBlock, ServerBlock, VllmBlock
from evalspec.spec.needs import GENERATORS, METRICS, PLUGINS, RETRIEVERS, STEPS, ZOO
from evalspec.spec.prompt import PromptBlock, ShotsBlock, StepsBlock
from evalspec.spec.published import PublishedBlock
from evalspec.spec.retrieval import ChunkBlock, RerankBlock, RetrievalBlock, SameBlock

DOCUMENT = Path(__file__).parents[2] / "docs" / "language.md"
BELOW = (
    "<!-- From here on made by `python -m evalspec.spec.reference`; edit the docstrings in evalspec/spec instead. -->"
)

# Where each block stands in a file.
BLOCKS: tuple[tuple[str, type[Block]], ...] = (
    ("the file", Spec),
    ("models.NAME", ModelBlock),
    ("models.NAME.vllm", VllmBlock),
    ("models.NAME.server", ServerBlock),
    ("tasks.NAME", TaskBlock),
    ("tasks.NAME.data", DataBlock),
    ("tasks.NAME.prompt", PromptBlock),
    ("tasks.NAME.prompt.shots", ShotsBlock),
    ("tasks.NAME.prompt.steps", StepsBlock),
    ("tasks.NAME.retrieval", RetrievalBlock),
    ("tasks.NAME.retrieval.chunk", ChunkBlock),
    ("tasks.NAME.retrieval.rerank", RerankBlock),
    ("tasks.NAME.retrieval.distractors", SameBlock),
    ("tasks.NAME.decode", DecodeBlock),
    ("tasks.NAME.stages.NAME", StageBlock),
    ("tasks.NAME.filters.NAME[…]", StepBlock),
    ("tasks.NAME.metrics[…]", MetricBlock),
    ("hypotheses.NAME", HypothesisBlock),
    ("hypotheses.NAME.better, hypotheses.NAME.than", SideBlock),
    ("published.NAME", PublishedBlock),
    ("measure", MeasureBlock),
)
EVIDENCE = {
    "output": "a generated answer (`decode`)",
    "choices": "`prompt.choices`",
    "likelihood": "neither `decode` nor `choices`",
    "retrieval": "`retrieval` with `gold`",
}
ALSO = {"retrieval": "`retrieval`", "unknown": "`prompt.unknown`", "steps": "`prompt.steps`"}


def updated(document: str) -> str:
    """The document with everything below `BELOW` made anew. Raises ValueError when it has no such line."""
    introduction, line, _ = document.partition(BELOW)
    if not line:
        raise ValueError(f"the document has lost its line {BELOW}")
    return f"{introduction}{BELOW}\n\n{reference()}"


def reference() -> str:
    """The generated part: one table a block, then the names."""
    parts = [
        "## Blocks",
        "What is *needed* may come from an included file or an extended block. – stands for nothing (null).",
    ]
    for where, block in BLOCKS:
        parts += [f"### {_title(where)}", _text(block.__doc__ or ""), _fields(block)]
    parts += ["## Names", *_names()]
    return "\n\n".join(parts) + "\n"


def _title(where: str) -> str:
    return "The file" if where == "the file" else ", ".join(f"`{path}`" for path in where.split(", "))


def _fields(block: type[Block]) -> str:
    rows = (
        (f"`{name}`", expected(slot_of(field)), _default(field), _text(field.description or ""))
        for name, field in block.model_fields.items()
    )
    return _table(("key", "value", "default", "meaning"), rows)


def _default(field: FieldInfo) -> str:
    default: Any = field.get_default(call_default_factory=True)
    if default is PydanticUndefined:
        return "*needed*"
    if default is None:
        return "–"
    return f"`{json.dumps(default, ensure_ascii=False)}`"


def _text(text: str) -> str:
    return " ".join(text.split())


def _names() -> list[str]:
    metrics = (
        (
            f"`{name}`" + (" (`@k`)" if found.at_k else ""),
            " and ".join([EVIDENCE[found.evidence], *(ALSO[need] for need in found.needs)]),
            _better(found.higher_is_better),
            found.says,
        )
        for name, found in METRICS.items()
    )
    plain = ("name", "what it is")
    return [
        "### Metrics",
        "Those with `@k` are cut at the retrieval's `k`, or where the name says: `recall@3`; `nll@512` at a position.",
        _table(("name", "needs", "better", "what it is"), metrics),
        "### Steps of filters",
        _table(plain, ((f"`{name}`", says) for name, says in STEPS.items())),
        "### Retrievers",
        _table(plain, ((f"`{name}`", says) for name, says in RETRIEVERS.items())),
        "### Generators",
        _table(plain, ((f"`{name}`", says) for name, says in GENERATORS.items())),
        "### Shipped models",
        _table(plain, ((f"`zoo/{name}`", says) for name, says in ZOO.items())),
        "### Plugins",
        "A package adds names by entry points, and they are then known to every spec of its environment "
        "([how](plugins.md)):",
        _table(("a", "entry-point group"), ((kind, f"`{group}`") for kind, group in PLUGINS.items())),
    ]


def _better(higher: bool) -> str:
    return "higher" if higher else "lower"


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    titles = list(head)
    lines = [titles, ["---"] * len(titles), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    DOCUMENT.write_text(updated(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
