"""Attention of every frame's tokens to the side tokens in its window.

Keys and values are projected once for each side token, then gathered for each frame, so cost and memory grow with the sum
of the window lengths, never with frames x steps. Letters are those of :mod:`pave.tokens`; R counts readable steps
(:mod:`pave.fusion.temporal_alignment`), F frames of the whole batch in one row, W the steps in the longest window of a group.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pave.fusion.temporal_alignment import Windows


@dataclass(frozen=True)
class FrameGroup:
    """Frames that are attended together because their windows have similar lengths.

    Attributes:
        frames_F: indices into the B * T frames, or None for all of them in order.
        steps_FW: the steps each frame reads, as indices into B * R.
        mask_FW: True where a step lies in the window; None where all windows of the group have W steps.
    """

    frames_F: Tensor | None
    steps_FW: Tensor
    mask_FW: Tensor | None


@dataclass(frozen=True)
class Packing:
    """What is worth computing in a ragged batch, laid out as one row: B becomes 1, T the frames kept, R the steps kept.

    Attributes:
        frames_F: indices into the B * T frames of those that read something.
        steps_P: indices into the B * R steps of those that are real; None keeps all of them.
        place_BR: for each of the B * R steps, its place among those kept; of a step that is left out, any place.
    """

    frames_F: Tensor
    steps_P: Tensor | None
    place_BR: Tensor

    @classmethod
    def of(cls, windows: Windows, side_valid_BK: Tensor) -> tuple[Packing | None, bool]:
        """The packing of a batch, None where nothing could be left out or no frame reads anything; and whether all frames of what is
        computed then read something.

        Resampled steps are made of their neighbours in the unpacked stream, so where there are some all steps are kept.
        """
        reached_BT, keep_steps = windows.length_BT > 0, windows.resampled is not None
        frames, steps = torch.stack([reached_BT.sum(), side_valid_BK.sum()]).tolist()
        if not frames or (frames == reached_BT.numel() and (keep_steps or steps == side_valid_BK.numel())):
            return None, bool(frames)
        frames_F = reached_BT.flatten().nonzero()[:, 0]
        R = windows.readable_BR().numel()
        if keep_steps:
            return cls(frames_F, None, torch.arange(R, device=frames_F.device)), True
        valid = side_valid_BK.flatten()
        return cls(frames_F, valid.nonzero()[:, 0], (valid.cumsum(0) - 1).clamp(min=0)), True

    def frames(self, tokens_BT: Tensor) -> Tensor:
        """The kept frames of (B, T, ...) as (1, F, ...)."""
        return tokens_BT.flatten(0, 1)[self.frames_F][None]

    def steps(self, steps_BR: Tensor) -> Tensor:
        """The kept steps of (B, R, ...) as (1, P, ...)."""
        flat = steps_BR.flatten(0, 1)
        return (flat if self.steps_P is None else flat[self.steps_P])[None]

    def spread(self, frames_1F: Tensor, B: int, T: int) -> Tensor:
        """(1, F, ...) back to (B, T, ...), zeros at frames that were left out."""
        out = frames_1F.new_zeros(B * T, *frames_1F.shape[2:])
        return out.index_copy(0, self.frames_F, frames_1F[0]).unflatten(0, (B, T))


def group_frames(windows: Windows, packing: Packing | None = None) -> list[FrameGroup]:
    """Turn windows into gather indices, once for all layers; with a packing, into those of the packed row.

    Usually one group. Where one padded rectangle would be more than twice as large as the windows in it (a one-frame video
    next to long ones, a frame before a long gap), frames are grouped by the power of two of their length, which keeps the
    total within twice the sum of the lengths.

    A frame whose window is empty reads one arbitrary step, so that no softmax runs over nothing, which gives NaN on some
    backends. The caller must replace its result, as no weight may come from it.
    """
    rows = _Rows.of(windows, packing)
    length_F = rows.length_F
    shortest, longest, total = torch.stack([length_F.min(), length_F.max(), length_F.sum()]).tolist()
    if len(length_F) * longest <= 2 * total:
        return [rows.group(None, longest, exact=shortest == longest)]
    exponent_F = torch.frexp(length_F.double()).exponent  # 2 ** (exponent - 1) <= length < 2 ** exponent
    groups = []
    for exponent in range(1, int(longest).bit_length() + 1):
        frames_F = (exponent_F == exponent).nonzero()[:, 0]
        if len(frames_F):
            groups.append(rows.group(frames_F, min(2**exponent - 1, longest), exact=exponent == 1))
    return groups


@dataclass(frozen=True)
class _Rows:
    """The windows of all frames of a batch in one row.

    Attributes:
        start_F, length_F: as in ``Windows``; an empty window counts as one step.
        first_F: where the steps of the frame's video begin among the B * R steps.
        readable_BR: as in ``Windows``.
        place_BR: as in ``Packing``; None without one.
    """

    start_F: Tensor
    length_F: Tensor
    first_F: Tensor
    readable_BR: Tensor
    place_BR: Tensor | None

    @classmethod
    def of(cls, windows: Windows, packing: Packing | None) -> _Rows:
        B, T = windows.start_BT.shape
        readable_BR = windows.readable_BR()
        start_F, length_F = windows.start_BT.flatten(), windows.length_BT.flatten().clamp(min=1)
        first_F = torch.arange(B, device=start_F.device).repeat_interleave(T) * readable_BR.shape[1]
        if packing is None:
            return cls(start_F, length_F, first_F, readable_BR, None)
        kept = packing.frames_F
        return cls(start_F[kept], length_F[kept], first_F[kept], readable_BR, packing.place_BR)

    def group(self, frames_F: Tensor | None, W: int, *, exact: bool) -> FrameGroup:
        """The given frames (None: all) as one group of windows of at most W steps."""
        start_F, length_F, first_F = self.start_F, self.length_F, self.first_F
        if frames_F is not None:
            start_F, length_F, first_F = start_F[frames_F], length_F[frames_F], first_F[frames_F]
        offset_W = torch.arange(W, device=start_F.device)
        place_FW = first_F[:, None] + (start_F[:, None] + offset_W).clamp(max=self.readable_BR.shape[1] - 1)
        steps_FW = self.readable_BR.flatten()[place_FW] + first_F[:, None]
        if self.place_BR is not None:
            steps_FW = self.place_BR[steps_FW]
        return FrameGroup(frames_F, steps_FW, None if exact else offset_W < length_F[:, None])


@dataclass(frozen=True)
class FrameParts:
    """All frames of a row, some at a time. What belongs to the parts stands in lists, in the order of the groups.

    Attributes:
        groups: from :func:`group_frames`.
        sizes: frames of a part, for each group.
    """

    groups: list[FrameGroup]
    sizes: list[int]

    @classmethod
    def of(cls, groups: list[FrameGroup], frame_bytes: int, step_bytes: int, most: int) -> FrameParts:
        """Parts in which no tensor is larger than ``most`` bytes.

        Args:
            groups: from :func:`group_frames`.
            frame_bytes, step_bytes: of the largest tensor that the tokens of one frame, or of one side step, become.
            most: a part of one frame may be larger.
        """
        return cls(groups, [max(1, most // max(frame_bytes, group.steps_FW.shape[1] * step_bytes)) for group in groups])

    def cut(self, rows_F: Tensor) -> list[Tensor]:
        """Rows of all frames in parts. Gradients of the parts come together in one tensor once."""
        rows = (rows_F if group.frames_F is None else rows_F[group.frames_F] for group in self.groups)
        return [part for row, size in zip(rows, self.sizes, strict=True) for part in row.split(size)]

    def places(self) -> list[Tensor | slice]:
        """Which of all frames a part holds."""
        found: list[Tensor | slice] = []
        for group, size in zip(self.groups, self.sizes, strict=True):
            if group.frames_F is None:
                count = len(group.steps_FW)
                found += [slice(start, min(start + size, count)) for start in range(0, count, size)]
            else:
                found += group.frames_F.split(size)
        return found

    def join(self, parts: list[Tensor]) -> Tensor:
        """The rows of all frames from their parts."""
        rows = parts[0] if len(parts) == 1 else torch.cat(parts)
        return _in_frame_order(rows, self.groups)

    def windows(self, steps_BRMD: Tensor) -> Iterator[Tensor]:
        """Each part's side tokens, (F, W * M, D). Without gradients they are gathered when their part comes."""
        flat = steps_BRMD.flatten(0, 1)
        for group, size in zip(self.groups, self.sizes, strict=True):
            if torch.is_grad_enabled():
                yield from flat[group.steps_FW].flatten(1, 2).split(size)
            else:
                for steps_FW in group.steps_FW.split(size):
                    yield flat[steps_FW].flatten(1, 2)

    def masks(self, tokens_per_step: int) -> list[Tensor | None]:
        """Where attention may look, (F, 1, 1, W * M); None where it may look everywhere."""
        found: list[Tensor | None] = []
        for group, size in zip(self.groups, self.sizes, strict=True):
            mask = _token_mask(group, tokens_per_step)
            found += [None] * -(-len(group.steps_FW) // size) if mask is None else mask.split(size)
        return found


def windowed_attention(query_FSD: Tensor, key_FXD: Tensor, value_FXD: Tensor, mask: Tensor | None, num_heads: int) -> Tensor:
    """Softmax attention of each frame's queries over the side tokens in its window; heads concatenated, (F, S, D)."""
    query, key, value = (_split_heads(tokens, num_heads) for tokens in (query_FSD, key_FXD, value_FXD))
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2).flatten(2)


