"""One patch's modules on a base: a fusion module per side channel, and how their outputs enter the video tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from pave.config import PatchConfig
from pave.fusion import build_fusion
from pave.tokens import QuestionTokens, SideTokens, VideoTokens
from pave.video_llms import VideoLayout

SLOTS = "pave_patches"
"""Name of the submodule of a base that holds its patches, one slot each."""


def check_name(what: str, name: str) -> None:
    """Refuse a name of a patch or a channel that no submodule can have."""
    if not name.isidentifier() or hasattr(nn.ModuleDict(), name):
        reason = "is taken by torch" if name.isidentifier() else "must be a Python identifier"
        raise ValueError(f"{what}: a name of a patch or channel {reason}, got {name!r}; choose another one")


def without_patches(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a patched model's state dict that belong to no patch: the base's, and those of its user's own adapters."""
    return {
        key: value
        for key, value in tensors.items()
        if not key.startswith(f"{SLOTS}.") and not (".lora_" in key and ".pave_" in key)
    }


def base_state_dict(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The base's own tensors under the base's own names, out of a patched model's state dict."""
    return {
        key.replace(".base_layer.", "."): value
        for key, value in tensors.items()
        if not key.startswith(f"{SLOTS}.") and ".lora_" not in key
    }


class PatchSlot(nn.Module):
    """The fusion modules of one named patch.

    Args:
        config: the patch.
        llm_width: E of the base.
        pre_projector_width: C of the base's features before the projector.
    """

    def __init__(self, config: PatchConfig, *, llm_width: int, pre_projector_width: int) -> None:
        super().__init__()
        self.config = config
        self.fusions = nn.ModuleDict(
            {
                name: build_fusion(
                    channel.fusion, side_width=channel.width, llm_width=llm_width, pre_projector_width=pre_projector_width
                )
                for name, channel in config.side_channels.items()
            }
        )

    def needs_pre_projector(self) -> bool:
        return self.config.reads_pre_projector

    def needs_frame_times(self) -> bool:
        return any(c.fusion.alignment == "timestamps" for c in self.config.side_channels.values())

    def needs_question(self) -> bool:
        return any(c.fusion.gate for c in self.config.side_channels.values())

    def acts_without_channels(self) -> bool:
        """Whether LoRA acts on a row without any of the patch's channels too."""
        return not self.config.side_channels or self.config.missing_channel == "lora_only"

    def forward(
        self, video: VideoTokens, side_channels: Mapping[str, SideTokens], question: QuestionTokens | None = None
    ) -> tuple[Tensor, Tensor]:
        """The summed residual of all given channels that add one.

        Returns:
            residual_BTSE in the dtype of the patch, and touched_BT: True where some channel has a say. Elsewhere the
            residual is exactly zero and the base's token must stay bit for bit.
        """
        z = video.post_projector_BTSE
        total: Tensor | None = None
        touched_BT = torch.zeros_like(video.valid_BT)
        for name, side in side_channels.items():
            fusion = self.fusions[name]
            if self.config.side_channels[name].fusion.adds_llm_tokens:
                continue
            residual_BTSE = fusion(video, side, question)
            touched_BT = touched_BT | (side.present_B()[:, None] & video.valid_BT)
            total = residual_BTSE if total is None else total + residual_BTSE
        return (z.new_zeros(()).expand_as(z) if total is None else total), touched_BT


def batch_videos(
    videos: Sequence[Tensor],
    layouts: Sequence[VideoLayout],
    pre_projector: Sequence[Tensor] | None,
    times_BT: Tensor | None,
    device: torch.device | None = None,
) -> VideoTokens:
    """Pad the videos of a call to one batch of T steps and S tokens, on the device of the patch.

    Args:
        videos: per video (T * S + trailing, E).
        pre_projector: per video (T * S, C), or None.
        times_BT: seconds of each step, NaN behind the last; on any device (callers pass lists and arrays).
        device: where the patch's modules are; a base spread over several devices may make its tokens elsewhere. Default:
            where the videos are.
    """
    device = videos[0].device if device is None else device
    T = max(layout.steps for layout in layouts)
    S = max(layout.tokens_per_step for layout in layouts)
    steps = torch.tensor([layout.steps for layout in layouts], device=device)
    valid_BT = torch.arange(T, device=device)[None] < steps[:, None]

    def stack(tokens: Sequence[Tensor]) -> Tensor:
        per_video = [
            x[: lay.steps * lay.tokens_per_step].view(lay.steps, lay.tokens_per_step, -1).to(device)
            for x, lay in zip(tokens, layouts)
        ]
        if len(set(layouts)) == 1:
            return torch.stack(per_video)
        out = per_video[0].new_zeros(len(tokens), T, S, tokens[0].shape[-1])
        for row, x in enumerate(per_video):
            out[row, : x.shape[0], : x.shape[1]] = x
        return out

    grids = {layout.grid if not layout.leading else None for layout in layouts}
    return VideoTokens(
        stack(videos),
        valid_BT,
        None if times_BT is None else times_BT.to(device),
        None if pre_projector is None else stack(pre_projector),
        grid=grids.pop() if len(grids) == 1 else None,
    )


def add_residual(
    videos: Sequence[Tensor],
    layouts: Sequence[VideoLayout],
    residual_BTSE: Tensor,
    touched_BT: Tensor,
    strengths: Sequence[float],
) -> list[Tensor]:
    """The tokens of each video with its strength times the residual added; untouched steps and trailing tokens stay bit for bit."""
    out = []
    for row, (tokens, layout) in enumerate(zip(videos, layouts, strict=True)):
        T, S = layout.steps, layout.tokens_per_step
        body = tokens[: T * S].view(T, S, -1)
        residual = residual_BTSE[row, :T, :S].to(tokens.device, tokens.dtype)
        if strengths[row] != 1.0:
            residual = residual * strengths[row]
        fused = torch.where(touched_BT[row, :T, None, None].to(tokens.device), body + residual, body)
        out.append(torch.cat([fused.reshape(T * S, -1), tokens[T * S :]]))
    return out


def rows_of_videos(is_video_BL: Tensor, tokens_per_video: Sequence[int]) -> list[int]:
    """The row of the batch that each video stands in: placeholders are filled in order, row by row.

    Args:
        is_video_BL: True at the placeholders of video tokens.
        tokens_per_video: how many tokens of each video stand in the prompts.

    Raises:
        ValueError: if the prompts do not hold exactly one placeholder per video token, or a video would straddle rows.
    """
    per_row = is_video_BL.sum(dim=1).tolist()
    if sum(per_row) != sum(tokens_per_video):
        raise ValueError(
            f"the prompts hold {sum(per_row)} video placeholders ({per_row} per row), but the {len(tokens_per_video)} videos "
            f"make {sum(tokens_per_video)} tokens ({list(tokens_per_video)} per video)"
        )
    rows: list[int] = []
    row, room = 0, per_row[0] if per_row else 0
    for video, count in enumerate(tokens_per_video):
        while room == 0 and row + 1 < len(per_row):
            row += 1
            room = per_row[row]
        if count > room:
            raise ValueError(f"video {video} has {count} tokens, but row {row} has room for {room} more")
        rows.append(row)
        room -= count
    return rows
