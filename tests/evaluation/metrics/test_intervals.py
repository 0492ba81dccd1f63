"""Intervals against closed forms, written out here for one sample a video and for clusters by hand, and how often they hold the truth."""

import math

import numpy as np
import pytest

from pave.evaluation.metrics import (
    Interval,
    accuracy_interval,
    difference_interval,
    mean_interval,
    score_samples,
    wilson_interval,
)

# Two-sided 95 % quantiles of Student's t, as in printed tables, by degrees of freedom
STUDENT = {1: 12.7062, 2: 4.3027, 3: 3.1824, 7: 2.3646, 9: 2.2622, 10: 2.2281, 19: 2.0930, 49: 2.0096, 99: 1.9842, 399: 1.9659}


def wilson_by_hand(p, n, t):
    """The two rates whose distance from p is t of their own standard errors, found by halving."""

    def end(low, high, rising):
        for _ in range(100):
            middle = (low + high) / 2
            outside = abs(middle - p) > t * math.sqrt(middle * (1 - middle) / n)
            low, high = (middle, high) if outside == rising else (low, middle)
        return (low + high) / 2

    return end(0.0, p, True), end(p, 1.0, False)


def worth(rows, rate, variance):
    """Independent samples that rows (the values of a video each, all of one size) are worth."""
    videos, size = len(rows), len(rows[0])
    means = [sum(row) / size for row in rows]
    between = sum((m - sum(means) / videos) ** 2 for m in means) / (videos - 1) / videos
    n = videos * size
    told = n * rate
    effect = (told * max(1.0, between / (variance / n)) + size) / (told + 1)
    return n / effect


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


@pytest.mark.parametrize(("k", "n"), [(5, 8), (47, 50), (300, 400), (0, 20), (100, 100)])
def test_single_samples_have_wilsons_interval_with_students_quantile(k, n):
    """One sample a video: the design effect is n / (n - 1), the share of the variance that a mean of its own takes."""
    interval = accuracy_interval([True] * k + [False] * (n - k), list(range(n)))
    told = min(k, n - k)
    count = n / ((told * n / (n - 1) + 1) / (told + 1))
    low, high = wilson_by_hand(k / n, count, STUDENT[n - 1])
    assert interval.method == "wilson"
    assert (interval.low, interval.high) == (pytest.approx(low, abs=2e-5), pytest.approx(high, abs=2e-5))


def test_clusters_are_worth_fewer_samples():
    rows = [[1, 1, 1, 1], [1, 1, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 1, 0], [1, 1, 1, 1], [0, 0, 0, 0], [1, 1, 0, 1]]
    flat, videos = [v for row in rows for v in row], [i for i in range(8) for _ in range(4)]
    p = sum(flat) / 32
    count = worth(rows, min(p, 1 - p), p * (1 - p))
    assert 8 < count < 12  # answers about one video are nearly the same
    low, high = wilson_by_hand(p, count, STUDENT[7])
    interval = accuracy_interval(flat, videos)
    assert (interval.low, interval.high) == (pytest.approx(low, abs=2e-5), pytest.approx(high, abs=2e-5))
    mirrored = accuracy_interval([1 - v for v in flat], videos)
    assert (mirrored.low, mirrored.high) == (pytest.approx(1 - interval.high), pytest.approx(1 - interval.low))


def test_videos_that_are_more_alike_than_chance_make_no_surer():
    """Three of four right in every video: nothing varies between videos, and the answers are worth no more than independent ones."""
    interval = accuracy_interval([1, 1, 1, 0] * 8, [i for i in range(8) for _ in range(4)])
    count = worth([[1, 1, 1, 0]] * 8, 1 / 4, 3 / 16)
    assert count < 32
    low, high = wilson_by_hand(0.75, count, STUDENT[7])
    assert (interval.low, interval.high) == (pytest.approx(low, abs=2e-5), pytest.approx(high, abs=2e-5))


def test_samples_of_one_video_count_as_one():
    """Five equal answers per video carry about as much information as one."""
    videos = [True] * 30 + [False] * 20
    single = accuracy_interval(videos, list(range(50)))
    repeated = accuracy_interval([v for v in videos for _ in range(5)], [i for i in range(50) for _ in range(5)])
    assert (repeated.low, repeated.high) == (pytest.approx(single.low, abs=2e-3), pytest.approx(single.high, abs=2e-3))
    ignoring = accuracy_interval([v for v in videos for _ in range(5)], list(range(250)))
    assert ignoring.high - ignoring.low < 0.6 * (repeated.high - repeated.low)


