"""The page of a run and the index of runs: one self-contained HTML file each.

Model outputs are hostile text. They reach the page escaped by Jinja2 or inside JSON blocks that no browser executes,
and the page's own policy (Content-Security-Policy) runs nothing but the two scripts whose hashes it names and asks
the network for nothing.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from evalspec.models.card import cache_folder
from evalspec.report.alone import sentences
from evalspec.report.alone_charts import alone_figures, interval_words
from evalspec.report.answer import answer_of
from evalspec.report.charts import figures_of
from evalspec.report.comparisons import compare_models
from evalspec.report.costs import cost_figures, model_costs
from evalspec.report.data import (
    GOLD_PLACES,
    GOLD_USES,
    gold_places,
    gold_uses,
    judging_metric,
    read_claims,
    read_results,
    read_runs,
    read_weights,
)
from evalspec.report.marks import COLOURS, interval, style, written
from evalspec.report.results import PLAIN_FILTERS, Results, Run
from evalspec.report.sameness import same_answers
from evalspec.report.samples import FAILED_BELOW, samples_of
from evalspec.report.units import in_bytes
from evalspec.spec.blocks import MAIN

if TYPE_CHECKING:
    import duckdb

TEMPLATES = Path(__file__).parent / "templates"


def render(connection: duckdb.DuckDBPyConnection, run_id: str, folder: Path) -> Path:
    """Write the page of a run to `<folder>/<spec name>-<run id>.html` and return its path.

    A run that is still going or was interrupted gives a page of what it has so far, which says so. The file appears
    whole or not at all. StoreError if there is no such run.
    """
    results = read_results(connection, run_id)
    compared = compare_models(connection, run_id)
    alike = same_answers(connection, run_id, results.models)
    answers = []
    for task in results.tasks:
        if (answer := answer_of(results, task, compared)) is not None:
            first, *more = answer.sentences  # the constant answer second: it decides how all the rest is read
            said = [alike[task]] if task in alike else []
            answers.append(replace(answer, sentences=(first, *said, *more)))
    claims = read_claims(connection, results.run)
    costs = cost_figures(results)
    figures = []
    for task, main in results.main.items():
        places, uses = gold_places(connection, run_id, main), gold_uses(connection, results, task)
        figures += figures_of(results, task, places, uses)
    alone = alone_figures(results.alone) if results.alone else []
    samples = samples_of(connection, results)
    page = environment().get_template("run.html.jinja").render(
        **assets("page.js", vega=True),
        run=results.run,
        results=results,
        answers=answers,
        claims=claims,
        alone=results.alone,
        alone_said=sentences(results.alone) if results.alone else [],
        alone_figures=alone,
        alone_intervals=interval_words(results.alone) if results.alone else "",
        figures=figures,
        costs=costs,
        model_costs=model_costs(results),
        estimates=_estimates(results),
        colours={model: COLOURS[at % len(COLOURS)] for at, model in enumerate(results.models)},
        samples=samples,
        failed_below=FAILED_BELOW,
        plain_filters=PLAIN_FILTERS,
        filtered=any(estimate.filter not in PLAIN_FILTERS for estimate in results.estimates),
        staged=any(estimate.stage != MAIN for estimate in results.estimates),
        chart_style=style(),
        charts={figure.name: {"spec": figure.vega_lite, "panels": figure.panels} for figure in figures + alone + costs},
        weights=dict(read_weights(connection, run_id)),
        queries=queries(results),
    )  # fmt: skip
    return write_page(folder / file_name(results.run), page)


def render_index(connection: duckdb.DuckDBPyConnection, folder: Path) -> Path:
    """Write `<folder>/index.html`, the list of the store's runs, newest first, with links to the pages that exist."""
    entries = [_entry(read_results(connection, run.run_id), folder) for run in read_runs(connection)]
    page = environment().get_template("index.html.jinja").render(**assets("table.js", vega=False), entries=entries)
    return write_page(folder / "index.html", page)


def file_name(run: Run) -> str:
    """The name of a run's page."""
    return re.sub(r"[^\w.-]", "_", f"{run.spec_name}-{run.run_id}.html")


