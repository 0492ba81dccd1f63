"""Attention of every frame's tokens to the side tokens in its window.

Keys and values are projected once for each side token, then gathered for each frame, so cost and memory grow with the sum
of the window lengths, never with frames x steps. Letters are those of :mod:`pave.tokens`; R counts readable steps
(:mod:`pave.fusion.temporal_alignment`), F frames of the whole batch in one row, W the steps in the longest window of a group.
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


def group_frames(windows: Windows) -> list[FrameGroup]:
    """Turn windows into gather indices, once for all layers.

    Usually one group. Where one padded rectangle would be more than twice as large as the windows in it (a one-frame video
    next to long ones, a frame before a long gap), frames are grouped by the power of two of their length, which keeps the
    total within twice the sum of the lengths.

    A frame whose window is empty reads one arbitrary step, so that no softmax runs over nothing, which gives NaN on some
    backends. The caller must replace its result, as no weight may come from it.
    """
    B, T = windows.start_BT.shape
    length_F = windows.length_BT.flatten().clamp(min=1)
    shortest, longest, total = torch.stack([length_F.min(), length_F.max(), length_F.sum()]).tolist()
    if B * T * longest <= 2 * total:
        return [_group(windows, None, longest, exact=shortest == longest)]
    exponent_F = torch.frexp(length_F.double()).exponent  # 2 ** (exponent - 1) <= length < 2 ** exponent
    groups = []
    for exponent in range(1, int(longest).bit_length() + 1):
        frames_F = (exponent_F == exponent).nonzero()[:, 0]
        if len(frames_F):
            groups.append(_group(windows, frames_F, min(2**exponent - 1, longest), exact=exponent == 1))
    return groups


def _group(windows: Windows, frames_F: Tensor | None, W: int, *, exact: bool) -> FrameGroup:
    B, T = windows.start_BT.shape
    readable_BR = windows.readable_BR()
    R = readable_BR.shape[1]
    start_F, length_F = windows.start_BT.flatten(), windows.length_BT.flatten().clamp(min=1)
    first_F = torch.arange(B, device=start_F.device).repeat_interleave(T) * R  # where the steps of the frame's video begin
    if frames_F is not None:
        start_F, length_F, first_F = start_F[frames_F], length_F[frames_F], first_F[frames_F]
    offset_W = torch.arange(W, device=start_F.device)
    place_FW = first_F[:, None] + (start_F[:, None] + offset_W).clamp(max=R - 1)
    stream_F = first_F[:, None]
    steps_FW = readable_BR.flatten()[place_FW] + stream_F
    return FrameGroup(frames_F, steps_FW, None if exact else offset_W < length_F[:, None])


def windowed_attention(
    query_BTSD: Tensor, key_BRMD: Tensor, value_BRMD: Tensor, groups: list[FrameGroup], num_heads: int
) -> Tensor:
    """Softmax attention of each frame's queries over the side tokens in its window; heads concatenated, (B, T, S, D)."""
    B, T = query_BTSD.shape[:2]
    query_FNSH = _split_heads(query_BTSD.flatten(0, 1), num_heads)
    parts = []
    for group in groups:
        rows_FNSH = query_FNSH if group.frames_F is None else query_FNSH[group.frames_F]
        key_FNXH = _gather(key_BRMD, group, num_heads)
        value_FNXH = key_FNXH if value_BRMD is key_BRMD else _gather(value_BRMD, group, num_heads)
        mask = _token_mask(group, key_BRMD.shape[2])
        parts.append(F.scaled_dot_product_attention(rows_FNSH, key_FNXH, value_FNXH, attn_mask=mask))
    return _in_frame_order(parts, groups).transpose(1, 2).flatten(2).unflatten(0, (B, T))


def windowed_attention_weights(query_BTSD: Tensor, key_BRMD: Tensor, groups: list[FrameGroup], num_heads: int) -> Tensor:
    """The weights of :func:`windowed_attention`, dense: (B, T, N, S, R, M), zero outside the windows. For small inputs."""
    (B, T), (R, M) = query_BTSD.shape[:2], key_BRMD.shape[1:3]
    query_FNSH = _split_heads(query_BTSD.flatten(0, 1), num_heads)
    parts = []
    for group in groups:
        rows_FNSH = query_FNSH if group.frames_F is None else query_FNSH[group.frames_F]
        key_FNXH = _gather(key_BRMD, group, num_heads)
        score_FNSX = rows_FNSH @ key_FNXH.transpose(-1, -2) / rows_FNSH.shape[-1] ** 0.5
        mask = _token_mask(group, M)
        if mask is not None:
            score_FNSX = score_FNSX.masked_fill(~mask, -torch.inf)
        weight_FNSWM = score_FNSX.softmax(dim=-1).unflatten(-1, (-1, M))
        index_FNSWM = (group.steps_FW % R)[:, None, None, :, None].expand_as(weight_FNSWM)
        dense_FNSRM = weight_FNSWM.new_zeros(*weight_FNSWM.shape[:3], R, M)
        parts.append(dense_FNSRM.scatter_add(3, index_FNSWM, weight_FNSWM))
    return _in_frame_order(parts, groups).unflatten(0, (B, T))


def _split_heads(tokens_FXD: Tensor, num_heads: int) -> Tensor:
    return tokens_FXD.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def _gather(steps_BRMD: Tensor, group: FrameGroup, num_heads: int) -> Tensor:
    return _split_heads(steps_BRMD.flatten(0, 1)[group.steps_FW].flatten(1, 2), num_heads)


def _token_mask(group: FrameGroup, tokens_per_step: int) -> Tensor | None:
    return None if group.mask_FW is None else group.mask_FW.repeat_interleave(tokens_per_step, dim=1)[:, None, None]


def _in_frame_order(parts: list[Tensor], groups: list[FrameGroup]) -> Tensor:
    indices = [group.frames_F for group in groups if group.frames_F is not None]
    if not indices:
        return parts[0]
    return torch.cat(parts)[torch.cat(indices).argsort()]
