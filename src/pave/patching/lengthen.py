"""Prompts that grow: the concat and interleave baselines hand side tokens to the language model as further tokens, and patches
with ``newline: grid`` put the base's newline embedding behind every row of a frame.

The base lays out its prompt by counting placeholders, so a longer prompt needs more placeholders, a longer mask, labels and
positions to match, and the features method has to return the side tokens between the video's. All videos of a call get the same
number of further placeholders; those that a video does not need are masked out. After ``generate`` the placeholders are taken out of the
returned sequences, so that a caller slices off the prompt as ever.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pave.fusion.base import TokenFusion
from pave.patching.slot import PatchSlot, rows_of_videos
from pave.tokens import SideTokens
from pave.video_llms import VideoLayout, VideoLLMInterface
from pave.video_llms.context import over_limit

_INSERTED, _PADDING = -1, -2


@dataclass
class Lengthening:
    """Where the tokens of one call's longer prompt come from."""

    source_BL: Tensor
    """For every position of the longer prompt the position in the given one, or -1 (a side token) or -2 (padding)."""
    masked_BL: Tensor
    """True at inserted positions that hold no token."""
    embeds_BXE: Tensor
    """The inserted tokens per video; a video with fewer has padding at the end."""
    arguments: dict[str, Any]
    """The arguments of ``forward`` or ``generate`` for the longer prompt."""
    offsets: list[list[int]]
    """Per video: for every extra token, how many of the video's own tokens come before it."""

    def stretch(self, values: Tensor, inserted: Any, padding: Any) -> Tensor:
        """A (B, L) tensor at the positions of the longer prompt."""
        source = self.source_BL.to(values.device)
        taken = values.gather(1, source.clamp(min=0))
        taken = torch.where(source == _INSERTED, torch.as_tensor(inserted, dtype=values.dtype, device=values.device), taken)
        return torch.where(source == _PADDING, torch.as_tensor(padding, dtype=values.dtype, device=values.device), taken)

    def shrink(self, values: Tensor) -> Tensor:
        """(rows, longer + new, ...) back to (rows, given + new, ...): inserted and padded positions taken out.

        Rows may be the given ones repeated (beams, several returned sequences).
        """
        B, L = self.source_BL.shape
        repeats = values.shape[0] // B
        keep = (self.source_BL >= 0).repeat_interleave(repeats, dim=0).to(values.device)
        tail = torch.ones(values.shape[0], values.shape[1] - L, dtype=torch.bool, device=values.device)
        keep = torch.cat([keep, tail], dim=1)
        return values[keep].view(values.shape[0], -1, *values.shape[2:])


def at_given_positions(output: Any, plan: Lengthening, arguments: Mapping[str, Any]) -> Any:
    """The output of ``forward`` with its logits at the positions of the given prompt only."""
    in_tuple = isinstance(output, tuple)
    at = int(in_tuple and arguments.get("labels") is not None)  # the loss comes before the logits
    logits: Tensor = output[at] if in_tuple else output.logits
    if logits.ndim != 3 or logits.shape[1] != plan.source_BL.shape[1]:
        return output
    if in_tuple:
        return (*output[:at], plan.shrink(logits), *output[at + 1 :])
    output.logits = plan.shrink(logits)
    return output


