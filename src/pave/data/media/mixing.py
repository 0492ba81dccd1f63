"""Several channels of sound made one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_HALF_POWER = 0.5**0.5
_WEIGHTS = {
    "FC": 1.0,
    **dict.fromkeys(("FL", "FR", "FLC", "FRC", "TFL", "TFR"), _HALF_POWER),
    **dict.fromkeys(("LFE", "LFE2"), 0.0),
}
_SURROUND = 0.5
"""Of all other channels: behind, beside and above."""


def mix_to_mono(samples_nC: NDArray[np.float64], places: Sequence[str]) -> NDArray[np.float64]:
    """(n,): the channels weighed and added.

    Mono is as it is, and stereo the mean of both. Of more channels each is weighed as FFmpeg's resampler weighs it on the way to
    mono, after ITU-R BS.775: the centre by 1, left and right by the root of a half, surround by a half, and the channel of low
    frequencies not at all. They are not scaled down so that no sum could exceed 1, which would make dialogue quiet. Surround
    channels for which FFmpeg has no weight (above and behind, wide) count as the others. Without a left and a right front
    channel, or where the file does not say which channel is where, it is the mean of all.

    Args:
        samples_nC: in [-1, 1].
        places: of each channel, as FFmpeg abbreviates them: FL, FR, FC, LFE, BL, ...
    """
    if samples_nC.shape[1] < 3 or not {"FL", "FR"} <= set(places):
        return samples_nC.mean(axis=1)
    return samples_nC @ np.array([_WEIGHTS.get(place, _SURROUND) for place in places])
