"""Which frames a sampling takes, checked against its definition in exact numbers."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pave.data.media import FrameSampling
from pave.data.media.sampling import choose_frames

TENTH = Fraction(1, 10)


def choose(ticks, end, sampling, tick=TENTH):
    return choose_frames(ticks, end, tick, sampling)


def test_centres_of_equal_intervals():
    ticks = list(range(10))
    assert choose(ticks, 10, FrameSampling(num_frames=5)) == ([1, 3, 5, 7, 9], 5)  # on screen at 0.1, 0.3, ... s
    assert choose(ticks, 10, FrameSampling(num_frames=3)) == ([1, 5, 8], 3)  # 0.1667, 0.5, 0.8333 s
    assert choose(ticks, 10, FrameSampling(num_frames=1)) == ([5], 1)
    assert choose(ticks, 10, FrameSampling(num_frames=10)) == (list(range(10)), 10)


def test_a_frame_that_lasts_long_is_taken_once():
    ticks = [0, 10, 11, 12, 13]
    assert choose(ticks, 14, FrameSampling(num_frames=4))[0] == [0, 1, 2, 3]  # centres 1.75, 5.25, 8.75, 12.25
    assert choose([0, 1, 2, 3, 13], 14, FrameSampling(num_frames=4))[0] == [1, 2, 3, 4]  # 1.75, 5.25, 8.75, 12.25


@pytest.mark.parametrize(("count", "total"), [(4, 13), (32, 100), (8, 8), (1, 7), (7, 8)])
def test_endpoints_are_the_published_indices(count, total):
    expected = np.linspace(0, total - 1, count, dtype=int).tolist()
    assert choose(list(range(total)), total, FrameSampling(num_frames=count, spacing="endpoints"))[0] == expected


def test_frames_per_second():
    ticks = list(range(30))
    assert choose(ticks, 30, FrameSampling(fps=2)) == ([0, 5, 10, 15, 20, 25], 6)
    assert choose(ticks, 30, FrameSampling(fps=10)) == (ticks, 30)
    assert choose(ticks, 30, FrameSampling(fps=25)) == (ticks, 75)
    assert choose(ticks, 30, FrameSampling(fps=0.1)) == ([0], 1)
    assert choose([0, 3, 4, 9, 10, 22], 23, FrameSampling(fps=2))[0] == [0, 2, 4, 5]  # nearest to 0, 5, 10, 15, 20
    assert choose([0, 10], 20, FrameSampling(fps=1, start=0.5))[0] == [0, 1]  # 5 is as near to 0 as to 10: the earlier
    # Millisecond stamps of a 30 Hz video at its own rate: rounding loses no frame.
    assert len(choose([round(i * 1000 / 30) for i in range(90)], 3000, FrameSampling(fps=30), Fraction(1, 1000))[0]) == 90


def test_windows():
    ticks = [100 + i for i in range(50)]  # a video whose first time stamp is not zero
    assert choose(ticks, 150, FrameSampling(fps=10, start=1.0, end=1.5))[0] == [10, 11, 12, 13, 14]
    assert choose(ticks, 150, FrameSampling(start=1.05, end=1.5))[0] == [10, 11, 12, 13, 14]
    assert choose(ticks, 150, FrameSampling(num_frames=2, start=4.0, end=99))[0] == [42, 47]
    assert choose(ticks, 150, FrameSampling(num_frames=9, start=4.8)) == ([48, 49], 9)
    with pytest.raises(ValueError, match=r"starts at 5\.0 s but the video lasts 5 s"):
        choose(ticks, 150, FrameSampling(num_frames=2, start=5.0))


def test_limits():
    ticks = list(range(100))
    assert choose(ticks, 100, FrameSampling(fps=1, max_frames=10)) == (list(range(0, 100, 10)), 10)
    assert choose(ticks, 100, FrameSampling(fps=1, max_frames=5)) == ([10, 30, 50, 70, 90], 5)
    assert choose(ticks, 100, FrameSampling(max_frames=4)) == ([12, 37, 62, 87], 4)
    assert choose(ticks, 100, FrameSampling()) == (ticks, 100)


@given(
    steps=st.lists(st.integers(1, 50), min_size=1, max_size=60),
    first=st.integers(-1000, 1000),
    count=st.integers(1, 80),
    spacing=st.sampled_from(["centres", "endpoints"]),
    window=st.tuples(st.floats(0, 30), st.floats(0.01, 30)),
)
def test_as_many_distinct_frames_as_asked_for_or_all(steps, first, count, spacing, window):
    ticks = [first, *(first + int(t) for t in np.cumsum(steps))]
    end = ticks[-1] + 5
    start, length = window
    if start >= (end - first) / 10:
        return
    sampling = FrameSampling(num_frames=count, spacing=spacing, start=start, end=start + length)
    chosen, asked = choose(ticks, end, sampling)
    everything, _ = choose(ticks, end, FrameSampling(start=start, end=start + length))
    assert asked == count
    assert len(chosen) == min(count, len(everything))
    assert set(chosen) <= set(everything)
    assert (np.diff(chosen) > 0).all()
    first_end = ticks[everything[0] + 1] if everything[0] + 1 < len(ticks) else end
    assert (first_end - first) / 10 > start - 1e-5
    assert (ticks[everything[-1]] - first) / 10 < start + length + 1e-5


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_frames": 0}, "num_frames must be at least 1, got 0"),
        ({"num_frames": 4, "fps": 1}, "num_frames cannot be combined"),
        ({"fps": 0}, "fps must be above 0"),
        ({"fps": 1e9}, "at most 1000"),
        ({"max_frames": -1}, "max_frames must be at least 1"),
        ({"start": -1}, "start must be"),
        ({"start": float("nan")}, "start must be"),
        ({"start": 2, "end": 1}, "must come after"),
    ],
)
def test_options_are_checked(options, words):
    with pytest.raises(ValueError, match=words):
        FrameSampling(**options)


def test_options_from_a_recipe_are_strict():
    assert FrameSampling.from_dict({"num_frames": 8}) == FrameSampling(num_frames=8)
    with pytest.raises(ValueError, match="did you mean 'num_frames'"):
        FrameSampling.from_dict({"num_frame": 8})