def windowed_attention_weights(query_BTSD: Tensor, key_BRMD: Tensor, groups: list[FrameGroup], num_heads: int) -> Tensor:
    """The weights of :func:`windowed_attention` for all frames, dense: (B, T, N, S, R, M), zero outside the windows. For small inputs."""
    (B, T), (R, M) = query_BTSD.shape[:2], key_BRMD.shape[1:3]
    query_FNSH = _split_heads(query_BTSD.flatten(0, 1), num_heads)
    parts = []
    for group in groups:
        rows_FNSH = query_FNSH if group.frames_F is None else query_FNSH[group.frames_F]
        key_FNXH = _split_heads(key_BRMD.flatten(0, 1)[group.steps_FW].flatten(1, 2), num_heads)
        score_FNSX = rows_FNSH @ key_FNXH.transpose(-1, -2) / rows_FNSH.shape[-1] ** 0.5
        mask = _token_mask(group, M)
        if mask is not None:
            score_FNSX = score_FNSX.masked_fill(~mask, -torch.inf)
        weight_FNSWM = score_FNSX.softmax(dim=-1).unflatten(-1, (-1, M))
        index_FNSWM = (group.steps_FW % R)[:, None, None, :, None].expand_as(weight_FNSWM)
        dense_FNSRM = weight_FNSWM.new_zeros(*weight_FNSWM.shape[:3], R, M)
        parts.append(dense_FNSRM.scatter_add(3, index_FNSWM, weight_FNSWM))
    return _in_frame_order(torch.cat(parts), groups).unflatten(0, (B, T))


def _split_heads(tokens_FXD: Tensor, num_heads: int) -> Tensor:
    return tokens_FXD.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def _token_mask(group: FrameGroup, tokens_per_step: int) -> Tensor | None:
    return None if group.mask_FW is None else group.mask_FW.repeat_interleave(tokens_per_step, dim=1)[:, None, None]


def _in_frame_order(rows: Tensor, groups: list[FrameGroup]) -> Tensor:
    """Rows in the order of the groups, in that of the frames."""
    indices = [group.frames_F for group in groups if group.frames_F is not None]
    return rows[torch.cat(indices).argsort()] if indices else rows
