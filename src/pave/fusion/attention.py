"""Attention of every frame's tokens to the side tokens in its window.

Keys and values are projected once for each side token, then gathered for each frame, so cost and memory grow with the sum
of the window lengths, never with frames x steps. Letters are those of :mod:`pave.tokens`; R counts readable steps
(:mod:`pave.fusion.temporal_alignment`), F frames of the whole batch in one row, W the steps in the longest window of a
group, X the side tokens in these steps, W * M.
"""

from __future__ import annotations

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

    def frames(self, tokens_BT: Tensor) -> Tensor:
        """The group's frames of (B, T, ...), as (F, ...)."""
        tokens_F = tokens_BT.flatten(0, 1)
        return tokens_F if self.frames_F is None else tokens_F[self.frames_F]

    def windows(self, tokens_BRMD: Tensor) -> Tensor:
        """The side tokens in each frame's window, (F, X, D)."""
        return tokens_BRMD.flatten(0, 1)[self.steps_FW].flatten(1, 2)

    def mask(self, tokens_per_step: int) -> Tensor | None:
        """Where attention may look, (F, 1, 1, X); None where it may look everywhere."""
        if self.mask_FW is None:
            return None
        return self.mask_FW.repeat_interleave(tokens_per_step, dim=1)[:, None, None]


def group_frames(windows: Windows) -> list[FrameGroup]:
    """Turn windows into gather indices, once for all layers.

    Usually one group. Where one padded rectangle would be more than twice as large as the windows in it (a one-frame video
    next to long ones, a frame before a long gap), frames are grouped by the power of two of their length, which keeps the
    total within twice the sum of the lengths.

    A frame whose window is empty reads one arbitrary step, so that no softmax runs over nothing, which gives NaN on some
    backends. The caller must replace its result, as no weight may come from it.
    """
    length_F = windows.length_BT.flatten().clamp(min=1)
    shortest, longest, total = torch.stack([length_F.min(), length_F.max(), length_F.sum()]).tolist()
    if len(length_F) * longest <= 2 * total:
        return [_group(windows, length_F, None, longest, exact=shortest == longest)]
    exponent_F = torch.frexp(length_F.double()).exponent  # 2 ** (exponent - 1) <= length < 2 ** exponent
    groups = []
    for exponent in range(1, int(longest).bit_length() + 1):
        frames_F = (exponent_F == exponent).nonzero()[:, 0]
        if len(frames_F):
            W = min(2**exponent - 1, longest)
            groups.append(_group(windows, length_F, frames_F, W, exact=exponent == 1))
    return groups


def _group(windows: Windows, length_F: Tensor, frames_F: Tensor | None, W: int, *, exact: bool) -> FrameGroup:
    """The given frames (None: all) as one group of windows of at most W steps."""
    B, T = windows.start_BT.shape
    readable_BR = windows.readable_BR()
    R = readable_BR.shape[1]
    start_F = windows.start_BT.flatten()
    first_F = torch.arange(B, device=start_F.device).repeat_interleave(T) * R
    if frames_F is not None:
        start_F, length_F, first_F = start_F[frames_F], length_F[frames_F], first_F[frames_F]
    offset_W = torch.arange(W, device=start_F.device)
    place_FW = first_F[:, None] + (start_F[:, None] + offset_W).clamp(max=R - 1)
    steps_FW = readable_BR.flatten()[place_FW] + first_F[:, None]
    return FrameGroup(frames_F, steps_FW, None if exact else offset_W < length_F[:, None])


def windowed_attention(
    query_BTSD: Tensor, key_BRMD: Tensor, value_BRMD: Tensor, groups: list[FrameGroup], num_heads: int
) -> Tensor:
    """Softmax attention of each frame's queries over the side tokens in its window; heads concatenated, (B, T, S, D)."""
    parts = []
    for group in groups:
        query = _split_heads(group.frames(query_BTSD), num_heads)
        key, value = (_split_heads(group.windows(tokens), num_heads) for tokens in (key_BRMD, value_BRMD))
        heads_FNSH = F.scaled_dot_product_attention(query, key, value, attn_mask=group.mask(key_BRMD.shape[2]))
        parts.append(heads_FNSH.transpose(1, 2).flatten(2))
    return _in_frame_order(parts, groups).unflatten(0, query_BTSD.shape[:2])


def windowed_attention_weights(query_BTSD: Tensor, key_BRMD: Tensor, groups: list[FrameGroup], num_heads: int) -> Tensor:
    """The weights of :func:`windowed_attention`, dense: (B, T, N, S, R, M), zero outside the windows. For small inputs."""
    R, M = key_BRMD.shape[1:3]
    parts = []
    for group in groups:
        query_FNSH = _split_heads(group.frames(query_BTSD), num_heads)
        key_FNXH = _split_heads(group.windows(key_BRMD), num_heads)
        score_FNSX = query_FNSH @ key_FNXH.transpose(-1, -2) / query_FNSH.shape[-1] ** 0.5
        mask = group.mask(M)
        if mask is not None:
            score_FNSX = score_FNSX.masked_fill(~mask, -torch.inf)
        weight_FNSWM = score_FNSX.softmax(dim=-1).unflatten(-1, (-1, M))
        index_FNSWM = (group.steps_FW % R)[:, None, None, :, None].expand_as(weight_FNSWM)
        dense_FNSRM = weight_FNSWM.new_zeros(*weight_FNSWM.shape[:3], R, M)
        parts.append(dense_FNSRM.scatter_add(3, index_FNSWM, weight_FNSWM))
    return _in_frame_order(parts, groups).unflatten(0, query_BTSD.shape[:2])


def _split_heads(tokens_FXD: Tensor, num_heads: int) -> Tensor:
    return tokens_FXD.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def _in_frame_order(parts: list[Tensor], groups: list[FrameGroup]) -> Tensor:
    """The rows of all frames, (F, ...), from those of each group."""
    indices = [group.frames_F for group in groups if group.frames_F is not None]
    return torch.cat(parts)[torch.cat(indices).argsort()] if indices else parts[0]
