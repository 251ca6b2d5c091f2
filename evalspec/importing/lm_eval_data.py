"""`dataset_path`, its arguments and the splits as `data:` of a spec."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from evalspec.importing.lm_eval_findings import Findings
from evalspec.paths import path_from

FORMATS = {"json": None, "csv": "csv", "parquet": "parquet"}
"""Builders of the package `datasets` that read files, and the format a spec says where the name does not."""

Block = dict[str, Any]


def evaluated_split(findings: Findings) -> str:
    """The split that is evaluated: the test split, else the validation split."""
    split = findings.get("test_split", findings.get("validation_split"))
    if not isinstance(split, str):
        findings.refuse("dataset_path", "needs a `test_split` or a `validation_split` to evaluate")
        return "test"
    return split


def shots_split(findings: Findings) -> str:
    """The split of the shots where no one names it."""
    for key in ("training_split", "validation_split", "test_split"):
        if isinstance(findings.get(key), str):
            return str(findings.get(key))
    return "test"


def data_block(findings: Findings, split: str, root: Path) -> Block:
    """The rows of one split."""
    path = findings.get("dataset_path")
    kwargs = dict(findings.typed("dataset_kwargs", dict, {}, "a mapping"))
    if kwargs.pop("trust_remote_code", None) is not None:
        findings.note("`trust_remote_code` is left out: the package `datasets` runs no code any more")
    kwargs = {key: value for key, value in kwargs.items() if value is not None}
    if not isinstance(path, str) or not path:
        findings.refuse("dataset_path", "is missing: there are no rows")
        return {"file": ""}
    if path in FORMATS:
        return _files(findings, path, kwargs, split, root)
    if path.startswith((".", "/", "~")) or path.endswith(".py") or path in ("text", "arrow", "imagefolder", "xml"):
        findings.refuse("dataset_path", f"`{path}` is neither a data set of the hub nor JSON, CSV or Parquet files")
        return {"file": ""}
    block: Block = {"hub": path}
    name = findings.get("dataset_name")
    if name is not None:
        block["subset"] = str(name)
    block["split"] = split
    if isinstance(kwargs.get("revision"), str):
        block["revision"] = kwargs.pop("revision")
    for key in kwargs:
        findings.refuse("dataset_kwargs", f"`{key}` of a data set on the hub has no counterpart in `data`")
    return block


def has_no_file(findings: Findings, split: str) -> bool:
    """Whether the rows are files, and none of them is of this split."""
    kwargs = findings.get("dataset_kwargs")
    of_files = findings.get("dataset_path") in FORMATS and isinstance(kwargs, dict)
    return of_files and split not in _by_split(kwargs.get("data_files"))


def _by_split(files: Any) -> Block:
    return files if isinstance(files, dict) else {"train": files}


def _files(findings: Findings, kind: str, kwargs: Block, split: str, root: Path) -> Block:
    files = _by_split(kwargs.pop("data_files", None))
    for key in kwargs:
        findings.refuse("dataset_kwargs", f"`{key}` of {kind} files has no counterpart in `data`")
    named = files.get(split)
    named = named[0] if isinstance(named, list) and len(named) == 1 else named
    if not isinstance(named, str):
        said = "several files" if isinstance(named, list) else "no file"
        findings.refuse("dataset_kwargs", f"`data_files` names {said} for the split `{split}`; name one, or a pattern")
        return {"file": ""}
    if "://" in named:
        findings.refuse("dataset_kwargs", f"`{named}` is not on this machine; download it and name the file")
        return {"file": ""}
    # The harness looks from where it is started, a spec from its project's root.
    here = path_from(Path(), named).absolute()
    shown = str(here.relative_to(root)) if here.is_relative_to(root) else str(here)
    block: Block = {"file": shown}
    suffixes = {suffix.lower() for suffix in Path(named).suffixes}
    if kind == "json" and not suffixes & {".json", ".jsonl", ".ndjson", ".jsonlines"}:
        block["format"] = "jsonl"
    elif kind != "json" and f".{kind}" not in suffixes:
        block["format"] = kind
    return block
