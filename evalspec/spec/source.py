"""A YAML file as a tree of plain values that know where they stand.

YAML is read by PyYAML's safe machinery with the resolver of YAML 1.2's core schema: `1e-4` is a number, `yes`, `on` and
`2026-01-31` are text, `010` is ten, `0o10` is eight. Nothing in a file is ever executed: a tag such as `!function` or
`!!python/object` is an error.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from evalspec.errors import Problem
from evalspec.paths import is_folder
from evalspec.spec.tree import MAX_DEPTH, TOO_DEEP, Mark, Node, elsewhere, kind

MAX_NODES = 100_000  # most values once aliases are written out: a few lines of aliases can name billions

LINE_BREAK = re.compile("\r\n|[\r\n\x85\u2028\u2029]")  # what PyYAML counts as one
YAML = "tag:yaml.org,2002:"


@dataclass(frozen=True)
class Source:
    """One file as read: its tree (None when it could not be read at all), its text, and what is wrong with it."""

    file: str
    text: str
    tree: Node | None
    problems: tuple[Problem, ...] = ()


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the core schema of YAML 1.2 and a bound on nesting. It only composes nodes."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 (PyYAML's protocol)
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            start = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, TOO_DEEP, start)
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node


CORE = {
    "null": re.compile(r"^(?:~|null|Null|NULL|)$"),
    "bool": re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"),
    "int": re.compile(r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$"),
    "float": re.compile(
        r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
}
_FIRST = {
    "null": ["~", "n", "N", ""],
    "bool": list("tTfF"),
    "int": list("-+0123456789"),
    "float": list("-+.0123456789"),
}
for _kind, _pattern in CORE.items():
    _Loader.add_implicit_resolver(YAML + _kind, _pattern, _FIRST[_kind])
_Loader.add_implicit_resolver(YAML + "merge", re.compile(r"^<<$"), ["<"])

# What PyYAML's scanner and parser say, in words that help.
_IN_OTHER_WORDS = (
    ("found character '\\t' that cannot start any token", "a tab cannot indent YAML; use spaces"),
    ("mapping values are not allowed here", "a second `: ` on one line, or a wrong indent; quote text that has `: `"),
    ("found character '%' that cannot start any token", "text that starts with `%` must stand in quotes"),
    ("found character '@' that cannot start any token", "text that starts with `@` must stand in quotes"),
    ("found character '`' that cannot start any token", "text that starts with a backquote must stand in quotes"),
    ("found unexpected end of stream", "this quotation mark is not closed"),
    ("expected ',' or ']'", "this `[` is not closed, or a comma is missing behind it"),
    ("expected ',' or '}'", "this `{` is not closed, or a comma is missing behind it"),
    ("expected <block end>, but found", "this does not fit what stands before it; look at its indent and at quotes"),
    ("could not find expected ':'", "a key without its `:`, or text that should be indented further"),
    ("expected a single document in the stream", "a spec is one YAML document; drop what follows `---`"),
    ("but found another document", "a spec is one YAML document; drop what follows `---`"),
)
QUOTE_TEMPLATE = 'a template that starts with `{{` must stand in quotes: "{{ … }}"'


def read(path: Path, shown: str) -> Source:
    """Read a YAML file. `shown` is what errors call it. Never raises for what the file holds; see `Source.problems`."""
    try:
        data = path.read_bytes()
    except OSError as error:
        reason = "is a folder" if is_folder(path) else (error.strerror or str(error)).lower()
        return Source(shown, "", None, (Problem(f"cannot read this file: {reason}", shown),))
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        before = LINE_BREAK.split(data[: error.start].decode("utf-8"))
        source = LINE_BREAK.split(data.decode("utf-8", "replace"))[len(before) - 1]
        mark = Mark(shown, len(before), len(before[-1]) + 1, 1, source)
        return Source(
            shown, "", None, (mark.problem(f"byte 0x{data[error.start]:02x} is not UTF-8; save it as UTF-8"),)
        )
    return parse(text, shown)


def parse(text: str, shown: str) -> Source:
    """Parse YAML text. `shown` is what errors call it. Never raises for what the text holds; see `Source.problems`."""
    reader = _Reader(shown, text)
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
    except yaml.reader.ReaderError as error:
        before = LINE_BREAK.split(text[: error.position])
        mark = reader.mark(len(before), len(before[-1]) + 1, 1)
        return Source(
            shown, text, None, (mark.problem(f"character U+{ord(text[error.position]):04X} cannot stand in YAML"),)
        )
    except yaml.MarkedYAMLError as error:
        return Source(shown, text, None, (reader.broken(error),))
    if root is None:
        return Source(
            shown, text, None, (reader.mark(1, 1, 1).problem("this file is empty; a spec has at least a `name`"),)
        )
    try:
        tree = reader.convert(root, frozenset())
    except _TooManyError as error:
        return Source(shown, text, None, (error.problem,))
    if not tree.is_mapping:
        reader.problems.append(tree.mark.problem(f"a spec is a mapping of keys to values, not {kind(tree.value)}"))
    return Source(shown, text, tree if tree.is_mapping else None, tuple(reader.problems))


def parse_value(text: str, shown: str) -> Source:
    """Parse one YAML value of any kind, as `--set` has it. Text that starts like a template is that text."""
    if text.lstrip().startswith(("{{", "{%")):
        return Source(shown, text, Node(text, Mark(shown), Mark(shown)))
    source = parse(f"value: {text}", shown)
    if source.tree is None or source.problems or len(source.tree.value) != 1:
        said = source.problems[0].message if source.problems else "more than one value"
        return Source(shown, text, None, (Problem(said, shown),))
    return Source(shown, text, elsewhere(source.tree.value["value"], Mark(shown)))


class _TooManyError(Exception):
    def __init__(self, problem: Problem) -> None:
        self.problem = problem


class _Reader:
    """Turns PyYAML's nodes of one text into `Node`s, gathering problems on the way."""

    def __init__(self, shown: str, text: str) -> None:
        self.shown = shown
        self.lines = [line.lstrip("\ufeff") for line in LINE_BREAK.split(text)]
        self.problems: list[Problem] = []
        self.nodes = 0

    def mark(self, line: int, column: int, width: int) -> Mark:
        source = self.lines[line - 1] if line <= len(self.lines) else ""
        return Mark(self.shown, line, column, max(1, width), source)

    def span(self, node: yaml.Node) -> Mark:
        """Where a node stands; what goes over several lines is underlined to the end of its first."""
        start, end = node.start_mark, node.end_mark
        line = self.lines[start.line] if start.line < len(self.lines) else ""
        stop = end.column if end.line == start.line else len(line.rstrip())
        return self.mark(start.line + 1, start.column + 1, stop - start.column)

    def broken(self, error: yaml.MarkedYAMLError) -> Problem:
        """A syntax error of the file, at the place where it shows."""
        problem = str(error.problem or error)
        opened = problem.startswith(("found unexpected end", "expected ','"))  # shown at its end, made at its start
        mark = (error.context_mark if opened else None) or error.problem_mark or error.context_mark
        said = next((words for part, words in _IN_OTHER_WORDS if part in f"{problem} {error.context}"), "")
        if mark is None:
            return Problem(f"not YAML: {said or problem}", self.shown)
        place = self.mark(mark.line + 1, mark.column + 1, 1)
        if not said and re.search(r"[:-]\s+\{\{", place.source):
            said = QUOTE_TEMPLATE
        if not said:
            said = f"{problem} ({error.context})" if error.context else problem
        return place.problem(f"not YAML: {said}")

    def convert(self, node: yaml.Node, open_nodes: frozenset[int]) -> Node:
        """The tree under a node. `open_nodes` are the nodes it stands in: an alias to one of them would never end."""
        self.nodes += 1
        mark = self.span(node)
        if len(open_nodes) > MAX_DEPTH:
            raise _TooManyError(mark.problem(f"not YAML: {TOO_DEEP}"))
        if self.nodes > MAX_NODES:
            raise _TooManyError(mark.problem(f"aliases here write out to more than {MAX_NODES:,} values"))
        if id(node) in open_nodes:
            self.problems.append(mark.problem("this anchor holds an alias to itself, so that it would never end"))
            return Node(None, mark)
        if isinstance(node, yaml.ScalarNode):
            return self.scalar(node, mark)
        inside = open_nodes | {id(node)}
        if isinstance(node, yaml.MappingNode):
            if node.tag != YAML + "map":
                self.refuse_tag(node, mark)
            return Node(self.mapping(node, inside), mark)
        if node.tag != YAML + "seq":
            self.refuse_tag(node, mark)
        return Node([self.convert(item, inside) for item in node.value], mark)

    def refuse_tag(self, node: yaml.Node, mark: Mark) -> None:
        tag = node.tag.replace(YAML, "!!")
        place = replace(mark, width=len(tag) if mark.source[mark.column - 1 :].startswith(tag) else mark.width)
        self.problems.append(place.problem(f"the tag `{tag}` is refused: a spec holds plain values and never code"))

    def text(self, node: yaml.ScalarNode, mark: Mark) -> str:
        """The text of a scalar; JSON writes characters beyond U+FFFF as two escapes, which PyYAML leaves apart."""
        text = str(node.value)
        if any("\ud800" <= character <= "\udfff" for character in text):
            try:
                return text.encode("utf-16", "surrogatepass").decode("utf-16")
            except UnicodeDecodeError:
                self.problems.append(
                    mark.problem("half of a surrogate pair is no character; write the character itself")
                )
                return ""
        return text

    def scalar(self, node: yaml.ScalarNode, mark: Mark) -> Node:
        text, name = self.text(node, mark), node.tag.removeprefix(YAML)
        if node.tag == YAML + "merge":  # `<<` as a value is just text
            name = "str"
        if name == "str" or name not in CORE:
            if name != "str":
                self.refuse_tag(node, mark)
            return Node(text, mark, style=node.style)
        if not CORE[name].match(text):
            self.problems.append(mark.problem(f"`!!{name}` cannot be read from {text!r}"))
            return Node(None, mark)
        if name == "int" and len(text) > 20:
            self.problems.append(mark.problem("a whole number of more than 20 digits; quote it if it is text"))
            return Node(0, mark)
        return Node(_scalar(name, text), mark, style=node.style)

    def mapping(self, node: yaml.MappingNode, inside: frozenset[int]) -> dict[str, Node]:
        own: dict[str, Node] = {}
        merged: dict[str, Node] = {}
        for key, child in node.value:
            place = self.span(key)
            if key.tag == YAML + "merge":
                for name, value in self.merge(child, inside):
                    merged.setdefault(name, value)  # of several mappings, the first one wins
                continue
            if not isinstance(key, yaml.ScalarNode) or key.tag == YAML + "null":
                starts_template = isinstance(key, yaml.MappingNode) and place.source[place.column - 2 :].startswith(
                    "{{"
                )
                said = QUOTE_TEMPLATE if starts_template else f"a key must be text, not {_node_kind(key)}"
                self.problems.append(replace(place, column=place.column - starts_template).problem(said))
                continue
            name = self.text(key, place)  # a number as a key is its text
            value = replace(self.convert(child, inside), key=place)
            if name in own:
                first = own[name].key
                assert first is not None
                self.problems.append(
                    place.problem(
                        f"the key `{name}` stands here a second time; it stood on line {first.line} already:"
                        f" `{first.source.strip()}`"
                    )
                )
                continue
            own[name] = value
        return {**{name: value for name, value in merged.items() if name not in own}, **own}

    def merge(self, node: yaml.Node, inside: frozenset[int]) -> list[tuple[str, Node]]:
        """The keys that `<<: *anchor` or `<<: [*one, *two]` brings."""
        parts = node.value if isinstance(node, yaml.SequenceNode) else [node]
        found: list[tuple[str, Node]] = []
        for part in parts:
            if not isinstance(part, yaml.MappingNode):
                said = f"`<<` merges a mapping or a list of mappings, not {_node_kind(part)}"
                self.problems.append(self.span(part).problem(said))
                continue
            found += self.convert(part, inside).items()
        return found


def _node_kind(node: yaml.Node) -> str:
    if isinstance(node, yaml.ScalarNode):
        return "nothing (null)" if node.tag == YAML + "null" else f"the text {node.value!r}"
    return "a mapping" if isinstance(node, yaml.MappingNode) else "a list"


def _scalar(name: str, text: str) -> bool | int | float | None:
    if name == "null":
        return None
    if name == "bool":
        return text.lower() == "true"
    if name == "int":
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
