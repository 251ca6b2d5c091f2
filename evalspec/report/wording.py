"""Comparisons in words and as a table for a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from evalspec.report.comparisons import Comparison, Family
from evalspec.report.units import p_text
from evalspec.tabular import table

COLUMNS = (
    "condition", "A", "B", "A is", "B is", "A − B", "95 % interval", "verdict", "p (Holm)", "p", "effect", "n",
    "A:B ahead", "visible",
)  # fmt: skip

LEGEND = (
    "A − B: paired difference; p: two-sided, Holm: corrected over the table; effect: Cohen's h (shares) or paired d; "
    "A:B ahead: units (samples or clusters) where A's, B's value is greater;\n"
    "visible: the smallest difference that this n shows four times out of five; undecided: overlap (the interval "
    "holds 0 or p (Holm) ≥ 0.05), floor or ceiling (both models there), undefined."
)


def verdict_words(comparison: Comparison) -> str:
    """`mamba is better`, or `undecided: ceiling`."""
    if comparison.winner is None:
        return f"undecided: {comparison.verdict.reason}"
    if comparison.model_a == comparison.model_b:
        return "A is better" if comparison.verdict.word == "supported" else "B is better"
    return f"{comparison.winner} is better"


def reading(comparisons: Sequence[Comparison]) -> list[str]:
    """One sentence a family: how many comparisons are decided, for whom, and why the rest is not; then what was left
    out."""
    sentences = []
    for family, members in families(comparisons).items():
        told = Counter(verdict_words(c) for c in members if c.winner)
        why = Counter(c.verdict.reason for c in members if not c.winner)
        parts = [f"{words} in {count}" for words, count in told.most_common()]
        if why:
            reasons = ", ".join(f"{reason} {count}" for reason, count in why.most_common())
            parts.append(f"undecided in {why.total()} ({reasons})")
        name = f"{family.task}, {family.label.replace('_', ' ')}"
        counted = f"{len(members)} paired comparison{'s' * (len(members) != 1)}"
        sentences.append(f"{name}: of {counted} {', '.join(parts)}.")
    lonely = [c for c in comparisons if c.pair.only_a or c.pair.only_b]
    if lonely:
        most = max(lonely, key=lambda c: c.pair.only_a + c.pair.only_b)
        pair = most.model_a if most.model_a == most.model_b else f"{most.model_a} and {most.model_b}"
        sentences.append(
            f"In {len(lonely)} of {len(comparisons)} comparisons samples exist on one side only and are left out: "
            f"at most {most.pair.only_a:,} of A and {most.pair.only_b:,} of B ({pair} on {most.family.task}, "
            f"{most.condition.label})."
        )
    return sentences


def families(comparisons: Sequence[Comparison]) -> dict[Family, list[Comparison]]:
    """Comparisons by family, in their order."""
    found: dict[Family, list[Comparison]] = {}
    for comparison in comparisons:
        found.setdefault(comparison.family, []).append(comparison)
    return found


def comparison_text(comparisons: Sequence[Comparison], said: Sequence[str] = ()) -> str:
    """All comparisons as tables, one a family, with what the columns mean; then `said`, and last the reading in
    sentences: a terminal shows the end."""
    parts = []
    for family, members in families(comparisons).items():
        title = f"{family.task}: {family.label}, {len(members)} comparison{'s' * (len(members) != 1)}"
        columns, lines = list(COLUMNS), [_line(c) for c in members]
        if all(c.model_a == c.model_b for c in members):  # of one model in two runs the name stands once
            columns[1:3] = ["model"]
            lines = [[*line[:2], *line[3:]] for line in lines]
        parts.append(table(columns, lines, title))
        seeds = [c for c in members if c.hierarchical]
        if seeds:
            parts.append("\n".join(_seeds(c) for c in seeds))
    return "\n\n".join([*parts, LEGEND, *said, "\n".join(reading(comparisons))])


def signed(value: float | None) -> str:
    """`+0.031`, `−0.2`: four digits at most, with a sign."""
    return "" if value is None else f"{value:+.3f}" if abs(value) < 100 else f"{value:+,.1f}"


def _line(c: Comparison) -> list[str | int | None]:
    pair = c.pair
    interval = "" if pair.ci_low is None else f"[{signed(pair.ci_low)}, {signed(pair.ci_high)}]"
    effect = "" if pair.effect_size is None else f"{pair.effect} = {pair.effect_size:+.2f}"
    ahead = "" if c.hierarchical else f"{pair.a_ahead}:{pair.b_ahead}"
    return [
        c.condition.label, c.model_a, c.model_b, plain(pair.a.value), plain(pair.b.value), signed(pair.difference),
        interval, verdict_words(c), p_text(c.p_holm), p_text(pair.p_value), effect, size(c), ahead,
        plain(pair.detectable),
    ]  # fmt: skip


def size(c: Comparison) -> str:
    """How many samples, and clusters or seeds where there are such."""
    said = f"{c.pair.n:,}"
    if c.pair.units not in (0, c.pair.n):
        said += f" in {c.pair.units:,} clusters"
    if c.hierarchical:
        said += f" × {c.hierarchical.seeds_a}, {c.hierarchical.seeds_b} seeds"
    return said


def _seeds(c: Comparison) -> str:
    """Where the variance of an architectures' difference comes from."""
    found = c.hierarchical
    if found is None:
        return ""
    known = {name: value for name, value in found.components.items() if value is not None}
    total = sum(known.values())
    shares = ", ".join(f"{name} {value / total:.0%}" for name, value in known.items()) if total else "none"
    left = f"; {found.left_out:,} samples that a model lacks are left out" if found.left_out else ""
    return f"{c.model_a} − {c.model_b}, {c.condition.label}: variance by {shares}{left}"


def plain(value: float | None) -> str:
    """`0.312`, without a sign; `2.6e+33` where a text's perplexity is beyond all measure."""
    if value is None:
        return ""
    return f"{value:.3f}" if abs(value) < 100 else f"{value:,.1f}" if abs(value) < 1e6 else f"{value:.3g}"
