"""Parts of videos and folders of frames as video files of their own, because a sample is about a whole file."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np

from pave.data.media import FrameSampling, read_audio, read_frames, read_picture, write_video
from pave.data.samples import Sample

_SOUND_RATE = 48_000
_PICTURES = (".jpg", ".jpeg", ".png")


def cut(sample: Sample, path: Path, start: float | None, end: float | None, *, frame_rate: int) -> Sample:
    """The sample about a file of its own with the part from ``start`` to ``end``, every frame and the sound.

    Args:
        sample: about a video, or a folder of pictures with numbers as names.
        path: the file to write; one that is there is kept.
        start: seconds; None is the beginning.
        end: seconds; None, or a time after it, is the end.
        frame_rate: pictures per second of a folder.

    Raises:
        ValueError: naming the video, if it is damaged or ends before ``start``.
    """
    if not path.exists():
        if os.path.isdir(sample.video):
            _write_pictures(sample, path, start, end, frame_rate)
        else:
            _write_part(sample, path, start or 0.0, end)
    return dataclasses.replace(sample, video=str(path))


def _write_part(sample: Sample, path: Path, start: float, end: float | None) -> None:
    try:
        clip = read_frames(sample.video, FrameSampling(start=start, end=end))
    except ValueError as error:
        raise ValueError(f"sample {sample.id!r}: {error}") from error
    zero = float(clip.times_F[0])
    sound = read_audio(sample.video, _SOUND_RATE, start=zero, end=end)
    write_video(
        path,
        _even(clip.frames_FHWC),
        times=clip.times_F - zero,
        audio=None if sound is None else sound.samples,
        sample_rate=_SOUND_RATE,
        audio_start=0.0 if sound is None else sound.start_time - zero,
    )


def _write_pictures(sample: Sample, path: Path, start: float | None, end: float | None, frame_rate: int) -> None:
    """Pictures are numbered from 1; those from ``start`` to ``end`` times the rate, both ends included, as MVBench's own reader has
    them."""
    files = {int(file.stem): file for file in Path(sample.video).iterdir() if _is_picture(file)}
    first = 1 if start is None else max(1, round(start * frame_rate))
    last = max(files, default=0) if end is None else round(end * frame_rate)
    chosen = [files[number] for number in sorted(files) if first <= number <= last]
    if not chosen:
        raise ValueError(f"sample {sample.id!r}: {sample.video} holds no picture with a number from {first} to {last}")
    write_video(path, _even(np.stack([read_picture(file) for file in chosen])), fps=frame_rate)


def _is_picture(file: Path) -> bool:
    return file.suffix.lower() in _PICTURES and file.stem.isdigit()


def _even(frames_FHWC: np.ndarray) -> np.ndarray:
    """Without the last row or column where there is an odd number of them: H.264 stores one colour for 2 x 2 pixels."""
    height, width = frames_FHWC.shape[1:3]
    return frames_FHWC[:, : height // 2 * 2, : width // 2 * 2]
