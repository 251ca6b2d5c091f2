"""The views of the store, for what people ask most."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ViewSchema:
    """One view: a question that people ask often, as SQL over the tables."""

    name: str
    about: str
    sql: str


VIEWS: tuple[ViewSchema, ...] = (
    ViewSchema(
        "latest_runs",
        "The newest run of each spec.",
        "SELECT * FROM runs "
        "QUALIFY row_number() OVER (PARTITION BY spec_name ORDER BY started_at DESC, run_id DESC) = 1",
    ),
    ViewSchema(
        "results",
        "Every aggregate with the model, task and condition it belongs to.",
        "SELECT runs.run_id, spec_name, started_at, cell_id, model, task, params, stage, filter, metric, value, "
        "stderr, ci_low, ci_high, n FROM metrics JOIN cells USING (run_id, cell_id) JOIN runs USING (run_id)",
    ),
    ViewSchema(
        "answers",
        "Every sample with its scores: one row a score, or one with NULLs where nothing was scored. "
        "A vote over repeats (its `repeat` is NULL) stands beside the first of them.",
        "SELECT samples.run_id, samples.cell_id, cells.model, cells.task, cells.params, samples.sample_id, "
        "samples.draw, samples.repeat, samples.stage, samples.prompt, samples.target, samples.output, "
        "scores.filter, scores.extracted, scores.metric, scores.value, samples.cached, samples.error "
        "FROM samples JOIN cells USING (run_id, cell_id) LEFT JOIN scores ON scores.run_id = samples.run_id "
        "AND scores.cell_id = samples.cell_id AND scores.sample_id = samples.sample_id "
        "AND coalesce(scores.repeat, 0) = coalesce(samples.repeat, 0) "
        "AND coalesce(scores.draw, 0) = coalesce(samples.draw, 0) "
        "AND scores.stage IS NOT DISTINCT FROM samples.stage",
    ),
    ViewSchema(
        "retrieval_and_answer",
        "Each score of a cell that retrieves, beside the first gold passage: its rank, its place in the prompt, "
        "whether it was shown at all; `is_right` is a value of 0.5 or more, `abstained` and `grounded` are what these "
        "metrics say of the same answer (NULL where they were not asked).",
        "SELECT scores.run_id, scores.cell_id, cells.model, cells.task, cells.params, scores.sample_id, "
        "scores.draw, scores.repeat, scores.stage, coalesce(found.passages, 0) AS passages, found.gold_rank, "
        "found.gold_place, found.gold_rank IS NOT NULL AS gold_shown, scores.filter, scores.metric, scores.value, "
        "scores.value >= 0.5 AS is_right, said.abstained, said.grounded "
        "FROM scores JOIN cells USING (run_id, cell_id) "
        "SEMI JOIN retrievals ON retrievals.run_id = scores.run_id AND retrievals.cell_id = scores.cell_id "
        "LEFT JOIN (SELECT run_id, cell_id, sample_id, count(*) AS passages, "
        "min(rank) FILTER (WHERE relevant) AS gold_rank, min(place) FILTER (WHERE relevant) AS gold_place "
        "FROM retrievals GROUP BY ALL) AS found ON found.run_id = scores.run_id AND found.cell_id = scores.cell_id "
        "AND found.sample_id = scores.sample_id "
        "LEFT JOIN (SELECT run_id, cell_id, sample_id, draw, repeat, stage, filter, "
        "max(value) FILTER (WHERE metric = 'abstained') = 1 AS abstained, "
        "max(value) FILTER (WHERE metric = 'grounded') = 1 AS grounded "
        "FROM scores WHERE metric IN ('abstained', 'grounded') GROUP BY ALL) AS said "
        "ON said.run_id = scores.run_id AND said.cell_id = scores.cell_id AND said.sample_id = scores.sample_id "
        "AND said.draw IS NOT DISTINCT FROM scores.draw AND said.repeat IS NOT DISTINCT FROM scores.repeat "
        "AND said.stage IS NOT DISTINCT FROM scores.stage AND said.filter IS NOT DISTINCT FROM scores.filter",
    ),
    ViewSchema(
        "gold_and_answer",
        "Was the gold passage shown, and was it used? For each cell and metric the answers of each kind: right, "
        "abstained (neither right nor an attempt) or wrong, with the gold passage shown or not.",
        "SELECT run_id, cell_id, model, task, params, stage, filter, metric, count(*) AS n, "
        "count(*) FILTER (gold_shown AND is_right) AS shown_right, "
        "count(*) FILTER (gold_shown AND NOT is_right AND coalesce(abstained, false)) AS shown_abstained, "
        "count(*) FILTER (gold_shown AND NOT is_right AND NOT coalesce(abstained, false)) AS shown_wrong, "
        "count(*) FILTER (NOT gold_shown AND is_right) AS missing_right, "
        "count(*) FILTER (NOT gold_shown AND NOT is_right AND coalesce(abstained, false)) AS missing_abstained, "
        "count(*) FILTER (NOT gold_shown AND NOT is_right AND NOT coalesce(abstained, false)) AS missing_wrong "
        "FROM retrieval_and_answer WHERE value IS NOT NULL GROUP BY ALL",
    ),
    ViewSchema(
        "measurement_summary",
        "Every measured point with the median of its repeats and their spread. `seconds_per_token` is the time between "
        "two tokens of one sequence, for decode; `tokens_per_second` counts all sequences of the batch.",
        "SELECT run_id, cell_id, model, params, kind, length, batch, any_value(measurements.device) AS device, "
        "count(seconds) AS repeats, median(seconds) AS seconds, min(seconds) AS seconds_min, "
        "quantile_cont(seconds, 0.25) AS seconds_q1, quantile_cont(seconds, 0.75) AS seconds_q3, "
        "max(seconds) AS seconds_max, median(tokens / seconds) AS tokens_per_second, "
        "CASE WHEN kind = 'decode' THEN median(seconds * batch / tokens) END AS seconds_per_token, "
        "max(peak_memory_bytes) AS peak_memory_bytes, "
        "max(peak_memory_bytes - baseline_memory_bytes) AS added_memory_bytes, max(state_bytes) AS state_bytes, "
        "any_value(predicted_state_bytes) AS predicted_state_bytes, median(energy_joules) AS energy_joules, "
        "any_value(error) AS error "
        "FROM measurements JOIN cells USING (run_id, cell_id) "
        "GROUP BY run_id, cell_id, model, params, kind, length, batch",
    ),
    ViewSchema(
        "costs",
        "What each cell cost, with the model, task and condition it belongs to.",
        "SELECT runs.run_id, spec_name, model, task, params, efficiency.* EXCLUDE (run_id), "
        "prompt_tokens / nullif(distinct_tokens, 0) AS sharing "
        "FROM efficiency JOIN cells USING (run_id, cell_id) JOIN runs USING (run_id)",
    ),
    ViewSchema(
        "cost_per_question",
        "What one question of each cell cost: tokens of its prompts (one for each choice), tokens that were really fed "
        "(shared ones split), tokens generated (an answer that several cells share counts in the first), seconds. "
        "Shares of a run: they say what was paid, and compare no speeds.",
        "SELECT costs.run_id, costs.spec_name, costs.cell_id, costs.model, costs.task, costs.params, questions, "
        "costs.prompt_tokens / questions AS prompt_tokens, costs.computed_tokens / questions AS computed_tokens, "
        "costs.output_tokens / questions AS output_tokens, costs.seconds / questions AS seconds "
        "FROM costs JOIN (SELECT run_id, cell_id, count(DISTINCT sample_id) AS questions FROM samples GROUP BY ALL) "
        "AS asked USING (run_id, cell_id)",
    ),
)
