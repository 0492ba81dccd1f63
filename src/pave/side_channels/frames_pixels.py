"""Frames as coarse pixels and their changes: a frame encoder without weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pave.config import EncoderConfig
from pave.side_channels.base import SideFeatures
from pave.side_channels.frames import FrameStream, check_sampling, in_windows, join_steps

if TYPE_CHECKING:
    from typing_extensions import Self

_WINDOW = 8
"""Frames that are pooled at once, to bound memory."""
VALUES_PER_CELL = 7


class FramesPixelsEncoder:
    """What a frame looks like from afar and how it differs from the frame before: ``grid * grid`` tokens a frame, no weights.

    The picture is divided into ``grid`` x ``grid`` tokens, row by row, and each token into ``detail`` x ``detail`` cells, row
    by row. A cell gives 7 numbers, one cell after the other:

    - 3: mean red, green and blue, from -1 (black) to 1 (full);
    - 3: what these means gained since the frame before, from -2 to 2;
    - 1: mean absolute change of its pixels and colours since the frame before, from 0 to 2. It sees motion that leaves the
      means as they are.

    "The frame before" is the one sampled before; changes are not divided by the time between. The first frame has none, and
    its changes are 0. The time of a step is the presentation time of its frame. A cell is the mean of its pixels; where the
    sides of the picture do not divide, neighbouring cells share a row or column of pixels.

    Args:
        fps: frames a second that are read; None reads every one.
        max_frames: most frames of a video; where ``fps`` gives more, this many are spread evenly instead. None: no limit.
        grid: tokens along a side of the picture.
        detail: cells along a side of a token; C is ``7 * detail * detail``.

    Raises:
        ValueError: if a setting is out of range.
    """

    source: ClassVar[str] = "video"
    sample_rate: int | None = None
    frames_per_step: int = 1
    sees_whole_picture: bool = True

    def __init__(self, *, fps: float | None = 8.0, max_frames: int | None = None, grid: int = 2, detail: int = 4) -> None:
        check_sampling("frames_pixels", fps, max_frames, grid)
        if detail < 1:
            raise ValueError(f"frames_pixels: detail must be at least 1, got {detail}")
        self.fps, self.max_frames = fps, max_frames
        self._grid, self._detail = grid, detail
        self._device = torch.device("cpu")

    @property
    def width(self) -> int:
        """C."""
        return VALUES_PER_CELL * self._detail**2

    @property
    def tokens_per_step(self) -> int:
        """M."""
        return self._grid**2

    @property
    def grid(self) -> int:
        """Tokens along a side of the picture."""
        return self._grid

    def encode(self, source: FrameStream) -> SideFeatures:
        """Features of a stream of frames, whatever its pieces: (K, M, C) float32, a step for each frame.

        Raises:
            ValueError: if there is no frame, the picture size changes, or times do not ascend.
        """
        features: list[Tensor] = []
        times: list[NDArray[np.float64]] = []
        before_CYX: Tensor | None = None
        for window in in_windows(source, _WINDOW):
            pixels = torch.from_numpy(window.frames_FHWC).to(self._device).permute(0, 3, 1, 2).float() / 127.5 - 1
            first_CYX = pixels[0] if before_CYX is None else before_CYX
            change = pixels - torch.cat([first_CYX[None], pixels[:-1]])
            maps_FCYX = torch.cat([pixels, change, change.abs().mean(dim=1, keepdim=True)], dim=1)
            features.append(self._tokens(maps_FCYX))
            times.append(window.times_F)
            before_CYX = pixels[-1].clone()
        return join_steps(features, times)

    def _tokens(self, maps_FCYX: Tensor) -> Tensor:
        g, d = self._grid, self._detail
        cells = torch.nn.functional.adaptive_avg_pool2d(maps_FCYX, g * d)
        cells = cells.unflatten(3, (g, d)).unflatten(2, (g, d))  # frame, value, token row, cell row, token column, cell column
        return cells.permute(0, 2, 4, 3, 5, 1).reshape(len(cells), g * g, -1)

    def encode_batch(self, sources: Sequence[FrameStream]) -> list[SideFeatures]:
        """Features of several streams, in order."""
        return [self.encode(source) for source in sources]

    def spec(self) -> EncoderConfig:
        """Every setting, also those left at their default."""
        settings = {"fps": self.fps, "max_frames": self.max_frames, "grid": self._grid, "detail": self._detail}
        return EncoderConfig(name="frames_pixels", settings=settings)

    def to(self, device: torch.device | str) -> Self:
        """Compute on this device."""
        self._device = torch.device(device)
        return self
