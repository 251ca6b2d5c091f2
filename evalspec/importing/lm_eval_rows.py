"""The rows of a task as its Python makes them, written, and the task that reads them in place of calling it.

    custom_dataset, process_docs, samples           rows               ──► DIR/data/TASK.jsonl, and where it asks
                                                                           for shots TASK.shots.jsonl
    doc_to_text, doc_to_target, doc_to_choice       a value of a row   ──► a column of it, of the key's name

What is left is a task without Python, and is carried over as any other: a column's value is taken by the harness as
what a function returns is.
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Mapping, Sized
from copy import deepcopy
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from evalspec.data.values import plain
from evalspec.errors import DataError, in_a_line
from evalspec.importing.lm_eval_data import evaluated_split, shots_split
from evalspec.importing.lm_eval_findings import Findings
from evalspec.importing.lm_eval_python import OF_A_ROW, Python, as_the_harness, failing, makes_rows, only_makes_rows
from evalspec.importing.lm_eval_yaml import Config, Function, HarnessError

Row = dict[str, Any]


def with_rows_made(config: Config, python: Python) -> Config:
    """The task without its Python; as it is where some of that does more than make rows, or there is none.

    Raises HarnessError at the line of a function that fails, and where the rows cannot be had or written.
    """
    python.begin()
    if not only_makes_rows(config):
        return config
    with as_the_harness():
        return _Rows(python, config).task()


class _Rows:
    """The rows of one task, and its keys as they are once the rows hold what its functions make."""

    def __init__(self, python: Python, config: Config) -> None:
        self.python, self.config = python, config
        self.findings = Findings(config)
        self.values = dict(config.values)
        self.shots, self.kwargs, self.metadata = (
            dict(self.findings.typed(key, dict, {}, "a mapping"))
            for key in ("fewshot_config", "dataset_kwargs", "metadata")
        )

    def task(self) -> Config:
        """Write the rows; the task that reads them instead of calling Python."""
        evaluated, pool = evaluated_split(self.findings), shots_split(self.findings)
        named = self.shots.get("split") or self.findings.get("fewshot_split")
        if self.findings.problems:
            raise HarnessError(self.findings.problems)
        prepare = self.values.get("process_docs")
        # Shots of a split that is named may be prepared otherwise; those that none is named for are the task's own.
        prepare_shots = self.shots.get("process_docs", prepare) if named else prepare
        samples = None if named else self.shots.get("samples")
        same = samples is None and (named or pool) == evaluated and _name(prepare) == _name(prepare_shots)
        asked = same or bool(self.findings.get("num_fewshot"))
        # The shots first, as in the harness: what Python draws for the rows depends on what it drew before.
        shown: list[Row] = []
        if samples is not None:
            shown = self.samples(samples)
        elif asked:
            shown = self.rows(str(named or pool), prepare_shots)
        else:
            self.draw_past(str(named or pool), prepare_shots)
        rows = shown if same else self.rows(evaluated, prepare)
        for_rows, for_shots = self.columns({column for row in (*rows, *shown) for column in row})
        files = {"": self.lines(rows, for_rows | for_shots if same else for_rows)}
        if samples is not None:
            self.shots["samples"] = self.widened(shown, for_shots)
        elif asked and not same:
            files[".shots"] = self.lines(shown, for_shots)
        if samples is None:
            self.shots["split"] = "evaluated" if same else "shots"
        written = dict(zip(("evaluated", "shots"), self.python.write(self.name, files), strict=False))
        self.shots.pop("process_docs", None)
        for key in ("custom_dataset", "process_docs", "dataset_name", "fewshot_split", "validation_split"):
            self.values.pop(key, None)
        self.values |= {
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {split: str(path) for split, path in written.items()}},
            "test_split": "evaluated",
            "fewshot_config": self.shots,
        }
        names = dict.fromkeys(function.name for function in makes_rows(self.config))
        note = f"its rows were made by Python ({', '.join(names)}) while it was imported; no run calls it"
        return replace(self.config, values=self.values, notes=(*self.config.notes, note))

    @property
    def name(self) -> str:
        """What the files of rows are called."""
        return re.sub(r"[^\w.-]", "_", str(self.values.get("task", self.config.path.stem)))

    def columns(self, taken: set[str]) -> tuple[dict[str, Function], dict[str, Function]]:
        """The columns that evaluated rows and shots get, and what fills them; the keys now name them."""
        for_rows: dict[str, Function] = {}
        for_shots: dict[str, Function] = {}
        for key in OF_A_ROW:
            ours, theirs = self.values.get(key), self.shots.get(key)
            column = key
            while column in taken:
                column += "_"
            if isinstance(ours, Function):
                for_rows[column] = ours
                self.values[key] = column
                if theirs is None or _name(theirs) == _name(ours):
                    for_shots[column] = ours
                    self.shots.pop(key, None)
                    continue
            if isinstance(theirs, Function):
                for_shots[f"{column}_of_shots"] = theirs
                self.shots[key] = f"{{{{ {column}_of_shots }}}}"
        return for_rows, for_shots

    def widened(self, rows: list[Row], columns: Mapping[str, Function]) -> list[Row]:
        """The rows with a column for each function."""
        called = {column: (function, self.python.function(function)) for column, function in columns.items()}
        wide = []
        for number, row in enumerate(rows, start=1):
            more = {}
            for column, (function, call) in called.items():
                with failing(function, f" on row {number}"):
                    more[column] = call(deepcopy(row))
            wide.append({**row, **more})
        return wide

    def lines(self, rows: list[Row], columns: Mapping[str, Function]) -> str:
        """The rows with a column for each function, as JSON Lines."""
        made = next(key for key in ("process_docs", "custom_dataset", "dataset_path") if key in self.values)
        text = []
        for number, row in enumerate(self.widened(rows, columns), start=1):
            held = {}
            for column, value in row.items():
                try:
                    held[column] = _kept(value, column, f"row {number}")
                except DataError as error:
                    place = columns[column].place if column in columns else self.config.place(made)
                    raise HarnessError([place.problem(str(error))]) from None
            text.append(f"{json.dumps(held, ensure_ascii=False)}\n")
        return "".join(text)

    def samples(self, samples: Any) -> list[Row]:
        """The shots that a task lists, or has a function list."""
        if isinstance(samples, Function):
            with failing(samples):
                return [dict(row) for row in self.python.function(samples)()]
        if not isinstance(samples, list) or not all(isinstance(row, dict) for row in samples):
            raise HarnessError([self.config.place("fewshot_config").problem("`samples` must be a list of rows")])
        return samples

    @cached_property
    def splits(self) -> Mapping[str, Any]:
        """The task's data set."""
        custom = self.values.get("custom_dataset")
        if not isinstance(custom, Function):
            found: Mapping[str, Any] = self.python.loaded(self.config, self.kwargs)
            return found
        with failing(custom):
            found = self.python.function(custom)(**self.metadata, **self.kwargs)
            if not isinstance(found, Mapping):
                raise TypeError(f"a data set is a mapping from its splits to their rows, not a {type(found).__name__}")
            return found

    def draw_past(self, split: str, prepare: Any) -> None:
        """Prepare the rows of shots that nobody asks for, as the harness does, and keep none: there may be none."""
        if isinstance(prepare, Function) and split in self.splits:
            with failing(prepare):
                made = self.python.function(prepare)(self.splits[split])
                if not isinstance(made, Sized):  # a generator draws as it goes
                    deque(made, maxlen=0)

    def rows(self, split: str, prepare: Any) -> list[Row]:
        """The rows of a split, after the task's Python prepared them."""
        splits = self.splits
        if split not in splits:
            there = ", ".join(f"`{name}`" for name in splits)
            said = f"the data has no split `{split}`; it has {there}"
            where = "custom_dataset" if "custom_dataset" in self.values else "dataset_path"
            raise HarnessError([self.config.place(where).problem(said)])
        if isinstance(prepare, Function):
            with failing(prepare):
                rows = [dict(row) for row in self.python.function(prepare)(splits[split])]
        else:
            rows = [dict(row) for row in splits[split]]
        if not rows:
            raise HarnessError([self.config.place("process_docs").problem(f"no row of `{split}` is left")])
        return rows


def _kept(value: Any, column: str, source: str) -> Any:
    """A value as a file of rows keeps it. DataError for what it cannot keep."""
    held = plain(value, column, source)
    try:
        json.dumps(held, ensure_ascii=False, allow_nan=False).encode()
    except ValueError as error:  # a number that is not finite, half of a surrogate pair
        raise DataError(f"{source}: column `{column}` is no JSON: {in_a_line(error)}") from None
    return held


def _name(function: Any) -> tuple[str, Path] | None:
    return (function.name, function.place.file.parent) if isinstance(function, Function) else None
