"""How sure a measured accuracy, score or difference is: 95 % intervals for samples that come in clusters (questions about one video).

Right or wrong answers have closed forms, which stay honest near the ceiling, with few videos, and where nothing varies at all; scores on
a scale have a bootstrap over videos. ``benchmarks/interval_coverage.py`` measures how often each holds the truth.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
MANY_CLUSTERS = 300
"""From here on a mean of scores is as good as normal, and nothing is drawn."""
_CHUNK_ENTRIES = 5_000_000  # draws at a time; bounds memory, does not change the result

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """An interval and how it was made."""

    low: float
    high: float
    method: str
    """"wilson" of an accuracy, "agresti-min" of a difference of accuracies, "bootstrap" or "student" of scores."""


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
    return _wilson(correct / n, n, NormalDist().inv_cdf((1 + confidence) / 2))


def accuracy_interval(
    correct: Sequence[float],
    clusters: Sequence[Hashable],
    *,
    weights: Sequence[float] | None = None,
    confidence: float = 0.95,
) -> Interval:
    """Interval of an accuracy whose samples come in clusters (several questions about one video).

    Wilson's interval for as many independent samples as the clustered ones are worth: their number divided by the design effect (the
    variance over clusters by that of independent samples, at least 1), with Student's quantile for the clusters less one, as surveys
    do (Dean and Pagano 2015, "Evaluating confidence interval methods for binomial proportions in clustered surveys"). A few wrong (or
    right) answers tell little of the design effect, so the largest one possible, samples of one video count as one, enters as if one
    more had told so. Where all are right or all wrong it alone remains.

    Args:
        correct: per sample, True or 1 where it is right.
        clusters: per sample the id of its video.
        weights: per sample, for a weighted mean; they are taken as known.
        confidence: coverage.

    Raises:
        ValueError: if there are not as many clusters as samples.
    """
    sample = _Clustered.of(np.asarray(correct, dtype=np.float64), clusters, weights)
    if not sample.n_clusters:
        return Interval(0.0, 1.0, "wilson")
    p = min(max(sample.mean, 0.0), 1.0)
    worth = sample.worth(p * (1 - p), min(p, 1 - p))
    return _wilson(p, worth, _student_quantile(sample.n_clusters - 1, confidence))


def mean_interval(
    values: Sequence[float],
    clusters: Sequence[Hashable],
    *,
    weights: Sequence[float] | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
    confidence: float = 0.95,
) -> Interval:
    """Interval of the mean of a score that is not right or wrong (CIDEr, F1).

    At both ends the wider of two: Student's interval over clusters, and the studentised bootstrap over clusters (Davison and Hinkley
    1997, section 5.2.1), which follows skewed scores. Where all values are equal, it is as if of two more videos one lay off by the
    largest score. No end lies below 0 if no value does. With fewer than 20 videos and skewed scores it holds the truth less often
    than it says.

    Args:
        values: per sample.
        clusters: per sample the id of its video.
        weights: per sample, for a weighted mean; they are taken as known.
        seed: the same seed gives the same interval.
        resamples: bootstrap draws.
        confidence: coverage.

    Raises:
        ValueError: if there are not as many clusters as values.
    """
    sample = _Clustered.of(np.asarray(values, dtype=np.float64), clusters, weights)
    if not sample.n_clusters:
        return Interval(0.0, 1.0, "student")
    found = _score_interval(sample, _largest(values), seed, resamples, confidence)
    return Interval(max(0.0, found.low), found.high, found.method) if min(values) >= 0 else found


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
    """Interval of mean(second) - mean(first) on the same samples.

    Where every value is 0 or 1 it is the interval of Agresti and Min (2005, "Simple improved confidence intervals for comparing matched
    proportions"), two more samples of which one is for each run, for as many independent samples as the clustered ones are worth, as
    in ``accuracy_interval``. It has a width also where the two runs agree on every sample: samples not seen may differ. For scores it is
    that of ``mean_interval`` of the differences.

    Args:
        first: per sample, of one run.
        second: of the other, in the same order.
        clusters: per sample the id of its video.
        weights: per sample, for weighted means; they are taken as known.
        seed: of the bootstrap of scores.
        resamples: its draws.
        confidence: coverage.

    Raises:
        ValueError: if the numbers of samples or clusters differ.
    """
    if len(first) != len(second):
        raise ValueError(
            f"difference_interval: the two runs have {len(first)} and {len(second)} samples; they must be the same"
        )
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    sample = _Clustered.of(b - a, clusters, weights)
    if not sample.n_clusters:
        return Interval(-1.0, 1.0, "agresti-min")
    if not np.isin(np.concatenate([a, b]), (0.0, 1.0)).all():
        return _score_interval(sample, max(_largest(first), _largest(second)), seed, resamples, confidence)
    differing = _Clustered.of((b - a) ** 2, clusters, weights).mean
    n = sample.worth(differing - sample.mean**2, differing)
    centre = sample.mean * n / (n + 2)
    variance = ((differing * n + 1) / (n + 2) - centre**2) / (n + 2)
    half = _student_quantile(sample.n_clusters - 1, confidence) * math.sqrt(variance)
    return Interval(max(-1.0, centre - half), min(1.0, centre + half), "agresti-min")


@dataclass(frozen=True)
class _Clustered:
    """Values in clusters, summed up: V clusters."""

    sums_V: Numbers
    """Weighted sum of every cluster, in order of first appearance."""
    sizes_V: Numbers
    """Sum of weights of every cluster."""
    squares: float
    """Sum of squared weights of all samples."""

    @classmethod
    def of(cls, values: Numbers, clusters: Sequence[Hashable], weights: Sequence[float] | None) -> _Clustered:
        if len(values) != len(clusters):
            raise ValueError(f"{len(values)} values but {len(clusters)} clusters; give one cluster id per value")
        numbers: dict[Hashable, int] = {}
        index = np.array([numbers.setdefault(cluster, len(numbers)) for cluster in clusters], dtype=np.int64)
        weight = np.ones(len(values)) if weights is None else np.asarray(weights, dtype=np.float64)
        sums_V, sizes_V = (
            np.bincount(index, weights=each, minlength=len(numbers)).astype(np.float64) for each in (values * weight, weight)
        )
        return cls(sums_V, sizes_V, float((weight**2).sum()))

    @property
    def n_clusters(self) -> int:
        return len(self.sums_V)

    @property
    def mean(self) -> float:
        return float(self.sums_V.sum() / self.sizes_V.sum())

    @property
    def error(self) -> float:
        """Standard error of the mean over clusters; nan of a single one."""
        V = self.n_clusters
        off_V = self.sums_V - self.mean * self.sizes_V
        return math.sqrt(V / (V - 1) * float((off_V**2).sum())) / float(self.sizes_V.sum()) if V > 1 else math.nan

    def worth(self, variance: float, rate: float) -> float:
        """How many independent samples these are worth.

        Args:
            variance: of a single sample.
            rate: of the samples that tell anything of the design effect: the rarer answer, or those that differ.
        """
        total = float(self.sizes_V.sum())
        n = total**2 / self.squares
        largest = float((self.sizes_V**2).sum()) / self.squares
        if self.n_clusters == 1 or variance <= 1e-12:
            return n / largest
        measured = max(1.0, self.error**2 * n / variance)
        return n * (n * rate + 1) / (n * rate * measured + largest)


def _wilson(p: float, n: float, quantile: float) -> Interval:
    z2 = quantile**2
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (p * (1 - p) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    low = 0.0 if p <= 0 else max(0.0, centre - half)
    high = 1.0 if p >= 1 else min(1.0, centre + half)
    return Interval(low, high, "wilson")


def _largest(values: Sequence[float]) -> float:
    """The largest score, by its amount; 1 where all are 0."""
    return max(map(abs, values)) or 1.0


def _score_interval(sample: _Clustered, scale: float, seed: int, resamples: int, confidence: float) -> Interval:
    """Of a mean of scores, or of differences of them.

    Args:
        sample: the values.
        scale: how far a value not seen may lie from these where they are all equal.
        seed: of the bootstrap.
        resamples: its draws.
        confidence: coverage.
    """
    V, mean, error = sample.n_clusters, sample.mean, sample.error
    quantile = _student_quantile(V - 1, confidence)
    if not error > 1e-9 * scale:  # of one video, or without spread
        half = quantile * scale / (float(sample.sizes_V.sum() ** 2 / (sample.sizes_V**2).sum()) + 2)
        return Interval(mean - half, mean + half, "student")
    low, high = mean - quantile * error, mean + quantile * error
    if V > MANY_CLUSTERS:
        return Interval(low, high, "student")
    drawn_R = _studentised(sample, seed, resamples)
    tail = (1 - confidence) / 2
    below, above = np.quantile(drawn_R, [tail, 1 - tail]) if len(drawn_R) else (0.0, 0.0)
    return Interval(min(low, mean - float(above) * error), max(high, mean - float(below) * error), "bootstrap")


def _studentised(sample: _Clustered, seed: int, resamples: int) -> Numbers:
    """(mean - mean of the sample) / standard error of as many clusters drawn with replacement, for every draw that has an error."""
    V, generator, found = sample.n_clusters, np.random.default_rng(seed), []
    step = max(1, _CHUNK_ENTRIES // V)
    for start in range(0, resamples, step):
        draws_RV = generator.integers(V, size=(min(step, resamples - start), V))
        sums_RV, sizes_RV = sample.sums_V[draws_RV], sample.sizes_V[draws_RV]
        totals_R = sizes_RV.sum(axis=1)
        means_R = sums_RV.sum(axis=1) / totals_R
        off_R = ((sums_RV - means_R[:, None] * sizes_RV) ** 2).sum(axis=1)
        errors_R = np.sqrt(V / (V - 1) * off_R) / totals_R
        kept_R = errors_R > 1e-9 * sample.error
        found.append((means_R[kept_R] - sample.mean) / errors_R[kept_R])
    return np.concatenate(found)


@lru_cache(maxsize=1024)
def _student_quantile(freedom: int, confidence: float) -> float:
    """Two-sided quantile of Student's t for whole degrees of freedom, at least 1 (Abramowitz and Stegun 1964, 26.7.3 to 26.7.5)."""
    freedom = max(1, freedom)
    if freedom > 200:
        z = NormalDist().inv_cdf((1 + confidence) / 2)
        return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    low, high = 0.0, 1e6
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _student_inside(middle, freedom) < confidence else (low, middle)
    return high


def _student_inside(t: float, freedom: int) -> float:
    """Probability that Student's t lies between -t and t."""
    angle = math.atan(t / math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term = total = (cosine if odd else 1.0) if freedom > 1 else 0.0
    for k in range(2 + odd, freedom - 1, 2):
        term *= cosine**2 * (k - 1) / k
        total += term
    return 2 / math.pi * (angle + sine * total) if odd else sine * total
