"""What happens within one call of a patched model: check what was given, fuse it into the video tokens once, say what LoRA does."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pave.config import PatchConfig
from pave.patching.call import FrameTimes, PatchCall, as_row_tensor, entered, rows_of_videos, weights_of_rows
from pave.patching.lengthen import Lengthening, insert_tokens, plan_lengthening, plan_newlines
from pave.patching.slot import SLOTS, PatchSlot, add_residual, batch_videos
from pave.tokens import QuestionTokens, SideTokens
from pave.video_llms import VideoLayout, get_interface

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def patch_call(
    model: Any,
    side_channels: Mapping[str, SideTokens] | None,
    frame_times: FrameTimes | None,
    input_ids: Tensor | None,
    attention_mask: Tensor | None,
    labels: Tensor | None,
    inputs: Mapping[str, Any] | None = None,
) -> Iterator[PatchCall | None]:
    config: PatchConfig = model.patch_config
    frame_times = _checked_times(frame_times)
    sides = _checked_sides(config, side_channels or {}, frame_times)
    name = next(iter(getattr(model, SLOTS)))
    call = PatchCall(model, name, model.patch_strength, sides, frame_times, input_ids, attention_mask, labels, inputs or {})
    if not config.side_channels or config.missing_channel == "lora_only":
        call.lora_weight = call.strength
    with entered(call):
        yield call
    if not call.consumed and any(bool(side.present_B().any()) for side in sides.values()):
        raise ValueError(
            f"side_channels ({', '.join(sides)}) were given, but no video was encoded in this call; pass the video's pixels in "
            "the same call, or leave side_channels out"
        )


def _checked_times(frame_times: FrameTimes | None) -> Tensor | None:
    if frame_times is None:
        return None
    if isinstance(frame_times, Tensor) and frame_times.dtype in (torch.float16, torch.bfloat16):
        raise ValueError(
            f"frame_times came in {str(frame_times.dtype).removeprefix('torch.')}, too coarse for seconds: something cast the "
            "floating tensors of the batch; pass a NumPy array or a list, which no wrapper casts"
        )
    return torch.as_tensor(frame_times, dtype=torch.float64)


def _checked_sides(
    config: PatchConfig, side_channels: Mapping[str, SideTokens], frame_times: Tensor | None
) -> dict[str, SideTokens]:
    sides: dict[str, SideTokens] = {}
    for name, side in side_channels.items():
        if name not in config.side_channels:
            known = ", ".join(config.side_channels) or "none"
            raise ValueError(f"side_channels: this patch has no channel {name!r}; it has: {known}")
        if not isinstance(side, SideTokens):
            raise ValueError(f"side_channels[{name!r}]: expected SideTokens, got {type(side).__name__}")
        channel = config.side_channels[name]
        if side.width != channel.width:
            raise ValueError(
                f"side_channels[{name!r}]: the features are {side.width} wide, but the patch was made for width {channel.width} "
                f"(encoder {channel.encoder.name})"
            )
        if channel.fusion.alignment == "timestamps":
            if side.times_BK is None:
                raise ValueError(f"side_channels[{name!r}]: alignment 'timestamps' needs SideTokens with times_BK")
            if frame_times is None:
                raise ValueError(
                    f"frame_times is missing: channel {name!r} is aligned by time, so pass the seconds of the sampled frames, "
                    "a tensor of shape (videos, frames)"
                )
        clean = side.without_nonfinite()
        dropped = int((side.valid_BK & ~clean.valid_BK).sum())
        if dropped:
            logger.warning("side channel %r: %d steps hold NaN or infinity and are treated as missing", name, dropped)
        sides[name] = clean
    counts = {name: len(side) for name, side in sides.items()}
    if len(set(counts.values())) > 1:
        raise ValueError(f"side_channels disagree in the number of videos: {counts}")
    return sides


def fuse(call: PatchCall, inner: Any, output: Any, arguments: Mapping[str, Any]) -> None:
    """Let the video tokens in ``output.pooler_output`` meet the side channels of the call.

    Once per prompt, as the base encodes a video once; where code inside ``patch_call`` encodes it again, it is fused again.
    """
    if not call.side_channels:
        return
    model: Any = call.owner
    interface = get_interface(model.config)
    if not interface.holds_videos(model.config, call.input_ids, call.feature_calls):
        call.feature_calls += 1
        return
    call.consumed = True
    layouts = interface.layouts(model.config, arguments, _frame_counts(call))
    videos = interface.split(output.pooler_output, layouts)
    count = len(next(iter(call.side_channels.values())))
    copies = _repeat_for_beams(call, interface, count, len(videos))
    if count * copies != len(videos):
        raise ValueError(f"side_channels hold {count} videos, but the call has {len(videos)} videos")
    if call.strength == 0.0:
        return
    slot: PatchSlot = getattr(model, SLOTS)[call.name]
    rows = _video_rows(call, interface, layouts[::copies])
    present_B = torch.stack([side.present_B().cpu() for side in call.side_channels.values()]).any(dim=0)
    if model.patch_config.missing_channel == "base":
        num_rows = count if call.input_ids is None else call.input_ids.shape[0]
        weight = weights_of_rows(present_B[::copies].tolist(), rows, num_rows, call.strength)
        call.lora_weight = as_row_tensor(weight, videos[0].device)
    pre_projector = None
    if slot.needs_pre_projector():
        assert call.captured is not None
        pre_projector = interface.pre_projector(inner, call.captured, layouts, arguments)
        call.captured = None
    device = next(iter(slot.parameters())).device
    times = _step_times(call, interface, [layout.steps for layout in layouts])
    batch = batch_videos(videos, layouts, pre_projector, times, device)
    sides = {name: side.to(device) for name, side in call.side_channels.items()}
    call.fused |= set(sides)
    question = _question(call, slot, interface, [row for row in rows for _ in range(copies)], device)
    residual_BTSE, touched_BT = slot(batch, sides, question)
    fused = add_residual(videos, layouts, residual_BTSE, touched_BT, call.strength)
    if call.extra_tokens is not None:
        fused = insert_tokens(fused, call.extra_tokens)
    output.pooler_output = interface.join(fused, output.pooler_output)


def put_newlines(call: PatchCall, output: Any, arguments: Mapping[str, Any]) -> None:
    """Under ``newline: grid``, put the newlines into a video without side channels; with some, ``fuse`` has done it."""
    model: Any = call.owner
    if model.patch_config.newline == "base" or call.strength == 0.0:
        return
    if call.extra_tokens is None:
        raise ValueError(
            "newline 'grid' lengthens the prompt, which only forward and generate of the patched model do: call one of them with "
            "the video's pixels, or set newline to 'base'"
        )
    if call.consumed:
        return
    call.consumed = True
    interface = get_interface(model.config)
    videos = interface.split(output.pooler_output, interface.layouts(model.config, arguments))
    output.pooler_output = interface.join(insert_tokens(videos, call.extra_tokens), output.pooler_output)


def touch_unused(call: PatchCall | None, output: Any) -> Any:
    """Give every fusion module a part in the graph, with gradient zero where it did not run in this call.

    In distributed training a process whose batch lacks a channel would otherwise have parameters without a gradient: DDP
    then waits for ever, and FSDP reduces other shapes than its peers. LoRA layers see to it by themselves.
    """
    if call is None or not call.owner.training or not torch.is_grad_enabled():
        return output
    fusions: Any = getattr(call.owner, SLOTS)[call.name].fusions
    idle = [p for name, f in fusions.items() if name not in call.fused for p in f.parameters() if p.requires_grad]
    if not idle:
        return output
    zero = torch.stack([p.sum() for p in idle]).sum() * 0.0
    if isinstance(output, tuple):  # return_dict=False: the loss comes first where there is one, else the logits
        return (output[0] + zero.to(output[0].device, output[0].dtype), *output[1:])
    for key in ("loss", "logits"):
        value = getattr(output, key, None)
        if value is not None:
            setattr(output, key, value + zero.to(value.device, value.dtype))
    return output


def lengthen(call: PatchCall | None, arguments: Mapping[str, Any]) -> Lengthening | None:
    """The longer prompt of this call, where the patch hands further tokens to the language model; else None."""
    if call is None:
        return None
    model: Any = call.owner
    interface = get_interface(model.config)
    if model.patch_config.newline == "grid":
        call.extra_tokens = plan_newlines(call, interface, arguments)
        return call.extra_tokens
    if not call.side_channels:
        return None
    call.extra_tokens = plan_lengthening(call, interface, arguments, _step_times)
    return call.extra_tokens


def _frame_counts(call: PatchCall) -> list[int] | None:
    """Frames of every video as ``frame_times`` has them."""
    return None if call.frame_times is None else torch.isfinite(call.frame_times).sum(dim=1).tolist()


def _repeat_for_beams(call: PatchCall, interface: Any, given: int, encoded: int) -> int:
    """How many copies of each video are encoded; side channels and times are repeated to match."""
    if not interface.encodes_after_beams or given == 0 or encoded == given or encoded % given:
        return 1
    copies = encoded // given
    index = torch.arange(given).repeat_interleave(copies)
    call.side_channels = {name: side.select(index.to(side.device)) for name, side in call.side_channels.items()}
    call.frame_times = None if call.frame_times is None else call.frame_times[index]
    return copies


def _video_rows(call: PatchCall, interface: Any, layouts: Sequence[VideoLayout]) -> list[int]:
    if call.input_ids is None:
        return list(range(len(layouts)))
    is_video_BL = interface.is_video_token(call.owner.config, call.input_ids)
    return rows_of_videos(is_video_BL, interface.tokens_in_prompt(layouts, call.inputs))


def _step_times(call: PatchCall, interface: Any, steps: list[int]) -> Tensor | None:
    if call.frame_times is None:
        return None
    frame_times = call.frame_times
    if frame_times.ndim != 2 or frame_times.shape[0] != len(steps):
        raise ValueError(f"frame_times must have shape ({len(steps)} videos, frames), got {tuple(frame_times.shape)}")
    times: Tensor = interface.step_times(frame_times)
    for row, (known, T) in enumerate(zip(torch.isfinite(times).tolist(), steps, strict=True)):
        if sum(known) != T:
            raise ValueError(
                f"frame_times: video {row} has times for {sum(known)} time steps of the model, but {T} steps were encoded "
                f"(the model merges {interface.frames_per_step} sampled frame(s) into a step)"
            )
        if not all(known[:T]):
            raise ValueError(
                f"frame_times: video {row} has no time for step {known.index(False)}; only padding at the end is NaN"
            )
    return times[:, : max(steps)].nan_to_num()


def _question(call: PatchCall, slot: PatchSlot, interface: Any, rows: list[int], device: torch.device) -> QuestionTokens | None:
    """The embedded prompt of each video's row, up to the first answer token."""
    if not slot.needs_question():
        return None
    if call.input_ids is None:
        raise ValueError("a gated channel reads the question: pass input_ids, not inputs_embeds")
    owner: Any = call.owner
    ids = call.input_ids
    valid = torch.ones_like(ids, dtype=torch.bool) if call.attention_mask is None else call.attention_mask.bool()
    for placeholder in interface.placeholder_ids(call.owner.config):
        valid = valid & (ids != placeholder)
    if call.labels is not None:
        valid = valid & ((call.labels != -100).cumsum(dim=1) == 0)
    with torch.no_grad():
        embeds = owner.get_input_embeddings()(ids)
    index = torch.tensor(rows, device=ids.device)
    return QuestionTokens(embeds[index.to(embeds.device)].to(device), valid[index].to(device))
