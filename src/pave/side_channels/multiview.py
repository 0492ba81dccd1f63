"""Further cameras beside the video: each view's frames are steps of their own, marked with the view they come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from pave.config import EncoderConfig
from pave.side_channels.base import SideFeatures
from pave.side_channels.frames import FrameStream, encoder_from_setting

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True, eq=False)
class View:
    """What one further camera filmed.

    Raises:
        ValueError: if the offset is not finite.
    """

    frames: FrameStream
    """Times count from the view's own first frame."""
    offset_seconds: float = 0.0
    """When the view's first frame was taken, in seconds on the clock of the sample's video: positive for a camera that was
    started later. A frame's time on the video's clock is its own plus this."""

    def __post_init__(self) -> None:
        if not np.isfinite(self.offset_seconds):
            raise ValueError(f"View: offset_seconds must be finite, got {self.offset_seconds}")


class MultiViewEncoder:
    """Frames of any number of named cameras through one frame encoder.

    A step is a frame of one view (or what the frame encoder makes one step of), so K is the sum over the views that a sample
    has; steps stand in order of time, those of equal times in the order of ``views``. Behind the frame encoder's features of
    every token stands a code of the view, 1 at its place in ``views`` and 0 elsewhere: C is the frame encoder's width plus
    the number of views. A view that a sample lacks simply gives no steps.

    Args:
        views: names of the cameras, in the order of their codes.
        encoder: of the frames, the fields of an ``EncoderConfig``; any encoder of frames will do.

    Raises:
        ValueError: if names are missing or repeated, or the frame encoder cannot be built.
    """

    source: ClassVar[str] = "views"
    sample_rate: int | None = None

    def __init__(self, *, views: Sequence[str], encoder: Mapping[str, Any]) -> None:
        names = (views,) if isinstance(views, str) else tuple(views)
        if not names or len(set(names)) < len(names) or not all(isinstance(name, str) and name for name in names):
            raise ValueError(f"multiview: views must be names of cameras, at least one and all different, got {views!r}")
        self.views: tuple[str, ...] = names
        self.frame_encoder = encoder_from_setting("multiview", encoder)
        self.fps, self.max_frames = self.frame_encoder.fps, self.frame_encoder.max_frames

    @property
    def width(self) -> int:
        """C."""
        return self.frame_encoder.width + len(self.views)

    @property
    def tokens_per_step(self) -> int:
        """M."""
        return self.frame_encoder.tokens_per_step

    def encode(self, source: Mapping[str, View | None]) -> SideFeatures:
        """Features of the views by name, None for one that is missing: (K, M, C) float32.

        Raises:
            ValueError: if a name is not one of ``views``, no view is there, or frames do not suit the frame encoder.
        """
        unknown = [name for name in source if name not in self.views]
        if unknown:
            raise ValueError(f"multiview: there is a view {unknown[0]!r}, but the encoder's views are {', '.join(self.views)}")
        present = [(i, view) for i, name in enumerate(self.views) if (view := source.get(name)) is not None]
        if not present:
            raise ValueError(f"multiview: none of the views {', '.join(self.views)} is there")
        features: list[Tensor] = []
        times: list[Tensor] = []
        for i, view in present:
            steps = self._encode_view(self.views[i], view)
            code_KMV = torch.zeros(*steps.features_KMC.shape[:2], len(self.views), device=steps.features_KMC.device)
            code_KMV[..., i] = 1
            features.append(torch.cat([steps.features_KMC.float(), code_KMV], dim=2))
            times.append(steps.times_K + view.offset_seconds)
        times_K = torch.cat(times)
        order_K = torch.argsort(times_K, stable=True)
        return SideFeatures(torch.cat(features)[order_K.to(features[0].device)], times_K[order_K])

    def _encode_view(self, name: str, view: View) -> SideFeatures:
        try:
            return self.frame_encoder.encode(view.frames)
        except ValueError as error:
            raise ValueError(f"view {name!r}: {error}") from error

    def encode_batch(self, sources: Sequence[Mapping[str, View | None]]) -> list[SideFeatures]:
        """Features of several samples' views, in order."""
        return [self.encode(source) for source in sources]

    def spec(self) -> EncoderConfig:
        """The views and the complete spec of the frame encoder."""
        settings = {"views": list(self.views), "encoder": self.frame_encoder.spec().to_dict()}
        return EncoderConfig(name="multiview", settings=settings)

    def to(self, device: torch.device | str) -> Self:
        """Move the frame encoder."""
        self.frame_encoder.to(device)
        return self
