"""Scores with their uncertainty: exact match, multiple choice, clustered intervals, paired comparison."""

from pave.evaluation.metrics.answers import choice_letter, exact_match, normalize_answer, parse_choice
from pave.evaluation.metrics.intervals import Interval, accuracy_interval, difference_interval, mean_interval, wilson_interval
from pave.evaluation.metrics.paired import PairedComparison, compare_paired, mcnemar_exact
from pave.evaluation.metrics.score import Score, score_samples

__all__ = [
    "Interval",
    "PairedComparison",
    "Score",
    "accuracy_interval",
    "choice_letter",
    "compare_paired",
    "difference_interval",
    "exact_match",
    "mcnemar_exact",
    "mean_interval",
    "normalize_answer",
    "parse_choice",
    "score_samples",
    "wilson_interval",
]
