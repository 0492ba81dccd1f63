"""Writing video files with sound."""

from __future__ import annotations

import os
from collections.abc import Iterator
from fractions import Fraction
from math import ceil

import av
import av.container
import numpy as np
from numpy.typing import NDArray

from pave.utils.files import atomic_path

_WRITE_TICKS = 90_000  # time base of files written with explicit frame times; divides by 24, 25, 30, 50 and 60
_AAC_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)
_LAYOUTS = {1: "mono", 2: "stereo"}


def write_video(
    path: str | os.PathLike[str],
    frames_FHWC: NDArray[np.uint8],
    *,
    fps: float | Fraction | None = None,
    times: NDArray[np.float64] | list[float] | None = None,
    audio: NDArray[np.float32] | None = None,
    sample_rate: int = 16000,
    audio_start: float = 0.0,
    crf: int = 18,
    preset: str = "veryfast",
    keyframe_interval: int = 250,
    max_b_frames: int | None = None,
    audio_bit_rate: int = 96_000,
    durable: bool = True,
) -> None:
    """Write an H.264 (yuv420p) + AAC file. The same input gives the same bytes, and the file appears whole or not at all.

    Args:
        path: ends in .mp4, .mov or .mkv.
        frames_FHWC: uint8 RGB, height and width even (yuv420p stores one colour per 2x2 pixels).
        fps: constant frame rate. Exactly one of ``fps`` and ``times`` is given.
        times: presentation time of every frame in seconds, ascending, first one 0; stored to 1/90000 s. The last frame
            lasts as long as the one before it.
        audio: (n,) or (n, 2) float samples in [-1, 1] (louder ones are clipped); None writes no audio track.
        sample_rate: of ``audio``, in Hz; one that AAC knows.
        audio_start: time of the first audio sample in seconds on the video's clock, 0 = the first frame; may be negative.
        crf: quality of x264, 0 (lossless in yuv420p) to 51.
        preset: speed of x264.
        keyframe_interval: at most this many frames between keyframes.
        max_b_frames: None leaves it to the preset, 0 forbids B-frames.
        audio_bit_rate: bits per second of AAC.
        durable: see :func:`pave.utils.files.atomic_path`.

    Raises:
        ValueError: naming the argument and what was found.
    """
    name = os.fspath(path)
    if not name.lower().endswith((".mp4", ".mov", ".mkv")):
        raise ValueError(f"write_video: the path must end in .mp4, .mov or .mkv, got {name!r}")
    if frames_FHWC.dtype != np.uint8 or frames_FHWC.ndim != 4 or frames_FHWC.shape[-1] != 3 or not len(frames_FHWC):
        raise ValueError(
            "write_video: frames_FHWC must be uint8 of shape (frames, height, width, 3) with at least one frame, "
            f"got {frames_FHWC.dtype} of shape {frames_FHWC.shape}"
        )
    F, height, width = frames_FHWC.shape[:3]
    if height % 2 or width % 2:
        raise ValueError(f"write_video: height and width must be even for H.264 in yuv420p, got {height}x{width}; pad or crop")
    ticks_F, time_base, rate = _frame_ticks(F, fps, times)
    audio_nC = None if audio is None else _check_audio(audio, sample_rate)
    shift = max(0.0, -audio_start) if audio_nC is not None else 0.0
    options = {"fflags": "+bitexact"}
    with atomic_path(path, durable=durable) as temporary, av.open(str(temporary), "w", options=options) as container:
        # Pictures less than 64 pixels wide make x264's macroblock tree read memory that nobody wrote: other bytes every time.
        x264 = {"crf": str(crf), "preset": preset, "threads": "1", "x264-params": "no-mbtree=1"}
        video = container.add_stream("libx264", rate=rate, options=x264)
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        video.codec_context.time_base = time_base
        video.codec_context.gop_size = keyframe_interval
        video.codec_context.flags |= av.codec.context.Flags.bitexact
        if max_b_frames is not None:
            video.codec_context.max_b_frames = max_b_frames
        sound = None
        if audio_nC is not None:
            layout = _LAYOUTS[audio_nC.shape[1]]
            sound = container.add_stream("aac", rate=sample_rate, layout=layout)
            sound.codec_context.bit_rate = audio_bit_rate
            sound.codec_context.flags |= av.codec.context.Flags.bitexact
        # Containers do not begin before 0, so sound that does begins there and the video later, by a whole number of ticks.
        shift_ticks = ceil(Fraction(shift) / time_base)
        first_sample = round((Fraction(audio_start) + shift_ticks * time_base) * sample_rate)
        durations = dict(zip(ticks_F.tolist(), [*np.diff(ticks_F).tolist(), int(ticks_F[-1] - ticks_F[-2]) if F > 1 else 0]))
        for pixels_HWC, tick in zip(frames_FHWC, ticks_F):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels_HWC), format="rgb24")
            frame.pts, frame.time_base = int(tick) + shift_ticks, time_base
            _mux(container, video.encode(frame), shift_ticks, durations)
        _mux(container, video.encode(None), shift_ticks, durations)
        if sound is not None and audio_nC is not None:
            for piece in _audio_pieces(audio_nC, sample_rate, first_sample):
                container.mux(sound.encode(piece))
            container.mux(sound.encode(None))


