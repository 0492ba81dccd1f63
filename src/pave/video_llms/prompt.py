"""The prompt of a base and its videos: which video stands in which row, and where a patch puts further tokens.

Channels fused by ``concat`` or ``interleave`` hand their tokens to the language model beside the video's, and ``newline: grid`` puts
the base's newline embedding behind every row of tokens. The base fills one placeholder after the other with what its features
method returned, so such a prompt holds one more placeholder for every added token, with a mask, labels and positions to match:
``lay_out_prompt`` makes it. The patched model puts the tokens between the video's own, and looks whether they go to the same places.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from pave.config import PatchConfig, SideChannelConfig
from pave.fusion.baselines import step_places
from pave.tokens import SideTokens
from pave.video_llms import VideoLayout, VideoLLMInterface, get_interface

Places = list[list[int]]
"""Per video, for every added token: how many of the video's own tokens come before it."""
_ADDED, _PADDING = -1, -2
_VALUES = {"attention_mask": (1, 0), "labels": (-100, -100), "mm_token_type_ids": (2, 0)}
"""What an added token and padding have in each tensor of shape (rows, tokens)."""


# --- the helper


def lay_out_prompt(
    batch: Mapping[str, Any],
    base_config: Any,
    patch: PatchConfig,
    *,
    rows: Sequence[bool] | None = None,
    padding_side: Literal["left", "right"] = "left",
) -> dict[str, Any]:
    """Make room in the prompts of a batch for the tokens that a patch adds. ``PatchCollator`` does it by itself.

    Of patches that add none, the batch comes back as it is. A batch that was laid out before is laid out anew.

    Args:
        batch: the arguments of a call: what the base's processor made, with ``side_channels`` by channel and ``frame_times``.
        base_config: the base's ``config``.
        patch: the config of the patch.
        rows: on which rows the patch acts, None for all; the others get no tokens.
        padding_side: where rows with fewer tokens are padded; "left" to generate, "right" to train.

    Returns:
        The batch with longer ``input_ids``, ``attention_mask`` and, where they are given, ``labels`` and ``mm_token_type_ids``;
        ``position_ids`` where they are given or the family needs them; and ``added_tokens`` (videos, X), for every added token
        how many of the video's own come before it, -1 behind a video's last one.

    Raises:
        ValueError: if the prompt is not given as ``input_ids``, the batch lacks what describes its videos, or these, the side
            tokens, the times and the placeholders do not agree.
    """
    return lay_out(batch, base_config, patch.side_channels, patch.newline, rows=rows, padding_side=padding_side)


def lay_out(
    batch: Mapping[str, Any],
    base_config: Any,
    channels: Mapping[str, SideChannelConfig],
    newline: str,
    *,
    rows: Sequence[bool] | None = None,
    padding_side: Literal["left", "right"] = "left",
) -> dict[str, Any]:
    """``lay_out_prompt`` for the channels and the newline of a patch."""
    plain = plain_prompt(batch, base_config, padding_side=padding_side)
    if newline != "grid" and adding_channel(channels) is None:
        return plain
    ids = plain.get("input_ids")
    if ids is None:
        raise ValueError("a patch that adds tokens to the prompt needs the prompt's tokens: pass input_ids, not inputs_embeds")
    if plain.get("branches") is not None:
        raise ValueError("questions that share a video's tokens (branches) leave no room for tokens that a patch adds")
    interface = get_interface(base_config)
    is_video_BL = interface.is_video_token(base_config, ids)
    if not bool(is_video_BL.any()):
        return plain
    layouts = _layouts(plain, base_config, interface)
    row_of = rows_of_videos(is_video_BL, [layout.num_tokens for layout in layouts])
    acting = [rows is None or bool(rows[row]) for row in row_of]
    sides = plain.get("side_channels") or {}
    places = added_places(channels, newline, interface, layouts, sides, plain.get("frame_times"), acting)
    if not any(places):
        return plain
    if plain.get("attention_mask") is None:
        plain["attention_mask"] = torch.ones_like(ids)
    source_BL = _padded(_with_added(is_video_BL, plain["attention_mask"], layouts, row_of, places), padding_side, ids.device)
    out = _rebuilt(plain, source_BL, base_config)
    given = plain.get("position_ids")
    given = interface.position_ids(base_config, plain) if given is None else given
    if given is not None:
        out["position_ids"] = _longer_positions(given, source_BL)
    most = max(map(len, places))
    out["added_tokens"] = torch.tensor([row + [-1] * (most - len(row)) for row in places])
    return out


