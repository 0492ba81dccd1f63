"""One decoded sample, between the dataset and the collator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pave.utils.errors import CodedError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from pave.side_channels.base import SideFeatures
    from pave.video_llms.encode import EncodedVideo


class SampleError(CodedError):
    """A sample cannot be used. The message is one sentence that names it, also when it comes from a worker process."""

    code = "prompt-refused"

    def __init__(self, message: str, code: str | None = None) -> None:
        # a DataLoader raises errors of its workers again with the whole traceback as the message
        super().__init__(message.rsplit(f"{type(self).__name__}: ", 1)[-1].strip(), code)


@dataclass(frozen=True, eq=False)
class VideoVision:
    """What the base's features method makes of one video, and what its processor says of the frames beside pixels."""

    encoded: EncodedVideo
    """The features, in the dtype of the storage."""
    outputs: Mapping[str, Tensor]
    """What the base's video processor made beside pixels (``video_grid_thw`` and the like), for a batch of this video alone."""
    pixels: Mapping[str, tuple[tuple[int, ...], torch.dtype]]
    """Shape and dtype of the pixels that it made, likewise."""
    times_F: NDArray[np.float64]
    """Seconds of the frames on the video's clock."""
    size: tuple[int, int]
    """Height and width of the frames."""

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensors."""
        return sum(x.nbytes for x in (*self.encoded.tensors().values(), *self.outputs.values())) + self.times_F.nbytes

    @property
    def shape_of_frames(self) -> NDArray[np.uint8]:
        """Frames of the right shape that hold nothing and take no memory, for code that reads their shape."""
        return np.broadcast_to(np.uint8(0), (len(self.times_F), *self.size, 3))


@dataclass(frozen=True)
class PatchItem:
    """A video's sampled frames, its side features and a conversation about it."""

    id: str
    """Names the sample in every error."""
    frames_FHWC: NDArray[np.uint8]
    """RGB."""
    times_F: NDArray[np.float64]
    """Seconds of each frame on the video's clock."""
    turns: tuple[tuple[str, str | None], ...]
    """(question, answer) pairs; the last answer may be None where nothing is learnt from it."""
    side: Mapping[str, SideFeatures | None] = field(default_factory=dict)
    """Features by channel; a channel that is None or not there is missing."""
    vision: VideoVision | None = None
    """The base's frozen vision features. Where they are there, ``frames_FHWC`` has the right shape only, no pictures."""
    source: str | None = None
    """Names the files of the video and its side channels; items that agree in it may share a row (``share_videos``)."""