def _mux(container: av.container.OutputContainer, packets: list[av.Packet], shift: int, durations: dict[int, int]) -> None:
    """Write packets, each with the time its frame stays on screen (which x264 does not know when the rate varies)."""
    for packet in packets:
        assert packet.pts is not None
        packet.duration = durations[packet.pts - shift]
        container.mux(packet)


def _frame_ticks(
    F: int, fps: float | Fraction | None, times: NDArray[np.float64] | list[float] | None
) -> tuple[NDArray[np.int64], Fraction, Fraction]:
    """Frame times as integers, the unit they count, and the (nominal) frame rate."""
    if (fps is None) == (times is None):
        raise ValueError("write_video: give exactly one of fps and times")
    if fps is not None:
        if not 0 < fps < 1000:
            raise ValueError(f"write_video: fps must be above 0 and below 1000, got {fps}")
        rate = Fraction(fps).limit_denominator(1001)
        return np.arange(F), 1 / rate, rate
    times_F = np.asarray(times, dtype=np.float64)
    if times_F.shape != (F,) or not np.isfinite(times_F).all() or times_F[0] != 0:
        raise ValueError(f"write_video: times must hold {F} finite seconds (one per frame), the first 0, got {times!r:.200}")
    ticks_F = np.rint(times_F * _WRITE_TICKS).astype(np.int64)
    if (np.diff(ticks_F) <= 0).any():
        raise ValueError("write_video: times must ascend by at least 1/90000 s from frame to frame")
    mean = Fraction(F - 1) / Fraction(float(times_F[-1])) if F > 1 else Fraction(25)
    return ticks_F, Fraction(1, _WRITE_TICKS), mean.limit_denominator(1001)


def _check_audio(audio: NDArray[np.float32], sample_rate: int) -> NDArray[np.float32]:
    samples_nC = np.asarray(audio, dtype=np.float32)
    samples_nC = samples_nC[:, None] if samples_nC.ndim == 1 else samples_nC
    if samples_nC.ndim != 2 or not len(samples_nC) or samples_nC.shape[1] not in _LAYOUTS:
        raise ValueError(
            f"write_video: audio must be (samples,) or (samples, 1 or 2 channels), not empty, got shape {audio.shape}"
        )
    if not np.isfinite(samples_nC).all():
        raise ValueError("write_video: audio holds samples that are not finite")
    if sample_rate not in _AAC_RATES:
        raise ValueError(f"write_video: AAC has no sample rate {sample_rate}; it has {', '.join(map(str, _AAC_RATES))}")
    return np.clip(samples_nC, -1, 1)


def _audio_pieces(samples_nC: NDArray[np.float32], sample_rate: int, first: int) -> Iterator[av.AudioFrame]:
    """The samples in frames of AAC's 1024, stamped in samples from ``first``."""
    layout = _LAYOUTS[samples_nC.shape[1]]
    for start in range(0, len(samples_nC), 1024):
        piece = np.ascontiguousarray(samples_nC[start : start + 1024].T)
        frame = av.AudioFrame.from_ndarray(piece, format="fltp", layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = sample_rate, first + start, Fraction(1, sample_rate)
        yield frame
