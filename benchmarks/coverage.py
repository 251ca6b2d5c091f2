"""How often the 95 % intervals hold the truth: the tables of docs/statistics.md.

    python -m benchmarks.coverage [--experiments 2000]

Proportions are exact: every possible outcome is listed with its probability. Everything else is simulated, and goes
through the same functions as a run's scores. With 2,000 experiments a coverage of 95 % is seen as 94 to 96 %.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta, binom, binomtest

from evalspec.metrics import METRIC_FUNCTIONS, Score, aggregate
from evalspec.metrics.hierarchy import Level, compare_architectures
from evalspec.metrics.paired import Scores, compare
from evalspec.metrics.proportions import proportion_interval

Floats = NDArray[np.float64]
Interval = tuple[float, float]
Draw = Callable[[int], tuple[Floats, Floats | None]]

SIZES = (20, 50, 200)
SHARES = (0.01, 0.015, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5)
EXACT, GRADED, ANY, RATIO = (
    METRIC_FUNCTIONS.get(name) for name in ("exact_match", "token_f1", "log_loss", "perplexity")
)


def wilson(right: int, n: int) -> Interval:
    found = binomtest(right, n).proportion_ci(method="wilson")
    return found.low, found.high


def clopper_pearson(right: int, n: int) -> Interval:
    found = binomtest(right, n).proportion_ci(method="exact")
    return found.low, found.high


def jeffreys(right: int, n: int) -> Interval:
    low, high = beta.ppf((0.025, 0.975), right + 0.5, n - right + 0.5)
    return (0.0 if right == 0 else low), (1.0 if right == n else high)


@lru_cache
def tails(n: int) -> tuple[Floats, Floats, Floats]:
    """Shares in thousandths, and for each the probability of every outcome and of its lesser tail."""
    grid, outcomes = np.linspace(0, 1, 1001), np.arange(n + 1)
    mass = binom.pmf(outcomes, n, grid[:, None])
    at_most = mass.cumsum(1)
    return grid, mass, np.minimum(at_most, 1 - at_most + mass)


def blaker(right: int, n: int) -> Interval:
    """Blaker's (2000), to a thousandth: the shares whose acceptability is at least 5 %."""
    grid, mass, tail = tails(n)
    kept = grid[(mass * (tail <= tail[:, right : right + 1] * (1 + 1e-7))).sum(1) >= 0.05]
    return float(kept[0]), float(kept[-1])


def ours(right: int, n: int) -> Interval:
    return proportion_interval(right / n, n)


METHODS = {"mid-p": ours, "Wilson": wilson, "Jeffreys": jeffreys, "Blaker": blaker, "exact": clopper_pearson}


def proportion_coverage(method: Callable[[int, int], Interval], n: int, share: float) -> float:
    """The probability, over all outcomes of n trials, that the interval holds the share."""
    ends = all_intervals(method, n)
    return float(binom.pmf(np.arange(n + 1), n, share)[(ends[:, 0] <= share) & (share <= ends[:, 1])].sum())


@lru_cache
def all_intervals(method: Callable[[int, int], Interval], n: int) -> Floats:
    return np.array([method(right, n) for right in range(n + 1)])


def can_be_near(n: int, share: float) -> bool:
    """Whether any run of outcomes, and so any interval, has a coverage between 93 and 97 %."""
    sums = np.concatenate(([0.0], np.cumsum(binom.pmf(np.arange(n + 1), n, share))))
    apart = sums[None, :] - sums[:, None]
    return bool(((apart >= 0.93) & (apart <= 0.97)).any())


def samplers(rng: np.random.Generator) -> Iterator[tuple[str, object, float, Draw]]:
    """What is simulated: a name, the metric, the truth, and a draw of (values, weights) of n samples."""
    ones = None

    def answers(n: int) -> tuple[Floats, None]:
        kinds = rng.random(n)
        return np.where(kinds < 0.6, 1.0, np.where(kinds < 0.8, 0.0, rng.beta(2, 2, n))), ones

    def losses(n: int) -> tuple[Floats, Floats]:
        tokens = np.ceil(rng.lognormal(3, 0.6, n))
        return tokens * rng.gamma(8, 0.25, n), tokens

    yield "mean, uniform", GRADED, 0.5, lambda n: (rng.random(n), ones)
    yield "mean, skewed (beta 1, 3)", GRADED, 0.25, lambda n: (rng.beta(1, 3, n), ones)
    yield "mean, F1 of answers (60 % are 1, 20 % are 0)", GRADED, 0.7, answers
    yield "mean, unbounded and very skewed (exponential)", ANY, 1.0, lambda n: (rng.exponential(1, n), ones)
    yield "ratio, loss a token of skewed lengths", RATIO, float(np.exp(2.0)), losses


def simulated(metric: object, truth: float, draw: Draw, n: int, experiments: int) -> float:
    names = [str(at) for at in range(n)]
    held = 0
    for _ in range(experiments):
        values, weights = draw(n)
        scores = [Score(float(v), None if weights is None else float(weights[at])) for at, v in enumerate(values)]
        found = aggregate(metric, scores, names)
        held += found.ci_low <= truth <= found.ci_high
    return held / experiments


