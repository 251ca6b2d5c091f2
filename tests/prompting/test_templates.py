"""Templates see values and reach no code; what they lack is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from evalspec.errors import PromptError
from evalspec.prompting.templates import compile_template, constant

ROOT = Path()


def test_a_missing_column_is_named_with_its_nearest_and_with_what_the_row_has() -> None:
    template = compile_template("{{ questoin }}", ROOT, "tasks.t.prompt.template")
    with pytest.raises(PromptError, match=r"tasks\.t\.prompt\.template.*'questoin'.*Did you mean `question`.*`answer`"):
        template.render({"question": "q", "answer": "a"})


def test_a_single_expression_keeps_its_type() -> None:
    assert compile_template("{{ ids }}", ROOT, "x").evaluate({"ids": ["a", "b"]}) == ["a", "b"]
    assert compile_template("{{ n + 1 }}", ROOT, "x").evaluate({"n": 1}) == 2
    assert compile_template("n={{ n }}", ROOT, "x").evaluate({"n": 1}) == "n=1"
    assert compile_template("{{ n }}", ROOT, "x").evaluate({"n": 1, "self": 2}) == 1, "a column may have any name"
    assert compile_template("{{ a | map('upper') }}", ROOT, "x").evaluate({"a": ["x"]}) == ["X"]
    assert compile_template("{{ a }}{{ b }}", ROOT, "x").evaluate({"a": 1, "b": 2}) == "12"


@pytest.mark.parametrize("source", ["Q: {{ q }}", "{{ q }}", "{{ [q, 'x'] }}", "{{ row.q }}"])
def test_a_null_is_an_error_and_never_the_word_none(source: str) -> None:
    template = compile_template(source, ROOT, "tasks.t.prompt.target")
    with pytest.raises(PromptError, match=r"tasks\.t\.prompt\.target: .*row `r7` is null.*`q`.*`\{\{ q or '…' \}\}`"):
        template.evaluate({"q": None, "row": {"q": None}}, "r7")


@pytest.mark.parametrize(
    "source", ["{{ range }}", "{{ q.title }}", "{{ self }}", "{{ dict }}", "- {{ q | map('upper') }}"]
)
def test_code_is_an_error_and_never_an_address_in_a_prompt(source: str) -> None:
    with pytest.raises(PromptError, match=r"the row `r7` cannot be .* has no text; is it a column's name"):
        compile_template(source, ROOT, "x").evaluate({"q": "a"}, "r7")


def test_a_template_may_say_what_stands_for_a_null() -> None:
    values = {"q": None, "ids": None}
    assert compile_template("Q: {{ q or '-' }}{% if q %}!{% endif %}", ROOT, "x").render(values) == "Q: -"
    assert compile_template("{{ ids or [] }}", ROOT, "x").evaluate(values) == []


def test_an_undefined_expression_is_an_error_too() -> None:
    with pytest.raises(PromptError, match=r"gold.*the row `r7` has `gold_ids`"):
        compile_template("{{ gold }}", ROOT, "x").evaluate({"gold_ids": []}, "r7")


@pytest.mark.parametrize(
    "attack",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ row.append(1) }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{{ ().__class__.__bases__ }}",
    ],
)
def test_the_sandbox_reaches_no_code(attack: str) -> None:
    with pytest.raises(PromptError):
        compile_template(attack, ROOT, "x").render({"row": []})


@pytest.mark.parametrize(
    ("endless", "said"),
    [
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "more than 1,000,000 turns"),
        ("{% for i in 'x' * 9999 %}{% for j in 'x' * 9999 if false %}{% endfor %}{% endfor %}", "1,000,000 turns"),
        (
            "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(90) }}",
            "1,000,000 turns",
        ),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{% for row in rows recursive %}{{ loop(rows) }}{% endfor %}", "recursion"),
        ("{{ 10 ** (10 ** 8) }}", "a power of more than 100,000 bits"),
        ("{{ 'x' * 10 ** 12 }}", "100,000,000 items"),
        ("{{ rows | regex_replace('((', '') }}", "unterminated subpattern"),
        ("{{ rows | random }}", "another prompt each time"),
        ("{{ lipsum() }}", "another prompt each time"),
    ],
)
def test_a_template_ends_and_says_what_is_wrong_with_it(endless: str, said: str) -> None:
    with pytest.raises(PromptError, match=rf"tasks\.t\.prompt\.template: the row `r7` cannot be .*{said}"):
        compile_template(endless, ROOT, "tasks.t.prompt.template").render({"rows": [1]}, "r7")


def test_a_template_that_is_nested_too_deeply_is_refused() -> None:
    with pytest.raises(PromptError, match="nested too deeply"):
        compile_template("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", ROOT, "x")


def test_counting_turns_changes_no_text() -> None:
    source = "{% for r in rows if r > 1 %}{{ loop.index }}{{ r }}{% else %}none{% endfor %}"
    assert compile_template(source, ROOT, "x").render({"rows": [1, 2, 3]}) == "1223"
    assert compile_template(source, ROOT, "x").render({"rows": [1]}) == "none"


def test_a_file_reads_as_the_prompt_does(tmp_path: Path) -> None:
    (tmp_path / "p.jinja").write_text("{% for p in passages %}\n- {{ p }}\n{% endfor %}\nQuestion: {{ q }}\nAnswer:\n")
    template = compile_template("p.jinja", tmp_path, "x")
    assert template.render({"passages": ["one", "two"], "q": "?"}) == "- one\n- two\nQuestion: ?\nAnswer:"


def test_inline_templates_are_taken_to_the_letter() -> None:
    assert compile_template("a\n{{ b }}\n", ROOT, "x").render({"b": 1}) == "a\n1\n"


def test_a_missing_file_suggests_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "rag.jinja").write_text("x")
    with pytest.raises(PromptError, match=r"prompts/rga\.jinja.*Did you mean `prompts/rag\.jinja`"):
        compile_template("prompts/rga.jinja", tmp_path, "tasks.t.prompt.template")


def test_wrong_syntax_says_its_line() -> None:
    with pytest.raises(PromptError, match="line 2"):
        compile_template("a\n{% if %}", ROOT, "x")


def test_a_constant_is_itself() -> None:
    assert constant("{{ 3 }}", "x").render({}) == "{{ 3 }}"


def test_digits_become_an_index_and_patterns_are_replaced() -> None:
    index = compile_template("{{ answer | as_index }}", ROOT, "x")
    assert [index.evaluate({"answer": value}) for value in ("2", "two", 2)] == [2, "two", 2]
    plain = compile_template("{{ text | regex_replace('[0-9]+ ?', '') }}", ROOT, "x")
    assert plain.render({"text": "1 one 22 two"}) == "one two"


def test_a_written_list_becomes_a_list() -> None:
    template = compile_template("{{ choices | as_list }}", ROOT, "x")
    assert [template.evaluate({"choices": value}) for value in ("['a', 'b']", ["c"], "not a list", "{1}")] == [
        ["a", "b"],
        ["c"],
        "not a list",
        "{1}",
    ]
