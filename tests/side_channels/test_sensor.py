"""Windows of sensor readings: every number by hand, gaps that stay gaps, and times that are those of the readings."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pave.config import EncoderConfig
from pave.side_channels import SideEncoder, build_encoder
from pave.side_channels.sensor import STATISTICS, SensorSeries, SensorWindows

NAN = math.nan


def series(times, *columns, names=None):
    return SensorSeries(
        np.array(columns, dtype=float).T.reshape(len(times), len(columns)),
        np.array(times),
        names or tuple("abc"[: len(columns)]),
    )


def test_the_numbers_of_a_window_are_those_of_numpy():
    times, values = [0.1, 0.2, 0.7, 0.95], [1.0, 4.0, 2.0, -3.0]
    features = SensorWindows(columns=["a"]).encode(series(times, values))
    assert features.times_K.tolist() == [0.5]
    expected = [1.0, np.std(values), -3.0, 4.0, np.polyfit(times, values, 1)[0], -3.0, 1.0]
    np.testing.assert_allclose(features.features_KMC[0, 0], expected, rtol=1e-6)


def test_windows_lie_on_a_grid_of_the_video_clock():
    """Uneven readings before and after the first frame; one on a border belongs to the window that begins there."""
    read = series([-1.5, -0.2, 0.0, 0.3, 2.0, 2.5], [1, 2, 3, 4, 5, 6])
    features = SensorWindows(columns=["a"], statistics=["min", "max"]).encode(read)
    assert features.times_K.tolist() == [-1.5, -0.5, 0.5, 2.5]  # nothing between 1 s and 2 s
    assert features.features_KMC[:, 0].tolist() == [[1, 1], [2, 2], [3, 4], [5, 6]]


def test_windows_overlap():
    read = series([0.25, 0.75, 1.25], [1, 2, 4])
    features = SensorWindows(columns=["a"], stride_seconds=0.5, statistics=["mean", "slope"]).encode(read)
    assert features.times_K.tolist() == [0.0, 0.5, 1.0, 1.5]
    np.testing.assert_allclose(features.features_KMC[:, 0], [[1, 0], [1.5, 2], [3, 4], [4, 0]])


def test_a_decimal_stride_does_not_lose_a_reading_to_rounding():
    """0.3 / 0.1 is 2.9999999999999996."""
    times = [round(0.1 * i, 1) for i in range(100)]
    features = SensorWindows(columns=["a"], window_seconds=0.1, statistics=["last"]).encode(series(times, range(100)))
    assert features.features_KMC.flatten().tolist() == list(range(100))
    np.testing.assert_allclose(features.times_K, 0.05 + 0.1 * np.arange(100))


def test_gaps_stay_gaps():
    read = series([0.1, 0.6, 1.5, 2.1, 2.2, 3.5], [1, 3, NAN, 7, NAN, NAN], [NAN, NAN, NAN, 5, 9, 2])
    only_mean = SensorWindows(columns=["a"], statistics=["mean"]).encode(read)
    assert only_mean.times_K.tolist() == [0.5, 2.5]
    assert only_mean.features_KMC.flatten().tolist() == [2, 7]
    both = SensorWindows(columns=["a", "b"], statistics=["mean"]).encode(read)
    assert both.times_K.tolist() == [2.5]  # the only window with values of both
    assert both.features_KMC[0, 0].tolist() == [7, 7]
    shares = SensorWindows(columns=["a", "b"], statistics=["mean", "share"]).encode(read)
    assert shares.times_K.tolist() == [0.5, 2.5, 3.5]  # 1.5 has no value at all
    assert shares.features_KMC[:, 0].tolist() == [[2, 1, 0, 0], [7, 0.5, 7, 1], [0, 0, 2, 1]]


def test_a_series_without_values_has_no_step():
    encoder = SensorWindows(columns=["a"])
    for empty in (series([], []), series([1.0, 2.0], [NAN, NAN])):
        features = encoder.encode(empty)
        assert features.features_KMC.shape == (0, 1, 7) and features.times_K.shape == (0,)


def test_columns_are_chosen_and_standardised():
    read = series([0.1, 0.9], [10, 14], [1, 3])
    encoder = SensorWindows(columns=["b", "a"], statistics=["mean", "slope"], mean=[2, 10], scale=[0.5, 4])
    np.testing.assert_allclose(encoder.encode(read).features_KMC[0, 0], [0, 2 / 0.8 / 0.5, 0.5, 4 / 0.8 / 4], rtol=1e-6)
    with pytest.raises(ValueError, match="there is no column 'z'; there are 'a', 'b'"):
        SensorWindows(columns=["z"]).encode(read)


def test_an_offset_moves_the_readings_before_they_meet_the_grid():
    read = series([0.1, 0.2, 1.1], [1, 2, 3])
    moved = SensorWindows(columns=["a"], offset_seconds=0.85).encode(read)
    by_hand = SensorWindows(columns=["a"]).encode(series([0.95, 1.05, 1.95], [1, 2, 3]))
    torch.testing.assert_close(moved.features_KMC, by_hand.features_KMC)
    assert moved.times_K.tolist() == by_hand.times_K.tolist() == [0.5, 1.5]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-50, 50), min_size=1, max_size=40, unique=True),
    st.floats(0.05, 4),
    st.floats(0.2, 1),
)
def test_every_window_says_what_its_own_readings_are(times, window, part):
    times = np.sort(np.array(times))
    times = times[np.append(True, np.diff(times) > 1e-6)]
    encoder = SensorWindows(
        columns=["a"], window_seconds=window, stride_seconds=window * part, statistics=["min", "max", "last"]
    )
    features = encoder.encode(series(times, np.arange(len(times))))
    heard = set()
    for (low, high, last), centre in zip(features.features_KMC[:, 0].tolist(), features.times_K.tolist(), strict=True):
        inside = np.flatnonzero(np.abs(times - centre) <= window / 2 + 1e-6)
        sure = np.flatnonzero(np.abs(times - centre) < window / 2 - 1e-6)
        assert inside[0] <= low <= (sure[0] if len(sure) else inside[-1])
        assert (sure[-1] if len(sure) else inside[0]) <= high <= inside[-1] and high == last
        heard |= set(range(int(low), int(high) + 1))
    assert heard == set(range(len(times)))


def test_the_spec_rebuilds_the_encoder():
    encoder = build_encoder(EncoderConfig(name="sensor_windows", settings={"columns": ["a", 1], "scale": [2, 3]}))
    assert isinstance(encoder, SideEncoder)
    assert (encoder.source, encoder.sample_rate, encoder.tokens_per_step, encoder.width) == ("sensor", None, 1, 14)
    spec = encoder.spec()
    assert spec.settings["columns"] == ["a", "1"] and spec.settings["statistics"] == list(STATISTICS)
    again = build_encoder(EncoderConfig.from_dict(spec.to_dict()))
    assert again.spec() == spec and again.to("cpu") is again
    read = series([0.0, 0.5, 2.0], [1, 2, 3], [5, 4, NAN], names=("a", "1"))
    for one, two in zip(encoder.encode_batch([read, read]), again.encode_batch([read, read]), strict=True):
        torch.testing.assert_close(one.features_KMC, two.features_KMC, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"columns": []}, "at least one column and none twice"),
        ({"columns": ["a", "a"]}, "none twice"),
        ({"time_column": "a"}, "time column 'a' is also among the columns"),
        ({"window_seconds": 0}, "window_seconds must be a positive number, got 0"),
        ({"stride_seconds": 2.0}, "stride_seconds must be at most the window of 1 s, so that no reading is left out"),
        ({"stride_seconds": 1e-6}, "at least a thousandth"),
        ({"statistics": ["median"]}, "statistics must be some of mean, std"),
        ({"time_unit": "h"}, "time_unit must be one of s, ms, us, ns, auto, got 'h'"),
        ({"zero": "last"}, "zero must be 'clock' or 'first', got 'last'"),
        ({"unsorted": "drop"}, "unsorted must be 'error' or 'sort', got 'drop'"),
        ({"rate": 0}, "rate must be a positive number"),
        ({"offset_seconds": NAN}, "must be finite"),
        ({"mean": [1, 2]}, "mean must be a list of 1 numbers"),
        ({"scale": [0]}, r"every scale must be above 0, got \[0.0\]"),
    ],
)
def test_settings_are_checked(changes, words):
    with pytest.raises(ValueError, match=f"sensor_windows: .*{words}"):
        SensorWindows(**{"columns": ["a"], **changes})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((np.zeros((2, 1)), np.zeros(3), ("a",)), r"\(3,\) times do not fit values of shape \(2, 1\)"),
        ((np.zeros((2, 2)), np.arange(2), ("a",)), "2 columns need as many different names"),
        ((np.array([1.0, math.inf]), np.arange(2), ("a",)), "the value of 'a' in reading 1 is infinite"),
        ((np.zeros(2), np.array([0.0, NAN]), ("a",)), "the time of reading 1 is not a finite number"),
        ((np.zeros(3), np.array([0.0, 2.0, 1.0]), ("a",)), "reading 2 at 1 s comes after reading 1 at 2 s"),
        ((np.zeros(2), np.array([1.0, 1.0]), ("a",)), "times must ascend.*unsorted: sort"),
    ],
)
def test_bad_series_are_refused(arguments, words):
    with pytest.raises(ValueError, match=f"SensorSeries: .*{words}"):
        SensorSeries(*arguments)
