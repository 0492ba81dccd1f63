"""How the pictures of a video are shown: with square pixels, turned and mirrored as the file says."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import atan2, degrees

import av
import numpy as np
from av.sidedata.sidedata import Type as SideDataType
from numpy.typing import NDArray

from pave.data.media.container import MediaError, check_size

_TOLERANCE = 1.0
"""Degrees by which a display matrix may be off a quarter turn (FFmpeg's program allows as many)."""
_Matrix = tuple[int, int, int, int]


@dataclass(frozen=True)
class Display:
    """How a stored picture becomes the one that is shown: its pixels are made square by changing its width, then it is turned, then
    mirrored."""

    width: int
    """Of the stored picture with square pixels."""
    height: int
    quarter_turns: int
    """Counter-clockwise, 0 to 3."""
    mirrored: bool
    """Left and right change places, after the turn."""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) as shown."""
        return (self.width, self.height) if self.quarter_turns % 2 else (self.height, self.width)

    def pixels(self, frame: av.VideoFrame) -> NDArray[np.uint8]:
        """(height, width, 3) RGB of a frame as shown. Pixels that are not square are resampled as FFmpeg's scale filter does it
        (bicubic); others are as stored."""
        if self.width == frame.width:
            stored_HWC = frame.to_ndarray(format="rgb24")
        else:
            stored_HWC = frame.to_ndarray(format="rgb24", width=self.width, height=self.height, interpolation="BICUBIC")
        turned_HWC = np.rot90(stored_HWC, self.quarter_turns)
        return turned_HWC[:, ::-1] if self.mirrored else turned_HWC


def display_of(frame: av.VideoFrame, pixel_aspect: Fraction, name: str) -> Display:
    """How a frame is shown.

    Args:
        frame: decoded.
        pixel_aspect: width of a stored pixel over its height.
        name: of the file.

    Raises:
        MediaError: if the picture would be absurdly large, or the file turns it by something else than quarter turns.
    """
    width = max(1, round(frame.width * pixel_aspect))
    check_size(width, frame.height, name)
    return Display(width, frame.height, *_orientation(_matrix(frame), name))


def _matrix(frame: av.VideoFrame) -> _Matrix | None:
    """The display matrix (a, b, c, d) of ISO 14496-12, 8.3.2: what is stored at (x, y) is shown at (a x + c y, b x + d y), y downwards,
    but for a shift. None if the file has none."""
    data = frame.side_data.get(SideDataType.DISPLAYMATRIX)
    if data is None:
        return None
    a, b, _, c, d = (int(value) for value in np.frombuffer(bytes(data), dtype=np.int32)[:5])
    return a, b, c, d


def _orientation(matrix: _Matrix | None, name: str) -> tuple[int, bool]:
    """Quarter turns counter-clockwise, and whether left and right change places after them. A matrix that is no picture of the plane
    (some writers leave zeros) says nothing."""
    if matrix is None:
        return 0, False
    a, b, c, d = matrix
    area = a * d - b * c
    if area < 0:  # without the mirror
        a, c = -a, -c
    angle = degrees(atan2(c - b, a + d)) if area else 0.0
    turns = round(angle / 90)
    if abs(angle - 90 * turns) > _TOLERANCE:
        raise MediaError(f"{name}: the file states a rotation of {angle:.4g} degrees; only quarter turns are known")
    return turns % 4, area < 0
