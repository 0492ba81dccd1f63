"""Scans of rooms (ScanNet) as samples need them: a video of the scan, and its folder for a side channel of the kind scene3d.

Below the folder of media a scan is ``<scene>.mp4`` or ``<scene>/<scene>.mp4``, and the folder ``<scene>/`` in ScanNet's layout (color,
depth, pose, intrinsic). Where there is no video, one is made of the pictures in ``color``, on the clock that scene3d gives them.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from pave.data.media import read_picture, write_video
from pave.data.samples import Sample
from pave.evaluation.benchmarks.clips import made_file
from pave.evaluation.benchmarks.files import MediaFolder, is_name
from pave.utils.content import unchanged

CHANNEL = "space"
"""The side channel that a scan's folder is."""
FRAME_RATE = 30
"""Pictures a second of a scan; picture number i was taken at i / 30 seconds."""
MAX_PICTURES = 128
"""Pictures in a video that is made of a scan: of more, as many at equal distances, the first and the last among them."""
_PARENTS = ("", "scans", "posed_images")


def place_scene(media: MediaFolder, scene: str) -> tuple[str, dict[str, str | None]]:
    """The video of a scan and its side channels.

    Returns:
        The path of the video; where there is none, that of the scan's folder, for ``make_video``. The folder is a side channel where
        it has depth maps and poses.

    Raises:
        ValueError: if the scene is no name of a folder.
    """
    if not is_name(scene):
        raise ValueError(f"the scene {scene!r} must be the name of a folder, without folders above it")
    video = media.find(f"{scene}.mp4", f"{scene}/{scene}.mp4")
    folders = [media.root / parent / scene for parent in _PARENTS]
    folder = next((path for path in folders if os.path.isdir(path / "color")), None)
    if folder is None:
        return video, {}
    has_depth = (folder / "depth").is_dir() and (folder / "pose").is_dir()
    return (video if Path(video).exists() else str(folder)), {CHANNEL: str(folder)} if has_depth else {}


def make_video(sample: Sample, folder: Path) -> Sample:
    """The sample about a video file, made of the scan's pictures where it is about their folder. One that is there is kept, if it was
    made of the same pictures.

    Raises:
        ValueError: naming the scan, if its pictures are not numbered from 0 or a picture cannot be read.
    """
    scan = Path(sample.video)
    if not scan.is_dir():
        return sample
    files = {
        int(file.stem): file
        for file in (scan / "color").iterdir()
        if file.stem.isdecimal() and file.suffix.lower() in (".jpg", ".jpeg", ".png")
    }
    if len(files) < 2 or 0 not in files:
        raise ValueError(f"{scan}: color must hold at least two pictures, numbered from 0, got {sorted(files)[:3]}")
    numbers = np.array(sorted(files))
    numbers = numbers[np.unique(np.linspace(0, len(numbers) - 1, MAX_PICTURES).astype(int))]
    pictures = [str(files[number]) for number in numbers]
    path = made_file(folder, scan.name, pictures, frame_rate=FRAME_RATE)
    if not path.exists():
        with unchanged(pictures):
            frames_FHWC = np.stack([read_picture(picture) for picture in pictures])
        height, width = (side // 2 * 2 for side in frames_FHWC.shape[1:3])
        folder.mkdir(parents=True, exist_ok=True)
        write_video(path, frames_FHWC[:, :height, :width], times=numbers / FRAME_RATE)
    return replace(sample, video=str(path))
