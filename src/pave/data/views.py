"""Reading the files of a multi-view channel.

The path that a sample names is one of

- a video: one view. It is the encoder's only view, or the one that the file is called after (``left.mp4``);
- a folder of videos, each called after its view, all on the clock of the sample's video;
- a JSON file, which can say when each camera was started. A view whose video is null is missing from this sample::

    {"views": [{"name": "left", "video": "left.mp4", "offset_seconds": 0.4}, {"name": "right", "video": null}]}
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from pave.data.descriptors import beside, check_keys, number, read_descriptor
from pave.data.footage import Footage
from pave.data.media import FrameSampling
from pave.side_channels.multiview import View

VIDEO_ENDINGS = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".mpg", ".mpeg", ".ts")


def read_views(path: str, names: Sequence[str], sampling: FrameSampling) -> dict[str, View | None]:
    """The views behind a path by name, in the order of ``names``; frames are decoded as they are asked for.

    Args:
        path: a video, a folder, or a JSON file.
        names: the views that the encoder knows.
        sampling: which frames of each view.

    Raises:
        ValueError: naming the file, if it is missing or no such thing, or a view is unknown or stands there twice.
    """
    listed: list[tuple[str, str | None, float]]
    if os.path.isdir(path):
        listed = [(_stem(file), os.path.join(path, file), 0.0) for file in sorted(os.listdir(path)) if _is_video(file)]
        if not listed:
            raise ValueError(f"{path}: the folder holds no video ({', '.join(VIDEO_ENDINGS)})")
    elif path.lower().endswith(".json"):
        listed = _described(path)
    else:
        listed = [(names[0] if len(names) == 1 else _stem(path), path, 0.0)]
    views: dict[str, View | None] = {}
    for name, video, offset in listed:
        if name not in names:
            raise ValueError(f"{path}: there is a view {name!r}, but the encoder's views are {', '.join(names)}")
        if name in views:
            raise ValueError(f"{path}: the view {name!r} is there twice")
        if video is not None and not os.path.isfile(video):
            raise ValueError(f"{video}: there is no such video of the view {name!r}")
        views[name] = None if video is None else View(Footage(video, sampling), offset)
    return {name: views[name] for name in names if name in views}


def _described(path: str) -> list[tuple[str, str | None, float]]:
    listed: list[tuple[str, str | None, float]] = []
    entries = read_descriptor(path, ("views",), ("views",))["views"]
    if not isinstance(entries, list):
        raise ValueError(f"{path}: views must be a list, got {entries!r:.60}")
    for position, entry in enumerate(entries):
        where = f"{path}: views[{position}]"
        check_keys(where, entry, ("name", "video", "offset_seconds"), ("name", "video"))
        if not isinstance(entry["name"], str):
            raise ValueError(f"{where}: name must be text, got {entry['name']!r:.60}")
        video = None if entry["video"] is None else beside(path, f"{where}: video", entry["video"])
        listed.append((entry["name"], video, number(f"{where}: offset_seconds", entry.get("offset_seconds", 0.0))))
    return listed


def _is_video(name: str) -> bool:
    return name.lower().endswith(VIDEO_ENDINGS) and not name.startswith(".")


def _stem(path: str) -> str:
    return os.path.splitext(os.path.basename(path))[0]
