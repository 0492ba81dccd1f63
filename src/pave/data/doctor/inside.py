"""What can be seen in a channel's own file only: how a log is written, whether cameras stand where their poses say."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pave.data.sources import read_source
from pave.side_channels.geometry import invert_pose, project, transform, unproject
from pave.side_channels.scene3d import PosedPicture

Poses = NDArray[np.float64]

NEAR = 0.05
"""Metres: a scene whose middle depth is less is none that people see; most likely metres were read as millimetres."""
_PICTURES = 6
"""Most pictures of a scene that are compared, each with the next."""
_POINTS = 2000
_DEPTH_TOLERANCE = 0.05
"""Most that a point's depth may differ from what the other picture says there, as a share of it."""
_AGREES, _BETTER = 0.3, 2.0
"""Another reading of the poses is named if under it this share of the points agrees, and that many times more than as they are."""
_FLIP = np.diag([1.0, -1.0, -1.0, 1.0])


def look_inside(encoder: Any, video: str, path: str | None) -> Iterator[tuple[str, str]]:
    """Code and message of what is odd in a file that can be read.

    Args:
        encoder: of the channel.
        video: path of the sample's video.
        path: of the channel's file, if it has one.
    """
    if path is None or encoder.source not in ("sensor", "scene3d"):
        return
    source = read_source(encoder, video, path)
    if encoder.source == "sensor":
        if source.read_as:
            yield "sensor-format", f"it was read with {', '.join(source.read_as)}"
        return
    count = len(source.shots)
    shots = [source.shots[(2 * i + 1) * count // (2 * min(count, _PICTURES))] for i in range(min(count, _PICTURES))]
    yield from look_at_pictures(list(replace(source, shots=tuple(shots))))


def look_at_pictures(pictures: Sequence[PosedPicture]) -> Iterator[tuple[str, str]]:
    """What is odd about some pictures of one scene: depths too small, or poses of another convention.

    Every picture's points are looked up in the next picture's depth map, by the poses as they are and as three other conventions
    have them; the convention under which by far the most points lie where the other picture sees them is the right one.
    """
    depths = [picture.depth_HW[_valid(picture)] for picture in pictures]
    if sum(map(len, depths)) and float(np.median(np.concatenate(depths))) < NEAR:
        yield "scene3d-near", f"the middle depth is {float(np.median(np.concatenate(depths))):.3g} m"
    poses = [picture.pose_44 for picture in pictures]
    inverse = [invert_pose(pose) for pose in poses]
    readings = {
        "OpenGL's axes (y up, z backward)": [pose @ _FLIP for pose in poses],
        "world-to-camera": inverse,
        "world-to-camera in OpenGL's axes": [pose @ _FLIP for pose in inverse],
    }
    given = agreement(pictures, poses)
    name, best = max(((name, agreement(pictures, other)) for name, other in readings.items()), key=lambda pair: pair[1])
    if best >= _AGREES and best >= _BETTER * given:
        yield (
            "scene3d-axes",
            f"of one picture's points, {100 * given:.0f} % lie where the next picture sees them, and {100 * best:.0f} % if the poses are "
            f"{name}",
        )


def agreement(pictures: Sequence[PosedPicture], poses: Sequence[Poses]) -> float:
    """The share of each picture's points that the next picture sees at the depth where they should be, by camera-to-world poses."""
    seen = total = 0
    for i, (one, other) in enumerate(pairwise(pictures)):
        points_N3 = unproject(one.depth_HW, one.depth_intrinsics_33)[_valid(one)]
        points_N3 = points_N3[:: max(1, len(points_N3) // _POINTS)]
        there_N3 = transform(invert_pose(poses[i + 1]) @ poses[i], points_N3)
        total += len(points_N3)
        there_N3 = there_N3[there_N3[:, 2] > 0]
        (height, width), where_N2 = other.depth_HW.shape, project(there_N3, other.depth_intrinsics_33)
        inside_N = ((where_N2 > -0.5) & (where_N2 < np.array([width, height]) - 0.5)).all(axis=1)
        u_N, v_N = np.rint(where_N2[inside_N]).astype(np.int64).T
        depth_N, z_N = other.depth_HW[v_N, u_N], there_N3[inside_N, 2]
        seen += int((np.abs(depth_N - z_N) <= _DEPTH_TOLERANCE * z_N).sum())
    return seen / total if total else 0.0


def _valid(picture: PosedPicture) -> NDArray[np.bool_]:
    return np.isfinite(picture.depth_HW) & (picture.depth_HW > 0)