def plan_side_tokens(
    slot: PatchSlot,
    side_channels: Mapping[str, SideTokens],
    model: Any,
    interface: VideoLLMInterface,
    layouts: Sequence[VideoLayout],
    times_BT: Tensor | None,
    acting: Sequence[bool],
    arguments: Mapping[str, Any],
) -> Lengthening:
    """Lay out the prompt with the tokens of the channel that adds some between those of the videos that a patch acts on.

    Raises:
        ValueError: if the prompt is not given as ``input_ids``, or ``logits_to_keep`` cannot be moved.
    """
    name = next(name for name in side_channels if slot.config.side_channels[name].fusion.adds_llm_tokens)
    kind = slot.config.side_channels[name].fusion.kind
    if arguments.get("input_ids") is None:
        raise ValueError(f"a channel fused by {kind!r} lengthens the prompt: pass input_ids, not inputs_embeds")
    fusion: TokenFusion = slot.fusions[name]  # type: ignore[assignment]
    device = next(fusion.parameters()).device
    steps = [layout.steps for layout in layouts]
    valid_BT = torch.arange(max(steps), device=device)[None] < torch.tensor(steps, device=device)[:, None]
    extra = fusion(side_channels[name].to(device), valid_BT, None if times_BT is None else times_BT.to(device))
    offsets = [
        [(frame + 1) * layout.tokens_per_step for frame in row] if acts else []
        for row, layout, acts in zip(extra.after_frame_BX.tolist(), layouts, acting, strict=True)
    ]
    valid = [row if acts else [] for row, acts in zip(extra.valid_BX.tolist(), acting, strict=True)]
    source, masked = _layout_rows(arguments["input_ids"], interface.video_token_id(model.config), layouts, offsets, valid)
    plan = Lengthening(source, masked, extra.embeds_BXE, {}, offsets)
    plan.arguments = _lengthen_arguments(plan, interface, model.config, arguments)
    return plan


def plan_newlines(
    model: Any,
    interface: VideoLLMInterface,
    layouts: Sequence[VideoLayout],
    acting: Sequence[bool],
    arguments: Mapping[str, Any],
) -> Lengthening:
    """Lay out the prompt with a newline behind every row of tokens of every frame of the videos that a patch acts on.

    The base's own trailing newline is the one behind the last row; the others are inserted. 32 frames of 14 x 14 tokens:
    6,720 tokens instead of 6,273.

    Raises:
        ValueError: if the prompt is not given as ``input_ids``.
    """
    if arguments.get("input_ids") is None:
        raise ValueError("newline 'grid' lengthens the prompt: pass input_ids, not inputs_embeds")
    newline = interface.newline(model.base_model)
    assert newline is not None, "attach_patch has checked it"
    offsets = []
    for layout, acts in zip(layouts, acting, strict=True):
        rows, columns = layout.grid
        offsets.append([(row + 1) * columns for row in range(layout.steps * rows - min(layout.trailing, 1))] if acts else [])
    valid = [[True] * len(row) for row in offsets]
    source, masked = _layout_rows(arguments["input_ids"], interface.video_token_id(model.config), layouts, offsets, valid)
    plan = Lengthening(source, masked, newline.expand(len(layouts), max(map(len, offsets)), -1), {}, offsets)
    plan.arguments = _lengthen_arguments(plan, interface, model.config, arguments)
    return plan


def _layout_rows(
    input_ids: Tensor,
    placeholder: int,
    layouts: Sequence[VideoLayout],
    offsets: Sequence[Sequence[int]],
    valid: Sequence[Sequence[bool]],
) -> tuple[Tensor, Tensor]:
    counts = [layout.num_tokens for layout in layouts]
    rows = rows_of_videos(input_ids == placeholder, counts)
    sources: list[list[int]] = []
    masks: list[list[bool]] = []
    for row, ids in enumerate(input_ids.tolist()):
        places = [column for column, token in enumerate(ids) if token == placeholder]
        insert: dict[int, list[bool]] = {}  # after this column: whether each inserted token is real
        taken = 0
        for video in (v for v, r in enumerate(rows) if r == row):
            for offset, real in zip(offsets[video], valid[video], strict=True):
                insert.setdefault(places[taken + offset - 1], []).append(real)
            taken += counts[video]
        source: list[int] = []
        mask: list[bool] = []
        for column in range(len(ids)):
            source.append(column)
            mask.append(False)
            for real in insert.get(column, ()):
                source.append(_INSERTED)
                mask.append(not real)
        sources.append(source)
        masks.append(mask)
    longest = max(map(len, sources))
    padded = [[_PADDING] * (longest - len(s)) + s for s in sources]
    padded_masks = [[False] * (longest - len(m)) + m for m in masks]
    device = input_ids.device
    return torch.tensor(padded, device=device), torch.tensor(padded_masks, device=device)


