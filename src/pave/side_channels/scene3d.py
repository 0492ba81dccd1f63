"""Pictures with depth and camera poses: what is seen, and where in space it is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import pi
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pave.config import EncoderConfig
from pave.side_channels.base import SideFeatures
from pave.side_channels.frames import Frames, encoder_from_setting
from pave.side_channels.geometry import check_intrinsics, check_pose, invert_pose, project, transform, unproject

if TYPE_CHECKING:
    from typing_extensions import Self

FRAMES_OF_REFERENCE = ("world", "first_camera")


@dataclass(frozen=True, eq=False)
class PosedPicture:
    """One picture with its depth map and where the camera was. Conventions are those of ``pave.side_channels.geometry``.

    Picture and depth map may differ in size and field of view; they are taken to share the camera's centre and axes.

    Raises:
        ValueError: if an array has another shape or type, intrinsics do not fit their picture, or the pose is not rigid.
    """

    rgb_HWC: NDArray[np.uint8]
    """RGB, upright."""
    depth_HW: NDArray[np.float32]
    """Metres along z. 0, negative and not finite values are invalid."""
    intrinsics_33: NDArray[np.float64]
    """Of the picture, in its pixels."""
    depth_intrinsics_33: NDArray[np.float64]
    """Of the depth map, in its pixels."""
    pose_44: NDArray[np.float64]
    """Camera-to-world."""
    time: float
    """Seconds on the clock of the sample's video."""

    def __post_init__(self) -> None:
        if self.rgb_HWC.dtype != np.uint8 or self.rgb_HWC.ndim != 3 or self.rgb_HWC.shape[-1] != 3:
            raise ValueError(
                f"PosedPicture: rgb_HWC must be uint8 (height, width, 3), got {self.rgb_HWC.dtype} of shape {self.rgb_HWC.shape}"
            )
        if self.depth_HW.ndim != 2 or self.depth_HW.dtype.kind != "f":
            raise ValueError(
                f"PosedPicture: depth_HW must be floating (height, width) in metres, got {self.depth_HW.dtype} of shape "
                f"{self.depth_HW.shape}"
            )
        if not np.isfinite(self.time):
            raise ValueError(f"PosedPicture: time must be finite, got {self.time}")
        height, width = self.rgb_HWC.shape[:2]
        depth_height, depth_width = self.depth_HW.shape
        intrinsics = check_intrinsics(self.intrinsics_33, (height, width), "PosedPicture: the picture")
        of_depth = check_intrinsics(self.depth_intrinsics_33, (depth_height, depth_width), "PosedPicture: the depth map")
        object.__setattr__(self, "intrinsics_33", intrinsics)
        object.__setattr__(self, "depth_intrinsics_33", of_depth)
        object.__setattr__(self, "pose_44", check_pose(self.pose_44, "PosedPicture"))


