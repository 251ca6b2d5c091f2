"""`metric_list` as `metrics:` of a spec: the metric of the same value, with its options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evalspec.importing.lm_eval_findings import Findings
from evalspec.spec.needs import METRICS

COUNTERPARTS: dict[str, dict[str, tuple[str, str]]] = {
    "multiple_choice": {
        "acc": ("accuracy", "mean"),
        "acc_norm": ("accuracy_norm", "mean"),
        "acc_bytes": ("accuracy_bytes", "mean"),
        "acc_mutual_info": ("accuracy_pmi", "mean"),
        "brier_score": ("brier", "brier_score"),
        "f1": ("f1", "f1"),
        "mcc": ("mcc", "mcc"),
    },
    "loglikelihood": {"acc": ("greedy", "mean"), "perplexity": ("target_perplexity", "perplexity")},
    "loglikelihood_rolling": {
        "word_perplexity": ("word_perplexity", "weighted_perplexity"),
        "byte_perplexity": ("byte_perplexity", "weighted_perplexity"),
        "bits_per_byte": ("bits_per_byte", "bits_per_byte"),
    },
    "generate_until": {
        "exact_match": ("exact_match", "mean"),
        "bleu": ("bleu", "bleu"),
        "chrf": ("chrf", "chrf"),
        "ter": ("ter", "ter"),
    },
}
"""By output type: the harness's name, evalspec's, and the aggregation under which they are the same."""

DEFAULTS: dict[str, list[str]] = {
    "multiple_choice": ["acc", "acc_norm"],
    "loglikelihood": ["perplexity", "acc"],
    "loglikelihood_rolling": ["word_perplexity", "byte_perplexity", "bits_per_byte"],
    "generate_until": ["exact_match"],
}
"""What is measured where a task names nothing."""

OPTIONS = ("ignore_case", "ignore_punctuation", "ignore_numbers", "regexes_to_ignore")
"""Of `exact_match`."""


def metrics(findings: Findings, output_type: str) -> list[Any]:
    """The metrics of a task; a problem for each that has no counterpart."""
    listed = findings.get("metric_list")
    if listed is None:
        listed = [{"metric": name} for name in DEFAULTS[output_type]]
    found: list[Any] = []
    for item in listed if isinstance(listed, list) else [listed]:
        if not isinstance(item, dict) or not isinstance(item.get("metric"), str):
            findings.refuse("metric_list", f"a metric is a mapping with a `metric`, not {item!r}")
            continue
        block = _metric(findings, output_type, item)
        if block is not None and block not in found:
            found.append(block)
    if not found and not findings.problems:
        findings.refuse("metric_list", "is empty: nothing is measured")
    return found


def _metric(findings: Findings, output_type: str, item: Mapping[str, Any]) -> Any:
    name = item["metric"]
    ours, aggregation = COUNTERPARTS[output_type].get(name, ("", ""))
    if item.get("hf_evaluate") or ours not in METRICS:
        code = " of the package `evaluate`" if item.get("hf_evaluate") else ""
        findings.refuse("metric_list", f"the metric `{name}`{code} of `{output_type}` tasks has no counterpart here")
        return None
    if item.get("aggregation", aggregation) != aggregation:
        findings.refuse(
            "metric_list", f"`{name}` is aggregated by `{item['aggregation']}`, here by `{aggregation}` alone"
        )
    higher = METRICS[ours].higher_is_better
    if item.get("higher_is_better", higher) is not higher:
        findings.refuse(
            "metric_list", f"`{name}` says `higher_is_better: {item['higher_is_better']}`; here it is {higher}"
        )
    known = ("metric", "aggregation", "higher_is_better", "hf_evaluate")
    options = {key: value for key, value in item.items() if key not in known and value is not None}
    if output_type != "generate_until":
        for key in options:  # the harness never looks at them where nothing is generated
            findings.note(f"`{key}` of the metric `{name}` has no effect on `{output_type}` tasks")
        return ours
    if name != "exact_match":
        for key in options:
            findings.refuse("metric_list", f"`{name}` has no option `{key}` here")
        return ours
    for key in options:
        if key not in OPTIONS:
            findings.refuse("metric_list", f"`exact_match` has no option `{key}`")
    said = {key: options[key] for key in OPTIONS if options.get(key)}
    return {"metric": ours, "literal": True, **said}
