"""Log-mel features against their definition: filters, powers, parts, blocks."""

import numpy as np
import pytest
import torch
from transformers.audio_utils import mel_filter_bank

from pave.side_channels import AudioClip
from pave.side_channels import log_mel as log_mel_module
from pave.side_channels.log_mel import LogMelEncoder, mel_filters

RATE = 16000


def sine(frequency, seconds=1.0, level=0.5, rate=RATE):
    return (level * np.sin(2 * np.pi * frequency * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


@pytest.mark.parametrize(("n_mels", "n_fft", "rate"), [(64, 1024, 16000), (20, 512, 8000), (128, 4096, 48000)])
def test_filters_are_those_of_the_htk_scale(n_mels, n_fft, rate):
    expected = mel_filter_bank(n_fft // 2 + 1, n_mels, 0.0, rate / 2, rate, norm=None, mel_scale="htk")
    np.testing.assert_allclose(mel_filters(n_mels, n_fft, rate), expected, atol=1e-5)


def test_a_tone_is_in_its_band():
    encoder = LogMelEncoder()
    mels = 2595 * np.log10(1 + np.array([0, 8000]) / 700)
    centres = 700 * (10 ** (np.linspace(*mels, 66)[1:-1] / 2595) - 1)
    for band in (5, 20, 40, 60):
        features = encoder.encode(AudioClip(sine(centres[band]), RATE)).features_KMC[:, 0]
        assert features.argmax(dim=1).tolist() == [band] * 4


def test_white_noise_has_its_variance_whatever_the_window():
    """|FFT|^2 / sum(window^2) of white noise is its variance, so a band holds variance times the sum of its filter."""
    noise = np.random.default_rng(0).normal(size=60 * RATE).astype(np.float32) * 0.1
    for window_seconds in (0.025, 0.05):
        encoder = LogMelEncoder(window_seconds=window_seconds, n_mels=32)
        power = 10 ** (encoder.encode(AudioClip(noise, RATE)).features_KMC[1:-1, 0].double() * 2 - 4)
        expected = 0.01 * mel_filters(32, encoder._fft, RATE).sum(dim=0)
        np.testing.assert_allclose(power.mean(dim=0), expected, rtol=0.05)


def test_silence_and_loudness():
    encoder = LogMelEncoder()
    silent = encoder.encode(AudioClip(np.zeros(RATE), RATE)).features_KMC
    torch.testing.assert_close(silent, torch.full((4, 1, 64), -3.0))
    soft, loud = (
        encoder.encode(AudioClip(sine(1000, level=level), RATE)).features_KMC.max(dim=2).values for level in (0.05, 0.5)
    )
    torch.testing.assert_close(
        loud - soft, torch.ones_like(soft), rtol=0, atol=1e-3
    )  # ten times louder is two powers of ten, halved
    assert 2.5 < float(loud.max()) < 3.1


def test_parts_stand_one_after_the_other_in_a_step():
    sound = np.zeros(RATE, dtype=np.float32)
    sound[int(0.33 * RATE) :][:40] = 0.5  # second step (from 0.25 s), second part of five (from 0.3 s)
    features = LogMelEncoder(parts_per_step=5).encode(AudioClip(sound, RATE)).features_KMC.reshape(4, 5, 64)
    loud = features.mean(dim=2)
    assert divmod(int(loud.argmax()), 5) == (1, 1)
    assert (loud > -2.9).sum() == 1
    whole = LogMelEncoder().encode(AudioClip(sound, RATE)).features_KMC[:, 0]
    powers = (10 ** (2 * features - 4)).mean(dim=1)
    torch.testing.assert_close(whole, (powers.log10() + 4) / 2, rtol=1e-4, atol=1e-4)


def test_how_many_steps():
    encoder = LogMelEncoder()
    counts = {n: len(encoder.encode(AudioClip(np.ones(n), RATE))) for n in (1, 1999, 4000, 5999, 6000, 8000, RATE * 10)}
    assert counts == {1: 1, 1999: 1, 4000: 1, 5999: 1, 6000: 2, 8000: 2, RATE * 10: 40}
    times = encoder.encode(AudioClip(np.ones(RATE), RATE, start_time=-0.5)).times_K
    assert times.tolist() == [-0.375, -0.125, 0.125, 0.375]


def test_blocks_do_not_show(monkeypatch):
    encoder = LogMelEncoder(sample_rate=8000, window_seconds=0.04, step_seconds=0.1)
    sound = AudioClip(np.random.default_rng(1).normal(size=8000 * 3 + 77).astype(np.float32), 8000)
    whole = encoder.encode(sound).features_KMC
    monkeypatch.setattr(log_mel_module, "_BLOCK_STEPS", 7)
    torch.testing.assert_close(encoder.encode(sound).features_KMC, whole, rtol=0, atol=1e-6)


def test_a_step_hears_only_its_own_neighbourhood():
    """A sample reaches the frames within half a window, so at most the steps next to it."""
    sound = np.zeros(RATE * 2, dtype=np.float32)
    sound[RATE] = 1.0  # the border of the fourth and the fifth step
    features = LogMelEncoder().encode(AudioClip(sound, RATE)).features_KMC[:, 0]
    assert (features > -3).any(dim=1).tolist() == [False] * 3 + [True] * 2 + [False] * 3
    torch.testing.assert_close(features[3], features[4], rtol=0, atol=0.05)
