"""Rows from JSON Lines, JSON, CSV and Parquet files, gzipped or not, one or many.

Text formats are read by Python's own parsers and not by DuckDB's: DuckDB makes one type of a whole column (1 becomes
1.0 beside 2.5, a text that looks like a date becomes one, a missing key becomes null), forgives a broken line of JSON,
and cannot say which line of a CSV file is broken. Here text stays text, 1 stays 1, and an error has its line.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import sys
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from evalspec.errors import DataError, Problem, suggest
from evalspec.paths import is_file, is_folder, path_from

Format = Literal["jsonl", "json", "csv", "parquet"]
Values = dict[str, Any]

FORMATS: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".jsonlines": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".pq": "parquet",
}
# A surrogate without its other half, which is no text (or what looks like one after an escaped backslash).
HALF_CHARACTER = re.compile(
    r"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F][0-9a-fA-F]{2}"
)
WHOLE_NUMBER = re.compile(r"0|-?[1-9][0-9]{0,17}")


def read_files(pattern: str, format: str, root: Path) -> list[Values]:
    """Rows of the file, or of all files that the glob `pattern` matches, in the order of their names.

    `format` is a `Format`, or `auto` to go by each file's name. Raises DataError (see the module's docstring).
    """
    rows: list[Values] = []
    for path in find_files(pattern, root):
        shown = shown_name(path, root)
        try:
            rows += _read_file(path, format, shown)
        except OSError as error:
            raise DataError(f"{shown} cannot be read: {error.strerror or error}") from error
    return rows


def _read_file(path: Path, format: str, shown: str) -> list[Values]:
    if path.stat().st_size == 0:
        raise DataError(f"{shown} is empty")
    kind = _format_of(path, format, shown)
    if kind == "parquet":
        return _read_parquet(path, shown)
    content = _bytes_of(path, shown)
    if kind == "csv":
        return _read_csv(content, shown, "\t" if ".tsv" in path.suffixes else ",")
    return _read_json_lines(content, shown) if kind == "jsonl" else _read_json(content, shown)


def find_files(pattern: str, root: Path) -> list[Path]:
    """Files named by `pattern`, sorted. Raises DataError with the nearest name when there is none."""
    path = path_from(root, pattern)
    if is_file(path):
        return [path]
    if is_folder(path):
        raise DataError(f"{pattern} is a folder; name a file in it, or a pattern such as {pattern.rstrip('/')}/*.jsonl")
    if any(sign in pattern for sign in "*?["):
        start = root if path.is_relative_to(root) else Path(path.anchor)
        found = sorted(match for match in start.glob(str(path.relative_to(start))) if match.is_file())
        if not found:
            raise DataError(f"no file matches {pattern} (looked in {root})")
        return found
    if not is_folder(path.parent):
        raise DataError(f"there is no file {pattern}: its folder {path.parent} does not exist")
    beside = sorted(entry.name for entry in path.parent.iterdir() if entry.is_file())
    there = f" Files there: {', '.join(beside[:8])}{' …' if len(beside) > 8 else ''}" if beside else ""
    raise DataError(f"there is no file {pattern} (looked in {path.parent}).{suggest(path.name, beside)}{there}")


def shown_name(path: Path, root: Path) -> str:
    """How messages call a file: by its name under the project's root where it has one."""
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


def _format_of(path: Path, format: str, shown: str) -> Format:
    if format in ("jsonl", "json", "csv", "parquet"):
        return format  # type: ignore[return-value]
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() != ".gz"]
    if not suffixes or suffixes[-1] not in FORMATS:
        raise DataError(
            f"{shown}: its name does not tell its format; say `format: jsonl`, `json`, `csv` or `parquet`, "
            f"or end it in {', '.join(FORMATS)} (and .gz)"
        )
    return FORMATS[suffixes[-1]]


def _bytes_of(path: Path, shown: str) -> bytes:
    if path.suffix.lower() != ".gz":
        return path.read_bytes()
    try:
        return gzip.decompress(path.read_bytes())
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{shown} ends in .gz but is not a whole gzip file: {error}") from error


def _text_of(content: bytes, shown: str, first_line: int = 1) -> str:
    try:
        return content.decode("utf-8-sig" if first_line == 1 else "utf-8")
    except UnicodeDecodeError as error:
        line = first_line + content.count(b"\n", 0, error.start)
        raise DataError(
            f"{shown}:{line}: not UTF-8 text (byte 0x{content[error.start]:02x}); convert the file, "
            "`iconv -f latin1 -t utf-8` for example"
        ) from error


class _TwiceError(Exception):
    """A key stands twice in one object: the earlier value would be dropped in silence."""


def _once(pairs: list[tuple[str, Any]]) -> Values:
    values = dict(pairs)
    if len(values) != len(pairs):
        names = [name for name, _ in pairs]
        raise _TwiceError(next(name for name in names if names.count(name) > 1))
    return values


