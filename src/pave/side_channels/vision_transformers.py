"""Frames through any vision model of transformers, by hub id or local path."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pave.config import EncoderConfig
from pave.side_channels.base import SideFeatures
from pave.side_channels.frames import FrameStream, check_sampling, in_windows, join_steps, pool_grid
from pave.side_channels.vision_towers import DTYPES, load_tower

if TYPE_CHECKING:
    from typing_extensions import Self


class VisionTransformersEncoder:
    """The patch features of a vision model, averaged over a ``grid`` x ``grid`` division of the picture, row by row.

    Image models (CLIP, SigLIP, DINOv2, DINOv3, ViT and others that AutoModel and AutoImageProcessor load; of CLIP and SigLIP the
    vision half; of a Video LLM with such a tower that tower) give a step for each frame, at the frame's presentation time. Class and
    register tokens are dropped.

    V-JEPA 2 sees clips of ``clip_frames`` frames and gives a step for each tubelet (2 frames in the published models). Its time is
    the mean of its frames' times. The last clip of a video may be shorter; where its last tubelet is not full, the last
    frame is repeated, and the time is the mean of the real frames. Clips do not overlap.

    Args:
        model: hub id or local path. A checkpoint of a whole model (with its text half) will do.
        revision: on the hub. ``spec`` gives back the commit that was loaded.
        fps: frames a second that are read; None reads every one.
        max_frames: most frames of a video; where ``fps`` gives more, this many are spread evenly instead. None: no limit.
        grid: tokens along a side of the picture. 2 is what LanguageBind's features are pooled to in the paper.
        layer: whose output is taken: -1 the model's last output, -2 that of the layer before the last, and so on.
        whole_picture: True resizes the picture to the model's input, whatever its shape, so that the grid covers all of it. False
            leaves it to the model's own processor, which may crop the centre.
        clip_frames: frames of a clip, for video models; None takes the number the model was trained with.
        dtype: the model computes in it: float32, bfloat16 or float16. Features are float32.

    Raises:
        ValueError: if the weights cannot be loaded, are incomplete or of another kind, or a setting is out of range.
    """

    source: ClassVar[str] = "video"
    sample_rate: int | None = None

    def __init__(
        self,
        model: str,
        *,
        revision: str | None = None,
        fps: float | None = 8.0,
        max_frames: int | None = None,
        grid: int = 2,
        layer: int = -1,
        whole_picture: bool = True,
        clip_frames: int | None = None,
        dtype: str = "float32",
    ) -> None:
        check_sampling("vision_transformers", fps, max_frames, grid)
        if dtype not in DTYPES:
            raise ValueError(f"vision_transformers: dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
        self._tower, commit = load_tower(
            model, revision, layer=layer, whole_picture=whole_picture, clip_frames=clip_frames, dtype=dtype
        )
        self.model_name, self.revision = model, commit or revision
        self.fps, self.max_frames = fps, max_frames
        self.frames_per_step = self._tower.frames_per_step
        self.sees_whole_picture = whole_picture
        self._grid = grid
        self._settings = {
            "fps": fps,
            "max_frames": max_frames,
            "grid": grid,
            "layer": layer,
            "whole_picture": whole_picture,
            "clip_frames": clip_frames,
            "dtype": dtype,
        }
        probe = np.zeros((self.frames_per_step, 32, 32, 3), dtype=np.uint8)
        _, self._width, rows, columns = self._tower.maps(probe).shape
        if grid > min(rows, columns):
            raise ValueError(
                f"vision_transformers: grid must be at most the {min(rows, columns)} patches of a side, got {grid}"
            )

    @property
    def width(self) -> int:
        """C."""
        return self._width

    @property
    def tokens_per_step(self) -> int:
        """M."""
        return self._grid**2

    @property
    def grid(self) -> int:
        """Tokens along a side of the picture."""
        return self._grid

    def encode(self, source: FrameStream) -> SideFeatures:
        """Features of a stream of frames, whatever its pieces: (K, M, C) float32.

        Raises:
            ValueError: if there is no frame, the picture size changes, or times do not ascend.
        """
        features: list[Tensor] = []
        times: list[NDArray[np.float64]] = []
        step = self.frames_per_step
        for window in in_windows(source, self._tower.window):
            features.append(pool_grid(self._tower.maps(window.frames_FHWC), self._grid))
            times.append(np.array([window.times_F[i : i + step].mean() for i in range(0, len(window), step)]))
        return join_steps(features, times)

    def encode_batch(self, sources: Sequence[FrameStream]) -> list[SideFeatures]:
        """Features of several streams, in order."""
        return [self.encode(source) for source in sources]

    def spec(self) -> EncoderConfig:
        """Every setting, also those left at their default, and the commit that was loaded."""
        settings = dict(self._settings)
        return EncoderConfig(name="vision_transformers", model=self.model_name, revision=self.revision, settings=settings)

    def to(self, device: torch.device | str) -> Self:
        """Move the weights; features come back on the same device."""
        self._tower.model.to(device)
        return self

    def __repr__(self) -> str:
        return f"VisionTransformersEncoder({self.model_name!r}, revision={self.revision!r}, {self._settings})"
