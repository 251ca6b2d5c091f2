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
from collections.abc import Callable, Iterator, Mapping
from contextlib import chdir, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from evalspec.data.hub import explained
from evalspec.errors import Problem, in_a_line
from evalspec.importing.lm_eval_data import FORMATS
from evalspec.importing.lm_eval_findings import HARMLESS
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

    def begin(self) -> None:
        """Forget the task before: what its modules keep between calls (a generator, say) is not another's."""
        self._written.clear()
        self._modules.clear()

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


def only_makes_rows(config: Config) -> bool:
    """Whether a task has Python, and all of it makes rows."""
    held = [found for key, value in config.values.items() if key not in HARMLESS for found in functions(value)]
    return 0 < len(held) == len(makes_rows(config))


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
            said += "; what the task's Python imports must be installed here"
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
