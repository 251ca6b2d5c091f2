"""The Python of a task, run once while importing (`--run-python`): what it makes of the rows is kept as rows.

    custom_dataset, process_docs, samples           rows               ──► DIR/data/TASK.SPLIT.jsonl
    doc_to_text, doc_to_target, doc_to_choice       a value of a row   ──► a column of it, of the key's name

What is left is a task without Python, and is carried over as any other: a column's value is taken by the harness as
what a function returns is. Python that scores answers (`process_results`, metrics, filters) has no such counterpart.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import random
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from evalspec.data.hub import explained
from evalspec.data.values import plain
from evalspec.errors import DataError, Problem, in_a_line
from evalspec.importing.lm_eval_data import FORMATS, evaluated_split, shots_split
from evalspec.importing.lm_eval_findings import HARMLESS, Findings
from evalspec.importing.lm_eval_yaml import Config, Function, HarnessError, functions
from evalspec.paths import is_file

OF_ROWS = ("custom_dataset", "process_docs")
OF_A_ROW = ("doc_to_text", "doc_to_target", "doc_to_choice")
OF_SHOTS = ("samples", "process_docs", *OF_A_ROW)
"""What `fewshot_config` may hold of these."""

Row = dict[str, Any]


def makes_rows(config: Config) -> list[Function]:
    """The functions of a task that only make rows, or values of a row; no others does `--run-python` call."""
    shots = config.values.get("fewshot_config")
    held = [config.values.get(key) for key in (*OF_ROWS, *OF_A_ROW)]
    held += [shots.get(key) for key in OF_SHOTS] if isinstance(shots, dict) else []
    return [value for value in held if isinstance(value, Function)]


@dataclass
class Python:
    """Runs tasks' Python. `folder` is where the rows that it makes are written; no file there is written over."""

    folder: Path
    _modules: dict[Path, ModuleType] = field(default_factory=dict)
    _sets: dict[str, Any] = field(default_factory=dict)
    _out_of_reach: dict[str, Problem] = field(default_factory=dict)
    _written: list[Path] = field(default_factory=list)
    _of_this_import: set[Path] = field(default_factory=set)

    def run(self, config: Config) -> Config:
        """The task without its Python; as it is where some of that does more than make rows, or there is none.

        Raises HarnessError at the line of a function that fails, and where the rows cannot be had or written.
        """
        self._written.clear()
        if not only_makes_rows(config):
            return config
        self._modules.clear()  # what a module keeps between calls (a generator, say) is not another task's
        with drawing_as_the_harness():
            return _Rows(self, config).task()

    def take_back(self) -> None:
        """Remove the rows that were written for the last task, which came to nothing after all."""
        for path in self._written:
            path.unlink(missing_ok=True)
        self._of_this_import -= set(self._written)
        with suppress(OSError):  # it holds the rows of others, or is not there
            self.folder.rmdir()

    def function(self, function: Function) -> Callable[..., Any]:
        """What a `!function` names: in a file beside its YAML, else in a module that can be imported."""
        module, _, name = function.name.rpartition(".")
        path = function.place.file.parent / f"{module.replace('.', '/')}.py"
        with failing(function):
            if path not in self._modules:
                self._modules[path] = _loaded(path) if is_file(path) else importlib.import_module(module)
            called: Callable[..., Any] = getattr(self._modules[path], name)
        return called

    def loaded(self, config: Config, kwargs: Mapping[str, Any]) -> Any:
        """The data set of a task, by its splits, as the harness loads it."""
        path, name = config.values.get("dataset_path"), config.values.get("dataset_name")
        kwargs = {key: value for key, value in kwargs.items() if key != "trust_remote_code"}
        key = json.dumps([path, name, kwargs], sort_keys=True, default=str)
        if key not in self._sets and path not in self._out_of_reach:
            try:
                with explained(f"`dataset_path: {path}`"):
                    import datasets

                    datasets.disable_progress_bars()
                    datasets.disable_caching()  # an earlier call's rows are not this one's where Python draws them
                    self._sets[key] = datasets.load_dataset(path=str(path), name=name, **kwargs)
            except Exception as error:  # what reads a file's format raises what it likes
                if path in FORMATS and isinstance(error.__cause__, FileNotFoundError):
                    said = f"{in_a_line(error.__cause__)}; files are looked for from the folder where this is started"
                    raise HarnessError([config.place("dataset_kwargs").problem(said)]) from None
                problem = config.place("dataset_path").problem(in_a_line(error))
                if isinstance(error.__cause__, ConnectionError):  # half a minute of trying, which no other task repeats
                    self._out_of_reach[str(path)] = problem
                raise HarnessError([problem]) from None
        if path in self._out_of_reach:
            raise HarnessError([self._out_of_reach[path]])
        return self._sets[key]

    def write(self, files: Mapping[str, str]) -> list[Path]:
        """Files of rows, by their names, all or none; one that is there must say the same."""
        contents = {self.folder / f"{name}.jsonl": text.encode() for name, text in files.items()}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for path, content in contents.items():
                if path.exists() and path.read_bytes() != content:
                    said = "is there already and says something else; move it, or name another --out"
                    if path in self._of_this_import:
                        said = "holds the rows of another task of this name; import each by itself, with its own --out"
                    raise HarnessError(f"{path} {said}")
            self._of_this_import |= set(contents)
            for path, content in contents.items():
                if not path.exists():
                    self._written.append(path)
                    path.write_bytes(content)
        except OSError as error:
            where = error.filename or self.folder
            raise HarnessError(f"{where} cannot be written: {error.strerror or error}") from None
        return list(contents)


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
        # The shots first, as in the harness: what Python draws for the rows depends on what it drew before.
        if samples is None:
            shown = self.rows(str(named or pool), prepare_shots)
        else:
            shown = self.samples(samples)
        rows = shown if same else self.rows(evaluated, prepare)
        for_rows, for_shots = self.columns({column for row in (*rows, *shown) for column in row})
        files = {self.name: self.lines(rows, for_rows | for_shots if same else for_rows)}
        if samples is not None:
            self.shots["samples"] = self.widened(shown, for_shots)
        elif not same:
            files[f"{self.name}.shots"] = self.lines(shown, for_shots)
        if samples is None:
            self.shots["split"] = "evaluated" if same else "shots"
        written = dict(zip(("evaluated", "shots"), self.python.write(files), strict=False))
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


def only_makes_rows(config: Config) -> bool:
    """Whether a task has Python, and all of it makes rows."""
    held = [found for key, value in config.values.items() if key not in HARMLESS for found in functions(value)]
    return 0 < len(held) == len(makes_rows(config))


@contextmanager
def drawing_as_the_harness() -> Iterator[None]:
    """Python that draws draws the same in every import: from the seeds that the harness begins a run with."""
    before, numpys = random.getstate(), np.random.get_state()
    random.seed(0)
    np.random.seed(1234)
    try:
        yield
    finally:
        random.setstate(before)
        np.random.set_state(numpys)


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


@contextmanager
def failing(function: Function, when: str = "") -> Iterator[None]:
    """What a task's Python raises is an error at the line that names it."""
    try:
        yield
    except HarnessError:
        raise
    except (Exception, SystemExit) as error:
        said = f"`!function {function.name}` failed{when}: {type(error).__name__}: {in_a_line(error)}"
        raise HarnessError([function.place.problem(said)]) from None


def _loaded(path: Path) -> ModuleType:
    """The module in a file, under a name that no other file's has."""
    name = f"evalspec_import_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python module")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