class Scene3DEncoder:
    """Patch features of a frame encoder, each with the place in space of what the patch shows.

    A step is a picture, a token a cell of the frame encoder's grid. Behind the frame encoder's features of a token stand

    - 1: 1 if any pixel of valid depth falls into the cell, else 0 (and all that follows is 0);
    - 3: the mean of the points behind those pixels, x y z in metres in the common frame;
    - 6 * ``frequencies``: sin and cos of ``2 pi x / wavelength`` for each coordinate, with wavelengths
      ``longest_wavelength / 2**k``, k = 0, 1, ...: x's sines, x's cosines, then y's, then z's (Fourier features, Tancik et al.,
      arXiv 2006.10739).

    Every pixel of the depth map is unprojected with the depth map's intrinsics, and falls into the cell in which the picture's
    intrinsics show its point; so the two may differ in size and field of view. A depth is invalid if it is not finite, not
    above 0, or above ``max_depth``.

    Args:
        encoder: of the pictures, the fields of an ``EncoderConfig``: any encoder of frames that gives a step for each frame and
            sees the whole picture.
        common_frame: "world": the poses' own world. "first_camera": the axes of the first picture's camera, for poses whose
            world is arbitrary; up is then unknown.
        max_depth: metres; beyond it depth is taken for invalid.
        frequencies: of the Fourier features; 0 leaves them out.
        longest_wavelength: metres.
        max_frames: most pictures of a scene; more are thinned out evenly. None: no limit.
        frame_rate: pictures a second, for layouts that number pictures but do not time them (ScanNet: 30).

    Raises:
        ValueError: if a setting is out of range, or the frame encoder cannot be built or does not suit.
    """

    source: ClassVar[str] = "scene3d"
    sample_rate: int | None = None
    unusable: ClassVar[str] = "without a valid depth"
    """What the rest of a step lacks, of which ``usable`` is a part."""

    def __init__(
        self,
        *,
        encoder: Mapping[str, Any],
        common_frame: str = "world",
        max_depth: float = 10.0,
        frequencies: int = 6,
        longest_wavelength: float = 16.0,
        max_frames: int | None = 32,
        frame_rate: float = 30.0,
    ) -> None:
        if common_frame not in FRAMES_OF_REFERENCE:
            raise ValueError(f"scene3d: common_frame must be one of {', '.join(FRAMES_OF_REFERENCE)}, got {common_frame!r}")
        for name, value in (
            ("max_depth", max_depth),
            ("longest_wavelength", longest_wavelength),
            ("frame_rate", frame_rate),
        ):
            if not 0 < value < float("inf"):
                raise ValueError(f"scene3d: {name} must be a positive number, got {value}")
        if frequencies < 0 or (max_frames is not None and max_frames < 1):
            raise ValueError(f"scene3d: frequencies ({frequencies}) or max_frames ({max_frames}) is too small")
        self.frame_encoder = encoder_from_setting("scene3d", encoder)
        if self.frame_encoder.frames_per_step != 1 or not self.frame_encoder.sees_whole_picture:
            raise ValueError(
                "scene3d: the frame encoder must give a step for each picture and see all of it; video models and "
                "whole_picture: false do not suit"
            )
        self.max_frames, self.frame_rate = max_frames, frame_rate
        self._settings = {
            "common_frame": common_frame,
            "max_depth": max_depth,
            "frequencies": frequencies,
            "longest_wavelength": longest_wavelength,
            "max_frames": max_frames,
            "frame_rate": frame_rate,
        }
        self._first_camera = common_frame == "first_camera"
        self._max_depth = max_depth
        self._wavelengths = longest_wavelength / 2.0 ** np.arange(frequencies)

    @property
    def width(self) -> int:
        """C."""
        return self.frame_encoder.width + 4 + 6 * len(self._wavelengths)

    @property
    def tokens_per_step(self) -> int:
        """M."""
        return self.frame_encoder.tokens_per_step

    def encode(self, source: Iterable[PosedPicture]) -> SideFeatures:
        """Features of pictures in order of time, which may be read as they are asked for: (K, M, C) float32.

        Raises:
            ValueError: if there is no picture, their size changes, times do not ascend, or every depth that was measured is negative or
                above ``max_depth``, so that it must be in another unit or along another axis.
        """
        places: list[NDArray[np.float64]] = []
        depths = _Depths(self._max_depth)

        def pictures() -> Iterator[Frames]:
            first: NDArray[np.float64] | None = None
            for picture in source:
                depths.add(picture.depth_HW)
                first = invert_pose(picture.pose_44) if first is None else first
                places.append(self._places(picture, first @ picture.pose_44 if self._first_camera else picture.pose_44))
                yield Frames(picture.rgb_HWC[None], np.array([picture.time]))

        looks = self.frame_encoder.encode(pictures())
        depths.check()
        where = torch.from_numpy(np.stack(places)).float().to(looks.features_KMC.device)
        return SideFeatures(torch.cat([looks.features_KMC.float(), where], dim=2), looks.times_K)

    def _places(self, picture: PosedPicture, pose_44: NDArray[np.float64]) -> NDArray[np.float64]:
        """(M, 4 + 6 * frequencies): what is said on the place of each cell."""
        points_M3, counts_M = mean_points(picture, self.frame_encoder.grid, self._max_depth)
        valid_M = counts_M > 0
        points_M3 = transform(pose_44, points_M3)
        phases_M3F = 2 * pi * points_M3[..., None] / self._wavelengths
        waves_MW = np.concatenate([np.sin(phases_M3F), np.cos(phases_M3F)], axis=2).reshape(len(points_M3), -1)
        return np.concatenate([np.ones((len(points_M3), 1)), points_M3, waves_MW], axis=1) * valid_M[:, None]

    def usable(self, features: SideFeatures) -> Tensor:
        """How much of each step says where it is, (K,) from 0 to 1: the share of its cells with a valid depth."""
        return features.features_KMC[:, :, self.frame_encoder.width].float().mean(dim=1)

    def encode_batch(self, sources: Sequence[Iterable[PosedPicture]]) -> list[SideFeatures]:
        """Features of several scenes, in order."""
        return [self.encode(source) for source in sources]

    def spec(self) -> EncoderConfig:
        """Every setting, also those left at their default, and the complete spec of the frame encoder."""
        return EncoderConfig(name="scene3d", settings={"encoder": self.frame_encoder.spec().to_dict(), **self._settings})

    def to(self, device: torch.device | str) -> Self:
        """Move the frame encoder."""
        self.frame_encoder.to(device)
        return self