def test_where_all_are_right_the_samples_of_a_video_count_as_one():
    interval = accuracy_interval([True] * 40, [i // 4 for i in range(40)])
    assert (interval.high, interval.method) == (1.0, "wilson")
    assert interval.low == pytest.approx(10 / (10 + STUDENT[9] ** 2), abs=1e-5)
    one_wrong = accuracy_interval([True] * 39 + [False], [i // 4 for i in range(40)])
    count = worth([[1] * 4] * 9 + [[1, 1, 1, 0]], 1 / 40, 39 / 1600)
    assert count == pytest.approx(16, abs=0.2)  # half way between a design effect of 1 and one of 4
    assert one_wrong.low == pytest.approx(wilson_by_hand(39 / 40, count, STUDENT[9])[0], abs=2e-5)


def test_one_video_and_no_video_tell_next_to_nothing():
    assert accuracy_interval([], []) == Interval(0.0, 1.0, "wilson")
    assert difference_interval([], [], []) == Interval(-1.0, 1.0, "agresti-min")
    one = accuracy_interval([1, 1, 1, 0], ["a"] * 4)
    assert one.low < 0.01 and one.high > 0.99


@pytest.mark.parametrize(
    ("videos", "questions", "p", "alike"),
    [(20, 10, 0.95, 0.1), (20, 10, 0.95, 0.3), (10, 10, 0.7, 0.3), (100, 10, 0.97, 0.3), (80, 4, 0.6, 0.2), (20, 1, 0.9, 0.0)],
)
def test_accuracies_and_differences_hold_the_truth_19_times_of_20(videos, questions, p, alike):
    """Videos with a difficulty of their own; among them the settings in which the bootstrap held it 85 times of 100. The second run is
    the first but where one question in ten is answered anew."""
    generator = np.random.default_rng(5)
    clusters, trials = [i for i in range(videos) for _ in range(questions)], 600
    held = [0, 0]
    for _ in range(trials):
        spread = (1 - alike) / alike if alike else 1e9
        easy = generator.beta(p * spread, (1 - p) * spread, size=(videos, 1)).repeat(questions, 1)
        first = generator.random((videos, questions)) < easy
        second = np.where(generator.random((videos, questions)) < 0.1, generator.random((videos, questions)) < easy, first)
        own = accuracy_interval(first.ravel().tolist(), clusters)
        both = difference_interval(first.ravel().tolist(), second.ravel().tolist(), clusters)
        held[0] += own.low <= p <= own.high
        held[1] += both.low <= 0 <= both.high
    assert min(held) >= 0.935 * trials


def test_a_difference_is_that_of_agresti_and_min():
    """Two samples are added, one for each run; the counts are divided by the design effect."""
    first = [1, 1, 1, 0] + [1] * 12 + [0] * 4
    second = [1, 0, 1, 1] + [1] * 12 + [1, 0, 1, 1]
    rows = [[b - a] for a, b in zip(first, second, strict=True)]
    share, gain = 5 / 20, 3 / 20
    n = worth(rows, share, share - gain**2)
    only_first, only_second = n * 1 / 20 + 0.5, n * 4 / 20 + 0.5
    centre = (only_second - only_first) / (n + 2)
    half = STUDENT[19] * math.sqrt(only_first + only_second - (only_second - only_first) ** 2 / (n + 2)) / (n + 2)
    interval = difference_interval(first, second, list(range(20)))
    assert (interval.low, interval.high) == (pytest.approx(centre - half, abs=2e-5), pytest.approx(centre + half, abs=2e-5))
    assert interval.method == "agresti-min"
    flipped = difference_interval(second, first, list(range(20)))
    assert (flipped.low, flipped.high) == (pytest.approx(-interval.high), pytest.approx(-interval.low))


def test_runs_that_agree_on_every_sample_may_differ_on_others():
    """Of 10 videos with 4 questions: as of 10 questions."""
    interval = difference_interval([1, 0, 1, 1] * 10, [1, 0, 1, 1] * 10, [i // 4 for i in range(40)])
    assert (interval.low, interval.high) == (
        pytest.approx(-STUDENT[9] / 12, abs=2e-5),
        pytest.approx(STUDENT[9] / 12, abs=2e-5),
    )
    wrong = difference_interval([0] * 40, [0] * 40, [i // 4 for i in range(40)])
    assert wrong == interval
    everywhere = difference_interval([0] * 20, [1] * 20, list(range(20)))
    assert everywhere.high == 1 and 0.6 < everywhere.low < 0.95
    scores = difference_interval([0.2, 0.5, 0.8], [0.2, 0.5, 0.8], ["a", "b", "c"])
    assert (scores.low, scores.high) == (
        pytest.approx(-0.8 * STUDENT[2] / 5, abs=2e-5),
        pytest.approx(0.8 * STUDENT[2] / 5, abs=2e-5),
    )


def test_paired_difference_is_narrower_than_unpaired():
    generator = np.random.default_rng(1)
    hard = generator.random(400) < 0.5
    first = list(hard)
    second = [bool(h or (i % 10 == 0)) for i, h in enumerate(hard)]
    gain = np.mean(second) - np.mean(first)
    interval = difference_interval(first, second, list(range(400)))
    assert interval.low < gain < interval.high
    # the paired difference is 0/1 with mean `gain`: its standard error is known
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * math.sqrt(gain * (1 - gain) / 400), rel=0.15)


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


def test_scores_have_at_least_students_interval_and_lean_to_where_they_are_skewed():
    values = [0.0, 0.1, 0.0, 0.2, 0.1, 3.0, 0.0, 0.3]
    mean, error = np.mean(values), np.std(values, ddof=1) / 8**0.5
    interval = mean_interval(values, list(range(8)))
    assert interval.method == "bootstrap" and interval.low == 0  # no score is negative
    assert interval.high > mean + STUDENT[7] * error + 0.5
    mirrored = mean_interval([-v for v in values], list(range(8)))
    assert mirrored.low == pytest.approx(-interval.high, abs=0.5) and mirrored.high == pytest.approx(
        mean * -1 + STUDENT[7] * error, rel=1e-3
    )


def test_the_seed_decides_and_chunks_do_not(monkeypatch):
    generator = np.random.default_rng(0)
    values, clusters = list(generator.exponential(size=90)), [i // 3 for i in range(90)]
    one, same, other = (mean_interval(values, clusters, seed=s, resamples=500) for s in (1, 1, 5))
    assert one == same and one != other and abs(one.high - other.high) < 0.1
    whole = mean_interval(values, clusters)
    monkeypatch.setattr("pave.evaluation.metrics.intervals._CHUNK_ENTRIES", 1000)
    assert mean_interval(values, clusters) == whole


def test_many_videos_need_no_bootstrap():
    values = list(np.random.default_rng(3).exponential(size=800))
    interval = mean_interval(values, [i // 2 for i in range(800)])
    pairs = np.reshape(values, (400, 2)).mean(1)
    half = STUDENT[399] * pairs.std(ddof=1) / 20
    assert interval.method == "student"
    assert (interval.low, interval.high) == (
        pytest.approx(pairs.mean() - half, abs=1e-4),
        pytest.approx(pairs.mean() + half, abs=1e-4),
    )


def test_skewed_scores_hold_the_truth_more_often_than_percentiles_did():
    """Of 20 videos with exponential scores: 92 of 100, percentiles of the bootstrap 86."""
    generator = np.random.default_rng(11)
    held = 0
    for trial in range(300):
        values = generator.exponential(size=20) * generator.gamma(2, 0.5, size=20)
        interval = mean_interval(values.tolist(), list(range(20)), seed=trial, resamples=400)
        held += interval.low <= 1 <= interval.high
    assert held >= 0.9 * 300


def test_equal_scores_have_the_width_of_what_was_not_seen():
    assert mean_interval([0.5] * 6, ["a", "a", "b", "b", "c", "c"]) == Interval(
        pytest.approx(0.5 - 0.5 * STUDENT[2] / 5, abs=2e-5), pytest.approx(0.5 + 0.5 * STUDENT[2] / 5, abs=2e-5), "student"
    )
    nothing = mean_interval([0.0] * 20, list(range(20)))
    assert nothing.low == 0 and nothing.high == pytest.approx(STUDENT[19] / 22, abs=1e-5)


def test_weights_are_those_of_the_mean():
    """Twice the weight is twice the sample, if both lie in one cluster."""
    weighted = mean_interval([0.2, 1.4, 0.9], ["a", "b", "c"], weights=[2.0, 1.0, 1.0])
    assert weighted == mean_interval([0.2, 0.2, 1.4, 0.9], ["a", "a", "b", "c"])
    assert accuracy_interval([1, 1], ["a", "b"], weights=[0.3, 0.3]) == accuracy_interval([1, 1], ["a", "b"])
    heavy = accuracy_interval([1, 0, 0], ["a", "b", "c"], weights=[4.0, 1.0, 1.0])
    assert heavy.low < 4 / 6 < heavy.high and heavy.high - heavy.low > 0.9
