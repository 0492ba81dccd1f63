"""Batches in which several questions about one video stand in one row, behind one copy of its tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pave.data.items import PatchItem
from pave.video_llms.branches import PADDING, PREFIX

IGNORE = -100
TEXT_KINDS = ("mm_token_type_ids", "token_type_ids")
"""What processors say of every token beside its id; 0 is text."""


@dataclass(frozen=True)
class Branch:
    """A conversation behind the video's last token."""

    ids: list[int]
    labels: list[int]


def in_rows(items: Sequence[PatchItem], most: int) -> list[list[PatchItem]]:
    """The items of a batch, those of one video and the same channels together, at most so many in a row, by first appearance."""
    rows: list[list[PatchItem]] = []
    filling: dict[tuple[str | None, tuple[str, ...]], list[PatchItem]] = {}
    for item in items:
        key = (item.source, tuple(sorted(name for name, features in item.side.items() if features is not None)))
        row = filling.get(key)
        if row is None or item.source is None or len(row) == most:
            rows.append(row := [])
            filling[key] = row
        row.append(item)
    return rows


def behind_video(text_ids: list[int], first_text: list[int], first_row: list[int], end: int) -> list[int]:
    """What stands behind the video in a row of ``text_ids``, told from another conversation about it that the processor laid out.

    Args:
        text_ids: a conversation, with one placeholder for the video.
        first_text: the other one.
        first_row: the same after the processor has expanded the placeholder.
        end: tokens of ``first_row`` up to the last one of the video.

    Raises:
        ValueError: if the two differ before or at the video.
    """
    common = 0
    while common < min(len(first_text), len(first_row) - end) and first_text[-1 - common] == first_row[-1 - common]:
        common += 1
    head = first_text[: len(first_text) - common]
    if text_ids[: len(head)] != head:
        raise ValueError(
            "its text before or at the video is not that of the other questions about it, so they cannot share the video's "
            "tokens; set data.share_videos to null"
        )
    return first_row[end : len(first_row) - common] + text_ids[len(head) :]


def share_rows(
    batch: Mapping[str, Any], ends: Sequence[int], further: Sequence[Sequence[Branch]], given: Tensor | None, pad: int
) -> dict[str, Any]:
    """A batch of one conversation a row with further ones put behind them.

    Args:
        batch: with ``labels``.
        ends: of every row, tokens of the conversation up to the last one of its video.
        further: of every row, the other conversations about its video.
        given: positions of the batch's tokens, (3, B, L), or None where they count the tokens.
        pad: the padding token.

    Raises:
        ValueError: if the positions behind a video are not those of text.
    """
    B = len(ends)
    kept = [row.nonzero().flatten() for row in batch["attention_mask"]]
    width = max(len(row) + sum(len(b.ids) for b in more) for row, more in zip(kept, further, strict=True))
    planes = 1 if given is None else len(given)
    ids_BL, labels_BL = torch.full((B, width), pad), torch.full((B, width), IGNORE)
    branches_BL, positions_PBL = torch.full((B, width), PADDING), torch.zeros(planes, B, width, dtype=torch.long)
    kinds = {name: torch.zeros(B, width, dtype=batch[name].dtype) for name in TEXT_KINDS if name in batch}
    for row, (place, end, more) in enumerate(zip(kept, ends, further, strict=True)):
        n = len(place)
        ids = [*batch["input_ids"][row, place].tolist(), *(i for b in more for i in b.ids)]
        labels = [*batch["labels"][row, place].tolist(), *(i for b in more for i in b.labels)]
        ids_BL[row, : len(ids)], labels_BL[row, : len(ids)] = torch.tensor(ids), torch.tensor(labels)
        counts = torch.tensor([end, n - end, *(len(b.ids) for b in more)])
        branches_BL[row, : len(ids)] = torch.arange(len(counts)).repeat_interleave(counts) + PREFIX
        positions = torch.arange(n).expand(1, -1) if given is None else given[:, row, place]
        start = int(positions[:, :end].max()) + 1
        behind = torch.cat([torch.arange(int(count)) for count in counts[1:]]) + start
        if not bool((positions[:, end:] == behind[: n - end]).all()):
            raise ValueError(
                "the text behind the video does not go on at the next position, so questions cannot share the video"
            )
        positions_PBL[:, row, :n], positions_PBL[:, row, n : len(ids)] = positions, behind[n - end :]
        for name, values in kinds.items():
            values[row, :n] = batch[name][row, place]
    return {
        **batch,
        **kinds,
        "input_ids": ids_BL,
        "attention_mask": (branches_BL != PADDING).long(),
        "labels": labels_BL,
        "position_ids": positions_PBL[0] if given is None else positions_PBL,
        "branches": branches_BL,
    }
