"""Reading pictures with depth maps and camera poses: from a JSON file, or from a folder as ScanNet lays it out.

Conventions (axes, pixels, camera-to-world) are those of ``pave.side_channels.geometry``. The JSON file::

    {"intrinsics": {"fx": 577.9, "fy": 578.7, "cx": 319.5, "cy": 239.5, "width": 640, "height": 480},
     "frames": [{"rgb": "rgb/0.jpg", "depth": "depth/0.png", "time": 0.0,
                 "pose": [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]}, ...]}

Optional keys: ``depth_intrinsics`` where the depth maps have their own; ``rescale_intrinsics: true`` scales intrinsics to pictures
of another size but the same shape, which are refused otherwise; ``depth_unit``, metres of a stored 1 (0.001 for millimetres), by default
0.001 for whole numbers (PNG, arrays of integers) and 1 for arrays of floating point. A pose of null is unknown.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pave.data.descriptors import beside, check_keys, number, read_descriptor
from pave.data.media import read_depth, read_picture
from pave.data.written import number_of
from pave.side_channels.geometry import check_pose, rescale_intrinsics
from pave.side_channels.scene3d import PosedPicture
from pave.utils.errors import CodedError

logger = logging.getLogger(__name__)

_CAMERA = ("fx", "fy", "cx", "cy", "width", "height")
_SHAPE_TOLERANCE = 0.01
"""Most that the ratio of width to height may change where intrinsics are rescaled."""
_CENTRE_TOLERANCE = 0.2
"""How far from the middle, as a share of the side, a principal point may lie where nothing says which size it was measured for."""

Size = tuple[int, int]


@dataclass(frozen=True)
class Shot:
    """Where one picture's files are."""

    rgb: str
    depth: str
    pose_44: NDArray[np.float64] | None
    """None: not known."""
    time: float


@dataclass(frozen=True)
class Recording:
    """Pictures that are read as they are asked for; may be gone through again."""

    path: str
    shots: tuple[Shot, ...]
    camera: Callable[[str, Size], NDArray[np.float64]]
    """Intrinsics of "color" or "depth" for pictures of a size (height, width)."""
    metres_per_unit: float | None

    def __iter__(self) -> Iterator[PosedPicture]:
        for shot in self.shots:
            assert shot.pose_44 is not None
            rgb_HWC, depth_HW = read_picture(shot.rgb), read_depth(shot.depth, self.metres_per_unit)
            height, width = rgb_HWC.shape[:2]
            try:
                yield PosedPicture(
                    rgb_HWC,
                    depth_HW,
                    self.camera("color", (height, width)),
                    self.camera("depth", (depth_HW.shape[0], depth_HW.shape[1])),
                    shot.pose_44,
                    shot.time,
                )
            except ValueError as error:
                raise ValueError(f"{self.path}: {os.path.basename(shot.rgb)}: {error}") from None


