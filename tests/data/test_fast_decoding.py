"""torchcodec gives the very frames that PyAV gives, or PyAV decodes."""

import importlib.util
import logging

import numpy as np
import pytest

from media_files import encode
from pave.data.media import FrameSampling, read_frames, write_video
from pave.data.media.fast_decoding import VARIABLE


def loads():
    if importlib.util.find_spec("torchcodec") is None:
        return False
    try:
        import torchcodec.decoders  # noqa: F401
    except (RuntimeError, OSError):
        return False
    return True


needs_torchcodec = pytest.mark.skipif(
    not loads(), reason="torchcodec with FFmpeg's libraries is not installed (pip install '.[torchcodec]')"
)


def moving(count=40, height=64, width=96):
    rng = np.random.default_rng(0)
    return np.kron(rng.integers(0, 256, (count, height // 8, width // 8, 3)), np.ones((1, 8, 8, 1))).astype(np.uint8)


@needs_torchcodec
@pytest.mark.parametrize("sampling", [None, FrameSampling(num_frames=7), FrameSampling(fps=3.0)])
def test_frames_times_and_indices_are_those_of_pyav(tmp_path, monkeypatch, caplog, sampling):
    steady, uneven = tmp_path / "a.mp4", tmp_path / "b.mp4"
    write_video(steady, moving(), fps=10)
    encode(uneven, [0, 1, 3, 4, 8, 9, 10, 14, 15, 17, 20, 21, 22, 30, 31, 33, 40, 41, 45, 50])
    for path in (steady, uneven):
        monkeypatch.delenv(VARIABLE, raising=False)
        expected = read_frames(path, sampling)
        monkeypatch.setenv(VARIABLE, "torchcodec")
        with caplog.at_level(logging.INFO, logger="pave"):
            found = read_frames(path, sampling)
        assert "decoding with PyAV" not in caplog.text
        assert np.array_equal(found.frames_FHWC, expected.frames_FHWC)
        assert np.array_equal(found.times_F, expected.times_F) and np.array_equal(found.indices_F, expected.indices_F)


@needs_torchcodec
def test_other_pixels_are_not_taken(tmp_path, monkeypatch, caplog):
    import torchcodec.decoders

    write_video(tmp_path / "a.mp4", moving(), fps=10)
    expected = read_frames(tmp_path / "a.mp4", FrameSampling(num_frames=4))
    real = torchcodec.decoders.VideoDecoder.get_frames_at

    def brighter(self, indices):
        batch = real(self, indices)
        batch.data.clamp_(max=254).add_(1)
        return batch

    monkeypatch.setattr(torchcodec.decoders.VideoDecoder, "get_frames_at", brighter)
    monkeypatch.setenv(VARIABLE, "torchcodec")
    with caplog.at_level(logging.INFO, logger="pave"):
        found = read_frames(tmp_path / "a.mp4", FrameSampling(num_frames=4))
    assert "pixels are not those of PyAV; decoding with PyAV" in caplog.text
    assert np.array_equal(found.frames_FHWC, expected.frames_FHWC)


def test_an_unknown_decoder_is_named(tmp_path, monkeypatch):
    write_video(tmp_path / "a.mp4", moving(4), fps=10)
    monkeypatch.setenv(VARIABLE, "decord")
    with pytest.raises(ValueError, match="PAVE_DECODER is 'decord'; known decoders: pyav, torchcodec"):
        read_frames(tmp_path / "a.mp4")


@pytest.mark.skipif(importlib.util.find_spec("torchcodec") is not None, reason="torchcodec is installed")
def test_without_the_extra_the_message_names_it(tmp_path, monkeypatch):
    write_video(tmp_path / "a.mp4", moving(4), fps=10)
    monkeypatch.setenv(VARIABLE, "torchcodec")
    with pytest.raises(ImportError, match=r"PAVE_DECODER=torchcodec needs the package 'torchcodec'.*'\.\[torchcodec\]'"):
        read_frames(tmp_path / "a.mp4")
