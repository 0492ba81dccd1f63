"""A call in which several questions share the tokens of one video."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pave.config import PatchConfig
from pave.video_llms.branches import branch_mask, check_base_shares


def check_patch_shares(patch: PatchConfig) -> None:
    """Refuse a patch under which a video's tokens depend on the question or move in the prompt.

    Raises:
        ValueError: if a channel has a gate or adds tokens, or newlines are put in.
    """
    reason = None
    for name, channel in patch.side_channels.items():
        if channel.fusion.gate:
            reason = f"the gate of channel {name!r} reads the question, so every question has video tokens of its own; set its fusion.gate to false"
        elif channel.fusion.adds_llm_tokens:
            reason = f"channel {name!r} is fused by {channel.fusion.kind!r}, which lengthens the prompt"
    if patch.newline == "grid":
        reason = "newline 'grid' lengthens the prompt"
    if reason is not None:
        raise ValueError(f"several questions cannot share a video's tokens (data.share_videos): {reason}")


def with_branches(model: Any, branches_BL: Tensor, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of ``forward`` with the mask that keeps the branches apart.

    Args:
        model: a patched model.
        branches_BL: see ``pave.video_llms.branches``.
        arguments: by name.

    Raises:
        ValueError: if the patch or the base cannot do it, or the positions are not given.
    """
    for config in model.patch_configs.values():
        check_patch_shares(config)
    check_base_shares(model.config)
    if arguments.get("position_ids") is None:
        raise ValueError("branches need position_ids that go on behind the video in every branch, as PatchCollator makes them")
    text = model.config.get_text_config()
    mask = branch_mask(branches_BL, text._attn_implementation, model.get_input_embeddings().weight.dtype)
    return {**arguments, "attention_mask": mask}
