"""The tokens that a patch puts between those of the videos: side tokens (``concat``, ``interleave``) and newlines (``newline: grid``).

The prompt that comes with them has room for each already: ``pave.video_llms.prompt`` lays it out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pave.fusion.base import TokenFusion
from pave.patching.slot import PatchSlot
from pave.tokens import SideTokens
from pave.video_llms import VideoLayout, VideoLLMInterface
from pave.video_llms.prompt import Places, adding_channel, valid_steps

HELPER = "pave.lay_out_prompt(batch, model.config, model.patch_config)"


def check_prompt(name: str | None, wanted: Places, given: Places) -> None:
    """Refuse a prompt that was not laid out for the tokens of a call.

    Args:
        name: of the patch that adds them, None where none does.
        wanted: where they go.
        given: where the prompt has room.

    Raises:
        ValueError: if the two differ.
    """
    if wanted == given or not (any(wanted) or any(given)):
        return
    counts = f"{sum(map(len, wanted))} tokens to the prompt, which has room for {sum(map(len, given))} (added_tokens)"
    if name is None:
        raise ValueError(
            f"the patches that act in this call add {counts}: give it the prompt as the base's processor made it "
            "(pave.video_llms.prompt.plain_prompt gives it back)"
        )
    if any(given) and sum(map(len, wanted)) == sum(map(len, given)):
        counts += ", elsewhere"
    raise ValueError(
        f"the patch {name!r} adds {counts}: lay the prompt out for it, with the side tokens, times and rows of this call, by "
        f"{HELPER}; PatchCollator does it by itself"
    )


def newline_tokens(model: Any, interface: VideoLLMInterface, places: Places) -> list[Tensor]:
    """The base's newline embedding once for every place, per video."""
    newline = interface.newline(model.base_model)
    assert newline is not None, "attach_patch has checked it"
    return [newline.expand(len(row), -1) for row in places]


def side_tokens(
    slot: PatchSlot,
    side_channels: Mapping[str, SideTokens],
    layouts: Sequence[VideoLayout],
    times_BT: Tensor | None,
    places: Places,
) -> list[Tensor]:
    """What the channel that adds tokens hands to the language model, per video.

    Raises:
        ValueError: if side tokens are too large for the dtype of the patch.
    """
    name = adding_channel(slot.config.side_channels)
    assert name is not None
    fusion: TokenFusion = slot.fusions[name]  # type: ignore[assignment]
    device = next(fusion.parameters()).device
    times_BT = None if times_BT is None else times_BT.to(device)
    extra = fusion(side_channels[name].to(device), valid_steps(layouts, device), times_BT)
    counts = extra.valid_BX.sum(dim=1).tolist()
    if any(len(row) not in (0, count) for row, count in zip(places, counts, strict=True)):
        raise ValueError(f"side_channels[{name!r}] hold numbers that are too large for the patch's {extra.embeds_BXE.dtype}")
    return [extra.embeds_BXE[video, : len(row)] for video, row in enumerate(places)]


def insert(videos: Sequence[Tensor], added: Sequence[Tensor], places: Places) -> list[Tensor]:
    """The tokens of each video with the added ones between them."""
    out = []
    for tokens, embeds, row in zip(videos, added, places, strict=True):
        before = torch.tensor(row, dtype=torch.long, device=tokens.device)
        index = torch.arange(len(tokens), device=tokens.device)
        own = index + torch.searchsorted(before, index, right=True)
        between = before + torch.arange(len(row), device=tokens.device)
        joined = tokens.new_empty(len(tokens) + len(row), tokens.shape[1]).index_copy(0, own, tokens)
        out.append(joined.index_copy(0, between, embeds.to(tokens.device, tokens.dtype)) if row else tokens)
    return out
