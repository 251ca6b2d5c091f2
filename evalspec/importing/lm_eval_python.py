"""The Python of a task, run once while importing (`--run-python`) where all that it does is to make rows.

Python that scores answers (`process_results`, metrics, filters) has no such counterpart in a spec and is never called.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import chdir, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from evalspec.data.hub import explained
from evalspec.errors import DataError, Problem, in_a_line
from evalspec.importing.lm_eval_data import FORMATS
from evalspec.importing.lm_eval_findings import HARMLESS
from evalspec.importing.lm_eval_yaml import Config, Function, HarnessError, functions
from evalspec.paths import is_file

OF_ROWS = ("custom_dataset", "process_docs")
OF_A_ROW = ("doc_to_text", "doc_to_target", "doc_to_choice")
OF_SHOTS = ("samples", "process_docs", *OF_A_ROW)
"""What `fewshot_config` may hold of these."""

UNREACHABLE = (
    "Import it where the hub is reached (with HF_HUB_OFFLINE unset), or copy the data set into the cache of `datasets` "
    "here (HF_HOME), or lay `dataset_path: json` with files of its rows over the task (docs/parity.md)"
)

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
    _kept: list[Path] = field(default_factory=list)
    _of_this_import: set[Path] = field(default_factory=set)

    @property
    def rows(self) -> tuple[Path, ...]:
        """The files that this import wrote, and did not find there."""
        return (*self._kept, *self._written)

    def begin(self) -> None:
        """Forget the task before: what its modules keep between calls (a generator, say) is not another's."""
        self._kept += self._written
        self._written.clear()
        self._modules.clear()

    def take_back(self) -> None:
        """Remove the rows that were written for the last task, which came to nothing after all."""
        remove(self._written)
        self._of_this_import -= set(self._written)
        self._written.clear()

    def function(self, function: Function) -> Callable[..., Any]:
        """What a `!function` names: in a file beside its YAML, else in a module that can be imported."""
        module, _, name = function.name.rpartition(".")
        path = function.place.file.parent / f"{module.replace('.', '/')}.py"
        with failing(function):
            if path not in self._modules:
                self._modules[path] = _loaded(path) if is_file(path) else _installed(module, function, path)
            called: Callable[..., Any] = getattr(self._modules[path], name)
        return called

    def loaded(self, config: Config, kwargs: Mapping[str, Any]) -> Any:
        """The data set of a task, by its splits, as the harness loads it."""
        path, name = config.values.get("dataset_path"), config.values.get("dataset_name")
        kwargs = {key: value for key, value in kwargs.items() if key != "trust_remote_code"}
        key = json.dumps([path, name, kwargs], sort_keys=True, default=str)
        if key not in self._sets and path not in self._out_of_reach:
            try:
                with explained(f"`dataset_path: {path}`", UNREACHABLE):
                    import datasets

                    datasets.disable_progress_bars()
                    self._sets[key] = datasets.load_dataset(path=str(path), name=name, **kwargs)
            except Exception as error:  # what reads a file's format raises what it likes
                problem = _not_loaded(config, kwargs, error)
                if isinstance(error.__cause__, ConnectionError):  # half a minute of trying, which no other task repeats
                    self._out_of_reach[str(path)] = problem
                raise HarnessError([problem]) from None
        if path in self._out_of_reach:
            raise HarnessError([self._out_of_reach[path]])
        return self._sets[key]

    def write(self, name: str, files: Mapping[str, str]) -> list[Path]:
        """Files of rows, `name` with a suffix each, all or none. Where another task of this import is called the same
        and has other rows, the name gets a number; a file that was there before must say the same."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for number in count(1):
                called = name if number == 1 else f"{name}-{number}"
                contents = {self.folder / f"{called}{suffix}.jsonl": text.encode() for suffix, text in files.items()}
                others = [path for path, held in contents.items() if path.exists() and path.read_bytes() != held]
                if self._of_this_import.isdisjoint(others):
                    break
            if others:
                raise HarnessError(
                    f"{others[0]} is there already and says something else (rows of another task of this name, "
                    "imported before, perhaps); move it, or name another --out"
                )
            self._of_this_import |= set(contents)
            for path, content in contents.items():
                if not path.exists():
                    self._written.append(path)
                    path.write_bytes(content)
        except OSError as error:
            where = error.filename or self.folder
            raise HarnessError(f"{where} cannot be written: {error.strerror or error}") from None
        return list(contents)


def _not_loaded(config: Config, kwargs: Mapping[str, Any], error: Exception) -> Problem:
    """Why a task's rows cannot be had, at the key that names them."""
    path = config.values.get("dataset_path")
    if path in FORMATS and "://" in str(kwargs.get("data_files")):
        reason = error.__cause__ if isinstance(error, DataError) and error.__cause__ else error
        said = f"its files cannot be loaded from where they are: {type(reason).__name__}: {in_a_line(reason)}. "
        return config.place("dataset_kwargs").problem(said + "Download them, and name the files in `data_files`")
    if path in FORMATS and isinstance(error.__cause__, FileNotFoundError):
        said = f"{in_a_line(error.__cause__)}; files are looked for from the folder where this is started"
        return config.place("dataset_kwargs").problem(said)
    said = in_a_line(error)
    if not isinstance(error, DataError):
        said = f"`dataset_path: {path}` cannot be loaded: {type(error).__name__}: {said}"
    return config.place("dataset_path").problem(said)


def only_makes_rows(config: Config) -> bool:
    """Whether a task has Python, and all of it makes rows."""
    held = [found for key, value in config.values.items() if key not in HARMLESS for found in functions(value)]
    return 0 < len(held) == len(makes_rows(config))


def remove(rows: Iterable[Path]) -> None:
    """Remove files of rows, and their folder where nothing else is in it."""
    for path in rows:
        path.unlink(missing_ok=True)
        with suppress(OSError):  # it holds the rows of others
            path.parent.rmdir()


@contextmanager
def as_the_harness() -> Iterator[None]:
    """Where Python runs as in the harness and leaves nothing behind: it draws from the seeds that a run there begins
    with, the same in every import, and other calls' rows, which the package `datasets` keeps, are not its own."""
    states = random.getstate(), np.random.get_state()
    random.seed(0)
    np.random.seed(1234)
    kept = False
    with suppress(ImportError):  # a data set of the task's own may do without it
        import datasets

        kept = datasets.is_caching_enabled()
        datasets.disable_caching()
    try:
        with chdir(Path.cwd()):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        if kept:
            datasets.enable_caching()


@contextmanager
def failing(function: Function, when: str = "") -> Iterator[None]:
    """What a task's Python raises is an error at the line that names it."""
    try:
        yield
    except HarnessError:
        raise
    except (Exception, SystemExit) as error:
        said = f"`!function {function.name}` failed{when}: {type(error).__name__}: {in_a_line(error)}"
        if isinstance(error, ModuleNotFoundError):
            package = f"the package that has `{error.name}`" if error.name else "what it needs"
            said += f"; install {package} where evalspec is, and import again"
        raise HarnessError([function.place.problem(said)]) from None


def _installed(module: str, function: Function, path: Path) -> ModuleType:
    """A module that can be imported by its name."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # it is there, and what it imports is not
        said = f"`!function {function.name}`: there is no file {path}, and no module `{module}` is installed"
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
