"""Is one run better than another on the same samples?"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from pave.evaluation.metrics.intervals import RESAMPLES, Interval, difference_interval


@dataclass(frozen=True)
class PairedComparison:
    """Two runs on the same samples."""

    difference: float
    """Accuracy (or mean score) of the second run minus that of the first."""
    interval: Interval
    """95 % interval of the difference, clustered by video."""
    only_first: int
    """Samples that only the first run has right."""
    only_second: int
    """Samples that only the second run has right. With scores: on which it has the higher one; only_first likewise."""
    p_value: float
    """Exact two-sided McNemar test (with scores, that is the sign test). It takes the samples as independent; trust the interval where many share a video."""


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Two-sided p-value of the exact McNemar test (McNemar 1947): a binomial test of the disagreements against 1/2."""
    if only_first < 0 or only_second < 0:
        raise ValueError(f"mcnemar_exact: counts must not be negative, got {only_first} and {only_second}")
    n, k = only_first + only_second, min(only_first, only_second)
    term = total = 1
    for i in range(k):
        term = term * (n - i) // (i + 1)
        total += term
    return float(min(1.0, math.exp(math.log(total) - (n - 1) * math.log(2)))) if n else 1.0


def compare_paired(
    first: Sequence[float],
    second: Sequence[float],
    clusters: Sequence[Hashable],
    *,
    weights: Sequence[float] | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> PairedComparison:
    """Compare two runs sample by sample.

    Args:
        first: per sample, whether the first run has it right (True or 1), or its score.
        second: the same for the second run, in the same order.
        clusters: per sample the id of its video.
        weights: per sample, of the means; the counts and the test do not know them.
        seed: of the bootstrap of scores; right and wrong need none.
        resamples: its draws.

    Raises:
        ValueError: if the lengths differ.
    """
    interval = difference_interval(first, second, clusters, weights=weights, seed=seed, resamples=resamples)
    only_first = sum(a > b for a, b in zip(first, second, strict=True))
    only_second = sum(b > a for a, b in zip(first, second, strict=True))
    weight = [1.0] * len(first) if weights is None else weights
    total = math.fsum(w * (b - a) for a, b, w in zip(first, second, weight, strict=True))
    difference = total / math.fsum(weight) if len(first) else 0.0
    return PairedComparison(difference, interval, only_first, only_second, mcnemar_exact(only_first, only_second))
