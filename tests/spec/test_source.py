"""YAML as the 1.2 core schema reads it, and places that stay with their values."""

from __future__ import annotations

import math

import pytest

from evalspec.spec.source import parse

# Rows of the YAML 1.2.2 specification, chapter 10.3, and what YAML 1.1 would have made something else of.
CORE_SCHEMA = {
    "null": None,
    "Null": None,
    "NULL": None,
    "~": None,
    "": None,
    "nUll": "nUll",
    "true": True,
    "True": True,
    "TRUE": True,
    "false": False,
    "FALSE": False,
    "yes": "yes",
    "No": "No",
    "on": "on",
    "off": "off",
    "y": "y",
    "0": 0,
    "-19": -19,
    "+12": 12,
    "010": 10,
    "0o7": 7,
    "0o10": 8,
    "0x3A": 58,
    "0b11": "0b11",
    "1_000": "1_000",
    "190:20:30": "190:20:30",
    "0.": 0.0,
    "-0.0": 0.0,
    ".5": 0.5,
    "+12e03": 12000.0,
    "-2E+05": -200000.0,
    "1e-4": 0.0001,
    "1e3": 1000.0,
    "685.230_15e+03": "685.230_15e+03",
    ".inf": math.inf,
    "-.Inf": -math.inf,
    "+.INF": math.inf,
    "2026-01-31": "2026-01-31",
    "2026-01-31 10:00:00": "2026-01-31 10:00:00",
    "12.3.4": "12.3.4",
    "0xZZ": "0xZZ",
    "e3": "e3",
    "<<": "<<",
    "=": "=",
    '"true"': "true",
    "'1'": "1",
    "!!str 1": "1",
    "!!int '3'": 3,
    "!!float 3": 3.0,
    "!!null ''": None,
}


@pytest.mark.parametrize(("text", "value"), CORE_SCHEMA.items())
def test_a_scalar_is_what_yaml_1_2_says(text: str, value: object) -> None:
    source = parse(f"value: {text}\n", "x")
    assert source.problems == ()
    assert source.tree is not None
    read = source.tree.plain()["value"]
    assert read == value
    assert type(read) is type(value)


def test_not_a_number_is_a_float() -> None:
    tree = parse("value: .nan", "x").tree
    assert tree is not None
    assert math.isnan(tree.plain()["value"])


@pytest.mark.parametrize("text", ["!!int three", "!!bool yes", "!!float x"])
def test_a_tag_that_its_text_does_not_fit_is_an_error(text: str) -> None:
    (problem,) = parse(f"value: {text}", "x").problems
    assert "cannot be read from" in problem.message
    assert (problem.line, problem.column) == (1, 8)


def test_keys_that_look_like_numbers_are_text() -> None:
    tree = parse("{7b: 1, 2024: 2, true: 3, on: 4}", "x").tree
    assert tree is not None
    assert tree.plain() == {"7b": 1, "2024": 2, "true": 3, "on": 4}


def test_places_count_from_one_and_span_keys_and_values() -> None:
    tree = parse("a:\n  - {b: [1, 'two words']}\n", "f.yaml").tree
    assert tree is not None
    node = tree.at("a", 0, "b", 1)
    assert node is not None
    assert (node.mark.file, node.mark.line, node.mark.column, node.mark.width) == ("f.yaml", 2, 13, 11)
    key = tree.at("a", 0, "b")
    assert key is not None
    assert key.key is not None
    assert (key.key.line, key.key.column, key.key.width, key.key.source) == (2, 6, 1, "  - {b: [1, 'two words']}")


def test_a_byte_order_mark_and_windows_line_ends_do_not_shift_places() -> None:
    tree = parse("\ufeffa: 1\r\nbc: {d: 5}\r\n", "x").tree
    assert tree is not None
    node = tree.at("bc", "d")
    assert node is not None
    assert (node.mark.line, node.mark.column, node.mark.source) == (2, 9, "bc: {d: 5}")
    first = tree.at("a")
    assert first is not None
    assert first.key is not None
    assert (first.key.line, first.key.column, first.key.source) == (1, 1, "a: 1")


def test_merge_keys_bring_keys_that_own_keys_win_over() -> None:
    text = "base: &b {x: 1, y: 2}\nmore: &m {y: 3, z: 4}\none: {<<: *b, y: 9}\nall: {<<: [*b, *m]}\n"
    source = parse(text, "x")
    assert source.problems == ()
    assert source.tree is not None
    read = source.tree.plain()
    assert read["one"] == {"x": 1, "y": 9}
    assert read["all"] == {"x": 1, "y": 2, "z": 4}  # the first of the list wins, as YAML's merge type says


def test_aliases_are_copies_of_their_anchor() -> None:
    tree = parse("a: &a [1, {b: 2}]\nc: *a\n", "x").tree
    assert tree is not None
    assert tree.plain()["c"] == [1, {"b": 2}]