def read_scene(path: str, *, max_frames: int | None, frame_rate: float) -> Recording:
    """The recording behind a path.

    Pictures without a valid pose (null, or NaN or infinity in ScanNet's files) are left out and counted in a warning; of the rest,
    at most ``max_frames`` are taken, at the centres of as many equal shares.

    Args:
        path: a JSON file, or a folder in ScanNet's layout: ``color/``, ``depth/`` and ``pose/`` with files of the same numbers,
            and ``intrinsic/intrinsic_color.txt`` and ``intrinsic_depth.txt``.
        max_frames: None takes all.
        frame_rate: pictures a second; picture number i of a folder was taken at ``i / frame_rate`` seconds.

    Raises:
        ValueError: naming the file, if anything is missing, disagrees in number, or is not what it should be, if a pose is not
            rigid, or if no picture has a pose. While the pictures are read: if one is damaged or intrinsics do not fit it.
    """
    recording = _from_folder(path, frame_rate) if os.path.isdir(path) else _from_json(path)
    valid = [shot for shot in recording.shots if shot.pose_44 is not None]
    for shot in valid:
        assert shot.pose_44 is not None
        check_pose(shot.pose_44, f"{path}: {os.path.basename(shot.rgb)}")
    if len(valid) < len(recording.shots):
        count = len(recording.shots)
        logger.warning("%s: %d of %d pictures have no valid pose and are left out", path, count - len(valid), count)
    if not valid:
        raise ValueError(f"{path}: none of the {len(recording.shots)} pictures has a valid pose")
    if max_frames is not None and len(valid) > max_frames:
        valid = [valid[(2 * i + 1) * len(valid) // (2 * max_frames)] for i in range(max_frames)]
    return Recording(path, tuple(valid), recording.camera, recording.metres_per_unit)


# --- the JSON file


def _from_json(path: str) -> Recording:
    known = ("frames", "intrinsics", "depth_intrinsics", "rescale_intrinsics", "depth_unit")
    content = read_descriptor(path, known, ("frames", "intrinsics"))
    if not isinstance(content["frames"], list) or not content["frames"]:
        raise ValueError(f"{path}: frames must be a list with at least one entry")
    shots = tuple(_shot(path, i, entry) for i, entry in enumerate(content["frames"]))
    for i, (before, after) in enumerate(pairwise(shots), 1):
        if after.time <= before.time:
            raise ValueError(
                f"{path}: frames[{i}]: the time {after.time:g} does not come after {before.time:g}; sort the frames"
            )
    unit = content.get("depth_unit")
    if unit is not None and number(f"{path}: depth_unit", unit) <= 0:
        raise ValueError(f"{path}: depth_unit is the metres of a stored 1 and above 0, got {unit}")
    rescale = content.get("rescale_intrinsics", False)
    if not isinstance(rescale, bool):
        raise ValueError(f"{path}: rescale_intrinsics must be true or false, got {rescale!r:.60}")
    color = _camera(f"{path}: intrinsics", content["intrinsics"])
    own = content.get("depth_intrinsics")
    depth = color if own is None else _camera(f"{path}: depth_intrinsics", own)

    def camera(which: str, size: Size) -> NDArray[np.float64]:
        matrix, stated = color if which == "color" else depth
        return _fitted(matrix, stated, size, rescale, which)

    return Recording(path, shots, camera, None if unit is None else float(unit))


def _shot(path: str, position: int, entry: Any) -> Shot:
    where = f"{path}: frames[{position}]"
    check_keys(where, entry, ("rgb", "depth", "pose", "time"), ("rgb", "depth", "pose", "time"))
    pose_44 = None
    if entry["pose"] is not None:
        try:
            pose_44 = np.array([[number(where, value) for value in row] for row in entry["pose"]], dtype=np.float64)
        except (TypeError, ValueError):
            raise ValueError(f"{where}: pose must be 4 rows of 4 numbers, or null") from None
    rgb, depth = (beside(path, f"{where}: {key}", entry[key]) for key in ("rgb", "depth"))
    return Shot(rgb, depth, pose_44, number(f"{where}: time", entry["time"]))


def _camera(where: str, content: Any) -> tuple[NDArray[np.float64], Size]:
    check_keys(where, content, _CAMERA, _CAMERA)
    fx, fy, cx, cy, width, height = (number(f"{where}: {key}", content[key]) for key in _CAMERA)
    for key, pixels in (("width", width), ("height", height)):
        if pixels < 1 or pixels != int(pixels):
            raise ValueError(f"{where}: {key} is a whole number of pixels, at least 1, got {pixels:g}")
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]]), (int(height), int(width))


def _fitted(matrix: NDArray[np.float64], stated: Size, size: Size, rescale: bool, which: str) -> NDArray[np.float64]:
    if stated == size:
        return matrix
    sizes = f"the intrinsics are for {stated[1]}x{stated[0]}, but the {which} picture has {size[1]}x{size[0]}"
    if not rescale:
        hint = "give depth_intrinsics, or rescale_intrinsics: true if both show the same field of view"
        raise ValueError(f"{sizes}; {hint}")
    if abs(stated[1] / stated[0] * size[0] / size[1] - 1) > _SHAPE_TOLERANCE:
        raise ValueError(f"{sizes}, which is of another shape, so that it cannot be the same field of view")
    return rescale_intrinsics(matrix, stated, size)