def queries(results: Results) -> list[tuple[str, str]]:
    """What gives the page's numbers again: (what, a query for `evalspec sql`)."""
    run = results.run.run_id.replace("'", "''")
    aggregates = (
        "SELECT model, task, params, stage, filter, metric, value, ci_low, ci_high, n "
        f"FROM metrics JOIN cells USING (run_id, cell_id) WHERE run_id = '{run}' ORDER BY ALL"
    )
    costs = (
        "SELECT model, sum(prompt_tokens), sum(distinct_tokens), sum(computed_tokens), sum(seconds), max(state_bytes) "
        f"FROM efficiency JOIN cells USING (run_id, cell_id) WHERE run_id = '{run}' GROUP BY model ORDER BY model"
    )
    listed = [("All metrics with their intervals", aggregates), ("What the run cost, a model at a time", costs)]
    if results.alone:
        alone = (
            "SELECT model, kind, length, batch, repeats, seconds, seconds_min, seconds_max, tokens_per_second, "
            f"seconds_per_token, state_bytes, error FROM measurement_summary WHERE run_id = '{run}' ORDER BY ALL"
        )
        listed = [*(listed if results.cells else []), ("Each model alone", alone)]
    for task, main in results.main.items():
        if any(cell.task == task and cell.condition.get("retriever") for cell in results.cells):
            filled = GOLD_PLACES.replace("$run", f"'{run}'").replace("$metric", f"'{main.name}'")
            filled = filled.replace("$filter", "NULL" if main.filter is None else f"'{main.filter}'")
            listed.append(
                (f"{main.words.capitalize()} of `{task}` by the place of the gold passage", " ".join(filled.split()))
            )
            judge = judging_metric(results, task)
            if judge is not None:
                used = GOLD_USES.replace("$run", f"'{run}'").replace("$metric", f"'{judge}'")
                used = used.replace("$filter", "NULL" if main.filter is None else f"'{main.filter}'")
                listed.append((f"Was the gold passage of `{task}` there, and was it used?", used))
    return listed


@dataclass(frozen=True)
class _Entry:
    run: Run
    link: str | None
    models: Sequence[str]
    metrics: Sequence[str]
    samples: int
    failed: int


def _entry(results: Results, folder: Path) -> _Entry:
    """A line of the index: each task's main metric from its lowest to its highest cell."""
    name = file_name(results.run)
    ranges = []
    for task, main in results.main.items():
        values = [estimate.value for estimate in results.main_of(task).values()]
        low, high = written(min(values), main), written(max(values), main)
        ranges.append(f"{task}: {main.words} {low}" + (f" to {high}" if high != low else ""))
    link = name if (folder / name).is_file() else None
    return _Entry(results.run, link, results.models, ranges, results.samples, results.failed)


def _estimates(results: Results) -> list[tuple[Any, ...]]:
    """Rows of the table of all metrics: names, then numbers to sort by."""
    cells = {cell.cell_id: cell for cell in results.cells}
    place = {cell.cell_id: at for at, cell in enumerate(results.cells)}
    found = sorted(
        results.estimates, key=lambda e: (place.get(e.cell_id, 0), e.stage != MAIN, e.stage, e.metric, e.filter or "")
    )
    return [(cells[e.cell_id], e) for e in found if e.cell_id in cells]


def assets(script: str, *, vega: bool) -> dict[str, Any]:
    """The page's styles and scripts, and the policy that lets these scripts and nothing else run."""
    names = dict.fromkeys(("table.js", *(["charts.js"] if vega else []), script))
    own = "".join((TEMPLATES / name).read_text(encoding="utf-8") for name in names)
    scripts = [_vega(), own] if vega else [own]
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts)
    policy = f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:"
    css = (TEMPLATES / "page.css").read_text(encoding="utf-8")
    return {"css": Markup(css), "scripts": [Markup(s) for s in scripts], "policy": policy}


@functools.cache
def _vega() -> str:
    """Vega, Vega-Lite and Vega-Embed in one script, of the version that Altair writes for.

    Bundling them takes a second or two and always gives the same, so it is kept between runs.
    """
    import altair
    import vl_convert

    version = ".".join(altair.SCHEMA_VERSION.lstrip("v").split(".")[:2])
    kept = cache_folder() / "vega" / f"{version}-{metadata.version('vl-convert-python')}.js"
    with contextlib.suppress(OSError, UnicodeError):
        return kept.read_text(encoding="utf-8")
    bundle: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=version)
    bundle = bundle.replace("</script", "<\\/script").replace("\r", "")
    with contextlib.suppress(OSError):  # a cache that cannot be written costs time, not the report
        write_page(kept, bundle)
    return bundle


def environment() -> Environment:
    """Jinja2 over the templates of this folder, with all output escaped."""
    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "bytes": in_bytes,
        "moment": _moment,
        "written": written,
        "interval": interval,
        "block": _json_block,
        "number": lambda value: "" if value is None else f"{value:,.4f}" if abs(value) < 100 else f"{value:,.1f}",
    }
    return made


def _moment(value: datetime | None) -> str:
    return "" if value is None else f"{value:%Y-%m-%d %H:%M:%S}"


def _json_block(value: Any) -> Markup:
    """JSON for a `<script type="application/json">`: with no `<`, so that nothing in it can end the block."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=_plain)
    return Markup(text.replace("<", "\\u003c"))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


def write_page(path: Path, text: str) -> Path:
    """Write aside and rename, so that a reader never meets half a page."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(aside).chmod(0o644)
        Path(aside).replace(path)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise
    return path
