"""Frames as a side channel: the container that readers hand over, and how encoders cut it to the pieces they work on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pave.side_channels.base import SideEncoder, SideFeatures

if TYPE_CHECKING:
    from pave.config import EncoderConfig


@dataclass(frozen=True, eq=False)
class Frames:
    """Some consecutive pictures of one camera.

    Raises:
        ValueError: if the pictures are not uint8 RGB, or the times are not one finite, ascending second for each.
    """

    frames_FHWC: NDArray[np.uint8]
    """RGB, upright."""
    times_F: NDArray[np.float64]
    """Seconds on the video's clock at which each picture appears; strictly ascending."""

    def __post_init__(self) -> None:
        frames, times = np.asarray(self.frames_FHWC), np.asarray(self.times_F, dtype=np.float64)
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not frames.size:
            raise ValueError(
                "Frames: frames_FHWC must be uint8 of shape (frames, height, width, 3) with at least one frame, "
                f"got {frames.dtype} of shape {frames.shape}"
            )
        if times.shape != (len(frames),):
            raise ValueError(f"Frames: {len(frames)} frames but times of shape {times.shape}")
        if not np.isfinite(times).all() or (np.diff(times) <= 0).any():
            raise ValueError("Frames: times_F must be finite and ascend strictly")
        object.__setattr__(self, "frames_FHWC", frames)
        object.__setattr__(self, "times_F", times)

    def __len__(self) -> int:
        return len(self.times_F)


FrameStream: TypeAlias = Iterable[Frames]
"""The frames of a video in pieces of any length, in order of time; ``[Frames(...)]`` is one. A stream that decodes its pieces
as they are asked for keeps a long video out of memory."""


@runtime_checkable
class FrameEncoder(SideEncoder[FrameStream], Protocol):
    """An encoder of frames, whose tokens of a step are the cells of a grid over the picture, row by row."""

    fps: float | None
    """Frames a second that it wants to see; None for every frame."""
    max_frames: int | None
    """Most frames of a video; where ``fps`` gives more, this many are spread evenly instead. None: no limit."""
    frames_per_step: int
    """Frames that become one step."""
    sees_whole_picture: bool
    """False if the model crops pictures, so that the grid covers only a part of them."""

    @property
    def grid(self) -> int:
        """Cells along a side; ``tokens_per_step`` is its square."""
        ...


def check_sampling(encoder: str, fps: float | None, max_frames: int | None, grid: int) -> None:
    """Refuse settings out of range.

    Raises:
        ValueError: naming the encoder and the setting.
    """
    if fps is not None and not 0 < fps <= 1000:
        raise ValueError(f"{encoder}: fps must be above 0 and at most 1000, got {fps}")
    if max_frames is not None and max_frames < 1:
        raise ValueError(f"{encoder}: max_frames must be at least 1, got {max_frames}")
    if grid < 1:
        raise ValueError(f"{encoder}: grid must be at least 1, got {grid}")


def in_windows(stream: FrameStream, size: int) -> Iterator[Frames]:
    """The same frames in pieces of ``size``, the last one shorter. Holds one window and one piece at a time.

    Raises:
        ValueError: if there is no frame, the picture size changes, or times do not ascend from piece to piece.
    """
    held: list[Frames] = []
    count, shape, last = 0, None, -np.inf
    for piece in stream:
        if shape is not None and piece.frames_FHWC.shape[1:] != shape:
            (height, width), (new_height, new_width) = shape[:2], piece.frames_FHWC.shape[1:3]
            raise ValueError(f"the picture size changes from {width}x{height} to {new_width}x{new_height} between frames")
        if piece.times_F[0] <= last:
            raise ValueError(
                f"the time of a frame ({piece.times_F[0]:g} s) does not come after that of the one before ({last:g} s)"
            )
        shape, last = piece.frames_FHWC.shape[1:], float(piece.times_F[-1])
        held.append(piece)
        count += len(piece)
        while count >= size:
            window, rest = _split(held, size)
            held, count = rest, count - size
            yield window
    if shape is None:
        raise ValueError("the video gave no frame")
    if count:
        yield _split(held, count)[0]


def _split(pieces: list[Frames], size: int) -> tuple[Frames, list[Frames]]:
    frames_FHWC = np.concatenate([piece.frames_FHWC for piece in pieces])
    times_F = np.concatenate([piece.times_F for piece in pieces])
    rest = [Frames(frames_FHWC[size:].copy(), times_F[size:])] if size < len(times_F) else []
    return Frames(frames_FHWC[:size], times_F[:size]), rest


def pool_grid(maps_FCYX: Tensor, grid: int) -> Tensor:
    """Means over a ``grid`` x ``grid`` division of maps: (F, grid * grid, C), cells row by row. Where the sides do not divide,
    neighbouring cells share a row or column."""
    pooled: Tensor = torch.nn.functional.adaptive_avg_pool2d(maps_FCYX, grid)
    return pooled.flatten(2).transpose(1, 2)


def encoder_from_setting(owner: str, values: Any) -> FrameEncoder:
    """The frame encoder that a setting ``encoder`` of another encoder describes: the fields of an ``EncoderConfig``.

    Raises:
        ValueError: naming ``owner``, if it cannot be built or is no encoder of frames.
    """
    from pave.config import EncoderConfig
    from pave.side_channels import build_encoder

    if not isinstance(values, dict):
        raise ValueError(f"{owner}: encoder must be a mapping with name, settings and so on, got {values!r}")
    config: EncoderConfig = EncoderConfig.from_dict(values, where=f"{owner}: encoder")
    built = build_encoder(config)
    if built.source != "video" or not isinstance(built, FrameEncoder):
        raise ValueError(f"{owner}: encoder must be an encoder of frames, such as 'frames_pixels', got {config.name!r}")
    return built


def join_steps(parts: list[Tensor], times: list[NDArray[np.float64]]) -> SideFeatures:
    """Features of consecutive windows as one."""
    return SideFeatures(torch.cat(parts), torch.from_numpy(np.concatenate(times)))