def plain_prompt(
    batch: Mapping[str, Any], base_config: Any, *, padding_side: Literal["left", "right"] = "left"
) -> dict[str, Any]:
    """The batch with its prompts as they were before ``lay_out_prompt``; arguments as there."""
    plain = {name: value for name, value in batch.items() if name != "added_tokens"}
    places = read_places(batch.get("added_tokens"))
    if not any(places):
        return plain
    interface = get_interface(base_config)
    is_video_BL = interface.is_video_token(base_config, batch["input_ids"])
    counts = [layout.num_tokens + len(row) for layout, row in zip(_layouts(batch, base_config, interface), places, strict=True)]
    rows_of_videos(is_video_BL, counts)
    added_BL = _added(is_video_BL, counts, places)
    kept = [
        [column for column in columns if not added[column]]
        for columns, added in zip(_unpadded(batch["attention_mask"]), added_BL.tolist(), strict=True)
    ]
    source_BL = _padded(kept, padding_side, is_video_BL.device)
    out = _rebuilt(plain, source_BL, base_config)
    if batch.get("position_ids") is not None:
        positions: Tensor = batch["position_ids"] - _before(added_BL).to(batch["position_ids"].device)
        out["position_ids"] = _taken(positions, source_BL.to(positions.device), 0, 0)
    return out


# --- what a patch adds, and where


def adding_channel(channels: Mapping[str, SideChannelConfig]) -> str | None:
    """The channel whose tokens go to the language model beside the video's; a patch has one at most."""
    return next((name for name, channel in channels.items() if channel.fusion.adds_llm_tokens), None)


def added_places(
    channels: Mapping[str, SideChannelConfig],
    newline: str,
    interface: VideoLLMInterface,
    layouts: Sequence[VideoLayout],
    side_channels: Mapping[str, SideTokens],
    frame_times: Any,
    acting: Sequence[bool],
) -> Places:
    """Where the tokens go that a patch adds.

    With ``newline: grid`` one stands behind every row of tokens of every frame; the base's own trailing newline is the one behind the
    last row. 32 frames of 14 x 14 tokens: 6,720 tokens instead of 6,273.

    Args:
        channels: of the patch.
        newline: of the patch.
        interface: of the base.
        layouts: of every video.
        side_channels: by channel, of every video.
        frame_times: (videos, frames) seconds, NaN-padded; only for channels that are aligned by them.
        acting: whether the patch acts on each video's row.
    """
    if newline == "grid":
        return [_behind_rows(layout) if acts else [] for layout, acts in zip(layouts, acting, strict=True)]
    name = adding_channel(channels)
    side = None if name is None else side_channels.get(name)
    if name is None or side is None:
        return [[] for _ in layouts]
    if not isinstance(side, SideTokens):
        raise ValueError(f"side_channels[{name!r}]: expected SideTokens of this patch alone, got {type(side).__name__}")
    if len(side) != len(layouts):
        raise ValueError(f"side_channels hold {len(side)} videos, but the call has {len(layouts)} videos")
    fusion = channels[name].fusion
    side = side.without_nonfinite()
    alignment = fusion.alignment if fusion.kind == "interleave" else None
    times_BT = None
    if alignment == "timestamps" and frame_times is not None:
        times_BT = times_of_steps(interface, layouts, frame_times).to(side.device)
    _, valid_BK, after_BK = step_places(side, valid_steps(layouts, side.device), times_BT, alignment=alignment)
    per_step = side.embeds_BKMC.shape[2]
    out: Places = []
    for layout, acts, valid, after in zip(layouts, acting, valid_BK.tolist(), after_BK.tolist(), strict=True):
        frames = [frame for frame, there in zip(after, valid, strict=True) if there and acts]
        out.append([(frame + 1) * layout.tokens_per_step for frame in frames for _ in range(per_step)])
    return out


def _behind_rows(layout: VideoLayout) -> list[int]:
    rows, columns = layout.grid
    return [(row + 1) * columns for row in range(layout.steps * rows - min(layout.trailing, 1))]


def read_places(added_tokens: Any) -> Places:
    """What ``added_tokens`` of a call say, by video; nothing where there are none.

    Raises:
        ValueError: if they are not what ``lay_out_prompt`` makes.
    """
    if added_tokens is None:
        return []
    table = torch.as_tensor(added_tokens)
    if table.ndim != 2 or table.is_floating_point():
        raise ValueError(
            f"added_tokens: expected integers of shape (videos, tokens), got {table.dtype} of shape {tuple(table.shape)}"
        )
    return [[place for place in row if place >= 0] for row in table.tolist()]


def valid_steps(layouts: Sequence[VideoLayout], device: torch.device) -> Tensor:
    """True at the steps that a video has, (videos, T)."""
    steps = torch.tensor([layout.steps for layout in layouts], device=device)
    return torch.arange(int(steps.max()), device=device)[None] < steps[:, None]


def times_of_steps(interface: VideoLLMInterface, layouts: Sequence[VideoLayout], frame_times: Any) -> Tensor:
    """Seconds of every step of the model, (videos, T), 0 behind a video's last one.

    Raises:
        ValueError: if the times are not those of the videos' frames.
    """
    times_BF = torch.as_tensor(frame_times, dtype=torch.float64)
    steps = [layout.steps for layout in layouts]
    if times_BF.ndim != 2 or times_BF.shape[0] != len(steps):
        raise ValueError(f"frame_times must have shape ({len(steps)} videos, frames), got {tuple(times_BF.shape)}")
    times_BT = interface.step_times(times_BF)
    for row, (known, T) in enumerate(zip(torch.isfinite(times_BT).tolist(), steps, strict=True)):
        if sum(known) != T:
            raise ValueError(
                f"frame_times: video {row} has times for {sum(known)} time steps of the model, but {T} steps were encoded "
                f"(the model merges {interface.frames_per_step} sampled frame(s) into a step)"
            )
        if not all(known[:T]):
            raise ValueError(
                f"frame_times: video {row} has no time for step {known.index(False)}; only padding at the end is NaN"
            )
    return times_BT[:, : max(steps)].nan_to_num()


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


