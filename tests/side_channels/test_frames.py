"""Frames in pieces, and what the encoder without weights makes of them."""

import numpy as np
import pytest
import torch

from pave.config import EncoderConfig
from pave.side_channels import SideEncoder, build_encoder
from pave.side_channels.frames import FrameEncoder, Frames, in_windows
from pave.side_channels.frames_pixels import FramesPixelsEncoder


def noise(count, height=16, width=24, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def in_pieces(frames, times, *lengths):
    ends = np.cumsum(lengths)
    return [Frames(frames[e - n : e], times[e - n : e]) for n, e in zip(lengths, ends)]


def reference(frames, grid, detail):
    """The documented numbers, one cell at a time; for sides that divide."""
    values = frames.astype(np.float64) / 127.5 - 1
    before = np.concatenate([values[:1], values[:-1]])
    n = grid * detail
    height, width = frames.shape[1] // n, frames.shape[2] // n
    out = np.zeros((len(frames), grid * grid, 7 * detail * detail))
    for f in range(len(frames)):
        for row in range(n):
            for column in range(n):
                here = np.s_[f, row * height : (row + 1) * height, column * width : (column + 1) * width]
                token = row // detail * grid + column // detail
                cell = row % detail * detail + column % detail
                gain = values[here] - before[here]
                numbers = [*values[here].mean((0, 1)), *gain.mean((0, 1)), np.abs(gain).mean()]
                out[f, token, 7 * cell : 7 * cell + 7] = numbers
    return out


@pytest.mark.parametrize(("grid", "detail"), [(2, 2), (1, 4), (4, 1)])
def test_pixels_are_the_documented_numbers(grid, detail):
    frames, times = noise(11), np.arange(11) / 8 + 0.01
    features = FramesPixelsEncoder(grid=grid, detail=detail).encode([Frames(frames, times)])
    np.testing.assert_allclose(features.features_KMC, reference(frames, grid, detail), atol=1e-5)
    assert features.times_K.tolist() == times.tolist()


def test_the_pieces_of_a_stream_make_no_difference():
    frames, times = noise(21), np.arange(21) * 0.1
    encoder = FramesPixelsEncoder()
    whole = encoder.encode([Frames(frames, times)])
    for lengths in ([1] * 21, [8, 8, 5], [3, 17, 1], [20, 1]):
        parts = encoder.encode(iter(in_pieces(frames, times, *lengths)))
        assert torch.equal(parts.features_KMC, whole.features_KMC) and torch.equal(parts.times_K, whole.times_K)
    twice = encoder.encode_batch([[Frames(frames, times)], in_pieces(frames, times, 10, 11)])
    assert all(torch.equal(f.features_KMC, whole.features_KMC) for f in twice)


def test_sides_that_do_not_divide_still_cover_every_pixel():
    frames = np.zeros((2, 13, 17, 3), dtype=np.uint8)
    encoder = FramesPixelsEncoder(grid=2, detail=2)
    dark = encoder.encode([Frames(frames, np.arange(2.0))]).features_KMC
    for y, x in np.ndindex(13, 17):
        bright = frames.copy()
        bright[1, y, x] = 255
        assert not torch.equal(encoder.encode([Frames(bright, np.arange(2.0))]).features_KMC[1], dark[1])


def test_windows_have_the_asked_size_whatever_comes_in():
    frames, times = noise(10), np.arange(10.0)
    for lengths in ([10], [1] * 10, [2, 7, 1]):
        windows = list(in_windows(in_pieces(frames, times, *lengths), 4))
        assert [len(window) for window in windows] == [4, 4, 2]
        assert np.array_equal(np.concatenate([window.frames_FHWC for window in windows]), frames)
        assert np.concatenate([window.times_F for window in windows]).tolist() == times.tolist()


def test_a_long_stream_is_never_held_whole():
    alive, most = 0, 0

    class Counted(np.ndarray):
        def __del__(self):
            nonlocal alive
            alive -= self.base is None

    def stream():
        nonlocal alive, most
        for i in range(100):
            array = Counted((4, 8, 8, 3), dtype=np.uint8)
            array[:] = i
            alive += 1
            most = max(most, alive)
            yield Frames(array, np.arange(4) + 4.0 * i)

    assert len(FramesPixelsEncoder().encode(stream())) == 400
    assert most <= 8


def test_the_encoder_keeps_the_interface_and_its_spec():
    encoder = FramesPixelsEncoder(fps=None, max_frames=100, grid=3, detail=2)
    assert isinstance(encoder, SideEncoder) and isinstance(encoder, FrameEncoder)
    assert (encoder.width, encoder.tokens_per_step, encoder.grid) == (28, 9, 3)
    again = build_encoder(EncoderConfig.from_dict(encoder.spec().to_dict()))
    assert again.spec() == encoder.spec()


@pytest.mark.parametrize(
    ("frames", "times", "words"),
    [
        (noise(2).astype(np.float32), [0, 1], "must be uint8 .* got float32"),
        (noise(2)[..., :2], [0, 1], "must be uint8 of shape"),
        (noise(2)[:0], [], "at least one frame"),
        (noise(2), [0, 1, 2], r"2 frames but times of shape \(3,\)"),
        (noise(2), [0, 0], "ascend strictly"),
        (noise(2), [0, np.inf], "finite"),
    ],
)
def test_bad_frames_are_refused(frames, times, words):
    with pytest.raises(ValueError, match=f"Frames: .*{words}"):
        Frames(frames, np.array(times, dtype=float))


def test_bad_streams_are_refused():
    encoder = FramesPixelsEncoder()
    with pytest.raises(ValueError, match="gave no frame"):
        encoder.encode([])
    with pytest.raises(ValueError, match="picture size changes from 24x16 to 16x16"):
        encoder.encode([Frames(noise(1), np.array([0.0])), Frames(noise(1, width=16), np.array([1.0]))])
    with pytest.raises(ValueError, match="does not come after"):
        encoder.encode([Frames(noise(1), np.array([1.0])), Frames(noise(1), np.array([1.0]))])


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"fps": 0}, "fps must be above 0"), ({"max_frames": 0}, "max_frames"), ({"grid": 0}, "grid"), ({"detail": 0}, "detail")],
)
def test_bad_settings_are_named(settings, words):
    with pytest.raises(ValueError, match=f"frames_pixels: {words}"):
        build_encoder(EncoderConfig(name="frames_pixels", settings=settings))
