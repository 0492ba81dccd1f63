"""The exact McNemar test and the paired comparison."""

from fractions import Fraction
from math import comb

import pytest

from pave.evaluation.metrics import compare_paired, mcnemar_exact


def test_mcnemar_equals_the_binomial_sum():
    for only_first, only_second in [(0, 1), (1, 5), (5, 1), (3, 3), (2, 25), (40, 61), (0, 12)]:
        n, k = only_first + only_second, min(only_first, only_second)
        expected = min(Fraction(1), 2 * sum(Fraction(comb(n, i)) for i in range(k + 1)) / 2**n)
        assert mcnemar_exact(only_first, only_second) == pytest.approx(float(expected), rel=1e-9)


def test_mcnemar_known_cases():
    assert mcnemar_exact(0, 0) == 1.0
    assert mcnemar_exact(4, 4) == 1.0
    assert mcnemar_exact(0, 6) == pytest.approx(0.03125)
    assert 0 < mcnemar_exact(4000, 5000) < 1e-20
    with pytest.raises(ValueError, match="negative"):
        mcnemar_exact(-1, 2)


def test_compare_paired_counts_who_is_right_alone():
    first = [True, True, False, False, False, True]
    second = [True, False, True, True, False, True]
    comparison = compare_paired(first, second, list("abcdef"))
    assert (comparison.only_first, comparison.only_second) == (1, 2)
    assert comparison.difference == pytest.approx(1 / 6)
    assert comparison.p_value == 1.0
    assert comparison.interval.low <= comparison.difference <= comparison.interval.high


def test_equal_runs_do_not_differ():
    comparison = compare_paired([True, False] * 5, [True, False] * 5, list(range(10)))
    assert (comparison.difference, comparison.p_value) == (0.0, 1.0)
    assert comparison.interval.low == -comparison.interval.high < -0.1  # on ten videos; others may differ
    with pytest.raises(ValueError):
        compare_paired([True], [True, False], [1])


def test_scores_are_compared_by_their_means_and_by_how_often_one_is_higher():
    first, second = [0.1, 0.5, 0.9, 0.3], [0.4, 0.5, 0.8, 1.3]
    result = compare_paired(first, second, ["a", "b", "c", "d"])
    assert result.difference == pytest.approx(0.3) and (result.only_first, result.only_second) == (1, 2)
    assert result.p_value == mcnemar_exact(1, 2) == 1.0
    assert result.interval.low < 0.3 < result.interval.high
