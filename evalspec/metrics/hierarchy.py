"""A claim about architectures, from several training seeds of each: seeds × shots draws × samples.

Every model of an architecture answers the same samples under the same draws, so the factors cross; seeds belong to
their architecture. With scores y (s, d, i) of A and B, the estimate is the difference of the means over everything.

Its interval is a hierarchical (multiway) bootstrap: in each of 10,000 resamples seeds (of each architecture apart),
draws and samples are drawn anew with replacement, draws and samples the same for both (Owen 2007). That bootstrap is
off for few levels in two known ways, and both are undone: its spread is scaled to the unbiased variance

    V = Σ over A, B of (v_s − v_sd − v_si + v_sdi)  +  v_d + v_i − v_di  of the difference of the seeds' means,

v_f being the mean square of a factor or of an interaction over the number of its levels, and its percentiles are taken
at the level of Student's t with Satterthwaite's degrees of freedom. The p-value is that t's.

`components` says where the variance of the estimate comes from: `seeds` (training), `draws` (shots), `samples`.
A factor of one level is fixed: the claim then holds for this seed, or this draw, and its component is None.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from evalspec.metrics.intervals import Aggregate
from evalspec.metrics.paired import Paired
from evalspec.metrics.registry import Floats
from evalspec.metrics.resampling import SEED, TAIL

RESAMPLES = 10_000
BLOCK = 500


@dataclass(frozen=True)
class Level:
    """One score and where it stands: which training seed, which draw of the shots, which sample (or cluster)."""

    seed: Hashable
    draw: Hashable
    sample: Hashable
    value: float


@dataclass(frozen=True)
class Hierarchical:
    """The difference of two architectures. `stderr`, interval and p-value are None where every factor has one level."""

    a: float
    b: float
    difference: float
    components: Mapping[str, float | None]
    """The variance of the estimate that comes from `seeds`, `draws` and `samples`."""
    seeds_a: int
    seeds_b: int
    draws: int
    n: int
    """Samples that all models have under all draws; others are left out and counted in `left_out`."""
    units: int
    left_out: int
    stderr: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    p_value: float | None = None
    freedom: float | None = None

    @property
    def pair(self) -> Paired:
        """What both kinds of comparison have, for verdicts and tables."""
        return Paired(
            Aggregate(self.a, None, None, None, self.n),
            Aggregate(self.b, None, None, None, self.n),
            n=self.n,
            only_a=0,
            only_b=0,
            units=self.units,
            difference=self.difference,
            stderr=self.stderr,
            ci_low=self.ci_low,
            ci_high=self.ci_high,
            p_value=self.p_value,
            method="hierarchical" if self.p_value is not None else None,
        )


def compare_architectures(
    a: Sequence[Level],
    b: Sequence[Level],
    clusters: Mapping[Any, Hashable] | None = None,
    *,
    greatest: float = math.inf,
) -> Hierarchical:
    """Compare two architectures. Several scores at one place (repeats) are averaged first; `clusters` names, for a
    sample, the group it is drawn with; `greatest` is the greatest difference there can be, where intervals end.

    Raises ValueError when no sample has scores of all models under all draws.
    """
    samples, left_out = _complete(a, b)
    draws = sorted({level.draw for level in a}, key=repr)
    y, z = _array(a, draws, samples), _array(b, draws, samples)
    mean_a, mean_b = float(y.mean()), float(z.mean())
    if clusters is not None:
        y, z = (_by_cluster(array, [clusters[sample] for sample in samples]) for array in (y, z))
    # The order of seeds, draws and samples is the numbers' own, so that no result depends on the order of rows.
    y, z = _sorted(y, z)
    estimate = mean_a - mean_b
    variance, components, freedom = _variance(y, z)
    result = Hierarchical(
        mean_a,
        mean_b,
        estimate,
        components,
        seeds_a=y.shape[0],
        seeds_b=z.shape[0],
        draws=y.shape[1],
        n=len(samples),
        units=y.shape[2],
        left_out=left_out,
    )
    if variance is None or freedom is None:
        return result
    stderr = math.sqrt(variance)
    low, high = _interval(y, z, estimate, stderr, freedom)
    low, high = max(low, -greatest), min(high, greatest)
    p_value = _p_value(estimate, stderr, freedom)
    return replace(result, stderr=stderr, ci_low=low, ci_high=high, p_value=p_value, freedom=freedom)


def _complete(a: Sequence[Level], b: Sequence[Level]) -> tuple[list[Hashable], int]:
    """The samples that are there for every (seed, draw) of both, and how many are not."""
    places: dict[Hashable, set[tuple[int, Hashable, Hashable]]] = {}
    for side, levels in enumerate((a, b)):
        for level in levels:
            places.setdefault(level.sample, set()).add((side, level.seed, level.draw))
    draws = {level.draw for level in (*a, *b)}
    seeds = {(0, level.seed) for level in a} | {(1, level.seed) for level in b}
    whole = [sample for sample, found in places.items() if len(found) == len(draws) * len(seeds)]
    if not whole or not a or not b:
        raise ValueError("no sample has scores of all models under all draws")
    return whole, len(places) - len(whole)


def _array(levels: Sequence[Level], draws: Sequence[Hashable], samples: Sequence[Hashable]) -> Floats:
    """Means of what stands at each place: (seeds, draws, samples)."""
    seeds = {seed: at for at, seed in enumerate(dict.fromkeys(level.seed for level in levels))}
    of_draw = {draw: at for at, draw in enumerate(draws)}
    of_sample = {sample: at for at, sample in enumerate(samples)}
    shape = (len(seeds), len(draws), len(samples))
    kept = [level for level in levels if level.sample in of_sample]
    at = [(seeds[level.seed], of_draw[level.draw], of_sample[level.sample]) for level in kept]
    place = np.ravel_multi_index(np.array(at).T, shape)
    values = np.array([level.value for level in kept])
    order = np.lexsort((values, place))
    sums = np.bincount(place[order], weights=values[order], minlength=math.prod(shape))
    means: Floats = (sums / np.bincount(place, minlength=math.prod(shape))).reshape(shape)
    return means


def _by_cluster(y: Floats, clusters: Sequence[Hashable]) -> Floats:
    """Clusters as units, (seeds, draws, clusters): linearised, so that the plain mean over units is that over samples,
    and their spread that of the cluster-robust error."""
    names = {name: at for at, name in enumerate(dict.fromkeys(clusters))}
    member = np.zeros((y.shape[2], len(names)))
    member[np.arange(y.shape[2]), [names[cluster] for cluster in clusters]] = 1
    centre = y.mean(axis=2, keepdims=True)
    linear: Floats = (y - centre) @ member * (len(names) / y.shape[2]) + centre
    return linear


def _sorted(y: Floats, z: Floats) -> tuple[Floats, Floats]:
    """Both arrays with seeds, draws and samples in an order that the numbers decide (by their means)."""
    draws = np.lexsort((z.mean((0, 2)), y.mean((0, 2))))
    samples = np.lexsort((z.mean((0, 1)), y.mean((0, 1))))
    y, z = y[:, draws][:, :, samples], z[:, draws][:, :, samples]
    return y[np.argsort(y.mean((1, 2)), kind="stable")], z[np.argsort(z.mean((1, 2)), kind="stable")]


def _mean_square(y: Floats) -> tuple[float, int]:
    """The mean square of the highest interaction of an array over its axes, with its degrees of freedom (0: none)."""
    residual = y
    for axis in range(y.ndim):
        residual = residual - residual.mean(axis=axis, keepdims=True)
    freedom = math.prod(size - 1 for size in y.shape)
    return (float((residual**2).sum()) / freedom if freedom else 0.0), freedom


def _variance(y: Floats, z: Floats) -> tuple[float | None, dict[str, float | None], float | None]:
    """V, what each factor brings to it, and Satterthwaite's degrees of freedom."""

    def share(array: Floats, *axes: int) -> tuple[float, int]:
        others = tuple(axis for axis in range(3) if axis not in axes)
        square, freedom = _mean_square(array.mean(axis=others))
        return square / math.prod(array.shape[axis] for axis in axes), freedom

    difference = y.mean(0, keepdims=True) - z.mean(0, keepdims=True)
    mains = [("seeds", share(y, 0)), ("seeds", share(z, 0))]
    mains += [("draws", share(difference, 1)), ("samples", share(difference, 2))]
    varied = [(name, v, freedom) for name, (v, freedom) in mains if freedom]
    components: dict[str, float | None] = dict.fromkeys(("seeds", "draws", "samples"))
    for name, v, _ in varied:
        components[name] = (components[name] or 0.0) + v
    if not varied:
        return None, components, None
    total = sum(v for _, v, _ in varied)
    for array in (y, z):
        total += share(array, 0, 1, 2)[0] - share(array, 0, 1)[0] - share(array, 0, 2)[0]
    total -= share(difference, 1, 2)[0]
    # What is taken off was counted by two factors; its estimate may be too large, the greatest part alone never is.
    total = max(total, max(v for _, v, _ in varied))
    weights = sum(v**2 / freedom for _, v, freedom in varied)
    freedom = sum(v for _, v, _ in varied) ** 2 / weights if weights > 0 else float(min(f for *_, f in varied))
    return total, components, freedom


