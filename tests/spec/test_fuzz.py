"""Whatever stands in a file, loading it gives a spec or a SpecError with a place, and never anything else."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from evalspec.errors import SpecError
from evalspec.spec import LoadedSpec, loads
from evalspec.spec.source import parse

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "specs" / "rag.yaml").read_text()
VALUES: dict[str, Any] = yaml.safe_load(TEXT)
FUZZ = settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**25), 10**25),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(
        ["{{ x }}", "{{ x", "{% if %}", "none", "prompts/rag.jinja", "\0", "~nobody", "a/b/c", "**x", "zip", "*"]
    ),
    st.sampled_from(["tasks.open_book", "models.mamba.dtype", "tasks.*.prompt.shots.n", "world.labels", "x" * 5000]),
)
trees = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
)
keys = st.text(max_size=6) | st.sampled_from(
    [
        "extends",
        "include",
        "zip",
        "models",
        "k",
        "retriever",
        "_base",
        "n",
        "metrics",
        "shots",
        "data",
        "tasks.open_book",
    ]
)


def outcome(text: str, sets: tuple[str, ...] = ()) -> LoadedSpec | SpecError:
    """A spec or a SpecError; anything else escapes and fails the test."""
    try:
        return loads(text, sets, root=ROOT)
    except SpecError as error:
        assert error.problems
        assert all(problem.message for problem in error.problems)
        str(error)
        return error


@given(st.text(max_size=200))
@example("? [a]\n: b")
@example("- ? x\n")
@example("%YAML 9.9\n---\nname: t\n")
@example("a: !<tag:yaml.org,2002:map> x")
@example("a: !!map x")
@example("&a : *a")
@example("{a: &x [*x]}")
@example('"\\xff\\u0000"')
@FUZZ
def test_any_text_is_a_spec_or_an_error(text: str) -> None:
    outcome(text)


@given(
    st.lists(
        st.sampled_from([*"{}[]:,-?&*!|>'\"%@`#\n\t ab0~<=", "\n  ", ": ", "- ", "<<: ", "&a ", "*a"]),
        max_size=40,
    )
)
@FUZZ
def test_any_heap_of_yaml_signs_is_a_spec_or_an_error(parts: list[str]) -> None:
    outcome("".join(parts))


@given(
    st.integers(0, len(TEXT)),
    st.integers(0, 12),
    st.text(max_size=6) | st.sampled_from(["\t", "{{", "]", ": ", "\n  "]),
)
@FUZZ
def test_a_spec_with_a_part_replaced_is_a_spec_or_an_error(start: int, length: int, instead: str) -> None:
    outcome(TEXT[:start] + instead + TEXT[start + length :])


@st.composite
def mutated(draw: st.DrawFn) -> dict[str, Any]:
    """The demonstration's values with a few of them, or of their keys, replaced, added or left out."""
    values = copy.deepcopy(VALUES)
    for _ in range(draw(st.integers(1, 3))):
        inside: Any = values
        while True:
            steps = list(inside) if isinstance(inside, dict) else list(range(len(inside)))
            if not steps:
                break
            step = draw(st.sampled_from(steps))
            if isinstance(inside[step], (dict, list)) and draw(st.booleans()):
                inside = inside[step]
                continue
            action = draw(st.sampled_from(["replace", "remove", "add"]))
            if action == "replace":
                inside[step] = draw(trees)
            elif action == "remove":
                del inside[step]
            elif isinstance(inside, dict):
                inside[draw(keys)] = draw(trees)
            else:
                inside.append(draw(trees))
            break
    return values


@given(mutated())
@FUZZ
def test_a_spec_with_values_replaced_is_a_spec_or_an_error(values: dict[str, Any]) -> None:
    outcome(yaml.dump(values, Dumper=yaml.SafeDumper, allow_unicode=True))


@given(st.sampled_from(["sweep", "tasks.*", "tasks.open_book.retrieval", "models.mamba", "include"]), trees)
@FUZZ
def test_a_sweep_of_anything_is_a_spec_or_an_error(path: str, tree: Any) -> None:
    values = {**copy.deepcopy(VALUES), "sweep": tree if path == "sweep" else {path: tree}}
    outcome(yaml.dump(values, Dumper=yaml.SafeDumper))


@given(
    st.lists(
        st.text(max_size=20) | st.tuples(keys, st.text(max_size=8)).map("tasks.open_book.{0[0]}={0[1]}".format),
        max_size=2,
    )
)
@example(["tasks.open_book.data.options.a.b=1", "tasks.open_book.data.options.a.b.c=1"])
@example(["tasks.open_book.data.options.a=[1]", "tasks.open_book.data.options.a.x=1"])
@example(["tasks.open_book=1", "tasks.open_book.retrieval.k=1"])
@example(["tasks=1"])
@example(["sweep={tasks.open_book.retrieval.k: [1]}"])
@FUZZ
def test_any_override_is_a_spec_or_an_error(sets: list[str]) -> None:
    outcome(TEXT, tuple(sets))


@given(
    st.recursive(
        st.booleans()
        | st.integers(-99, 99)
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(st.characters(exclude_categories=["Cs"])),
        lambda t: st.lists(t) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), t),
    )
)
@FUZZ
def test_json_reads_as_json(value: Any) -> None:
    """JSON is YAML 1.2: an independent parser must agree."""
    source = parse(json.dumps({"value": value}, ensure_ascii=True), "x")
    assert source.problems == ()
    assert source.tree is not None
    assert source.tree.plain()["value"] == value
