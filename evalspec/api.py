"""What Python users call: `evalspec.load`, `evalspec.compile`, `evalspec.run`, `evalspec.connect`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from evalspec.plan.compile import Plan, compile_plan
from evalspec.runs.run import Finished
from evalspec.runs.run import run as run_plan
from evalspec.spec import LoadedSpec
from evalspec.spec import load as load_spec
from evalspec.store import Store

if TYPE_CHECKING:
    import duckdb

STORE = Path("reports/evalspec.duckdb")


def load(path: str | Path, sets: Sequence[str] = ()) -> LoadedSpec:
    """A spec file, checked; `sets` are `path=value` changes. Raises SpecError with every problem of the file."""
    return load_spec(Path(path), sets)


def compile(spec: LoadedSpec | str | Path, *, limit: int | None = None) -> Plan:
    """The execution plan of a spec: rows, passages, prompts, token ids, the prefix forest of each model."""
    return compile_plan(load(spec) if isinstance(spec, str | Path) else spec, limit=limit)


def run(
    plan: Plan | LoadedSpec | str | Path,
    *,
    store: str | Path = STORE,
    reports: str | Path | None = None,
    fresh: bool = False,
    measure: bool = True,
    ray: str | bool | None = None,
) -> Finished:
    """Run a plan (or a spec) to its report, going on where an earlier run of it was cut off.

    `measure=False` leaves the spec's `measure` block to a later run. `ray` spreads each model over the GPUs of a Ray
    cluster: its address, `"auto"` for the one that this machine is a node of, True for one that is started on this
    machine for this run alone.
    """
    address = "local" if ray is True else ray or None
    compiled = plan if isinstance(plan, Plan) else compile(plan)
    where = Path(reports or Path(store).parent)
    return run_plan(compiled, Store(Path(store)), where, fresh=fresh, measure=measure, ray=address)


def connect(store: str | Path = STORE) -> duckdb.DuckDBPyConnection:
    """A read-only connection to everything that the store holds, also while a run is writing."""
    return Store(Path(store)).connect()
