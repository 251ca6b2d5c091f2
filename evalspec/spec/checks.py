"""What a spec names but does not hold: metrics, retrievers, generators, templates, files, shipped models.

Everything here is found without torch, duckdb or a network, on the tree (and not on validated blocks), so that these
problems show up together with those of the blocks.
"""

from __future__ import annotations

import glob
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from importlib.metadata import entry_points
from pathlib import Path

from evalspec.errors import Problem, suggest
from evalspec.paths import is_file, is_folder, path_from
from evalspec.spec.compose import shown
from evalspec.spec.grammar import dotted, slot_at, written_out
from evalspec.spec.needs import GENERATORS, METRICS, PLUGINS, RETRIEVERS, STEPS, ZOO
from evalspec.spec.source import LINE_BREAK
from evalspec.spec.tree import Location, Mark, Node

BUILT_IN: dict[str, Iterable[str]] = {
    "metric": METRICS,
    "retriever": RETRIEVERS,
    "generator": GENERATORS,
    "step": STEPS,
}
TEMPLATE_FILE = ".jinja"
LOOKS_LIKE_A_FILE = (".jinja2", ".j2", ".txt", ".md", ".html", ".tmpl", ".tpl", ".template", ".prompt")

# The fields of a task that hold a template; `prompt.template` may also name a file.
TEMPLATES: tuple[Location, ...] = (
    ("prompt", "template"),
    ("prompt", "target"),
    ("prompt", "choices"),
    ("prompt", "contexts"),
    ("prompt", "options"),
    ("prompt", "continuation"),
    ("prompt", "prefix"),
    ("prompt", "description"),
    ("prompt", "system"),
    ("prompt", "shots", "template"),
    ("prompt", "shots", "target"),
    ("prompt", "shots", "label"),
    ("prompt", "shots", "query"),
    ("prompt", "shots", "target"),
    ("prompt", "steps", "right"),
    ("retrieval", "text"),
    ("retrieval", "query"),
    ("retrieval", "gold"),
    ("retrieval", "distractors", "same"),
    ("cluster",),
    ("when",),
)
# Where a data block names a file; `documents` is an option of the generators that read one.
FILES: tuple[tuple[str, Location], ...] = (
    ("file", ("file",)),
    ("database", ("database",)),
    ("documents", ("options", "documents")),
)
ROWS: tuple[Location, ...] = (("data",), ("prompt", "shots", "data"), ("retrieval", "corpus"))


def check_task(name: str, task: Node, root: Path, texts: Mapping[str, str]) -> Iterator[Problem]:
    """Names, templates and files of one task.

    Args: `root` is where relative paths start; `texts` are the spec's files by the name that marks give them.
    """
    where: Location = ("tasks", name)
    yield from _check_step(task, where, root, texts)
    stages = task.child("stages")
    for stage, node in stages.items() if stages is not None else ():
        yield from _check_step(node, (*where, "stages", stage), root, texts)


def _check_step(task: Node, where: Location, root: Path, texts: Mapping[str, str]) -> Iterator[Problem]:
    """Names, templates and files of a task itself, or of one of its stages."""
    metrics = task.child("metrics")
    for index, item in enumerate(metrics.value if metrics is not None and metrics.is_list else ()):
        location = (*where, "metrics", index)
        slot = slot_at(location)
        metric = (written_out(slot, item) if slot is not None else item).child("metric")
        if metric is not None:
            yield from _named("metric", metric, location)
    filters = task.child("filters")
    for chain, steps in filters.items() if filters is not None else ():
        for index, item in enumerate(steps.value if steps.is_list else ()):
            location = (*where, "filters", chain, index)
            slot = slot_at(location)
            step = (written_out(slot, item) if slot is not None else item).child("step")
            if step is not None:
                yield from _named("step", step, location)
    retriever = task.at("retrieval", "retriever")
    if retriever is not None:
        yield from _named("retriever", retriever, (*where, "retrieval", "retriever"))
    fused = task.at("retrieval", "of")
    for index, item in enumerate(fused.value if fused is not None and fused.is_list else ()):
        location = (*where, "retrieval", "of", index)
        if item.value in ("none", "oracle", "fusion"):
            yield item.mark.problem(f"{dotted(location)}: `{item.value}` does not rank passages and cannot be fused")
        else:
            yield from _named("retriever", item, location)
    for path in ROWS:
        rows = task.at(*path)
        if rows is not None and rows.is_mapping:
            yield from _rows(rows, (*where, *path), root)
    for path in TEMPLATES:
        template = task.at(*path)
        for item in template.value if template is not None and template.is_list else [template]:
            if item is not None and isinstance(item.value, str):
                yield from _template(item, (*where, *path), root, texts)