def clustered(rng: np.random.Generator, metric: object, share: float, size: int | None, experiments: int) -> float:
    """Ten clusters of `size` samples (None: 2 to 10); the clusters' own shares follow beta(2.4, …)."""
    held = 0
    for _ in range(experiments):
        sizes = rng.integers(2, 11, 10) if size is None else np.full(10, size)
        labels = np.repeat(np.arange(10), sizes)
        own = rng.beta(3 * share, 3 * (1 - share), 10)[labels]
        values = (rng.random(len(own)) < own) if metric is EXACT else rng.beta(4 * own + 0.01, 4 * (1 - own) + 0.01)
        weights = rng.integers(5, 60, len(own)) if metric is RATIO else np.ones(len(own))
        scores = [Score(float(v * w), float(w)) for v, w in zip(values, weights, strict=True)]
        found = aggregate(metric, scores, [str(at) for at in range(len(own))], [str(label) for label in labels])
        truth = np.exp(share) if metric is RATIO else share
        held += found.ci_low <= truth <= found.ci_high
    return held / experiments


def paired(rng: np.random.Generator, metric: object, share: float, gap: float, n: int, experiments: int) -> float:
    """Two models on the same samples whose scores depend on a common difficulty; B is worse by `gap`."""
    names, held = [str(at) for at in range(n)], 0
    for _ in range(experiments):
        ease = rng.beta(2 * share, 2 * (1 - share), n)
        if metric is EXACT:
            a, b = (rng.random(n) < ease).astype(float), (rng.random(n) < ease * (1 - gap / share)).astype(float)
        else:
            a, b = rng.beta(6 * ease, 6 * (1 - ease)), rng.beta(6 * ease, 6 * (1 - ease)) * (1 - gap / share)
        found = compare(metric, *(Scores([Score(float(v)) for v in side], names) for side in (a, b)))
        held += found.ci_low <= gap <= found.ci_high
    return held / experiments


def architectures(rng: np.random.Generator, seeds: int, spread: float, n: int, experiments: int) -> float:
    """Right and wrong answers of `seeds` models an architecture; a seed's ability and a sample's ease are random."""
    held = 0
    for _ in range(experiments):
        ease = rng.normal(0, 1, n)
        levels = []
        for lead in (0.0, 0.0):
            ability = lead + rng.normal(0, spread, seeds)[:, None]
            right = rng.random((seeds, n)) < 1 / (1 + np.exp(-(ability + ease)))
            levels.append([Level(s, 0, i, float(right[s, i])) for s in range(seeds) for i in range(n)])
        found = compare_architectures(*levels)
        held += found.ci_low <= 0 <= found.ci_high
    return held / experiments


def print_table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")
    print(flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiments", type=int, default=2000)
    experiments = parser.parse_args().experiments
    rng = np.random.default_rng(4)

    print("A share p of n (p and 1 − p are alike); * no interval can lie between 93 and 97 % there\n")
    shares = [(n, p) for n in SIZES for p in SHARES]
    rows = []
    for n, p in shares:
        own = [f"{100 * proportion_coverage(method, n, p):.1f}" for method in METHODS.values()]
        rows.append((str(n), f"{p:g}{'' if can_be_near(n, p) else ' *'}", *own))
    print_table(("n", "p", *METHODS), rows)

    print("Means and ratios\n")
    rows = []
    for name, metric, truth, draw in samplers(rng):
        found = [simulated(metric, truth, draw, n, experiments) for n in SIZES]
        rows.append((name, *(f"{100 * share:.1f}" for share in found)))
    print_table(("", *(f"n = {n}" for n in SIZES)), rows)

    print("Ten clusters\n")
    rows = []
    for name, metric, share in (
        ("share, p = 0.5", EXACT, 0.5),
        ("share, p = 0.8", EXACT, 0.8),
        ("share, p = 0.95", EXACT, 0.95),
        ("mean", GRADED, 0.6),
        ("ratio", RATIO, 0.6),
    ):
        found = [clustered(rng, metric, share, size, experiments) for size in (5, 20, None)]
        rows.append((name, *(f"{100 * value:.1f}" for value in found)))
    print_table(("", "5 samples each", "20 samples each", "2 to 10 samples each"), rows)

    print("Paired differences\n")
    rows = []
    for name, metric, share, gap in (
        ("0 and 1, 0.5 against 0.5", EXACT, 0.5, 0.0),
        ("0 and 1, 0.7 against 0.5", EXACT, 0.7, 0.2),
        ("0 and 1, 0.95 against 0.9", EXACT, 0.95, 0.05),
        ("graded, 0.6 against 0.6", GRADED, 0.6, 0.0),
        ("graded, 0.6 against 0.5", GRADED, 0.6, 0.1),
    ):
        found = [paired(rng, metric, share, gap, n, experiments) for n in SIZES]
        rows.append((name, *(f"{100 * value:.1f}" for value in found)))
    print_table(("", *(f"n = {n}" for n in SIZES)), rows)

    print(f"Architectures: seeds × samples ({experiments // 4} experiments)\n")
    rows = []
    for seeds, spread in ((3, 0.3), (5, 0.0), (5, 0.3), (5, 1.0), (10, 0.3)):
        found = architectures(rng, seeds, spread, 100, experiments // 4)
        rows.append((str(seeds), f"{spread:g}", f"{100 * found:.1f}"))
    print_table(("seeds each", "sd of a seed's ability (logits)", "coverage, n = 100"), rows)


if __name__ == "__main__":
    main()