class _Depths:
    """What the depths of a scene are like, to tell a wrong unit or sign from a place that was not measured."""

    def __init__(self, max_depth: float) -> None:
        self._max_depth = max_depth
        self._usable = 0
        self._far: list[float] = []
        """Of each picture with depths above the limit, the middle one of them."""
        self._negative = 0

    def add(self, depth_HW: NDArray[np.float32]) -> None:
        """Look at one depth map."""
        measured = depth_HW[np.isfinite(depth_HW) & (depth_HW != 0)]
        far = measured[measured > self._max_depth]
        negative = int((measured < 0).sum())
        self._usable += len(measured) - len(far) - negative
        self._negative += negative
        if len(far):
            self._far.append(float(np.median(far)))

    def check(self) -> None:
        """Raises ValueError if there are depths and none can be used."""
        if self._usable or not (self._far or self._negative):
            return
        if not self._far:
            raise ValueError(
                "scene3d: every depth is negative, behind the camera; depth counts forward, along +z of OpenCV's axes: change its sign"
            )
        middle = float(np.median(self._far))
        raise ValueError(
            f"scene3d: every depth is beyond max_depth {self._max_depth:g} m (the middle one is {middle:.4g} m), so that nothing of it "
            "could be used; set the scene's depth_unit (0.001 for millimetres), or a greater max_depth"
        )


def mean_points(picture: PosedPicture, grid: int, max_depth: float) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Mean of the valid points behind each cell of a grid over the picture, in the camera's frame, and how many there are.

    Args:
        picture: with its depth map.
        grid: cells along a side; cells are counted row by row.
        max_depth: metres.

    Returns:
        (M, 3) metres, zeros for a cell without a valid point; (M,) counts.
    """
    depth_HW = picture.depth_HW
    valid_HW = np.isfinite(depth_HW) & (depth_HW > 0) & (depth_HW <= max_depth)
    points_N3 = unproject(np.where(valid_HW, depth_HW, 1.0), picture.depth_intrinsics_33)[valid_HW]
    seen_N2 = project(points_N3, picture.intrinsics_33)
    height, width = picture.rgb_HWC.shape[:2]
    where_N2 = (seen_N2 + 0.5) / (width, height) * grid
    inside_N = ((where_N2 >= 0) & (where_N2 < grid)).all(axis=1)  # before the cast, which has no word for a NaN
    cells_N2 = where_N2[inside_N].astype(np.int64)
    cells_N = cells_N2[:, 1] * grid + cells_N2[:, 0]
    counts_M = np.bincount(cells_N, minlength=grid**2)
    sums = [np.bincount(cells_N, weights=points_N3[inside_N, axis], minlength=grid**2) for axis in range(3)]
    return np.stack(sums, axis=1) / np.maximum(counts_M, 1)[:, None], counts_M