def check_model(name: str, model: Node, root: Path) -> Iterator[Problem]:
    """Whether a model's weights and tokenizer are there, where they are shipped or a path. Hub ids are not asked."""
    backend = model.child("backend")
    served = backend is not None and backend.value == "server" and model.child("tokenizer") is not None
    for key in ("tokenizer",) if served else ("weights", "tokenizer"):  # its weights are what the server calls them
        node = model.child(key)
        if node is None or not isinstance(node.value, str):
            continue
        where, text = dotted(("models", name, key)), node.value
        if text.startswith("zoo/"):
            if text[4:] not in ZOO:
                known = suggest(text, [f"zoo/{shipped}" for shipped in ZOO]) or f" Shipped: {_listed(ZOO)}."
                yield node.mark.problem(f"{where}: no model `{text}` is shipped.{known}")
        elif _only_a_path(text) and not is_folder(path_from(root, text)):
            yield node.mark.problem(f"{where}: there is no folder {path_from(root, text)}")


def _only_a_path(text: str) -> bool:
    """Whether it cannot be a hub id, `owner/name` or `name`."""
    return text.startswith(("/", "./", "../", "~")) or text.count("/") > 1 or text.endswith("/")


def _named(what: str, node: Node, location: Location) -> Iterator[Problem]:
    """A problem if nothing of this kind has this name; plugins are asked for only when no built-in has it."""
    name, known = node.value, set(BUILT_IN[what])
    if not isinstance(name, str) or name in known:
        return
    known |= {point.name for point in entry_points(group=PLUGINS[what])}
    if name not in known:
        near = suggest(name, known) or f" Known: {_listed(known)}."
        yield node.mark.problem(f"{dotted(location)}: there is no {what} `{name}`.{near}")


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names))


def _rows(rows: Node, where: Location, root: Path) -> Iterator[Problem]:
    generator = rows.child("generate")
    if generator is not None:
        yield from _named("generator", generator, (*where, "generate"))
    for key, path in FILES:
        node = rows.at(*path)
        if node is None or not isinstance(node.value, str):
            continue
        if key != "database" and any(sign in node.value for sign in "*?["):
            pattern = str(path_from(Path(), node.value))  # the root's own name is no pattern
            if not glob.glob(pattern, root_dir=root, recursive=True):  # noqa: PTH207 (takes any pattern, absolute too)
                yield node.mark.problem(f"{dotted((*where, *path))}: no file matches `{node.value}` (looked in {root})")
        elif not is_file(path_from(root, node.value)):
            yield node.mark.problem(f"{dotted((*where, *path))}: there is no file {path_from(root, node.value)}")


def _template(node: Node, where: Location, root: Path, texts: Mapping[str, str]) -> Iterator[Problem]:
    text = node.value
    one_word = len(text.split()) == 1 and "{" not in text
    if where[-1] == "template" and one_word:
        if text.endswith(TEMPLATE_FILE):
            yield from _template_file(node, where, root)
            return
        if text.endswith(LOOKS_LIKE_A_FILE):
            said = f"a template file ends in `{TEMPLATE_FILE}`; `{text}` would be the prompt itself, word for word"
            yield node.mark.problem(f"{dotted(where)}: {said}")
            return
    if "{" not in text:
        return  # nothing that Jinja would read
    broken = _syntax_error(text)
    if broken is not None:
        line, said = broken
        mark = node.mark
        if node.style == "|" and mark.line and mark.file in texts:  # its first line stands below the sign
            source = LINE_BREAK.split(texts[mark.file])[mark.line + line - 1]
            mark = _whole_line(mark.file, mark.line + line, source)
        yield mark.problem(f"{dotted(where)} is not a Jinja template: {said}")


def _template_file(node: Node, where: Location, root: Path) -> Iterator[Problem]:
    path = path_from(root, node.value)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = suggest(node.value, [str(file.relative_to(root)) for file in root.glob(f"prompts/**/*{TEMPLATE_FILE}")])
        yield node.mark.problem(f"{dotted(where)}: there is no file {path}.{near}")
        return
    except (OSError, ValueError) as error:
        yield node.mark.problem(f"{dotted(where)}: cannot read {path}: {error}")
        return
    broken = _syntax_error(text)
    if broken is not None:
        line, said = broken
        source = ["", *text.splitlines()][min(line, len(text.splitlines()))]
        yield _whole_line(shown(path), line, source).problem(f"not a Jinja template: {said}")


def _whole_line(file: str, line: int, source: str) -> Mark:
    return Mark(file, line, len(source) - len(source.lstrip()) + 1, len(source.strip()), source)


@lru_cache(maxsize=1024)  # the points of a sweep repeat each other's templates
def _syntax_error(text: str) -> tuple[int, str] | None:
    """The line (from 1) and the reason of a template's first syntax error."""
    import jinja2  # 50 ms, spent only where a template is to be parsed

    try:
        jinja2.Environment().parse(text)
    except jinja2.TemplateSyntaxError as error:
        return error.lineno, error.message or "syntax error"
    except (RecursionError, ValueError) as error:  # nested too deeply; a number of thousands of digits
        return 1, str(error)
    return None
