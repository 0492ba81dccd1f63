"""How the pictures of a video are shown: with square pixels, turned and mirrored as the file says."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import atan2, degrees

import av
import av.filter
import numpy as np
from av.sidedata.sidedata import SideData
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


class Projector:
    """Makes RGB of frames as they are shown.

    FFmpeg's scale filter does it as in FFmpeg's own program, so that pixels are equal to those of that program. (PyAV's own way from
    a frame to an array gives other colours where there are more than 8 bits, half pictures, or another size.)

    Args:
        display: how frames are shown.
        frame: one of them; all are of its size and format.
    """

    def __init__(self, display: Display, frame: av.VideoFrame) -> None:
        self.display = display
        self._graph = av.filter.Graph()
        if hasattr(self._graph, "threads"):  # PyAV before 17 has no such choice
            self._graph.threads = 1
        source = self._graph.add_buffer(
            width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base or Fraction(1, 90_000)
        )
        scale = self._graph.add("scale", f"w={display.width}:h={display.height}")
        self._graph.link_nodes(source, scale, self._graph.add("format", "rgb24"), self._graph.add("buffersink"))
        self._graph.configure()

    def show(self, frame: av.VideoFrame) -> NDArray[np.uint8]:
        """(height, width, 3)."""
        self._graph.vpush(frame)
        shown_HWC = np.rot90(np.asarray(self._graph.vpull().to_ndarray(), dtype=np.uint8), self.display.quarter_turns)
        return shown_HWC[:, ::-1] if self.display.mirrored else shown_HWC


def display_of(frame: av.VideoFrame, pixel_aspect: Fraction, name: str) -> Display:
    """How a frame is shown.

    Args:
        frame: decoded.
        pixel_aspect: width of a stored pixel over its height.
        name: of the file.

    Raises:
        MediaError: if the picture would be absurdly large, or the file turns it by something else than quarter turns.
    """
    width = max(1, int(frame.width * pixel_aspect))  # down, as FFmpeg's scale=iw*sar:ih
    check_size(width, frame.height, name)
    return Display(width, frame.height, *_orientation(_matrix(frame), name))


def _matrix(frame: av.VideoFrame) -> _Matrix | None:
    """The display matrix (a, b, c, d) of ISO 14496-12, 8.3.2: what is stored at (x, y) is shown at (a x + c y, b x + d y), y downwards,
    but for a shift. None if the file has none."""
    # A frame whose side data was looked at lies in a reference cycle, so that is done on a copy of a few bytes.
    data = frame.reformat(width=8, height=8, format="gray").side_data.get("DISPLAYMATRIX")
    if not isinstance(data, SideData):
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
