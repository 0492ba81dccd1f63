"""Frequencies of readings: known sines against numpy, at even and uneven times, with gaps, noise and slow sensors."""

import math

import numpy as np
import pytest

from pave.config import EncoderConfig
from pave.side_channels import build_encoder
from pave.side_channels.sensor import EVERY_STATISTIC, SensorSeries, SensorWindows
from pave.side_channels.spectrum import BANDS, Spectrum

NAN = math.nan


def one_second(hertz, rate=100, seconds=2.0, phase=0.3):
    times = np.arange(0, seconds, 1 / rate)
    return times, 3 + 2 * np.sin(2 * np.pi * hertz * times + phase)


def by_numpy(times, values, window):
    """numpy's FFT, zero-padded to the same frequencies; only for even times."""
    rate, n = 1 / (times[1] - times[0]), len(times)
    taper = np.hanning(n + 2)[1:-1]
    tapered = taper * (values - np.average(values, weights=taper))
    padded = round(2 * window * rate)
    power = np.abs(np.fft.rfft(tapered, padded)) ** 2
    frequencies = np.fft.rfftfreq(padded, 1 / rate)
    inside = (frequencies >= BANDS[0]) & (frequencies < BANDS[-1])
    return frequencies[inside], power[inside]


@pytest.mark.parametrize("hertz", [0.7, 1.0, 3.2, 5.0, 12.0, 31.0])
def test_the_numbers_of_a_sine_are_those_of_numpys_fft(hertz):
    times, values = one_second(hertz)
    found = Spectrum(2.0, BANDS).describe(times, values)
    frequencies, power = by_numpy(times, values, 2.0)
    np.testing.assert_allclose(found["centroid"], [power @ np.log2(frequencies) / power.sum()], rtol=1e-6)
    np.testing.assert_allclose(found["peak"], [np.log2(frequencies[power.argmax()])])
    shares, _ = np.histogram(frequencies, BANDS, weights=power / power.sum())
    np.testing.assert_allclose(found["bands"], shares, atol=1e-9)
    assert abs(2 ** found["peak"][0] - hertz) <= 0.25  # as fine as a window of 2 s tells
    assert abs(found["crossings"][0] - 2 * hertz) <= 1.0  # one crossing more or less in 2 s, at either end
    if hertz not in BANDS:  # a frequency on an edge goes to both sides
        assert np.argmax(found["bands"]) == np.searchsorted(BANDS, hertz) - 1


def test_crossings_by_hand():
    found = Spectrum(1.0, BANDS).describe(np.array([0.0, 0.1, 0.2, 0.5]), np.array([1.0, -1.0, 3.0, -3.0]))
    assert found["crossings"] == [3 / 0.5]


def test_uneven_times_and_gaps_tell_the_same_frequency():
    """Half of the readings at random, then a gap of half a second: no value is made up for what is not there."""
    rng = np.random.default_rng(0)
    times = np.sort(rng.uniform(0, 2, 150))
    values = np.sin(2 * np.pi * 3 * times) + 0.1 * rng.normal(size=150)
    kept = (times < 0.8) | (times > 1.3)
    full = Spectrum(2.0, BANDS).describe(times, values)
    gap = Spectrum(2.0, BANDS).describe(times[kept], values[kept])
    for found, least in ((full, 0.65), (gap, 0.4)):
        assert found["peak"] == [np.log2(3)]
        assert found["bands"][3] > least and np.argmax(found["bands"]) == 3  # from 2 to 4 Hz


def test_a_slow_sensor_says_nothing_of_frequencies_beyond_its_own():
    """10 readings a second hear 5 Hz at most; what lies above would be a mirror image."""
    times, values = one_second(1.0, rate=10)
    found = Spectrum(2.0, BANDS).describe(times, values)
    assert found["peak"] == [0.0]
    assert found["bands"][5:] == [0.0, 0.0] and sum(found["bands"]) == pytest.approx(1.0)


