"""One decoded sample, between the dataset and the collator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pave.utils.errors import CodedError

if TYPE_CHECKING:
    from pave.side_channels.base import SideFeatures


class SampleError(CodedError):
    """A sample cannot be used. The message is one sentence that names it, also when it comes from a worker process."""

    code = "prompt-refused"

    def __init__(self, message: str, code: str | None = None) -> None:
        # a DataLoader raises errors of its workers again with the whole traceback as the message
        super().__init__(message.rsplit(f"{type(self).__name__}: ", 1)[-1].strip(), code)


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
