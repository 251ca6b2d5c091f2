"""The data block: where rows come from."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from evalspec.spec.base import Block, misfits


class DataBlock(Block):
    """Rows: from a file, a SQL query, the Hugging Face hub, a generated world, or written out. Exactly one source."""

    generate: str | None = None
    """Name of a generator, `world.questions` for example."""
    seed: int = 0
    """Seed of the generator; the same seed gives the same world."""
    count: int | None = Field(default=None, gt=0)
    """How many rows to generate."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of the generator."""
    file: str | None = None
    """A JSON Lines, JSON, CSV or Parquet file (also gzipped), or a glob of such files."""
    format: Literal["auto", "jsonl", "json", "csv", "parquet"] = "auto"
    """Format of the file; `auto` goes by its name."""
    sql: str | None = None
    """A SELECT for DuckDB; relative file names in it start at the project's root."""
    database: str | None = None
    """A DuckDB database file that the query reads."""
    hub: str | None = None
    """Id of a data set on the Hugging Face hub."""
    subset: str | None = None
    """Configuration of the hub data set."""
    split: str | None = None
    """Split of the hub data set."""
    revision: str | None = None
    """Branch, tag or commit of the hub data set."""
    rows: list[dict[str, Any]] | None = Field(default=None, min_length=1)
    """The rows themselves, each a mapping from columns to values."""
    id: str | None = None
    """Column that names a row. Default: the column `id` if there is one, else a hash of the row's content."""

    @model_validator(mode="after")
    def _one_source(self) -> DataBlock:
        sources = [name for name in SETTINGS_OF_SOURCE if getattr(self, name) is not None]
        if len(sources) != 1:
            found = " and ".join(f"`{name}`" for name in sources) or "none"
            raise misfits([((), f"needs exactly one of `generate`, `file`, `sql`, `hub`, `rows`; found {found}")])
        useless = [
            ((name,), f"belongs to `{source}`; the rows come from `{sources[0]}`")
            for source, names in SETTINGS_OF_SOURCE.items()
            for name in names
            if source != sources[0]
            and name not in SETTINGS_OF_SOURCE[sources[0]]
            and name in self.model_fields_set
            and getattr(self, name) is not None
        ]
        if useless:
            raise misfits(useless)
        return self


# Which of a data block's settings mean something for which source; `id` serves all.
SETTINGS_OF_SOURCE: dict[str, tuple[str, ...]] = {
    "generate": ("seed", "count", "options"),
    "file": ("format",),
    "sql": ("database",),
    "hub": ("subset", "split", "revision"),
    "rows": (),
}