def _lengthen_arguments(plan: Lengthening, interface: Any, config: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    out = dict(arguments)
    ids = arguments["input_ids"]
    mask = arguments.get("attention_mask")
    mask = torch.ones_like(ids) if mask is None else mask
    pad = config.get_text_config().pad_token_id
    out["input_ids"] = plan.stretch(ids, interface.video_token_id(config), 0 if pad is None else pad)
    new_mask = torch.where(plan.masked_BL.to(ids.device), 0, plan.stretch(mask, 1, 0))
    over = over_limit(int(new_mask.sum(dim=1).max()), config)
    if over is not None:
        raise ValueError(f"{over}, with the tokens that the patch puts into it; nothing is truncated, so sample fewer frames")
    out["attention_mask"] = new_mask
    out["position_ids"] = _positions(plan, interface, config, arguments, mask, new_mask)
    fills = {"labels": (-100, -100), "mm_token_type_ids": (2, 0)}
    for name, (inserted, padding) in fills.items():
        if arguments.get(name) is not None:
            out[name] = plan.stretch(arguments[name], inserted, padding)
    keep = arguments.get("logits_to_keep")
    if isinstance(keep, Tensor) and keep.dtype == torch.bool and keep.ndim == 2:
        out["logits_to_keep"] = plan.stretch(keep, False, False)
    elif isinstance(keep, Tensor) or (keep and bool((plan.source_BL[:, -keep:] < 0).any())):
        raise ValueError(
            "logits_to_keep: the side tokens lengthen the prompt, so these positions name other tokens; pass a bool mask of the "
            "shape of input_ids, a number that reaches no further back than the side tokens, or leave it out"
        )
    return out


def _positions(
    plan: Lengthening, interface: Any, config: Any, arguments: Mapping[str, Any], mask: Tensor, new_mask: Tensor
) -> Tensor:
    """Positions of the longer prompt: every inserted token takes the next free one and moves what follows on by one."""
    given = arguments.get("position_ids")
    if given is None:
        given = interface.position_ids(config, {**arguments, "attention_mask": mask})
    if given is None:
        return (new_mask.long().cumsum(dim=1) - 1).clamp(min=0)
    real = (plan.source_BL == _INSERTED) & new_mask.bool()
    before = real.long().cumsum(dim=1) - real.long()
    planes = given if given.ndim == 3 else given[None]
    stretched = torch.stack([plan.stretch(plane, 0, 0) for plane in planes])
    highest = torch.where(plan.source_BL >= 0, stretched.amax(dim=0), -1).cummax(dim=1).values
    own = highest + 1 + before
    positions = torch.where(plan.source_BL == _INSERTED, own[None], stretched + before[None])
    positions = torch.where(plan.source_BL == _PADDING, 0, positions)
    return positions if given.ndim == 3 else positions[0]


def insert_tokens(videos: list[Tensor], plan: Lengthening) -> list[Tensor]:
    """The tokens of each video with its extra tokens between them."""
    out = []
    for row, tokens in enumerate(videos):
        embeds = plan.embeds_BXE[row, : len(plan.offsets[row])].to(tokens.device, tokens.dtype)
        offsets = torch.tensor(plan.offsets[row], device=tokens.device)
        # place of every own token: its index plus the extra tokens that come before it
        index = torch.arange(len(tokens), device=tokens.device)
        own = index + torch.searchsorted(offsets, index, right=True)
        extra = offsets + torch.arange(len(offsets), device=tokens.device)
        joined = tokens.new_empty(len(tokens) + len(offsets), tokens.shape[1])
        out.append(joined.index_copy(0, own, tokens).index_copy(0, extra, embeds))
    return out
