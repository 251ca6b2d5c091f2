"""Import every leaf task of an installed lm-eval, validate what comes out, and count.

    python -m benchmarks.import_all [--tasks DIR] [--peer-python PYTHON] [--refused FILE]

Each leaf is imported alone, written as a spec and loaded again as `evalspec validate` does, in this process. Printed
are the tables of docs/parity.md; FILE gets every refused task without Python with its reasons. The exit code is 1 where
fewer than 95 % of the leaves without Python came through.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.harness import find_peer_python
from benchmarks.parity import markdown
from evalspec.errors import EvalspecError
from evalspec.importing.lm_eval_findings import HARMLESS
from evalspec.importing.lm_eval_index import Entry, Index, Leaf, installed_tasks
from evalspec.importing.lm_eval_python import OF_ROWS, makes_rows
from evalspec.importing.lm_eval_spec import MODEL, spec_text
from evalspec.importing.lm_eval_task import carry, task_name
from evalspec.importing.lm_eval_yaml import Config, Function, HarnessError, functions
from evalspec.spec import loads

BAR = 0.95


@dataclass
class Counts:
    """What became of the leaves."""

    kinds: Counter[str] = field(default_factory=Counter)
    python: Counter[str] = field(default_factory=Counter)
    imported: Counter[str] = field(default_factory=Counter)
    leaves: Counter[str] = field(default_factory=Counter)
    refused: dict[str, list[str]] = field(default_factory=dict)
    calling: int = 0
    making_rows: int = 0
    """Of those that call Python: whose Python only makes rows, so that `--run-python` calls it."""
    carried: int = 0
    """Of these: whose other keys all carry over, as far as can be told without their rows."""
    seconds: float = 0.0

    @property
    def share(self) -> float:
        """Imported and valid, of the leaves without Python."""
        return self.imported.total() / max(1, self.leaves.total())


def count(tasks: Path) -> Counts:
    """Import and validate every leaf below a folder."""
    began = time.process_time()
    index, counts = Index([tasks]), Counts()
    counts.kinds.update(entry.kind for entry in index.entries.values())
    for number, entry in enumerate(index.entries.values()):
        if entry.kind in ("task", "python"):
            _count(entry, counts, Path.cwd())
        if number % 2000 == 0:
            print(f"  {number} of {len(index.entries)} names …", file=sys.stderr, flush=True)
    counts.seconds = time.process_time() - began
    return counts


def _count(entry: Entry, counts: Counts, root: Path) -> None:
    assert entry.config is not None
    values = entry.config.values
    held = {key: found for key, value in values.items() if key not in HARMLESS and (found := functions(value))}
    calling = sorted(held)
    if calling:
        counts.calling += 1
        counts.python.update(calling)
        if len(makes_rows(entry.config)) == sum(map(len, held.values())):
            counts.making_rows += 1
            counts.carried += _imported(Leaf(entry.name, _with_rows_at_hand(entry.config)), root) is None
        return
    kind = "Python class" if entry.kind == "python" else str(values.get("output_type", "generate_until"))
    counts.leaves[kind] += 1
    reasons = _imported(Leaf(entry.name, entry.config), root)
    if reasons is None:
        counts.imported[kind] += 1
    else:
        counts.refused[entry.name] = reasons


def _imported(leaf: Leaf, root: Path) -> list[str] | None:
    """None where a leaf becomes a spec that validates, else why not."""
    try:
        name = task_name(leaf.name)
        assert len(loads(spec_text(name, {name: carry(leaf, root)}, MODEL), root=root).cells) == 1
    except HarnessError as error:
        return [problem.message for problem in error.problems]
    except EvalspecError as error:
        return [f"does not validate: {str(error).splitlines()[0]}"]
    return None


def _with_rows_at_hand(config: Config) -> Config:
    """A task as `--run-python` leaves it, but for the rows, which are on the hub: its functions' values are columns."""

    def shown(values: Mapping[str, Any]) -> dict[str, Any]:
        kept = {key: value for key, value in values.items() if key not in (*OF_ROWS, "dataset_kwargs")}
        return {key: key if isinstance(value, Function) else value for key, value in kept.items()}

    values = shown(config.values) | {"dataset_path": "some/rows"}
    shots = config.values.get("fewshot_config")
    if isinstance(shots, dict):
        values["fewshot_config"] = shown(shots) | ({"samples": [{"column": "text"}]} if "samples" in shots else {})
    return replace(config, values=values)


def report(counts: Counts) -> str:
    """The tables of docs/parity.md."""
    kinds = sorted(counts.leaves)
    rows = [(kind, counts.leaves[kind], counts.imported[kind]) for kind in kinds]
    rows.append(("all", counts.leaves.total(), counts.imported.total()))
    shown = [(kind, f"{all_:,}", f"{done:,}", f"{done / all_:.1%}") for kind, all_, done in rows]
    why: Counter[str] = Counter()
    for reasons in counts.refused.values():
        why.update({re.sub(r"hf://\S+`", "hf://…`", reason) for reason in reasons})
    names = counts.kinds["task"] + counts.kinds["python"]
    calling = ", ".join(f"{key} {number:,}" for key, number in counts.python.most_common())
    return "\n".join(
        [
            f"{names:,} leaf tasks, {counts.kinds['group']:,} groups, {counts.kinds['tag']:,} tags.",
            f"{counts.calling:,} leaf tasks call Python by `!function` ({calling}).",
            f"In {counts.making_rows:,} of them it only makes rows: `--run-python` calls it, and all other keys of "
            f"{counts.carried:,} carry over (their rows were not at hand). The others are refused.",
            "",
            markdown(("without Python", "leaf tasks", "imported and valid", "share"), shown),
            "",
            markdown(("tasks", "refused because"), [(f"{n:,}", reason) for reason, n in why.most_common()]),
            "",
            f"{counts.seconds:.0f} s of CPU.",
        ]
    )


def peer_tasks(python: Path) -> Path | None:
    """The tasks folder of the lm-eval that an interpreter has."""
    code = "import importlib.util as u; print(u.find_spec('lm_eval').submodule_search_locations[0])"
    done = subprocess.run([str(python), "-P", "-c", code], capture_output=True, text=True)
    return None if done.returncode else Path(done.stdout.strip()) / "tasks"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=Path, help="a folder of tasks (default: the installed lm-eval's)")
    parser.add_argument("--peer-python", type=Path, default=find_peer_python(), help="an interpreter with lm-eval")
    parser.add_argument("--refused", type=Path, help="write the refused tasks and their reasons there")
    options = parser.parse_args(arguments)
    tasks = options.tasks or installed_tasks() or peer_tasks(options.peer_python)
    if tasks is None:
        parser.error("no lm-eval here: `make bench` installs it into .venv-bench, or name --tasks")
    counts = count(tasks)
    print(report(counts))
    if options.refused:
        lines = [f"{name}: {'; '.join(reasons)}\n" for name, reasons in sorted(counts.refused.items())]
        options.refused.write_text("".join(lines), encoding="utf-8")
    return 0 if counts.share >= BAR else 1


if __name__ == "__main__":
    sys.exit(main())
