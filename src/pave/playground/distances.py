"""Depth and camera pose: scenes whose objects look equally large because the farther one is larger.

What is seen is the silent clip of the same scene. A depth map gives every object its distance and the background
another one; the picture of an object covers the same pixels whatever its distance, so size and distance are confounded
in the frames, and only depth tells which object is nearer. The camera stands still, anywhere in its world and turned
anyhow.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pave.data.media import write_depth, write_picture
from pave.playground.questions import Question, objects
from pave.playground.render import SIZE, coverage, draw_frames, place
from pave.playground.world import DURATION, NUM_MOMENTS, Scene, Split, draw_scene, stream
from pave.utils.files import atomic_write_json

CHANNEL = 2
"""Stream of random numbers (``pave.playground.world.stream``)."""
FOCAL = 48.0
"""Pixels; the camera looks through the middle of its picture."""
BACKGROUND = 6.0
"""Metres."""


@dataclass(frozen=True)
class SpacedScene:
    """A scene with a place in space."""

    scene: Scene
    distances: tuple[float, float]
    """Metres along the camera's axis, for each object."""
    pose: tuple[tuple[float, ...], ...]
    """Camera-to-world, 4 x 4, OpenCV axes."""

    @property
    def nearer(self) -> str:
        """Name of the nearer object."""
        return self.scene.things[int(self.distances[1] < self.distances[0])].name

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)


def draw_spaced(seed: int, split: Split, index: int) -> SpacedScene:
    """Scene number ``index`` with distances and a camera; which object is nearer is drawn whatever is seen."""
    rng = stream(seed, split, index, CHANNEL)
    near = float(rng.uniform(1.0, 2.5))
    far = near * float(rng.uniform(1.4, 2.2))
    distances = (near, far) if rng.integers(2) else (far, near)
    pose = _draw_pose(rng)
    scene = draw_scene(seed, split, index, silent=True)
    first, second = (round(distance, 3) for distance in distances)
    return SpacedScene(scene, (first, second), tuple(tuple(row) for row in pose.tolist()))


def _draw_pose(rng: np.random.Generator) -> NDArray[np.float64]:
    yaw, pitch = rng.uniform(-np.pi, np.pi), rng.uniform(-0.3, 0.3)
    about_y = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
    about_x = np.array([[1, 0, 0], [0, np.cos(pitch), -np.sin(pitch)], [0, np.sin(pitch), np.cos(pitch)]])
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = about_y @ about_x, rng.uniform(-3, 3, 3)
    rounded: NDArray[np.float64] = pose.round(6)
    return rounded


def moments() -> NDArray[np.float64]:
    """Times of the depth maps: the centres of ``NUM_MOMENTS`` equal parts of the clip."""
    times_F: NDArray[np.float64] = (np.arange(NUM_MOMENTS, dtype=np.float64) + 0.5) * (DURATION / NUM_MOMENTS)
    return times_F


def draw_depth(spaced: SpacedScene, times_F: NDArray[np.float64]) -> NDArray[np.float64]:
    """(F, SIZE, SIZE) metres."""
    depth_FYX: NDArray[np.float64] = np.full((len(times_F), SIZE, SIZE), BACKGROUND)
    for index, thing in enumerate(spaced.scene.things):
        x_F, y_F, _ = place(spaced.scene, index, times_F)
        depth_FYX[coverage(thing.shape, x_F, y_F) > 0.5] = spaced.distances[index]
    return depth_FYX


def write_space(path: Path, spaced: SpacedScene) -> None:
    """Write pictures and 16-bit depth maps beside ``path``, and at ``path`` the JSON that describes them (and that the
    encoder ``scene3d`` reads)."""
    times_F = moments()
    frames = []
    parts = zip(times_F, draw_frames(spaced.scene, times_F), draw_depth(spaced, times_F), strict=True)
    for i, (time, rgb_HWC, depth_HW) in enumerate(parts):
        write_picture(path.parent / f"rgb{i}.png", rgb_HWC)
        write_depth(path.parent / f"depth{i}.png", depth_HW)
        frames.append({"rgb": f"rgb{i}.png", "depth": f"depth{i}.png", "pose": spaced.pose, "time": float(time)})
    middle = (SIZE - 1) / 2
    camera = {"fx": FOCAL, "fy": FOCAL, "cx": middle, "cy": middle, "width": SIZE, "height": SIZE}
    atomic_write_json(path, {"intrinsics": camera, "frames": frames})


def _nearer(spaced: SpacedScene, rng: np.random.Generator) -> Question:
    return Question("nearer", "which object is nearer ?", spaced.nearer, objects(spaced.scene))


MAKERS = {"nearer": _nearer}
REVEALS = {"nearer": {"objects"}}