# --- ScanNet's folders


def _from_folder(path: str, frame_rate: float) -> Recording:
    color = _numbered(path, "color", (".jpg", ".jpeg", ".png"))
    depth = _numbered(path, "depth", (".png", ".npy", ".npz"))
    pose = _numbered(path, "pose", (".txt",))
    for name, files in (("depth", depth), ("pose", pose)):
        if len(files) != len(color):
            raise CodedError(f"{path}: color holds {len(color)} pictures but {name} holds {len(files)} files", "scene3d-counts")
        if files.keys() != color.keys():
            odd = min(files.keys() ^ color.keys())
            raise CodedError(f"{path}: number {odd} is in only one of color and {name}", "scene3d-counts")
    shots = tuple(Shot(color[i], depth[i], _pose(pose[i]), i / frame_rate) for i in sorted(color))
    matrices = {which: _intrinsic(os.path.join(path, "intrinsic", f"intrinsic_{which}.txt")) for which in ("color", "depth")}

    def camera(which: str, size: Size) -> NDArray[np.float64]:
        matrix = matrices[which]
        off = np.abs((matrix[:2, 2] + 0.5) / (size[1], size[0]) - 0.5)
        if off.max() > _CENTRE_TOLERANCE:
            raise ValueError(
                f"intrinsic_{which}.txt has its principal point at ({matrix[0, 2]:g}, {matrix[1, 2]:g}), which is not near the middle "
                f"of a {which} picture of {size[1]}x{size[0]}: it was measured for another size; describe the scene in a JSON file, "
                "which states the size and can rescale"
            )
        return matrix

    return Recording(path, shots, camera, None)


def _numbered(path: str, name: str, endings: tuple[str, ...]) -> dict[int, str]:
    folder = os.path.join(path, name)
    if not os.path.isdir(folder):
        raise ValueError(f"{path}: a folder {name!r} is expected (with color, depth, pose and intrinsic, as in ScanNet)")
    found: dict[int, str] = {}
    for file in sorted(os.listdir(folder)):
        stem, ending = os.path.splitext(file)
        if ending.lower() not in endings or file.startswith("."):
            continue
        if not stem.isdecimal() or int(stem) in found:
            raise ValueError(f"{os.path.join(folder, file)}: files must be called by different whole numbers")
        found[int(stem)] = os.path.join(folder, file)
    if not found:
        raise ValueError(f"{folder}: there is no file that ends in {', '.join(endings)}")
    return found


def _numbers(path: str) -> NDArray[np.float64]:
    if not os.path.isfile(path):
        raise ValueError(f"{path}: there is no such file")
    try:
        with open(path, encoding="utf-8") as file:
            rows = [[number_of(word) for word in line.split()] for line in file if line.strip()]
        matrix = np.array(rows, dtype=np.float64)
    except (ValueError, TypeError):
        raise ValueError(f"{path}: rows of numbers are expected") from None
    if any(None in row for row in rows):  # NumPy takes it for NaN
        raise ValueError(f"{path}: rows of numbers are expected")
    return matrix


def _pose(path: str) -> NDArray[np.float64] | None:
    """ScanNet writes -inf where tracking was lost."""
    matrix = _numbers(path)
    if matrix.shape != (4, 4):
        raise ValueError(f"{path}: a pose must be 4 x 4 numbers, got shape {matrix.shape}")
    return matrix if np.isfinite(matrix).all() else None


def _intrinsic(path: str) -> NDArray[np.float64]:
    matrix = _numbers(path)
    if matrix.shape not in ((4, 4), (3, 3)) or not np.isfinite(matrix).all():
        raise ValueError(f"{path}: intrinsics must be 4 x 4 or 3 x 3 finite numbers, got shape {matrix.shape}")
    return matrix[:3, :3]
