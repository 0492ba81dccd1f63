"""Pinhole cameras. Axes are OpenCV's: x right, y down, z forward; lengths are metres; depth counts along z, not along the ray.

A pixel's coordinates (u, v) are column and row, whole numbers at pixel *centres*. Intrinsics are
``[[fx, 0, cx], [0, fy, cy], [0, 0, 1]]`` in pixels: ``u = fx x / z + cx`` and ``v = fy y / z + cy`` (the pinhole model as in
Hartley and Zisserman, Multiple View Geometry, 2nd ed., section 6.1). A pose is camera-to-world, 4 x 4:
``world = pose @ [x, y, z, 1]``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

RIGID_TOLERANCE = 1e-3
"""Most that ``R.T @ R`` may differ from the identity: poses are often stored with few digits."""
FOCAL_LENGTHS = (0.05, 1e4)
"""Least and most focal length of a pinhole camera, in sides of its picture: fields of view of 169 degrees and of a third of a minute
of arc. Others are no lens's; intrinsics for a picture of side 1 are told from those in pixels by it."""
FARTHEST = 1e9
"""Metres from the world's origin at which a camera may stand: anything on Earth, in whatever coordinates."""


def check_intrinsics(matrix_33: Array, size: tuple[int, int], what: str) -> Array:
    """A float64 copy of intrinsics that fit a picture of ``size`` (height, width).

    Raises:
        ValueError: naming ``what``, if they are no pinhole's, their focal lengths are not among ``FOCAL_LENGTHS``, or their
            principal point lies outside the picture, so that they must have been measured for another size.
    """
    matrix = np.array(matrix_33, dtype=np.float64)
    if matrix.shape != (3, 3) or not np.isfinite(matrix).all():
        raise ValueError(f"{what}: intrinsics must be 3 x 3 finite numbers, got shape {matrix.shape}")
    off = [matrix[0, 1], matrix[1, 0], matrix[2, 0], matrix[2, 1], matrix[2, 2] - 1]
    if matrix[0, 0] <= 0 or matrix[1, 1] <= 0 or np.abs(off).max() > 1e-6:
        raise ValueError(f"{what}: intrinsics must be [[fx, 0, cx], [0, fy, cy], [0, 0, 1]], got {matrix.tolist()}")
    (height, width), (cx, cy) = size, (matrix[0, 2], matrix[1, 2])
    for name, focal, side in (("fx", matrix[0, 0], width), ("fy", matrix[1, 1], height)):
        if not FOCAL_LENGTHS[0] <= focal / side <= FOCAL_LENGTHS[1]:
            raise ValueError(f"{what}: {name} of {focal:g} pixels is no lens's for a picture of {width}x{height}; give pixels")
    if not (-0.5 <= cx <= width - 0.5 and -0.5 <= cy <= height - 0.5):
        raise ValueError(
            f"{what}: the principal point ({cx:g}, {cy:g}) lies outside the picture of {width}x{height}; the intrinsics belong to "
            "another size"
        )
    return matrix


def check_pose(pose_44: Array, what: str) -> Array:
    """A float64 copy of a rigid motion.

    Raises:
        ValueError: naming ``what``, if it is not one: not 4 x 4 finite numbers, another last row than 0 0 0 1, rotation
            columns that are not orthonormal and right-handed, or a camera further away than ``FARTHEST``.
    """
    pose = np.array(pose_44, dtype=np.float64)
    if pose.shape != (4, 4) or not np.isfinite(pose).all():
        raise ValueError(f"{what}: a pose must be 4 x 4 finite numbers, got shape {pose.shape}")
    rotation = pose[:3, :3]
    with np.errstate(over="ignore", invalid="ignore"):
        error = float(np.nan_to_num(np.abs(rotation.T @ rotation - np.eye(3)), nan=np.inf).max())
    if error < 1 and np.abs(pose[:3, 3]).max() > FARTHEST:
        raise ValueError(f"{what}: the pose puts the camera {np.abs(pose[:3, 3]).max():.3g} m from the origin; give metres")
    if np.abs(pose[3] - (0, 0, 0, 1)).max() > 1e-6 or error > RIGID_TOLERANCE or _determinant(rotation) < 0:
        raise ValueError(
            f"{what}: the pose is not rigid (R.T R differs from the identity by {error:.2g}, the determinant of R is "
            f"{_determinant(rotation):.2g}, the last row is {pose[3].tolist()}); give camera-to-world without scale"
        )
    return pose


def _determinant(matrix: Array) -> float:
    with np.errstate(over="ignore", invalid="ignore"):
        return float(np.linalg.det(matrix))


def invert_pose(pose_44: Array) -> Array:
    """World-to-camera of camera-to-world, and the reverse."""
    inverse = np.eye(4)
    inverse[:3, :3] = pose_44[:3, :3].T
    inverse[:3, 3] = -pose_44[:3, :3].T @ pose_44[:3, 3]
    return inverse


def transform(pose_44: Array, points_N3: Array) -> Array:
    """Points in the frame that the pose leads to."""
    moved: Array = points_N3 @ pose_44[:3, :3].T + pose_44[:3, 3]
    return moved


def rescale_intrinsics(matrix_33: Array, old: tuple[int, int], new: tuple[int, int]) -> Array:
    """Intrinsics of the same field of view in a picture of another size; both sizes are (height, width)."""
    down, across = new[0] / old[0], new[1] / old[1]
    matrix = np.array(matrix_33, dtype=np.float64)
    matrix[0, 0] *= across
    matrix[1, 1] *= down
    matrix[0, 2] = (matrix[0, 2] + 0.5) * across - 0.5
    matrix[1, 2] = (matrix[1, 2] + 0.5) * down - 0.5
    return matrix


def unproject(depth_HW: NDArray[np.floating], matrix_33: Array) -> Array:
    """(H, W, 3) points in the camera's frame behind each pixel; where depth is not finite, neither are they."""
    v_HW, u_HW = np.indices(depth_HW.shape, dtype=np.float64)
    z_HW = depth_HW.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        x_HW = (u_HW - matrix_33[0, 2]) / matrix_33[0, 0] * z_HW
        y_HW = (v_HW - matrix_33[1, 2]) / matrix_33[1, 1] * z_HW
    return np.stack([x_HW, y_HW, z_HW], axis=-1)


def project(points_N3: Array, matrix_33: Array) -> Array:
    """(N, 2) coordinates (u, v) of points in front of the camera, in its own frame."""
    with np.errstate(over="ignore", invalid="ignore"):  # a point too far aside has no finite coordinates
        scaled = points_N3[:, :2] / points_N3[:, 2:]
        return scaled * (matrix_33[0, 0], matrix_33[1, 1]) + (matrix_33[0, 2], matrix_33[1, 2])
