"""How sure a measured accuracy is: 95 % intervals."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
MANY_CLUSTERS = 2_000
_CHUNK_ENTRIES = 5_000_000  # counts drawn at a time; bounds memory, does not change the result


@dataclass(frozen=True)
class Interval:
    """An interval and how it was made."""

    low: float
    high: float
    method: str
    """"wilson" or "bootstrap"."""


def wilson_interval(correct: float, n: float, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of a proportion (Wilson 1927), for independent trials.

    Args:
        correct: successes.
        n: trials. With none, nothing is known: (0, 1).
        confidence: coverage, 0.95 for 95 %.
    """
    if n <= 0:
        return Interval(0.0, 1.0, "wilson")
    if not 0 <= correct <= n:
        raise ValueError(f"wilson_interval: correct must lie between 0 and n, got {correct} of {n}")
    z2 = NormalDist().inv_cdf((1 + confidence) / 2) ** 2
    p = correct / n
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (p * (1 - p) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    low = 0.0 if correct == 0 else max(0.0, centre - half)
    high = 1.0 if correct == n else min(1.0, centre + half)
    return Interval(low, high, "wilson")


def accuracy_interval(
    correct: Sequence[float],
    clusters: Sequence[Hashable],
    *,
    weights: Sequence[float] | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
    confidence: float = 0.95,
) -> Interval:
    """Interval of an accuracy whose samples come in clusters (several questions about one video).

    Percentile bootstrap over clusters: as many clusters as there are, drawn with replacement, each with all its samples
    (Davison and Hinkley 1997, section 3.8). Where the bootstrap has no width (all samples right, all wrong, or one cluster)
    it would claim certainty; there Wilson's interval over the number of clusters takes its place, which is the cautious
    choice: samples of one video count as one.

    Args:
        correct: per sample, True or 1 where it is right.
        clusters: per sample the id of its video.
        weights: per sample, for a weighted mean; they are taken as known.
        seed: the same seed gives the same interval.
        resamples: bootstrap draws.
        confidence: coverage.
    """
    sums_V, sizes_V = _cluster_sums(np.asarray(correct, dtype=np.float64), clusters, weights)
    low, high = _bootstrap(sums_V, sizes_V, seed, resamples, confidence)
    if high > low:
        return Interval(low, high, "bootstrap")
    V = len(sizes_V)
    mean = float(sums_V.sum() / sizes_V.sum()) if V else 0.0
    return wilson_interval(mean * V, V, confidence)


def mean_interval(
    values: Sequence[float],
    clusters: Sequence[Hashable],
    *,
    weights: Sequence[float] | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
    confidence: float = 0.95,
) -> Interval:
    """Interval of the mean of a score that is not right or wrong (CIDEr, F1): the bootstrap of ``accuracy_interval``, whose
    arguments it takes. Where all values are equal it has no width, and nothing takes its place."""
    sums_V, sizes_V = _cluster_sums(np.asarray(values, dtype=np.float64), clusters, weights)
    return Interval(*_bootstrap(sums_V, sizes_V, seed, resamples, confidence), "bootstrap")


def difference_interval(
    first: Sequence[float],
    second: Sequence[float],
    clusters: Sequence[Hashable],
    *,
    weights: Sequence[float] | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
    confidence: float = 0.95,
) -> Interval:
    """Interval of mean(second) - mean(first) on the same samples: clustered bootstrap of the paired difference.

    Where the two runs agree on every sample the interval is (0, 0): the bootstrap can say nothing about samples not seen.
    """
    if len(first) != len(second):
        raise ValueError(
            f"difference_interval: the two runs have {len(first)} and {len(second)} samples; they must be the same"
        )
    differences = np.asarray(second, dtype=np.float64) - np.asarray(first, dtype=np.float64)
    sums_V, sizes_V = _cluster_sums(differences, clusters, weights)
    return Interval(*_bootstrap(sums_V, sizes_V, seed, resamples, confidence), "bootstrap")


def _cluster_sums(
    values: NDArray[np.float64], clusters: Sequence[Hashable], weights: Sequence[float] | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sum and size (with weights: weighted sum, and sum of weights) of every cluster, in order of first appearance."""
    if len(values) != len(clusters):
        raise ValueError(f"{len(values)} values but {len(clusters)} clusters; give one cluster id per value")
    numbers: dict[Hashable, int] = {}
    index = np.array([numbers.setdefault(cluster, len(numbers)) for cluster in clusters], dtype=np.int64)
    weight = np.ones(len(values)) if weights is None else np.asarray(weights, dtype=np.float64)
    sums_V = np.bincount(index, weights=values * weight, minlength=len(numbers)).astype(np.float64)
    return sums_V, np.bincount(index, weights=weight, minlength=len(numbers)).astype(np.float64)


def _bootstrap(
    sums_V: NDArray[np.float64], sizes_V: NDArray[np.float64], seed: int, resamples: int, confidence: float
) -> tuple[float, float]:
    """Percentiles of sum / size over resampled clusters.

    Many clusters are drawn by how many of each kind (equal sum and size) there are, a multinomial draw: the same distribution, in a
    small part of the time.
    """
    V = len(sums_V)
    if V == 0:
        return 0.0, 0.0
    generator = np.random.default_rng(seed)
    if V > MANY_CLUSTERS:
        kinds_2U, counts_U = np.unique(np.stack([sums_V, sizes_V]), axis=1, return_counts=True)
        if 4 * len(counts_U) <= V:
            drawn_RU = generator.multinomial(V, counts_U / V, size=resamples)
            return _percentiles((drawn_RU @ kinds_2U[0]) / (drawn_RU @ kinds_2U[1]), confidence)
    means = np.empty(resamples)
    step = max(1, _CHUNK_ENTRIES // V)
    for start in range(0, resamples, step):
        draws_RV = generator.integers(V, size=(min(step, resamples - start), V))
        means[start : start + step] = sums_V[draws_RV].sum(axis=1) / sizes_V[draws_RV].sum(axis=1)
    return _percentiles(means, confidence)


def _percentiles(means: NDArray[np.float64], confidence: float) -> tuple[float, float]:
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)