def _interval(y: Floats, z: Floats, estimate: float, stderr: float, freedom: float) -> tuple[float, float]:
    from scipy.special import ndtr, stdtrit

    rng = np.random.default_rng(SEED + y.shape[2])
    resampled = np.concatenate([_resampled(y, z, rng) for _ in range(RESAMPLES // BLOCK)])
    spread = float(resampled.std())
    if spread == 0:
        return estimate, estimate
    scaled = estimate + (resampled - resampled.mean()) * (stderr / spread)
    level = float(ndtr(stdtrit(freedom, TAIL)))
    low, high = np.quantile(scaled, (level, 1 - level))
    return float(min(low, estimate)), float(max(high, estimate))


def _resampled(y: Floats, z: Floats, rng: np.random.Generator) -> Floats:
    """A block of resampled differences (BLOCK,)."""
    draws, samples = _weights(rng, y.shape[1]), _weights(rng, y.shape[2])
    totals = []
    for array in (y, z):
        over_samples = (array.reshape(-1, array.shape[2]) @ samples.T).reshape(*array.shape[:2], BLOCK)
        over_draws = np.einsum("sdr,rd->sr", over_samples, draws)
        totals.append(np.einsum("sr,rs->r", over_draws, _weights(rng, array.shape[0])))
    apart: Floats = totals[0] - totals[1]
    return apart


def _weights(rng: np.random.Generator, size: int) -> Floats:
    """How often each level stands in each resample, over its size: (BLOCK, size)."""
    picks = rng.integers(size, size=(BLOCK, size)) + np.arange(BLOCK)[:, None] * size
    counts: Floats = np.bincount(picks.ravel(), minlength=BLOCK * size).reshape(BLOCK, size) / size
    return counts


def _p_value(estimate: float, stderr: float, freedom: float) -> float:
    from scipy.special import stdtr

    if stderr == 0:
        return 1.0 if estimate == 0 else 0.0
    return float(2 * stdtr(freedom, -abs(estimate) / stderr))