# --- positions in the prompt


def _layouts(batch: Mapping[str, Any], base_config: Any, interface: VideoLLMInterface) -> Sequence[VideoLayout]:
    stored = batch.get("vision_features")
    if stored is not None:
        layouts: Sequence[VideoLayout] = stored.layouts
        return layouts
    times = batch.get("frame_times")
    counts = None if times is None else torch.isfinite(torch.as_tensor(times)).sum(dim=1).tolist()
    given = {name: value for name, value in batch.items() if value is not None}
    try:
        return interface.layouts(base_config, interface.encoder_inputs(given), counts)
    except KeyError as error:
        raise ValueError(
            f"the prompt has a video, but the batch lacks {error.args[0]}, which says how many tokens it makes"
        ) from None


def _unpadded(attention_mask: Tensor) -> list[range]:
    """The columns of each row from its first token to its last."""
    rows = [[column for column, there in enumerate(row) if there] for row in attention_mask.tolist()]
    return [range(row[0], row[-1] + 1) if row else range(0) for row in rows]


def _padded(rows: Sequence[Sequence[int]], padding_side: str, device: torch.device) -> Tensor:
    longest = max(map(len, rows))
    fill = [[_PADDING] * (longest - len(row)) for row in rows]
    padded = [[*pad, *row] if padding_side == "left" else [*row, *pad] for row, pad in zip(rows, fill, strict=True)]
    return torch.tensor(padded, device=device)


def _with_added(
    is_video_BL: Tensor, attention_mask: Tensor, layouts: Sequence[VideoLayout], row_of: Sequence[int], places: Places
) -> list[list[int]]:
    """For every position of the longer prompts the column in the given one, or ``_ADDED``."""
    rows: list[list[int]] = []
    for row, (is_video, columns) in enumerate(zip(is_video_BL.tolist(), _unpadded(attention_mask), strict=True)):
        videos = [column for column, here in enumerate(is_video) if here]
        added: dict[int, int] = {}  # behind this column, so many
        start = 0
        for video in (video for video, r in enumerate(row_of) if r == row):
            for place in places[video]:
                column = videos[start + place - 1]
                added[column] = added.get(column, 0) + 1
            start += layouts[video].num_tokens
        rows.append([x for column in columns for x in (column, *[_ADDED] * added.get(column, 0))])
    return rows


def _rebuilt(batch: Mapping[str, Any], source_BL: Tensor, base_config: Any) -> dict[str, Any]:
    """The batch with all that it has of each token where ``source_BL`` puts it."""
    pad = base_config.get_text_config().pad_token_id
    placeholder = get_interface(base_config).video_token_id(base_config)
    out = dict(batch)
    for name, (added, padding) in {"input_ids": (placeholder, 0 if pad is None else pad), **_VALUES}.items():
        if batch.get(name) is not None:
            out[name] = _taken(batch[name], source_BL.to(batch[name].device), added, padding)
    return out


def _taken(values: Tensor, source_BL: Tensor, added: int, padding: int) -> Tensor:
    """(..., B, L) at the columns that ``source_BL`` names."""
    index = source_BL.clamp(min=0).expand(*values.shape[:-2], *source_BL.shape)
    return values.gather(-1, index).masked_fill(source_BL == _ADDED, added).masked_fill(source_BL == _PADDING, padding)


def _longer_positions(given: Tensor, source_BL: Tensor) -> Tensor:
    """Every added token takes the next free position and moves what follows on by one; ``given`` may have planes before the rows."""
    source_BL = source_BL.to(given.device)
    own = _taken(given, source_BL, 0, 0)
    highest_BL = torch.where(source_BL >= 0, own.view(-1, *source_BL.shape).amax(dim=0), -1).cummax(dim=1).values
    positions = torch.where(source_BL == _ADDED, highest_BL + 1, own) + _before(source_BL == _ADDED)
    return positions.masked_fill(source_BL == _PADDING, 0)


def _before(added_BL: Tensor) -> Tensor:
    """How many added tokens stand before each position."""
    count_BL = added_BL.long()
    return count_BL.cumsum(dim=1) - count_BL


def _added(is_video_BL: Tensor, tokens_per_video: Sequence[int], places: Places) -> Tensor:
    """True at the tokens that were added."""
    added_BL = torch.zeros_like(is_video_BL)
    rows, columns = is_video_BL.nonzero(as_tuple=True)
    start = 0
    for count, video in zip(tokens_per_video, places, strict=True):
        at = torch.tensor([start + place + number for number, place in enumerate(video)], dtype=torch.long, device=rows.device)
        added_BL[rows[at], columns[at]] = True
        start += count
    return added_BL
