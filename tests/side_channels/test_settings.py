"""What an encoder's settings may be: the kind of value that its class says, and no size that fills the memory."""

from __future__ import annotations

import tracemalloc

import pytest

from pave.config import EncoderConfig
from pave.side_channels import build_encoder

BIG = 10**9
PIXELS = {"name": "frames_pixels", "settings": {}}


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("log_mel", {"n_mels": BIG}, "setting n_mels is at most 1,000,000, got 1000000000"),
        ("log_mel", {"n_mels": 100_000}, "n_mels must be above 0 and at most 4,096, got 100000"),
        ("log_mel", {"n_mels": 0}, "n_mels must be above 0"),
        ("log_mel", {"n_mels": 8.0}, "setting n_mels is a whole number, got 8.0"),
        ("log_mel", {"n_mels": True}, "setting n_mels is a whole number, got True"),
        ("log_mel", {"n_mels": 10**400}, "setting n_mels holds 1(0){19}, which is too large to be meant"),
        ("log_mel", {"sample_rate": BIG}, "setting sample_rate is at most 1,000,000"),
        ("log_mel", {"sample_rate": 0}, "sample_rate must be above 0"),
        ("log_mel", {"window_seconds": 1e9}, "window_seconds must be above 0 and at most 60"),
        (
            "log_mel",
            {"window_seconds": 60.0, "n_mels": 4096},
            "4096 bands of a window of 960,000 samples would take 32,768 MiB",
        ),
        ("log_mel", {"hop_seconds": 0.0}, "hop_seconds must be above 0"),
        ("log_mel", {"step_seconds": 1e9}, "step_seconds must be above 0 and at most 3,600"),
        ("log_mel", {"step_seconds": "0.25"}, "setting step_seconds is a number, got '0.25'"),
        ("log_mel", {"offset_seconds": 1e300}, "setting offset_seconds holds 1e.300, which is too large to be meant"),
        ("text_hash", {"width": BIG}, "setting width is at most 1,000,000"),
        ("frames_pixels", {"grid": 100_000}, "'frames_pixels' would give 10,000,000,000 tokens per step; at most 1,048,576"),
        ("frames_pixels", {"detail": 100_000}, "'frames_pixels' would give 70,000,000,000 features of width"),
        ("features", {"width": 2 * 10**6}, "setting width is at most 1,000,000"),
        ("features", {"width": None}, "setting width is a whole number, got None"),
        ("scene3d", {"encoder": PIXELS, "frequencies": BIG}, "setting frequencies is at most 1,000,000"),
        ("scene3d", {"encoder": {"name": "frames_pixels", "settings": {"detail": BIG}}}, "setting detail is at most 1,000,000"),
        ("multiview", {"views": ["a"], "encoder": {**PIXELS, "settings": {"grid": 10**400}}}, "setting encoder holds 1(0){19}"),
        ("sensor_windows", {"columns": ["a"], "mean": [10**400]}, "setting mean holds 1(0){19}, which is too large"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused_at_once(name, settings, message):
    build_encoder(EncoderConfig())  # loads torch
    tracemalloc.start()
    with pytest.raises(ValueError, match=message) as caught:
        build_encoder(EncoderConfig(name=name, settings=settings))
    assert tracemalloc.get_traced_memory()[1] < 100 * 2**20 and len(str(caught.value)) < 300
    tracemalloc.stop()


def test_whole_numbers_stand_for_others_and_null_for_none():
    settings = {"step_seconds": 1, "window_seconds": 1, "hop_seconds": 1, "n_mels": 4}
    assert build_encoder(EncoderConfig(settings=settings)).width == 4
    assert build_encoder(EncoderConfig(name="frames_pixels", settings={"fps": 2, "max_frames": None})).fps == 2
