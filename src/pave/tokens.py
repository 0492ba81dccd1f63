"""What flows into a fusion module, and the one legend of shapes that the whole project uses.

Legend (a letter never changes its meaning; tensors carry the letters as a suffix, ``embeds_BKMC``):

====== ==================================================================
B      batch (videos)
T      video frames as the language model sees them (time steps)
S      video tokens per frame
E      width of the language model
K      side time steps
M      side tokens per step
C      feature width before projection
D      width inside the fusion module
N      attention heads
H      width of one head
L      text length
====== ==================================================================

Times are seconds from the start of the video's own clock, in float64. A time names the *centre* of what it stamps: the
presentation time of a frame, the middle of an audio window.

The two containers here are plain classes, not dataclasses and not pytree nodes, on purpose: distributed wrappers that cast
"every floating tensor in the inputs" to a low precision look inside those, and a time of 100.3 s cast to bfloat16 is 100.5 s.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor


class SideTokens:
    """The tokens of one side channel for a batch of videos, each step with its time.

    Args:
        embeds_BKMC: features of every step, any floating dtype; rows shorter than K are padded.
        valid_BK: True where a step is real. Defaults to all True. A row with no valid step is a missing channel.
        times_BK: seconds, centre of each step. Steps need not be sorted. May be None only for index alignment.

    Raises:
        ValueError: if the shapes do not agree, a dtype is wrong, or the time of a valid step is not finite.
    """

    __slots__ = ("embeds_BKMC", "times_BK", "valid_BK")

    embeds_BKMC: Tensor
    valid_BK: Tensor
    times_BK: Tensor | None

    def __init__(self, embeds_BKMC: Tensor, valid_BK: Tensor | None = None, times_BK: Tensor | None = None) -> None:
        if embeds_BKMC.ndim != 4 or not embeds_BKMC.is_floating_point():
            raise ValueError(
                "SideTokens: embeds_BKMC must be a floating tensor of shape (videos, steps, tokens per step, width), "
                f"got {embeds_BKMC.dtype} of shape {tuple(embeds_BKMC.shape)}"
            )
        shape = embeds_BKMC.shape[:2]
        if valid_BK is None:
            valid_BK = torch.ones(shape, dtype=torch.bool, device=embeds_BKMC.device)
        if valid_BK.shape != shape or valid_BK.dtype != torch.bool:
            raise ValueError(
                f"SideTokens: valid_BK must be a bool tensor of shape {tuple(shape)}, "
                f"got {valid_BK.dtype} of shape {tuple(valid_BK.shape)}"
            )
        if times_BK is not None:
            if times_BK.shape != shape:
                raise ValueError(
                    f"SideTokens: times_BK must have shape {tuple(shape)} (one time per step), got {tuple(times_BK.shape)}"
                )
            times_BK = times_BK.double()
            if not bool(torch.isfinite(times_BK)[valid_BK].all()):
                raise ValueError("SideTokens: times_BK holds a time that is not finite at a valid step; mark the step invalid")
        self.embeds_BKMC = embeds_BKMC
        self.valid_BK = valid_BK
        self.times_BK = times_BK

    @classmethod
    def from_videos(
        cls, embeds: Sequence[Tensor | None], times: Sequence[Tensor | None], width: int | None = None, tokens_per_step: int = 1
    ) -> SideTokens:
        """Pad per-video tensors into one batch.

        Args:
            embeds: per video (K, M, C) or (K, C), or None where the video has no such channel. Of several dtypes the batch
                takes the one that holds them all.
            times: per video (K,) seconds; None wherever ``embeds`` is None.
            width: C, needed only when every video lacks the channel.
            tokens_per_step: M, likewise.

        Raises:
            ValueError: if two videos disagree in M or C, a tensor has other dimensions, or a video other counts of steps and times.
        """
        if len(embeds) != len(times):
            raise ValueError(f"SideTokens.from_videos: {len(embeds)} feature tensors but {len(times)} time tensors")
        for row, x in enumerate(embeds):
            if x is not None and x.ndim not in (2, 3):
                raise ValueError(
                    f"SideTokens.from_videos: video {row} has features of shape {tuple(x.shape)}; give (steps, tokens per step, width) "
                    "or (steps, width)"
                )
        present = [x if x.ndim == 3 else x[:, None] for x in embeds if x is not None]
        shapes = {tuple(x.shape[1:]) for x in present}
        if len(shapes) > 1:
            raise ValueError(f"SideTokens.from_videos: videos disagree in (tokens per step, width): {sorted(shapes)}")
        if not shapes and width is None:
            raise ValueError("SideTokens.from_videos: no video has the channel, so its width must be given")
        M, C = shapes.pop() if shapes else (tokens_per_step, width)
        K = max([len(x) for x in present], default=0)
        like = present[0] if present else torch.zeros(0)
        dtype = functools.reduce(torch.promote_types, (x.dtype for x in present), like.dtype)
        embeds_BKMC = like.new_zeros(len(embeds), K, M, C, dtype=dtype)  # type: ignore[arg-type]
        valid_BK = torch.zeros(len(embeds), K, dtype=torch.bool, device=like.device)
        times_BK = torch.zeros(len(embeds), K, dtype=torch.float64, device=like.device)
        for row, (x, t) in enumerate(zip(embeds, times, strict=True)):
            if x is None:
                continue
            if t is None or len(t) != len(x):
                count = "none" if t is None else len(t)
                raise ValueError(f"SideTokens.from_videos: video {row} has {len(x)} steps but {count} times")
            embeds_BKMC[row, : len(x)] = x if x.ndim == 3 else x[:, None]
            valid_BK[row, : len(x)] = True
            times_BK[row, : len(x)] = t.double()
        return cls(embeds_BKMC, valid_BK, times_BK)

    def __len__(self) -> int:
        return self.embeds_BKMC.shape[0]

    def __repr__(self) -> str:
        B, K, M, C = self.embeds_BKMC.shape
        timed = "timed" if self.times_BK is not None else "no times"
        return f"SideTokens({B} videos, up to {K} steps of {M} tokens, width {C}, {timed}, {self.embeds_BKMC.dtype})"

    @property
    def width(self) -> int:
        """C."""
        return self.embeds_BKMC.shape[3]

    @property
    def device(self) -> torch.device:
        return self.embeds_BKMC.device

    def present_B(self) -> Tensor:
        """True for the videos that have at least one valid step, shape (B,)."""
        return self.valid_BK.any(dim=1)

    def _map(self, function) -> SideTokens:  # type: ignore[no-untyped-def]
        new = object.__new__(type(self))
        new.embeds_BKMC = function(self.embeds_BKMC)
        new.valid_BK = function(self.valid_BK)
        new.times_BK = None if self.times_BK is None else function(self.times_BK)
        return new

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> SideTokens:
        """Move to a device. The dtype never changes here: the fusion module casts the features, never the times."""
        return self._map(lambda x: x.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> SideTokens:
        """Called by ``DataLoader(pin_memory=True)``."""
        return self._map(lambda x: x.pin_memory())

    def select(self, rows: Tensor | Sequence[int] | slice) -> SideTokens:
        """The given videos, in the given order."""
        index = rows if isinstance(rows, (slice, Tensor)) else torch.as_tensor(list(rows), device=self.device, dtype=torch.long)
        return self._map(lambda x: x[index])

    def without_nonfinite(self) -> SideTokens:
        """The same tokens with every step that holds a NaN or an infinity marked invalid and zeroed.

        Zeroing matters: ``0 * inf`` is NaN, so a mask alone would not keep it out of the output.
        """
        finite_BK = torch.isfinite(self.embeds_BKMC).all(dim=-1).all(dim=-1)
        keep_BK = self.valid_BK & finite_BK
        new = self._map(lambda x: x)
        new.embeds_BKMC = torch.where(keep_BK[:, :, None, None], self.embeds_BKMC, self.embeds_BKMC.new_zeros(()))
        new.valid_BK = keep_BK
        return new


class VideoTokens:
    """A base model's tokens for a batch of videos, as a fusion module reads them.

    Args:
        post_projector_BTSE: tokens as the language model will see them.
        valid_BT: True where a frame is real (videos of fewer frames are padded). Defaults to all True.
        times_BT: seconds, presentation time of each frame; None when the caller gave no frame times.
        pre_projector_BTSC: vision features before the projector, pooled like the tokens; None where not asked for.
        grid: (rows, columns) of the S tokens where they form one grid for the whole batch, else None.
    """

    __slots__ = ("grid", "post_projector_BTSE", "pre_projector_BTSC", "times_BT", "valid_BT")

    def __init__(
        self,
        post_projector_BTSE: Tensor,
        valid_BT: Tensor | None = None,
        times_BT: Tensor | None = None,
        pre_projector_BTSC: Tensor | None = None,
        grid: tuple[int, int] | None = None,
    ) -> None:
        shape = post_projector_BTSE.shape[:2]
        if valid_BT is None:
            valid_BT = torch.ones(shape, dtype=torch.bool, device=post_projector_BTSE.device)
        assert valid_BT.shape == shape
        assert times_BT is None or times_BT.shape == shape
        assert pre_projector_BTSC is None or pre_projector_BTSC.shape[:3] == post_projector_BTSE.shape[:3]
        self.post_projector_BTSE = post_projector_BTSE
        self.valid_BT = valid_BT
        self.times_BT = None if times_BT is None else times_BT.double()
        self.pre_projector_BTSC = pre_projector_BTSC
        self.grid = grid


class QuestionTokens:
    """The embedded text of the prompt, for instruction-aware gates.

    Args:
        embeds_BLE: the base's input embeddings of the prompt.
        valid_BL: True at text tokens that belong to the prompt (no padding, no video placeholder, no answer).
    """

    __slots__ = ("embeds_BLE", "valid_BL")

    def __init__(self, embeds_BLE: Tensor, valid_BL: Tensor) -> None:
        assert valid_BL.shape == embeds_BLE.shape[:2]
        self.embeds_BLE = embeds_BLE
        self.valid_BL = valid_BL
