"""Intervals against closed forms.

A bootstrap of n independent 0/1 values with k ones draws its mean from Binomial(n, k / n) / n exactly, so its percentiles
are binomial quantiles. Clusters of equal size with equal values inside behave the same with n = number of clusters.
"""

import math

import numpy as np
import pytest

from pave.evaluation.metrics import (
    Interval,
    accuracy_interval,
    difference_interval,
    intervals,
    mean_interval,
    score_samples,
    wilson_interval,
)


def binomial_quantile(n, p, q):
    total = 0.0
    for k in range(n + 1):
        total += math.comb(n, k) * p**k * (1 - p) ** (n - k)
        if total >= q:
            return k
    return n


@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    [
        # Newcombe 1998 (Statistics in Medicine 17:857), table I, method 3: the score interval without continuity correction
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_gives_published_values(correct, n, low, high):
    interval = wilson_interval(correct, n)
    assert interval.low == pytest.approx(low, abs=5e-5)
    assert interval.high == pytest.approx(high, abs=5e-5)
    mirrored = wilson_interval(n - correct, n)
    assert mirrored.low == pytest.approx(1 - interval.high) and mirrored.high == pytest.approx(1 - interval.low)


def test_wilson_solves_the_score_equation():
    """The ends p of the interval satisfy |k/n - p| = z sqrt(p (1 - p) / n)."""
    for k, n in ((7, 9), (30, 50), (499, 500)):
        interval = wilson_interval(k, n)
        for p in (interval.low, interval.high):
            assert abs(k / n - p) == pytest.approx(1.959963985 * math.sqrt(p * (1 - p) / n), rel=1e-6)


def test_wilson_without_trials_knows_nothing_and_refuses_impossible_counts():
    assert (wilson_interval(0, 0).low, wilson_interval(0, 0).high) == (0.0, 1.0)
    with pytest.raises(ValueError, match="4 of 3"):
        wilson_interval(4, 3)


@pytest.mark.parametrize(("k", "n"), [(30, 50), (90, 100), (3, 8)])
def test_bootstrap_of_single_samples_has_binomial_quantiles(k, n):
    interval = accuracy_interval([True] * k + [False] * (n - k), list(range(n)), resamples=40_000)
    assert interval.method == "bootstrap"
    assert abs(interval.low * n - binomial_quantile(n, k / n, 0.025)) <= 1
    assert abs(interval.high * n - binomial_quantile(n, k / n, 0.975)) <= 1


def test_samples_of_one_video_count_as_one():
    """Five equal answers per video carry no more information than one."""
    videos = [True] * 30 + [False] * 20
    single = accuracy_interval(videos, list(range(50)), seed=3)
    repeated = accuracy_interval([v for v in videos for _ in range(5)], [i for i in range(50) for _ in range(5)], seed=3)
    assert (repeated.low, repeated.high) == (single.low, single.high)
    ignoring = accuracy_interval([v for v in videos for _ in range(5)], list(range(250)), seed=3)
    assert ignoring.high - ignoring.low < 0.6 * (repeated.high - repeated.low)


def test_unequal_clusters_give_the_ratio_estimate():
    """Two clusters: every draw is one of AA, AB, BB with probabilities 1/4, 1/2, 1/4; the 2.5 % ends are the pure draws."""
    interval = accuracy_interval([True] * 3 + [False] * 7 + [True] * 2, ["a"] * 10 + ["b"] * 2)
    assert (interval.low, interval.high) == (pytest.approx(0.3), pytest.approx(1.0))


def test_no_false_certainty_where_all_are_right():
    interval = accuracy_interval([True] * 40, [i // 4 for i in range(40)])
    assert interval.method == "wilson"
    assert interval.high == 1.0
    assert interval.low == pytest.approx(wilson_interval(10, 10).low)


def test_the_seed_decides():
    generator = np.random.default_rng(0)
    correct = list(generator.random(300) < 0.7)
    clusters = [i // 3 for i in range(300)]
    one, same, other = (accuracy_interval(correct, clusters, seed=s, resamples=500) for s in (1, 1, 5))
    assert one == same and one != other
    assert abs(one.low - other.low) < 0.03


def test_chunks_do_not_change_the_result(monkeypatch):
    correct, clusters = [i % 3 > 0 for i in range(90)], [i // 2 for i in range(90)]
    whole = accuracy_interval(correct, clusters)
    monkeypatch.setattr("pave.evaluation.metrics.intervals._CHUNK_ENTRIES", 1000)
    assert accuracy_interval(correct, clusters) == whole


def test_the_interval_covers_the_truth_about_95_percent_of_the_time():
    """Videos of four samples that share a difficulty; the true accuracy is 0.6."""
    generator = np.random.default_rng(7)
    covered = 0
    for trial in range(300):
        difficulty = generator.beta(1.5, 1.0, size=80)
        correct = (generator.random((80, 4)) < difficulty[:, None]).reshape(-1)
        interval = accuracy_interval(list(correct), [i // 4 for i in range(320)], seed=trial, resamples=1000)
        covered += interval.low <= 0.6 <= interval.high
    assert 0.91 <= covered / 300 <= 0.98


def test_paired_difference_is_narrower_than_unpaired():
    generator = np.random.default_rng(1)
    hard = generator.random(400) < 0.5
    first = list(hard)
    second = [bool(h or (i % 10 == 0)) for i, h in enumerate(hard)]
    gain = np.mean(second) - np.mean(first)
    interval = difference_interval(first, second, list(range(400)))
    assert interval.low < gain < interval.high
    # the paired difference is 0/1 with mean `gain`: its standard error is known
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * math.sqrt(gain * (1 - gain) / 400), rel=0.1)
    flipped = difference_interval(second, first, list(range(400)))
    assert (flipped.low, flipped.high) == (pytest.approx(-interval.high), pytest.approx(-interval.low))


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="2 and 3 samples"):
        difference_interval([True, False], [True, False, True], [1, 2])
    with pytest.raises(ValueError, match="one cluster id per value"):
        accuracy_interval([True, False], [1])


def test_a_score_counts_failures_as_wrong():
    score = score_samples([True, False, False, True], [True, True, False, True], ["a", "b", "c", "d"])
    assert (score.n_correct, score.n_scored, score.n_expected, score.accuracy) == (2, 3, 4, 0.5)
    with pytest.raises(ValueError, match="cannot be correct"):
        score_samples([True], [False], ["a"])
    assert score_samples([], [], []).accuracy == 0.0


def test_many_clusters_have_the_interval_of_few(monkeypatch):
    """Drawn by kind of cluster or one by one: one distribution."""
    generator = np.random.default_rng(3)
    sizes = generator.integers(1, 4, 3000)
    clusters = np.repeat(np.arange(3000), sizes)
    right = (generator.random(len(clusters)) < 0.3).astype(float)
    by_kind = accuracy_interval(right.tolist(), clusters.tolist())
    monkeypatch.setattr(intervals, "MANY_CLUSTERS", 10_000)
    one_by_one = accuracy_interval(right.tolist(), clusters.tolist())
    assert by_kind != one_by_one
    assert (by_kind.low, by_kind.high) == pytest.approx((one_by_one.low, one_by_one.high), abs=0.001)
    assert by_kind.high - by_kind.low == pytest.approx(2 * 1.96 * 0.46 / len(right) ** 0.5, rel=0.05)


def test_the_mean_of_scores_is_between_its_ends_and_has_no_width_without_spread():
    values, clusters = [0.2, 1.4, 0.9, 0.1, 2.0, 0.6], ["a", "a", "b", "b", "c", "c"]
    interval = mean_interval(values, clusters)
    assert interval.low == pytest.approx(0.5) and interval.high == pytest.approx(1.3) and interval.method == "bootstrap"
    assert mean_interval([0.5] * 6, clusters) == Interval(0.5, 0.5, "bootstrap")


def test_weights_are_those_of_the_mean():
    """Twice the weight is twice the sample, if both lie in one cluster."""
    weighted = mean_interval([0.2, 1.4, 0.9], ["a", "b", "c"], weights=[2.0, 1.0, 1.0])
    assert weighted == mean_interval([0.2, 0.2, 1.4, 0.9], ["a", "a", "b", "c"])
    assert accuracy_interval([1, 1], ["a", "b"], weights=[0.2, 0.3]) == accuracy_interval([1, 1], ["a", "b"])
