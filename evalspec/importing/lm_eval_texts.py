"""`doc_to_text`, `doc_to_target` and `doc_to_choice` as templates of a spec.

The harness reads such a value as a column's name first, then as Jinja2 (both sides keep a trailing newline and refuse
what is undefined). It renders a template to text and reads that text again: digits are the index of a choice, and what
looks like a Python list is one. A spec keeps the type of `{{ a single expression }}` instead; where the two ways could
differ, the filters `as_index` and `as_list` say what is meant.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evalspec.errors import PromptError
from evalspec.importing.lm_eval_findings import Findings
from evalspec.prompting.templates import compile_template

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
RESERVED = frozenset("true false none True False None not and or in is if else for".split())
EXPRESSION = re.compile(r"(\s*)\{\{((?:(?!\{\{|\}\}|\{%).)*)\}\}(\s*)", re.DOTALL)  # as prompting.templates finds one
WHOLE = re.compile(r".*(\.index\(.*\)|\|\s*(int|length|as_index)|-\s*1)\s*", re.DOTALL)
"""Expressions that give a whole number, whatever the row holds."""

Columns = Mapping[str, Any]
"""The first row, where the data is at hand: which names are columns, and what they hold."""


def text_template(findings: Findings, key: str, value: Any, row: Columns | None) -> str:
    """A text to render: a question, a description."""
    if not isinstance(value, str):
        findings.refuse(key, f"must be text, not {value!r}")
        return ""
    return _checked(findings, key, _resolved(findings, key, value, row))


def target_template(findings: Findings, key: str, value: Any, row: Columns | None) -> str:
    """A right answer as text, or as a list of them."""
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        return f"{{{{ {json.dumps(value)} }}}}"
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    template = text_template(findings, key, value, row)
    found = EXPRESSION.fullmatch(template)
    if found and (found[1] or found[3]):  # a spec would take the expression alone
        parts = [json.dumps(found[1])] * bool(found[1]) + [_operand(found[2])] + [json.dumps(found[3])] * bool(found[3])
        return f"{{{{ {' ~ '.join(parts)} }}}}"
    return template


def index_template(
    findings: Findings, key: str, value: Any, row: Columns | None, choices: str | list[str]
) -> str | int:
    """Which choice is right: its index, or its text."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, list):
        findings.refuse(key, "a list of right choices is carried over from a template only")
        return 0
    template = target_template(findings, key, value, row)
    if template.isdecimal():
        return int(template)
    found = EXPRESSION.fullmatch(template)
    is_column = template != value
    never_digits = isinstance(choices, list) and not any(choice.isdecimal() for choice in choices)
    if found is None or is_column or never_digits or WHOLE.fullmatch(found[2]):
        return template
    return f"{{{{ {_operand(found[2])} | as_index }}}}"


def choice_templates(findings: Findings, key: str, value: Any, row: Columns | None) -> str | list[str]:
    """The answers to choose from: a list of templates, or an expression that yields one."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        wrong = [item for item in value if not isinstance(item, str)]
        if wrong:
            findings.refuse(key, f"a choice is text, not {wrong[0]!r}; put it in quotes")
        if len(value) < 2:
            findings.refuse(key, f"has {len(value)} choices; at least two are needed")
        return [_raw(item) for item in value if isinstance(item, str)]
    if not isinstance(value, str):
        findings.refuse(key, f"must be a list or a template, not {value!r}")
        return []
    template = _resolved(findings, key, value, row)
    found = EXPRESSION.fullmatch(template)
    if found is None:
        try:  # a list written out, with templates in its texts
            listed = ast.literal_eval(template.strip())
        except (SyntaxError, ValueError, MemoryError, RecursionError):
            listed = None
        if isinstance(listed, list) and len(listed) > 1 and all(isinstance(item, str) for item in listed):
            return [_checked(findings, key, item) for item in listed]
        findings.refuse(key, "a template of choices must be one `{{ expression }}` that yields a list")
        return []
    inner = found[2].strip()
    plain = template != value or inner.startswith("[")  # a column is a list as it is, and so is what is written as one
    return _checked(findings, key, template.strip() if plain else f"{{{{ {_operand(inner)} | as_list }}}}")


def expression_of(template: str | int | Sequence[str]) -> str | None:
    """The Jinja2 expression that a template is, None where it is no single one."""
    if isinstance(template, int):
        return str(template)
    if isinstance(template, str):
        found = EXPRESSION.fullmatch(template)
        return _operand(found[2]) if found else json.dumps(template) if "{" not in template else None
    return json.dumps(list(template)) if not any("{" in item for item in template) else None


def yields_an_index(template: Any, value: Any, row: Columns | None) -> bool:
    """Whether `doc_to_text` names one of the choices, each of which is then a context of its own (WinoGrande).

    The harness decides by its first row; without the data, an expression that can only give a whole number does.
    """
    if isinstance(value, int):
        return not isinstance(value, bool)
    if not isinstance(value, str) or not isinstance(template, str):
        return False
    if row is not None:
        try:
            compiled = compile_template(template, Path(), "doc_to_text")
            shown = compiled.evaluate(row)
        except PromptError:
            return False
        return isinstance(shown, int) or (template == value and str(shown).isdecimal())
    found = EXPRESSION.fullmatch(template)
    # A column of such a name holds a number; if it does not after all, no choice is called so and the run says it.
    likely = value in ("label", "answer", "gold", "index", "idx")
    return likely or value.isdecimal() or bool(found and WHOLE.fullmatch(found[2]))


def _operand(expression: str) -> str:
    """An expression as it may stand beside an operator: in parentheses, but for a plain path."""
    plain = expression.strip()
    return plain if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.]*|\d+", plain) else f"({plain})"


def _resolved(findings: Findings, key: str, value: str, row: Columns | None) -> str:
    """A column's name as the template that shows it; anything else as it is."""
    is_name = NAME.fullmatch(value) is not None and value not in RESERVED
    if row is not None and value in row:
        if not is_name:
            findings.refuse(key, f"a template cannot name the column {value!r}; rename it to letters, digits and `_`")
        return f"{{{{ {value} }}}}"
    if row is None and is_name:
        findings.note(f"`{key}: {value}` is taken for a column; a row without it is an error")
        return f"{{{{ {value} }}}}"
    return value


def _raw(text: str) -> str:
    return f"{{% raw %}}{text}{{% endraw %}}" if any(sign in text for sign in ("{{", "{%", "{#")) else text


def _checked(findings: Findings, key: str, template: str) -> str:
    """The template, after it was compiled once."""
    try:
        compile_template(template, Path(), key)
    except PromptError as error:
        findings.refuse(key, f"is not a template: {str(error).removeprefix(f'{key}: ')}")
    return template
