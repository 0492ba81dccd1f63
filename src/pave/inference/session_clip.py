"""Which frames of a stream are complete: that nothing which may still come can change what they read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pave.config import FusionConfig
from pave.fusion.temporal_alignment import frame_intervals
from pave.video_llms import VideoLLMInterface


@dataclass(frozen=True)
class Reader:
    """A side channel as one patch reads it: how it is aligned, and what has come of it."""

    name: str
    fusion: FusionConfig
    steps_K: Tensor
    """float64 seconds, ascending, of the steps of the clip."""
    watermark: float
    """Seconds; further steps come at this time or later."""


def check_streams(name: str, fusion: FusionConfig) -> None:
    """Refuse a channel whose fusion cannot be known before its stream ends.

    Args:
        name: of the channel, for the message.
        fusion: how it is fused.

    Raises:
        ValueError: saying why.
    """
    if fusion.adds_llm_tokens:
        raise ValueError(
            f"side channel {name}: fusion {fusion.kind!r} puts every step of the stream into the prompt, and a stream has no end; a "
            "session takes patches of kind 'cross_attention'"
        )
    if fusion.alignment == "index":
        raise ValueError(
            f"side channel {name}: alignment 'index' shares all steps of a recording out over all its frames, so which frame reads a step "
            "is known only when the stream has ended; a session takes patches with alignment 'timestamps'"
        )


def complete_frames(times_T: Tensor, reader: Reader, at: float = math.inf) -> Tensor:
    """True for the frames of a clip whose window no further step can reach, shape (T,).

    Args:
        times_T: float64 seconds of all frames of the clip, ascending; the last one's interval ends as that of a video's last frame does.
        reader: the channel.
        at: steps count only before this time.
    """
    T = len(times_T)
    if reader.watermark >= at:
        return torch.ones(T, dtype=torch.bool)
    fusion = reader.fusion
    valid_1T = torch.ones(1, T, dtype=torch.bool)
    lower_1T, upper_1T = frame_intervals(
        valid_1T,
        times_T[None],
        neighbourhood_frames=fusion.neighbourhood_frames,
        neighbourhood_seconds=fusion.neighbourhood_seconds,
    )
    closed_T = upper_1T[0] <= reader.watermark
    if fusion.empty_frames == "skip":
        return closed_T
    steps_K = reader.steps_K
    empty_T = torch.searchsorted(steps_K, upper_1T[0]) == torch.searchsorted(steps_K, lower_1T[0])
    return closed_T & (~empty_T | _step_behind_known(times_T, steps_K, reader.watermark, fusion.empty_frames == "nearest"))


def _step_behind_known(times_T: Tensor, steps_K: Tensor, watermark: float, nearest: bool) -> Tensor:
    """Whether the step behind each frame is known, or further away than the one before it whatever comes (of interest to the nearest)."""
    padded = torch.cat([torch.tensor([-math.inf]).double(), steps_K, torch.tensor([math.inf]).double()])
    place_T = torch.searchsorted(steps_K, times_T)  # of the first step at or behind the frame
    before_T, behind_T = padded[place_T], padded[place_T + 1]
    known_T = behind_T <= watermark
    return known_T | (watermark - times_T >= times_T - before_T) if nearest else known_T


def choose_clip(
    times_F: Tensor, readers: Sequence[Reader], family: VideoLLMInterface, at: float = math.inf, max_frames: int | None = None
) -> range:
    """The newest frames that make a clip in which every frame is complete for every reader; empty where there are none.

    A shorter clip is not the beginning of a longer one: its last frame reads as that of a video does.

    Args:
        times_F: float64 seconds of the frames, ascending.
        readers: the channels.
        family: the base's, which may merge frames into a step.
        at: side steps count only before this time.
        max_frames: see ``clip_of``.
    """
    limit = min((reader.watermark for reader in readers if reader.watermark < at), default=math.inf)
    begun = int(torch.searchsorted(times_F, limit, right=True))  # a step of the base is complete after its own time only
    for length in range(min(len(times_F), begun + family.frames_per_step - 1), 0, -1):
        clip = clip_of(length, family, max_frames)
        times_T = step_times(times_F[clip.start : clip.stop], family)
        if all(bool(complete_frames(times_T, reader, at).all()) for reader in readers):
            return clip
    return range(0)


def clip_of(length: int, family: VideoLLMInterface, max_frames: int | None = None) -> range:
    """The last of so many frames: at most ``max_frames``, from the first one of a time step on, and one step at least."""
    merged = family.frames_per_step
    first = 0 if max_frames is None else max(0, length - max_frames)
    return range(min(-(-first // merged), (length - 1) // merged) * merged, length)


def final_length(times_F: Tensor, readers: Sequence[Reader], family: VideoLLMInterface, frames_until: float) -> int:
    """How many frames from the first one on are final: the frames that their windows depend on are known, and they are complete.

    Args:
        times_F: float64 seconds of all frames that are held, ascending.
        readers: the channels.
        family: the base's.
        frames_until: seconds; the watermark of the frames.
    """
    merged = family.frames_per_step
    times_T = step_times(times_F, family)
    over = frames_until == math.inf
    known = len(times_T) if over else int(torch.searchsorted(times_F, frames_until, right=True)) // merged
    final_T = torch.arange(len(times_T)) < known
    for reader in readers:
        final_T &= complete_frames(times_T, reader)
        if not over:
            reach_T = torch.searchsorted(times_T, times_T, right=True) - 1 + reader.fusion.neighbourhood_frames
            next_T = torch.searchsorted(times_T, times_T[reach_T.clamp(max=len(times_T) - 1)], right=True)
            final_T &= (reach_T < known) & (next_T < known)
    return min(len(times_F), merged * int(final_T.long().cumprod(dim=0).sum()))


def step_times(times_F: Tensor, family: VideoLLMInterface) -> Tensor:
    """Seconds of the base's time steps, from those of the frames."""
    return family.step_times(times_F[None])[0]
