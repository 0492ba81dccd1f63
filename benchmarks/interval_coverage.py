"""How often 95 % intervals hold the truth, in simulations: the percentile bootstrap over videos, and the intervals of this library.

    python benchmarks/interval_coverage.py             # about ten minutes on one core
    python benchmarks/interval_coverage.py --quick     # fewer trials and settings, under a minute

An accuracy: every video has a difficulty of its own from a beta distribution with mean p, and its questions are answered right with that
chance. ``alike`` is the correlation of two answers about one video. A difference: of two runs on the same questions, ``only 1st`` and
``only 2nd`` are the shares that one alone has right, and vary by video likewise (Dirichlet). A mean of scores: exponential, times a factor of
the video. *before* is the usual choice, which this library made at first: percentiles over 1,000 resamples of videos, with Wilson's
interval over the videos where they had no width and the number was an accuracy. Widths are means, in points.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from pave.evaluation.metrics import Interval, accuracy_interval, difference_interval, mean_interval, wilson_interval

SIZES = ((10, 1), (20, 1), (10, 10), (20, 10), (50, 4), (100, 10), (300, 3))
RATES = (0.5, 0.7, 0.9, 0.95, 0.97, 0.99)
ALIKE = (0.0, 0.1, 0.3)
SHARES = ((0.0, 0.0), (0.005, 0.005), (0.02, 0.02), (0.01, 0.05), (0.05, 0.15), (0.2, 0.2))
RESAMPLES = 1_000
Pair = tuple[Interval, Interval]
"""Before, and now."""


def percentiles(values_VQ: np.ndarray, generator: np.random.Generator) -> Interval:
    """Of the mean over videos drawn with replacement."""
    means_V = values_VQ.mean(axis=1)
    drawn_R = means_V[generator.integers(len(means_V), size=(RESAMPLES, len(means_V)))].mean(axis=1)
    low, high = np.quantile(drawn_R, [0.025, 0.975])
    return Interval(float(low), float(high), "bootstrap")


def before(right_VQ: np.ndarray, generator: np.random.Generator) -> Interval:
    """Percentiles; Wilson's interval over videos where they have no width."""
    interval, videos = percentiles(right_VQ, generator), len(right_VQ)
    return interval if interval.high > interval.low else wilson_interval(float(right_VQ.mean()) * videos, videos)


def shares_of_videos(generator: np.random.Generator, shares: list[float], alike: float, videos: int) -> np.ndarray:
    """(V, number of shares): the shares in each video."""
    if not alike:
        return np.tile(shares, (videos, 1))
    weights = np.maximum(generator.standard_gamma(np.array(shares) * (1 - alike) / alike, size=(videos, len(shares))), 1e-300)
    return weights / weights.sum(axis=1, keepdims=True)


def line(label: str, truth: float, trials: int, draw: Callable[[], Pair]) -> None:
    """Draw both intervals again and again; print how often each held the truth and how wide it was."""
    pairs = [draw() for _ in range(trials)]
    held = [100 * np.mean([pair[i].low <= truth <= pair[i].high for pair in pairs]) for i in range(2)]
    widths = [100 * np.mean([pair[i].high - pair[i].low for pair in pairs]) for i in range(2)]
    print(f"{label} | {held[0]:5.1f} | {held[1]:5.1f} | {widths[0]:5.1f} | {widths[1]:5.1f} |", flush=True)


def header(columns: str) -> None:
    """Of a table."""
    names = [*columns.split(", "), "before holds", "now holds", "before width", "now width"]
    print(f"\n| {' | '.join(names)} |\n|{' --- |' * len(names)}")


def clusters_of(videos: int, questions: int) -> list[int]:
    """The video of every sample."""
    return [i for i in range(videos) for _ in range(questions)]


def draw_accuracy(generator: np.random.Generator, videos: int, questions: int, p: float, alike: float) -> Pair:
    """Of one run."""
    chance_V1 = shares_of_videos(generator, [p, 1 - p], alike, videos)[:, :1]
    right_VQ = (generator.random((videos, questions)) < chance_V1).astype(float)
    return before(right_VQ, generator), accuracy_interval(right_VQ.ravel().tolist(), clusters_of(videos, questions))


def draw_difference(generator: np.random.Generator, videos: int, questions: int, one: float, two: float, alike: float) -> Pair:
    """Of two runs on the same questions."""
    shares_V3 = shares_of_videos(generator, [one, two, 1 - one - two], alike, videos)
    chance_VQ = generator.random((videos, questions))
    only_first = chance_VQ < shares_V3[:, :1]
    only_second = ~only_first & (chance_VQ < shares_V3[:, :2].sum(axis=1, keepdims=True))
    first = (only_first | (~only_second & (generator.random((videos, questions)) < 0.5))).astype(float)
    second = np.where(only_first, 0.0, np.where(only_second, 1.0, first))
    now = difference_interval(first.ravel().tolist(), second.ravel().tolist(), clusters_of(videos, questions))
    return percentiles(second - first, generator), now


def draw_score(generator: np.random.Generator, videos: int, questions: int) -> Pair:
    """Of a mean of skewed scores."""
    values_VQ = generator.exponential(size=(videos, questions)) * generator.gamma(2, 0.5, size=(videos, 1))
    seed, clusters = int(generator.integers(2**31)), clusters_of(videos, questions)
    now = mean_interval(values_VQ.ravel().tolist(), clusters, seed=seed, resamples=RESAMPLES)
    return percentiles(values_VQ, generator), now


def tables(sizes: Sequence[tuple[int, int]], trials: int, generator: np.random.Generator) -> None:
    """Print all three."""
    header("videos, questions each, p, alike")
    for videos, questions in sizes:
        for p in RATES:
            for alike in ALIKE if questions > 1 else (0.0,):
                draw = partial(draw_accuracy, generator, videos, questions, p, alike)
                line(f"| {videos} | {questions} | {p} | {alike}", p, trials, draw)
    header("videos, questions each, only 1st, only 2nd, alike")
    for videos, questions in sizes:
        for one, two in SHARES:
            for alike in ALIKE if questions > 1 and two else (0.0,):
                draw = partial(draw_difference, generator, videos, questions, one, two, alike)
                line(f"| {videos} | {questions} | {one} | {two} | {alike}", two - one, trials, draw)
    header("videos, questions each, mean")
    for videos, questions in sizes:
        line(f"| {videos} | {questions} | 1", 1.0, trials, partial(draw_score, generator, videos, questions))


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer trials and settings")
    parser.add_argument("--trials", type=int, help="simulations a line; default 1,000, with --quick 200")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    trials = options.trials or (200 if options.quick else 1_000)
    sizes: Sequence[tuple[int, int]] = ((20, 1), (20, 10), (100, 10)) if options.quick else SIZES
    generator = np.random.default_rng(options.seed)
    tables(sizes, trials, generator)


if __name__ == "__main__":
    main()
