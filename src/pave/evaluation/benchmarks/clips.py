"""Parts of videos and folders of frames as video files of their own, because a sample is about a whole file."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from pave.data.media import FrameSampling, read_audio, read_frames, read_picture, write_video
from pave.data.samples import Sample
from pave.utils.content import Stamp, content_digest, stamp_or_none, unchanged

CLIPS_VERSION = 2
"""Part of the name of every file that is made here. Raise it when the same source begins to give another file."""
_SOUND_RATE = 48_000
_PICTURES = (".jpg", ".jpeg", ".png")


def made_file(folder: Path, name: str, sources: Sequence[str | os.PathLike[str]], **facts: Any) -> Path:
    """Where a video that is made of files lies: its name holds a hash of their content and of all else that decides it, so that one
    that is there is the same, and conversions of other annotations may share the folder.

    Args:
        folder: of the files that are made.
        name: what to call it besides.
        sources: the files that it is made of.
        facts: what else decides it; JSON values.

    Raises:
        ValueError: if a source cannot be read.
    """
    content = _content(tuple((os.fspath(source), stamp_or_none(source)) for source in sources))
    digest = hashlib.sha256(json.dumps([CLIPS_VERSION, content, facts], sort_keys=True).encode()).hexdigest()
    return folder / f"{name}-{digest[:12]}.mp4"


@lru_cache(maxsize=64)
def _content(sources: tuple[tuple[str, Stamp | None], ...]) -> str:
    """Many questions in a row may be about one video or scan."""
    return content_digest([file for file, _ in sources])


def cut(sample: Sample, folder: Path, start: float | None, end: float | None, *, frame_rate: int) -> Sample:
    """The sample about a file of its own with the part from ``start`` to ``end``, every frame and the sound.

    Args:
        sample: about a video, or a folder of pictures with numbers as names.
        folder: where the file is written (``made_file``); one that is there is kept.
        start: seconds; None is the beginning.
        end: seconds; None, or a time after it, is the end.
        frame_rate: pictures per second of a folder.

    Raises:
        ValueError: naming the video, if it is damaged or ends before ``start``.
    """
    pictures = _pictures(sample, start, end, frame_rate) if os.path.isdir(sample.video) else []
    sources = [str(picture) for picture in pictures] or [sample.video]
    path = made_file(folder, sample.id, sources, start=start, end=end, frame_rate=frame_rate if pictures else None)
    if not path.exists():
        with unchanged(sources):
            if pictures:
                write_video(path, _even(np.stack([read_picture(file) for file in pictures])), fps=frame_rate)
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


def _pictures(sample: Sample, start: float | None, end: float | None, frame_rate: int) -> list[Path]:
    """Pictures are numbered from 1; those from ``start`` to ``end`` times the rate, both ends included, as MVBench's own reader has
    them."""
    files = {int(file.stem): file for file in Path(sample.video).iterdir() if _is_picture(file)}
    first = 1 if start is None else max(1, round(start * frame_rate))
    last = max(files, default=0) if end is None else round(end * frame_rate)
    chosen = [files[number] for number in sorted(files) if first <= number <= last]
    if not chosen:
        raise ValueError(f"sample {sample.id!r}: {sample.video} holds no picture with a number from {first} to {last}")
    return chosen


def _is_picture(file: Path) -> bool:
    return file.suffix.lower() in _PICTURES and file.stem.isdigit()


def _even(frames_FHWC: np.ndarray) -> np.ndarray:
    """Without the last row or column where there is an odd number of them: H.264 stores one colour for 2 x 2 pixels."""
    height, width = frames_FHWC.shape[1:3]
    return frames_FHWC[:, : height // 2 * 2, : width // 2 * 2]
