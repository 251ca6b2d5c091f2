"""Jinja2 in a sandbox: a template sees values, reaches no code, and a name it does not know is an error.

Templates that stand in files trim the lines of their block tags (`trim_blocks`, `lstrip_blocks`) and their last
newline, so that a file reads as the prompt does; templates written inside a spec are taken to the letter.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from jinja2.runtime import TemplateReference

from evalspec.errors import PromptError, in_a_line, suggest
from evalspec.paths import is_file, path_from
from evalspec.patterns import replaced
from evalspec.prompting.sandbox import Sandbox, bounded
from evalspec.prompting.steps import corrupt_number, first_steps, last_number, steps


class NullError(ValueError):
    """A template wrote a null."""


def _with_text(value: Any) -> Any:
    """A null has no text: Jinja's `None` in a prompt or a right answer is a hole in the data that nobody would see.

    Nor has code: `{{ range }}`, `{{ text.title }}` and a `map` without `list` show addresses, others in each process.
    """
    if value is None:
        raise NullError
    if isinstance(value, jinja2.Undefined):  # says itself what is missing
        return value
    if callable(value) or isinstance(value, Iterator | TemplateReference):
        raise TypeError(f"a {type(value).__name__} has no text; is it a column's name, or `()` or `| list` missing?")
    return value


_FILES = Sandbox(finalize=_with_text, trim_blocks=True, lstrip_blocks=True)
_INLINE = Sandbox(finalize=_with_text, keep_trailing_newline=True)


def _regex_replace(text: object, pattern: str, replacement: str, count: int = 0) -> str:
    """`re.sub`, the one filter that lm-evaluation-harness adds to Jinja's own; its tasks use it."""
    return replaced(re.compile(pattern), replacement, str(text), count)


def _as_index(value: Any) -> Any:
    """A text of digits as the number that it writes, anything else as it is.

    Where choices are numbers themselves, `{{ answer }}` names the choice that reads like it, and
    `{{ answer | as_index }}` the one at that place.
    """
    return int(value) if isinstance(value, str) and value.isdecimal() else value


def _as_list(value: Any) -> Any:
    """A text that writes a list as Python does (`['a', 'b']`) as that list, anything else as it is."""
    if not isinstance(value, str):
        return value
    try:
        written = ast.literal_eval(value.strip())
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return value
    return written if isinstance(written, list) else value


for _environment in (_FILES, _INLINE):
    _environment.filters |= {"regex_replace": _regex_replace, "as_index": _as_index, "as_list": _as_list}
    _environment.filters |= {f.__name__: f for f in (steps, first_steps, last_number, corrupt_number)}
_EXPRESSION = re.compile(r"\{\{((?:(?!\{\{|\}\}|\{%).)*)\}\}", re.DOTALL)


@dataclass(frozen=True, eq=False)
class Template:
    """A compiled template. `where` is how errors name it; `text` is its source, which the plan's identity holds."""

    where: str
    text: str
    _compiled: jinja2.Template
    _expression: Any = None

    def render(self, values: Mapping[str, Any], row: str = "") -> str:
        """The template's text with `values` filled in; `row` is the id that errors name.

        Raises PromptError naming what is missing or null.
        """
        try:
            with bounded():
                return self._compiled.render(values)
        except jinja2.UndefinedError as error:
            raise PromptError(self._undefined(error, values, row)) from None
        except NullError:
            raise PromptError(self._null(values, row)) from None
        except Exception as error:  # an expression can raise whatever Python can
            raise PromptError(f"{self.where}: {_the_row(row)} cannot be rendered: {in_a_line(error)}") from None

    def evaluate(self, values: Mapping[str, Any], row: str = "") -> Any:
        """Like `render`, but a template that is one `{{ expression }}` keeps its value's type (a list, a number)."""
        if self._expression is None:
            return self.render(values, row)
        try:
            with bounded():
                value = self._expression(values)  # by place: a column may be called `self`
                if isinstance(value, Iterator):
                    value = list(value)
                value = None if value is None else _with_text(value)
        except jinja2.UndefinedError as error:
            raise PromptError(self._undefined(error, values, row)) from None
        except Exception as error:  # an expression can raise whatever Python can
            raise PromptError(f"{self.where}: {_the_row(row)} cannot be evaluated: {in_a_line(error)}") from None
        if isinstance(value, jinja2.Undefined):
            has = f"{_the_row(row)} has {_columns(values)}"
            raise PromptError(f"{self.where}: `{self.text.strip()}` is undefined; {has}")
        if value is None or (isinstance(value, list | tuple) and None in value):
            raise PromptError(self._null(values, row))
        return value

    def _undefined(self, error: jinja2.UndefinedError, values: Mapping[str, Any], row: str) -> str:
        found = re.search(r"'([^']+)' is undefined", str(error))
        hint = suggest(found[1], values) if found else ""
        return f"{self.where}: {error.message}.{hint} {_the_row(row, 'The row')} has {_columns(values)}"

    def _null(self, values: Mapping[str, Any], row: str) -> str:
        nulls = [name for name, value in values.items() if value is None]
        which = f" (its nulls: {_columns(dict.fromkeys(nulls))})" if nulls else ""
        return (
            f"{self.where}: a value of {_the_row(row)} is null, which has no text{which}; "
            f"drop such rows, or say what stands for it: `{{{{ {nulls[0] if nulls else 'column'} or '…' }}}}`"
        )


def _the_row(row: str, alone: str = "the row") -> str:
    return f"{alone} `{row}`" if row else alone


def _columns(values: Mapping[str, Any]) -> str:
    return ", ".join(f"`{name}`" for name in values) or "no columns"


def compile_template(source: str, root: Path, where: str) -> Template:
    """The template of a spec: a file under `root` when it ends in `.jinja`, else the text itself.

    `where` says which key of the spec holds it. Raises PromptError for a missing file or wrong syntax.
    """
    in_file = source.endswith(".jinja") and "\n" not in source and "{" not in source
    text, environment = source, _INLINE
    if in_file:
        path = path_from(root, source)
        if not is_file(path):
            others = sorted(p.relative_to(root).as_posix() for p in path.parent.glob("*.jinja"))
            raise PromptError(f"{where}: there is no template file {source} under {root}.{suggest(source, others)}")
        text, environment, where = path.read_text(encoding="utf-8"), _FILES, f"{where}: {source}"
    try:
        compiled = environment.from_string(text)
        single = _EXPRESSION.fullmatch(text.strip())
        expression = environment.compile_expression(single[1], undefined_to_none=False) if single else None
    except jinja2.TemplateSyntaxError as error:
        raise PromptError(f"{where}: line {error.lineno}: {error.message}") from None
    except RecursionError:
        raise PromptError(f"{where}: is nested too deeply") from None
    return Template(where, text, compiled, expression)


def constant(text: str, where: str) -> Template:
    """A template that is always `text`: what a spec gives as a plain number, for example."""
    return Template(where, text, _INLINE.from_string("{% raw %}" + text + "{% endraw %}"))
