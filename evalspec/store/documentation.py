"""The reference part of docs/store.md, made from the schema; `python -m evalspec.store.documentation` writes it."""

from __future__ import annotations

from pathlib import Path

from evalspec.store.schema import SCHEMA_VERSION, TABLES
from evalspec.store.views import VIEWS

BEGIN = (
    "<!-- reference: made by `python -m evalspec.store.documentation`; edit evalspec/store/schema.py and views.py -->"
)
END = "<!-- reference: end -->"


def reference() -> str:
    """Every table and view as Markdown."""
    parts = [f"Schema version {SCHEMA_VERSION}. A column in **bold** is part of the row's key."]
    for table in TABLES.values():
        parts.append(f"### `{table.name}`\n\n{table.about}\n\n| column | type | what it says |\n|---|---|---|")
        parts[-1] += "".join(
            f"\n| {f'**`{c.name}`**' if c.key else f'`{c.name}`'} | {c.type} | {c.about} |" for c in table.columns
        )
    parts.append("## Views")
    parts += [f"### `{view.name}`\n\n{view.about}" for view in VIEWS]
    return "\n\n".join(parts)


def with_reference(text: str) -> str:
    """A page with its reference part replaced."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n\n{reference()}\n\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    page = Path(__file__).parents[2] / "docs" / "store.md"
    page.write_text(with_reference(page.read_text(encoding="utf-8")), encoding="utf-8")
