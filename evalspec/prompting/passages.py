"""Which passages rows are shown: the evaluated ones, and their shots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evalspec.data.rows import Row
from evalspec.errors import located
from evalspec.paths import is_folder, path_from
from evalspec.prompting.task_templates import Templates, texts_of
from evalspec.retrieval import Hit, Passage, chunked, retrieve
from evalspec.spec.blocks import TaskBlock
from evalspec.spec.cells import unused_settings
from evalspec.spec.retrieval import RetrievalBlock

Key = tuple[str, str]  # where a row stands (`rows`, or `shots` where these have data of their own), and its id


def seen(task: TaskBlock, row: Row, hits: Sequence[Hit]) -> dict[str, Any]:
    """What a template sees: the row's columns, and with a retrieval block its passages in the prompt's order."""
    if task.retrieval is None:
        return dict(row.values)
    passages = [
        {
            "id": hit.passage.id,
            "text": hit.passage.text,
            "document": hit.passage.document,
            "rank": hit.rank,
            "place": hit.place,
            "score": hit.score,
        }
        for hit in sorted(hits, key=lambda hit: hit.place)
    ]
    return {**row.values, "passages": passages}


def passages_of(
    name: str,
    task: TaskBlock,
    templates: Templates,
    corpus: Sequence[Row],
    shown: Mapping[Key, Row],
    evaluated: Sequence[Row],
    root: Path,
    cache: Path,
) -> tuple[dict[Key, tuple[Hit, ...]], dict[Key, tuple[str, ...]]]:
    """Retrieved passages and gold ids of each row."""
    rows = list(shown.values())
    block = task.retrieval
    if block is None:
        return {}, {}
    gold = [texts_of(templates.gold.evaluate(row.values, row.id)) for row in rows] if templates.gold else None
    # What nothing reads stands at its default here, `{{ question }}`, and rows need not have such a column.
    asked = None if ("retrieval", "query") in unused_settings(task) else templates.query
    queries = [asked.render(row.values, row.id) if asked else "" for row in rows]
    passages = [
        Passage(
            row.id,
            templates.passage.render(row.values, row.id),
            kind=templates.kind.render(row.values, row.id) if templates.kind else "",
        )
        for row in corpus
        if templates.passage
    ]
    ids = [row.id for row in rows]
    left_out = withheld(block, templates, shown, evaluated)
    with located(f"tasks.{name}.retrieval"):
        if block.chunk and block.retriever != "none":
            passages = chunked(passages, block.chunk, root)
        found = retrieve(rooted(block, root), passages, queries, gold, ids, cache, left_out)
    return dict(zip(shown, found, strict=True)), dict(zip(shown, gold, strict=True)) if gold else {}


def withheld(
    block: RetrievalBlock, templates: Templates, shown: Mapping[Key, Row], evaluated: Sequence[Row]
) -> list[frozenset[str]]:
    """Ids of the documents that each row is not shown: with `withhold_gold`, what answers any evaluated row.

    A shot keeps what answers the shot itself (a worked example whose answer stands nowhere would teach to guess), but
    its other passages stand in the same prompt as a question, and must not answer it. All evaluated rows count,
    whatever the limit, so that it changes no prompt.
    """
    if not block.withhold_gold or templates.gold is None:
        return [frozenset()] * len(shown)
    golds = {row.id: frozenset(texts_of(templates.gold.evaluate(row.values, row.id))) for row in evaluated}
    every = frozenset().union(*golds.values())
    own = [frozenset(texts_of(templates.gold.evaluate(row.values, row.id))) for row in shown.values()]
    tested = [place == "rows" and name in golds for place, name in shown]
    return [gold if is_tested else every - gold for gold, is_tested in zip(own, tested, strict=True)]


def rooted(block: RetrievalBlock, root: Path) -> RetrievalBlock:
    """The block with the folders of its models, where they stand under the project's root, in full."""
    changed: dict[str, object] = {}
    encoder = path_from(root, block.encoder)
    if is_folder(encoder):
        changed["encoder"] = str(encoder)
    if block.rerank and is_folder(reranker := path_from(root, block.rerank.model)):
        changed["rerank"] = block.rerank.model_copy(update={"model": str(reranker)})
    return block.model_copy(update=changed) if changed else block
