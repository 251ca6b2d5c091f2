"""The hypotheses of a spec as a reader meets them: one sentence each, with its verdict, effect and interval."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evalspec.report.units import p_text
from evalspec.spec.needs import METRICS, metric_of

QUERY = """
SELECT hypothesis, claim, params, metric, statistic, ci_low, ci_high, verdict, reason, value_a, value_b, p_holm, n,
       family, components
FROM verdicts WHERE run_id = $run AND claim IS NOT NULL"""

REASONS = {
    "floor": "both at the floor",
    "ceiling": "both at the ceiling",
    "overlap": "no difference that these samples show",
    "undefined": "nothing to compare",
}


MOST_IN_A_SENTENCE = 4
"""Verdicts: more of one claim are a list."""


@dataclass(frozen=True)
class Claim:
    """One hypothesis: its words, what came of it, and every verdict."""

    claim: str
    word: str
    """`supported`, `refuted` or `undecided` where all of its verdicts say so, else `mixed`."""
    said: str
    listed: tuple[str, ...]
    """One line for each verdict, where they are too many for a sentence; `said` then counts them."""
    verdicts: tuple[Mapping[str, Any], ...]


def claims_of(found: Sequence[Mapping[str, Any]], order: Sequence[str]) -> list[Claim]:
    """The claims, in the order of the spec's names; rows are those of `QUERY`."""
    by_name: dict[str, list[Mapping[str, Any]]] = {}
    for row in found:
        by_name.setdefault(row["hypothesis"].partition(" (")[0], []).append(row)
    names = [name for name in order if name in by_name] + [name for name in by_name if name not in order]
    return [_claim(by_name[name]) for name in names]


def _claim(rows: Sequence[Mapping[str, Any]]) -> Claim:
    words = dict.fromkeys(str(row["verdict"]) for row in rows)
    many = len(rows) > MOST_IN_A_SENTENCE
    parts, listed = [], []
    for word in ("supported", "refuted", "undecided"):
        group = [row for row in rows if row["verdict"] == word]
        if group:
            parts.append(f"{word} in {len(group)}" if many else f"{word}{_listed([_one(row) for row in group])}")
            listed += [f"{word}{_one(row)}" for row in group if many]
    word = next(iter(words)) if len(words) == 1 else "mixed"
    said = ", ".join(parts) + f" of {len(rows)}:" if many else "; ".join(parts) + "."
    return Claim(str(rows[0]["claim"]).rstrip("."), word, said, tuple(listed), tuple(rows))


def _one(row: Mapping[str, Any]) -> str:
    where = row["hypothesis"].partition(" (")[2].removesuffix(")")
    where = where.replace("model = ", "").replace("task = ", "")  # names that speak for themselves
    said = effect(row)
    if said and row["components"]:
        said += f"; {_from_seeds(row['components'])}"
    if row["verdict"] == "undecided" and row["reason"] in REASONS:
        said = f"{_reason(row)}{': ' + said if said else ''}"
    return f" for {where} ({said})" if where else f" ({said})"


def _from_seeds(components: Any) -> str:
    """How much of what is uncertain comes from training: `70 % of the variance from training seeds`."""
    parts = json.loads(components) if isinstance(components, str) else components
    total = sum(value for value in parts.values() if value is not None)
    if parts.get("seeds") is None or total <= 0:
        return "a single training seed each" if parts.get("seeds") is None else "no variance"
    return f"{parts['seeds'] / total:.0%} of the variance from training seeds".replace("%", "\u00a0%")


def _reason(row: Mapping[str, Any]) -> str:
    """Why nothing is decided: where the interval of this one comparison is without 0, the corrected p."""
    low, high, p = row["ci_low"], row["ci_high"], row["p_holm"]
    if row["reason"] == "overlap" and None not in (low, high, p) and (low > 0 or high < 0):
        return f"{p_text(p, 'p')} after the correction"
    return REASONS[str(row["reason"])]


def effect(row: Mapping[str, Any]) -> str:
    """`+78 points [64, 87]` for shares, `−0.31 [−0.42, −0.20]` for anything else; empty without an estimate."""
    if row["statistic"] is None:
        return ""
    declared = METRICS.get(metric_of(str(row["metric"])))
    share = declared is not None and declared.evidence in ("output", "choices") and declared.higher_is_better
    share = share and all(value is None or 0 <= value <= 1 for value in (row["value_a"], row["value_b"]))
    scale, digits = (100, 1) if share else (1, 3)

    def number(value: float, sign: bool = False) -> str:
        text = f"{scale * value:{'+' if sign else ''}.{digits}f}"
        return text.lstrip("+-") if float(text) == 0 else text.replace("-", "−")

    between = ""
    if row["ci_low"] is not None and row["ci_high"] is not None:
        between = f" [{number(row['ci_low'])},\u00a0{number(row['ci_high'])}]"
    return f"{number(row['statistic'], sign=True)}{' points' if share else ''}{between}"


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{','.join(parts[:-1])} and{parts[-1]}"
