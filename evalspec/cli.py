"""The command line. Each verb imports what it needs when it is called, so that `--help` and `validate` stay quick.

Exit codes: 0 done; 1 the run finished with failed samples, or something struck in the middle; 2 the input is wrong.
"""

from __future__ import annotations

import argparse
import errno
import io
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from evalspec import __version__
from evalspec.arguments import address, positive
from evalspec.errors import EvalspecError

if TYPE_CHECKING:
    from evalspec.store import Store

STORE = "reports/evalspec.duckdb"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code; errors meant for the user are printed, never shown as tracebacks."""
    _make_streams_writable()
    options = parser().parse_args(arguments)
    try:
        code: int = options.verb(options)
        sys.stdout.flush()
        return code
    except EvalspecError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 1
    except BrokenPipeError:  # `evalspec sql … | head`: the reader has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno != errno.ENOSPC and not isinstance(error, PermissionError):
            raise
        advice = "; make room" if error.errno == errno.ENOSPC else ""
        print(f"{error.filename or 'the output'}: {(error.strerror or '').lower()}{advice}", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is buffered has nowhere to go
        return 1


def _make_streams_writable() -> None:
    """A terminal that cannot show a letter gets a `?` for it, and a closed one nothing; neither fails a verb."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115  (for the process)
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def parser() -> argparse.ArgumentParser:
    """The grammar of the command line."""
    top = argparse.ArgumentParser(
        prog="evalspec",
        description="Compare state-space models with Transformers: YAML specs in, DuckDB tables and HTML reports out.",
    )
    top.add_argument("--version", action="version", version=f"evalspec {__version__}")
    verbs = top.add_subparsers(title="verbs", metavar="VERB", required=True)

    def verb(name: str, function: object, says: str) -> argparse.ArgumentParser:
        sub = verbs.add_parser(name, help=says, description=says)
        sub.set_defaults(verb=function)
        return sub

    def spec_options(sub: argparse.ArgumentParser, many: bool) -> None:
        sub.add_argument("spec", metavar="SPEC", nargs="+" if many else None, help="a spec file")
        sub.add_argument("--set", metavar="PATH=VALUE", action="append", default=[], help="change a value of the spec")

    def store_options(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--store", type=Path, default=Path(STORE), help=f"the database (default: {STORE})")

    sub = verb("init", _init, "write a small spec, its template and its data, ready to run")
    sub.add_argument("folder", metavar="DIR", nargs="?", type=Path, default=Path(), help="where (default: here)")

    sub = verb("validate", _validate, "check specs; needs neither models nor data")
    spec_options(sub, many=True)

    sub = verb("import", _import, "turn a task, group or tag of lm-evaluation-harness into a spec")
    sub.add_argument("harness", metavar="lm-eval", choices=("lm-eval",), help="whose task it is")
    sub.add_argument("task", metavar="TASK", help="a task's YAML file, or the name of a task, group or tag")
    sub.add_argument(
        "--include-path", type=Path, metavar="DIR", action="append", default=[], help="a folder of more tasks"
    )
    sub.add_argument(
        "--out", type=Path, metavar="DIR", default=Path("specs"), help="the spec's folder (default: specs)"
    )
    sub.add_argument("--model", metavar="WEIGHTS", default="zoo/transformer", help="the model that the spec names")
    sub.add_argument("--run-python", action="store_true", help="run the Python that makes its rows, once, now")

    sub = verb("plan", _plan, "compile a spec and show cells, tokens, sharing, memory and cost")
    spec_options(sub, many=False)
    sub.add_argument("--limit", type=positive, metavar="N", help="only the first N rows of each task")
    sub.add_argument("--workers", type=positive, metavar="N", help="say what the plan comes to on N workers")
    sub.add_argument("--json", action="store_true", help="for machines")

    sub = verb("run", _run, "run specs, or go on where they were cut off, and write their reports")
    spec_options(sub, many=True)
    store_options(sub)
    sub.add_argument("--reports", type=Path, metavar="DIR", help="where reports go (default: beside the store)")
    sub.add_argument("--limit", type=positive, metavar="N", help="only the first N rows of each task")
    sub.add_argument("--fresh", action="store_true", help="compute everything again, whatever the store holds")
    sub.add_argument("--no-measure", action="store_true", help="leave out the spec's `measure` block")
    sub.add_argument(
        "--ray", metavar="ADDRESS", nargs="?", const="local", type=address,
        help="spread each model over the GPUs of a Ray cluster: `auto` or its address (default: one of this machine's)",
    )  # fmt: skip
    sub.add_argument("--json", action="store_true", help="for machines")

    sub = verb("report", _report, "render the report of a run again")
    sub.add_argument("run", metavar="RUN", nargs="?", help="run id, its beginning, or a spec's name (default: newest)")
    store_options(sub)
    sub.add_argument("--reports", type=Path, metavar="DIR", help="where reports go (default: beside the store)")

    sub = verb("sql", _sql, "query the store with one SELECT, also while a run is going")
    sub.add_argument("query", metavar="QUERY", help="SQL")
    store_options(sub)
    sub.add_argument("--format", choices=("table", "json", "csv", "parquet"), default="table")
    sub.add_argument("--output", type=Path, metavar="FILE", help="write there instead of to the terminal")

    sub = verb("ls", _ls, "list the runs of the store")
    store_options(sub)
    sub.add_argument("--json", action="store_true", help="for machines")

    sub = verb("show", _show, "show one run: what it was, and its metrics")
    sub.add_argument("run", metavar="RUN", nargs="?", help="run id, its beginning, or a spec's name (default: newest)")
    store_options(sub)
    sub.add_argument("--json", action="store_true", help="for machines")

    sub = verb("compare", _compare, "paired tests between the models of a run, or between two runs")
    sub.add_argument(
        "run", metavar="RUN_A", nargs="?", help="run id, its beginning, or a spec's name (default: newest)"
    )
    sub.add_argument("other", metavar="RUN_B", nargs="?", help="another run: the same cells of both are compared")
    sub.add_argument("--metric", action="append", default=[], help="a metric as stored (default: each task's first)")
    sub.add_argument("--task", action="append", default=[], help="only this task")
    sub.add_argument("--filter", help="only scores under this filter")
    sub.add_argument("--model", metavar="A=B", action="append", default=[], help="compare model A with B (of RUN_B)")
    sub.add_argument(
        "--architecture", metavar="NAME=PATTERN", action="append", default=[],
        help="models called like PATTERN are training seeds of one architecture (mamba=mamba,mamba-s*); two or more",
    )  # fmt: skip
    store_options(sub)
    sub.add_argument("--reports", type=Path, metavar="DIR", help="where the page goes (default: beside the store)")
    sub.add_argument("--html", action="store_true", help="write a page with a forest plot")
    sub.add_argument("--json", action="store_true", help="for machines")

    verb("schema", _schema, "print the JSON Schema of spec files")
    sub = verb("doctor", _doctor, "what device, backends and extras are here, and how to get what is missing")
    sub.add_argument("--selftest", action="store_true", help="check and time the kernels and backends on a device")
    sub.add_argument("--device", default="auto", help="of the self-test: auto, cpu, cuda, cuda:1 (default: auto)")
    sub.add_argument("--json", action="store_true", help="for machines")
    return top


def _init(options: argparse.Namespace) -> int:
    from evalspec.starter import write_starter

    written = write_starter(options.folder)
    print("wrote", ", ".join(str(path) for path in written))
    print(f"now: evalspec run {written[0]}")
    return 0


def _validate(options: argparse.Namespace) -> int:
    from evalspec.spec import load

    wrong = 0
    for name in options.spec:
        try:
            loaded = load(Path(name), options.set)
        except EvalspecError as error:
            print(error, file=sys.stderr)
            wrong += 1
        else:
            spec = loaded.spec
            counts = [(len(spec.models), "model"), (len(spec.tasks), "task"), (len(loaded.cells), "cell")]
            found = [f"{count:,} {thing}{'' if count == 1 else 's'}" for count, thing in counts]
            if alone := len(loaded.measured):
                found.append(f"{alone} model{'' if alone == 1 else 's'} measured alone")
            print(f"{name}: valid; {', '.join(found)}")
    return 2 if wrong else 0


def _import(options: argparse.Namespace) -> int:
    from evalspec.importing.lm_eval_spec import import_lm_eval, write

    imported = import_lm_eval(
        options.task, options.include_path, out=options.out, model=options.model, run_python=options.run_python
    )
    path = write(imported, options.out)
    print(f"wrote {path}: {len(imported.tasks)} task{'s' * (len(imported.tasks) != 1)}")
    for note in imported.notes:
        print(f"  {note}")
    for refused in imported.refused:
        print(f"left behind: {refused}", file=sys.stderr)
    print(f"now: evalspec run {path}")
    return 1 if imported.refused else 0


def _plan(options: argparse.Namespace) -> int:
    from evalspec.plan.compile import compile_plan
    from evalspec.plan.price import plan_json, plan_table
    from evalspec.plan.spread import spread_table
    from evalspec.spec import load

    plan = compile_plan(load(Path(options.spec), options.set), limit=options.limit)
    print(json.dumps(plan_json(plan, options.workers), indent=1) if options.json else plan_table(plan))
    if options.workers and not options.json:
        print(f"\n{spread_table(plan, options.workers)}")
    return 0


def _run(options: argparse.Namespace) -> int:
    from evalspec.plan.compile import compile_plan
    from evalspec.runs.progress import Lines
    from evalspec.runs.run import run
    from evalspec.runs.summary import finished_json, finished_table
    from evalspec.spec import load

    _spare_imports()
    reports = options.reports or options.store.parent
    loaded = [load(Path(name), options.set) for name in options.spec]  # all errors before anything runs
    progress = Lines()
    failed, summaries = 0, []
    for spec in loaded:
        plan = compile_plan(spec, limit=options.limit, progress=progress.say)
        store = _store(options.store, create=True)
        try:
            measure = not options.no_measure
            finished = run(
                plan, store, reports, fresh=options.fresh, measure=measure, ray=options.ray, progress=progress
            )
        except KeyboardInterrupt:
            print("interrupted; what was finished is kept, and the same command goes on", file=sys.stderr)
            return 1
        failed += finished.failed
        if options.json:
            summaries.append(finished_json(finished, store))
        else:
            print(finished_table(finished, store))
        _tell(store)
    if options.json:
        print(json.dumps(summaries if len(summaries) > 1 else summaries[0], indent=1))
    if failed:
        print(f"{failed} samples failed; the same command tries them again", file=sys.stderr)
    return 1 if failed else 0


def _spare_imports() -> None:
    """Keep transformers from importing scikit-learn and scipy, a third of the seconds that it takes to import.

    They serve assisted decoding and losses of object detection there. Only here: this process runs evalspec and nothing
    else, while a program that uses evalspec as a library may want them.
    """
    import transformers.utils as utils

    utils.is_sklearn_available = utils.is_scipy_available = lambda: False


def _store(path: Path, *, create: bool = False) -> Store:
    from evalspec.errors import StoreError
    from evalspec.store import Store

    if not create and not path.exists() and not Path(f"{path}.d").exists():
        raise StoreError(f"there is no store at {path}; `evalspec run SPEC` makes one, `--store` names another")
    return Store(path)


def _tell(store: Store) -> None:
    """Say what was left out while the store was read: damaged segments."""
    for problem in dict.fromkeys(store.problems):
        print(f"store: {problem}", file=sys.stderr)


def _report(options: argparse.Namespace) -> int:
    from evalspec.report import render, render_index
    from evalspec.runs.summary import find_run

    store = _store(options.store)
    reports = options.reports or options.store.parent
    try:
        with store.connect() as connection:
            page = render(connection, find_run(connection, options.run), reports)
            render_index(connection, reports)
    except OSError as error:
        raise EvalspecError(f"{reports}: the report cannot be written: {error.strerror}") from None
    print(page)
    return 0


def _sql(options: argparse.Namespace) -> int:
    from evalspec.store import query

    store = _store(options.store)
    table = query(store, options.query)
    _tell(store)
    if options.output:
        try:
            options.output.write_bytes(table.to_bytes(options.format))
        except OSError as error:
            raise EvalspecError(f"{options.output} cannot be written: {error.strerror}") from None
    elif options.format == "parquet" and sys.stdout.isatty():
        raise EvalspecError("Parquet is not for a terminal: name a file with --output, or pipe it")
    elif options.format == "parquet":
        sys.stdout.buffer.write(table.to_bytes("parquet"))
    else:
        print(table.to_bytes(options.format).decode().rstrip("\n"))
    return 0


def _ls(options: argparse.Namespace) -> int:
    from evalspec.runs.summary import runs_json, runs_table

    store = _store(options.store)
    print(json.dumps(runs_json(store), indent=1) if options.json else runs_table(store))
    _tell(store)
    return 0


def _show(options: argparse.Namespace) -> int:
    from evalspec.runs.summary import run_json, run_table

    store = _store(options.store)
    print(json.dumps(run_json(store, options.run), indent=1) if options.json else run_table(store, options.run))
    _tell(store)
    return 0


def _compare(options: argparse.Namespace) -> int:
    from evalspec.runs.compare import compare, comparison_json

    store = _store(options.store)
    architectures = [_pair(text, "--architecture", "NAME=PATTERN") for text in options.architecture]
    if len(dict(architectures)) < len(architectures):
        raise EvalspecError("--architecture: each name stands once; commas part several patterns: NAME=ONE,OTHER-*")
    found = compare(
        store,
        options.run,
        options.other,
        metrics=options.metric,
        tasks=options.task,
        filter=options.filter,
        models=[_pair(text, "--model", "A=B") for text in options.model],
        architectures=dict(architectures),
        page=(options.reports or options.store.parent) if options.html else None,
    )
    print(json.dumps(comparison_json(found), indent=1) if options.json else found.text)
    if found.page and not options.json:
        print(f"page: {found.page}")
    for said in found.problems:
        print(said, file=sys.stderr)
    _tell(store)
    return 0


def _pair(text: str, option: str, shape: str) -> tuple[str, str]:
    first, sign, second = text.partition("=")
    if not (first and sign and second):
        raise EvalspecError(f"{option} {text}: write it as {shape}")
    return first, second


def _schema(options: argparse.Namespace) -> int:
    from evalspec.spec.schema import schema_text

    print(schema_text(), end="")
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from evalspec.doctor.findings import examine

    found = examine()
    if options.selftest and found.can_run:
        from evalspec.doctor.selftest import selftest
        from evalspec.doctor.selftest_page import selftest_text

        tested = selftest(options.device, findings=found, say=lambda text: print(text, file=sys.stderr, flush=True))
        print(json.dumps(tested.json(), indent=1) if options.json else selftest_text(tested))
        return 0 if tested.right else 1
    print(json.dumps(found.json(), indent=1) if options.json else found.text())
    return 0 if found.can_run else 1


if __name__ == "__main__":
    sys.exit(main())