def _parse(text: str, shown: str, first_line: int = 1) -> Any:
    try:
        value = json.loads(text, object_pairs_hook=_once)
        half = HALF_CHARACTER.search(text)
        if half:
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        line = text.split("\n")[error.lineno - 1]
        start = max(0, error.colno - 60)
        problem = Problem(f"not JSON: {error.msg}", shown, first_line + error.lineno - 1, error.colno)
        raise DataError(
            f"{problem}\n    {line[start : start + 100]}\n    {' ' * (error.colno - 1 - start)}^"
        ) from error
    except UnicodeEncodeError as error:
        at = first_line + (text.count("\n", 0, half.start()) if half else 0)
        raise DataError(
            f"{shown}:{at}: holds half a character ({error.object[error.start]!a}), which is no text; "
            "write the whole pair, or U+FFFD"
        ) from error
    except _TwiceError as error:
        raise DataError(f"{shown}:{first_line}: the key `{error}` stands twice in one object; drop one") from None
    except (RecursionError, ValueError) as error:  # nested too deep; a number of thousands of digits
        raise DataError(f"{shown}:{first_line}: not readable as JSON: {error}") from error
    return value


def _read_json_lines(content: bytes, shown: str) -> list[Values]:
    rows = []
    for number, line in enumerate(content.split(b"\n"), start=1):
        text = _text_of(line, shown, number).strip()
        if not text:
            continue
        value = _parse(text, shown, number)
        if not isinstance(value, dict):
            raise DataError(f"{shown}:{number}: a row is an object with named values, not {_kind(value)}: {text[:60]}")
        rows.append(value)
    return rows


def _read_json(content: bytes, shown: str) -> list[Values]:
    """A list of objects, or an object of which one key holds such a list; JSON Lines under this name are read too."""
    text = _text_of(content, shown)
    if not text.strip():
        return []
    first, _, rest = text.strip().partition("\n")
    if rest and _is_object(first):
        return _read_json_lines(content, shown)
    value = _parse(text, shown)
    if isinstance(value, dict):
        lists = [name for name, field in value.items() if isinstance(field, list) and _all_objects(field)]
        if len(lists) != 1:
            found = f"these hold lists of objects: {', '.join(lists)}" if lists else "none of its keys holds one"
            raise DataError(
                f"{shown}: a JSON file is a list of objects, or one object with one list of objects; {found}. "
                "For one object a line, say `format: jsonl`"
            )
        value = value[lists[0]]
    if not isinstance(value, list):
        raise DataError(f"{shown}: a JSON file is a list of objects, not {_kind(value)}")
    for number, row in enumerate(value, start=1):
        if not isinstance(row, dict):
            raise DataError(f"{shown}: row {number} is {_kind(row)}; a row is an object with named values")
    return value


def _read_csv(content: bytes, shown: str, delimiter: str) -> list[Values]:
    """RFC 4180 with a header. A column becomes numbers only where all its values are written as Python writes them."""
    csv.field_size_limit(sys.maxsize)  # the default refuses documents of more than 128 KiB
    reader = csv.reader(io.StringIO(_text_of(content, shown), newline=""), delimiter=delimiter, strict=True)
    records: list[list[str]] = []
    start = 1
    try:
        header = next((record for record in reader if record), [])
        twice = {name for name in header if header.count(name) > 1}
        if twice:
            raise DataError(f"{shown}:{reader.line_num}: two columns are called {', '.join(sorted(twice))}")
        start = reader.line_num + 1
        for record in reader:
            if record and len(record) != len(header):
                raise DataError(
                    f"{shown}:{start}: {len(record)} values for {len(header)} columns ({', '.join(header)}); "
                    'a value with a comma or a line break stands in "…"'
                )
            if record:  # an empty line is no row
                records.append(record)
            start = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{shown}:{start}: not CSV: {error}; a quote inside a quoted value is doubled") from error
    columns = [_numbers(column) for column in zip(*records, strict=True)]
    return [dict(zip(header, record, strict=True)) for record in zip(*columns, strict=True)]


def _read_parquet(path: Path, shown: str) -> list[Values]:
    from evalspec.data.tables import read_parquet

    if path.suffix.lower() != ".gz":
        return read_parquet(path, shown)
    with tempfile.TemporaryDirectory() as folder:  # DuckDB reads Parquet from files alone
        whole = Path(folder) / "rows.parquet"
        whole.write_bytes(_bytes_of(path, shown))
        return read_parquet(whole, shown)


def _numbers(column: Sequence[str]) -> Sequence[Any]:
    """The column as numbers (None where empty) if every value survives the way there and back; "007", "1.50" do not."""
    values: list[int | float | None] = []
    for text in column:
        if text == "":
            values.append(None)
        elif WHOLE_NUMBER.fullmatch(text):
            values.append(int(text))
        elif text[-1].isdecimal() and text.lstrip("-")[0].isdecimal() and _is_float(text):
            values.append(float(text))
        else:
            return column
    return column if all(value is None for value in values) else values


def _is_float(text: str) -> bool:
    try:
        return repr(float(text)) == text
    except ValueError:
        return False


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


def _all_objects(field: Sequence[Any]) -> bool:
    return bool(field) and all(isinstance(item, Mapping) for item in field)


def _kind(value: Any) -> str:
    names = {list: "a list", str: "a text", bool: "a boolean", int: "a number", float: "a number", dict: "an object"}
    return names.get(type(value), "null")
