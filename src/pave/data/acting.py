"""How much of a side stream can act at all: one measure for the doctor, the dry run, training and questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pave.config import FusionConfig, SideChannelConfig
from pave.data.media import FrameSampling
from pave.fusion.temporal_alignment import frame_intervals
from pave.side_channels.base import SideFeatures

LEAST_ACTING = 0.5
"""A stream of which a smaller share can act is reported: its times or its content are probably not what they are taken for."""
_UNITS = {1e-3: "milliseconds", 1e-6: "microseconds", 1e-9: "nanoseconds"}
_ALIKE = (0.2, 1.5)
"""How long a stream may be in videos, for a guess at what is wrong with its times."""
_NAMED = 5


@dataclass(frozen=True)
class Acting:
    """How much of one stream can act, and what keeps the rest from it."""

    steps: int
    """K."""
    share: float
    """From 0 to 1."""
    why: tuple[str, ...] = ()
    """What keeps the rest from acting, in words."""

    @property
    def is_little(self) -> bool:
        """Whether it is less than ``LEAST_ACTING``."""
        return self.share < LEAST_ACTING

    def __str__(self) -> str:
        share = "nothing" if self.share == 0 else f"{100 * self.share:.2g} %"
        return f"{share} of its {self.steps} steps can act: {', '.join(self.why) or 'nothing is wrong'}"


def how_much_acts(
    features: SideFeatures,
    times_F: NDArray[np.float64],
    fusion: FusionConfig,
    encoder: Any = None,
    sampling: FrameSampling | None = None,
) -> Acting:
    """The share of a stream's steps that are finite and valid, and lie where a frame can reach them.

    With alignment by time a frame reaches its interval and its neighbourhood. With the others, which look at the order of the steps
    only, a step counts where it lies within the video. A step of which a part is valid (an encoder's ``usable``) counts by that part.
    Steps within a video of which only a window is sampled are left out on purpose, and do not count.

    Args:
        features: of the stream.
        times_F: seconds of the sampled frames on the video's clock.
        fusion: of the channel.
        encoder: that made the features; one that knows which steps are valid has a method ``usable(features)``, which gives the
            valid part of each, (K,) from 0 to 1, and says in ``unusable`` what the rest lacks.
        sampling: of the frames.
    """
    if not len(features):
        return Acting(0, 0.0, ("there is not a single step",))
    times_K = features.times_K.double().cpu()
    lower, upper = _reach(times_F, fusion)
    inside_K = (times_K >= lower) & (times_K < upper)
    finite_K = torch.isfinite(features.features_KMC).flatten(1).all(dim=1).cpu()
    usable_K = _usable(encoder, features)
    counted_K = torch.ones_like(inside_K)
    if sampling is not None and (sampling.start or sampling.end is not None) and bool(inside_K.any()):
        counted_K = inside_K | (times_K < 0)
    share = float((usable_K * (inside_K & finite_K)).sum() / counted_K.sum())
    why = []
    if not bool(finite_K.all()):
        why.append(f"{int((~finite_K).sum())} hold NaN or infinity")
    lacking = 1 - float(usable_K[finite_K].mean()) if bool(finite_K.any()) else 0.0
    if lacking > 0:
        why.append(f"{100 * lacking:.3g} % is {encoder.unusable}")
    outside = int((counted_K & ~inside_K).sum())
    if outside:
        why.append(
            f"{outside} lie outside of what frames reach, {lower:.4g} to {upper:.4g} s (the stream: {float(times_K.min()):.4g} to "
            f"{float(times_K.max()):.4g} s){_guess(times_K, lower, upper)}"
        )
    return Acting(len(features), share, tuple(why))


def _reach(times_F: NDArray[np.float64], fusion: FusionConfig) -> tuple[float, float]:
    """Seconds from which and up to which a step can reach a frame."""
    by_time = fusion.alignment == "timestamps" and not fusion.adds_llm_tokens
    times_BT = torch.as_tensor(np.asarray(times_F, dtype=np.float64))[None]
    seconds = fusion.neighbourhood_seconds if by_time else 0.0
    lower_BT, upper_BT = frame_intervals(torch.ones_like(times_BT, dtype=torch.bool), times_BT, neighbourhood_seconds=seconds)
    return float(lower_BT.min()), float(upper_BT.max())


def _usable(encoder: Any, features: SideFeatures) -> Tensor:
    if not hasattr(encoder, "usable"):
        return torch.ones(len(features), dtype=torch.float64)
    usable_K: Tensor = encoder.usable(features)
    return usable_K.double().cpu().nan_to_num(0.0).clamp(0, 1)


def _guess(times_K: Tensor, lower: float, upper: float) -> str:
    """What the times of a stream that lies outside might be, behind the sentence that says so."""
    length, frames = float(times_K.max() - times_K.min()), upper - lower
    if not 0 < frames < float("inf") or not length > 0:
        return ""
    for factor, name in _UNITS.items():
        if _ALIKE[0] <= length * factor / frames <= _ALIKE[1]:
            return f"; it looks like {name} read as seconds"
    if _ALIKE[0] <= length / frames <= _ALIKE[1] and (times_K.min() >= upper or times_K.max() < lower):
        return "; it looks like a clock with another zero"
    return ""


class ActingWatch:
    """Looks at samples as they pass, and says once what was seen.

    Args:
        channels: the patch's channels.
        encoders: by channel, where they are known.
        sampling: of the frames.
    """

    def __init__(
        self, channels: Mapping[str, SideChannelConfig], encoders: Mapping[str, Any], sampling: FrameSampling | None = None
    ) -> None:
        self._channels, self._encoders, self._sampling = dict(channels), dict(encoders), sampling
        self.seen: dict[str, dict[str, Acting]] = {name: {} for name in channels}
        """By channel and the id of a sample that has it."""

    def note(self, sample_id: str, name: str, features: SideFeatures | None, times_F: NDArray[np.float64]) -> None:
        """Look at a channel of a sample, once; a stream without a step counts as missing."""
        if features is None or not len(features) or sample_id in self.seen[name]:
            return
        found = how_much_acts(features, times_F, self._channels[name].fusion, self._encoders.get(name), self._sampling)
        self.seen[name][sample_id] = found

    def clear(self) -> None:
        """Forget what was seen."""
        self.seen = {name: {} for name in self._channels}

    def sentences(self, where: str = "samples") -> dict[str, str]:
        """By channel, for each of which too little can act in some samples: a sentence with the worst of them."""
        found = {name: _sentence(name, seen, where) for name, seen in self.seen.items()}
        return {name: text for name, text in found.items() if text is not None}

    def idle(self) -> list[str]:
        """Channels that some samples have, and of which nothing can act in any."""
        return [name for name, seen in self.seen.items() if seen and all(found.share == 0 for found in seen.values())]


def _sentence(name: str, seen: Mapping[str, Acting], where: str) -> str | None:
    little = sorted((found.share, sample_id) for sample_id, found in seen.items() if found.is_little)
    if not little:
        return None
    worst = [f"{sample_id!r} {100 * share:.2g} %" for share, sample_id in little[:_NAMED]]
    more = f" and {len(little) - _NAMED} more" if len(little) > _NAMED else ""
    what = "nothing" if little[-1][0] == 0 else f"less than {100 * LEAST_ACTING:g} %"
    return (
        f"side channel {name!r}: in {len(little)} of {len(seen)} {where} that have it, {what} of it can act ({', '.join(worst)}{more}); in "
        f"{little[0][1]!r}, {seen[little[0][1]]}; pave doctor looks at every sample"
    )


def rows_of(side: Any, times_BF: Any, sample_ids: Sequence[str]) -> list[tuple[str, SideFeatures | None, NDArray[np.float64]]]:
    """Of a batch, the id, the features and the frame times of each row.

    Args:
        side: ``SideTokens`` of one channel.
        times_BF: seconds of the frames, NaN behind the last.
        sample_ids: of the rows.
    """
    times_BF = np.asarray(times_BF, dtype=np.float64)
    rows: list[tuple[str, SideFeatures | None, NDArray[np.float64]]] = []
    for row, sample_id in enumerate(sample_ids):
        valid_K = side.valid_BK[row]
        features = SideFeatures(side.embeds_BKMC[row][valid_K], side.times_BK[row][valid_K]) if bool(valid_K.any()) else None
        rows.append((sample_id, features, times_BF[row][np.isfinite(times_BF[row])]))
    return rows