def test_what_has_no_frequency_is_zero():
    times = np.arange(10) / 10
    nothing = {"crossings": [0.0], "centroid": [0.0], "peak": [0.0], "bands": [0.0] * 7}
    assert Spectrum(1.0, BANDS).describe(times, np.full(10, 1e6 + 0.1)) == nothing
    assert Spectrum(1.0, BANDS).describe(times[:3], np.array([1.0, -1.0, 1.0])) == nothing
    slow = Spectrum(1.0, (20.0, 40.0)).describe(times, np.array([1.0, -1.0] * 5))  # bands that 10 a second do not reach
    assert slow == {"crossings": [pytest.approx(9 / 0.9)], "centroid": [0.0], "peak": [0.0], "bands": [0.0]}


def test_bands_that_no_window_can_fill_are_refused():
    for window, edges, band in (
        (1.0, (1.1, 1.4, 4), "1.1 to 1.4"),
        (1.0, (1, 2, 2.1, 2.4), "2.1 to 2.4"),
        (0.1, (1, 4), "1 to 4"),
    ):
        with pytest.raises(ValueError, match=f"the band from {band} Hz holds none .* longer windows or wider bands"):
            Spectrum(window, edges)
        with pytest.raises(ValueError, match=f"sensor_windows: the band from {band} Hz"):
            SensorWindows(columns=["a"], window_seconds=window, statistics=["bands"], bands=edges)
    times, values = one_second(1.0, seconds=1.0)
    assert Spectrum(1.0, BANDS).describe(times, values)["bands"][0] == 0.0  # the default keeps the band that it cannot fill
    assert Spectrum(1.25, BANDS).describe(times, values)["bands"][0] > 0.0
    short = {"columns": ["a"], "window_seconds": 0.01}
    with pytest.raises(ValueError, match=r"windows of 0\.01 s tell no frequency below 32 Hz"):
        SensorWindows(**short, statistics=["peak"])
    assert SensorWindows(**short, statistics=["crossings"]).width == 1


def test_a_small_change_on_a_large_level_has_its_frequency():
    """An altitude or a pressure in Pascal moves by little of itself."""
    times, values = one_second(3.0)
    found = Spectrum(2.0, BANDS).describe(times, 1e5 + 1e-6 * values)
    assert found["peak"] == [np.log2(3)] and found["bands"][3] > 0.9


def test_shares_do_not_depend_on_level_or_scale():
    times, values = one_second(3.2)
    plain = Spectrum(2.0, BANDS).describe(times, values)
    for other in (1e200 * values, 1e-200 * values, 50 - 4 * values):
        found = Spectrum(2.0, BANDS).describe(times, other)
        np.testing.assert_allclose(np.concatenate(list(found.values())), np.concatenate(list(plain.values())), atol=1e-6)


def test_windows_hold_them_column_by_column():
    times, values = one_second(3.2, seconds=4.0)
    holes = values.copy()
    holes[::3] = NAN
    statistics = ["mean", "crossings", "centroid", "peak", "bands"]
    encoder = SensorWindows(columns=["a", "b"], window_seconds=2, statistics=statistics, bands=(1, 2, 4, 8))
    features = encoder.encode(SensorSeries(np.stack([values, holes], 1), times, ("a", "b")))
    assert features.times_K.tolist() == [1.0, 3.0] and encoder.width == 14
    there = ~np.isnan(holes[:200])
    spectrum = Spectrum(2.0, (1, 2, 4, 8))
    for column, mask in ((0, np.full(200, True)), (1, there)):
        t, v = times[:200][mask], values[:200][mask]
        expected = np.concatenate([[v.mean()], *spectrum.describe(t, v).values()])
        np.testing.assert_allclose(features.features_KMC[0, 0, 7 * column : 7 * column + 7], expected, rtol=1e-5)


def test_the_spec_keeps_the_bands_and_is_silent_where_nothing_uses_them():
    """A patch or a stored feature of before the frequencies keeps the name it has."""
    assert "bands" not in SensorWindows(columns=["a"]).spec().settings
    encoder = SensorWindows(columns=["a"], statistics=EVERY_STATISTIC)
    assert encoder.spec().settings["bands"] == list(BANDS) and encoder.width == 17
    assert build_encoder(EncoderConfig.from_dict(encoder.spec().to_dict())).spec() == encoder.spec()
