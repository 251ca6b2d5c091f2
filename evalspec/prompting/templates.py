"""Jinja2 in a sandbox: a template sees values, reaches no code, and a name it does not know is an error.

Templates that stand in files trim the lines of their block tags (`trim_blocks`, `lstrip_blocks`) and their last
newline, so that a file reads as the prompt does; templates written inside a spec are taken to the letter.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from evalspec.errors import PromptError, suggest

_FILES = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
_INLINE = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
_EXPRESSION = re.compile(r"\{\{((?:(?!\{\{|\}\}|\{%).)*)\}\}", re.DOTALL)


@dataclass(frozen=True, eq=False)
class Template:
    """A compiled template. `where` is how errors name it; `text` is its source, which the plan's identity holds."""

    where: str
    text: str
    _compiled: jinja2.Template
    _expression: Any = None

    def render(self, values: Mapping[str, Any]) -> str:
        """The template's text with `values` filled in. Raises PromptError naming what is missing."""
        try:
            return self._compiled.render(values)
        except jinja2.UndefinedError as error:
            raise PromptError(self._undefined(error, values)) from None
        except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError, OverflowError) as error:
            raise PromptError(f"{self.where}: cannot be rendered: {error}") from None

    def evaluate(self, values: Mapping[str, Any]) -> Any:
        """Like `render`, but a template that is one `{{ expression }}` keeps its value's type (a list, a number)."""
        if self._expression is None:
            return self.render(values)
        try:
            value = self._expression(**values)
        except jinja2.UndefinedError as error:
            raise PromptError(self._undefined(error, values)) from None
        except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
            raise PromptError(f"{self.where}: cannot be evaluated: {error}") from None
        if isinstance(value, jinja2.Undefined):
            raise PromptError(f"{self.where}: `{self.text.strip()}` is undefined; the row has {_columns(values)}")
        return value

    def _undefined(self, error: jinja2.UndefinedError, values: Mapping[str, Any]) -> str:
        found = re.search(r"'([^']+)' is undefined", str(error))
        hint = suggest(found[1], values) if found else ""
        return f"{self.where}: {error.message}.{hint} The row has {_columns(values)}"


def _columns(values: Mapping[str, Any]) -> str:
    return ", ".join(f"`{name}`" for name in values) or "no columns"


def compile_template(source: str, root: Path, where: str) -> Template:
    """The template of a spec: a file under `root` when it ends in `.jinja`, else the text itself.

    `where` says which key of the spec holds it. Raises PromptError for a missing file or wrong syntax.
    """
    is_file = source.endswith(".jinja") and "\n" not in source and "{" not in source
    text, environment = source, _INLINE
    if is_file:
        path = root / source
        if not path.is_file():
            others = sorted(p.relative_to(root).as_posix() for p in path.parent.glob("*.jinja"))
            raise PromptError(f"{where}: there is no template file {source} under {root}.{suggest(source, others)}")
        text, environment, where = path.read_text(encoding="utf-8"), _FILES, f"{where}: {source}"
    try:
        compiled = environment.from_string(text)
        single = _EXPRESSION.fullmatch(text.strip())
        expression = environment.compile_expression(single[1], undefined_to_none=False) if single else None
    except jinja2.TemplateSyntaxError as error:
        raise PromptError(f"{where}: line {error.lineno}: {error.message}") from None
    return Template(where, text, compiled, expression)


def constant(text: str, where: str) -> Template:
    """A template that is always `text`: what a spec gives as a plain number, for example."""
    return Template(where, text, _INLINE.from_string("{% raw %}" + text + "{% endraw %}"))
