"""Side tokens meet encoded video: a pure function of what was encoded, the side tokens, the times and a plan of who acts where."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pave.patching.lengthen import Lengthening, insert_tokens, plan_newlines, plan_side_tokens
from pave.patching.rows import Plan
from pave.patching.slot import PatchSlot, add_residual, batch_videos, rows_of_videos
from pave.tokens import QuestionTokens, SideTokens
from pave.video_llms import VideoLayout, VideoLLMInterface, get_interface
from pave.video_llms.encode import EncodedVideo

logger = logging.getLogger(__name__)

FrameTimes = Tensor | NDArray[np.floating] | Sequence[Sequence[float]]
"""Seconds of the sampled frames, (videos, frames), NaN-padded."""
Sides = Mapping[str, Mapping[str, SideTokens]]
"""Side tokens of every video, by patch and channel."""


@dataclass
class Fused:
    """What the base takes for one call, once: its own code changes the outputs in place."""

    outputs: dict[str, Any]
    """For ``mm_encoder_outputs``."""
    lora: dict[str, list[float]]
    """Weight of every patch's LoRA update, row by row."""
    longer: Lengthening | None = None
    """The longer prompt, where a patch adds tokens to it."""
    idle: list[nn.Parameter] = field(default_factory=list)
    """Of fusion modules that did not run and that no video token keeps in the graph."""


# --- what was given ---------------------------------------------------------------------------------------------------


def read_times(frame_times: FrameTimes | None) -> Tensor | None:
    """Frame times in float64.

    Raises:
        ValueError: if something cast them to a precision too low for seconds.
    """
    if frame_times is None:
        return None
    if isinstance(frame_times, Tensor) and frame_times.dtype in (torch.float16, torch.bfloat16):
        raise ValueError(
            f"frame_times came in {str(frame_times.dtype).removeprefix('torch.')}, too coarse for seconds: something cast the "
            "floating tensors of the batch; pass a NumPy array or a list, which no wrapper casts"
        )
    return torch.as_tensor(frame_times, dtype=torch.float64)


def read_sides(
    slots: Mapping[str, PatchSlot], side_channels: Mapping[str, Any], used: Sequence[str], frame_times: Tensor | None
) -> dict[str, dict[str, SideTokens]]:
    """Side tokens by patch and channel, with steps that are not finite marked missing.

    Args:
        slots: the patches on the model by name.
        side_channels: by channel, or by patch and channel.
        used: the patches that act in this call.
        frame_times: to see that they are there for channels that are aligned by them.

    Raises:
        ValueError: if no patch has such a channel, several that act do, or the tokens do not fit the channel.
    """
    sides: dict[str, dict[str, SideTokens]] = {}
    for key, value in side_channels.items():
        if isinstance(value, Mapping):
            if key not in slots:
                raise ValueError(f"side_channels: the model carries no patch {key!r}; attached: {', '.join(slots) or 'none'}")
            for channel in value:
                if channel not in slots[key].config.side_channels:
                    known = ", ".join(slots[key].config.side_channels) or "none"
                    raise ValueError(f"side_channels: the patch {key!r} has no channel {channel!r}; it has: {known}")
            found = {key: value}
        else:
            found = {name: {key: value} for name in _patches_with(slots, key, used)}
        for name, channels in found.items():
            for channel, side in channels.items():
                if channel in sides.get(name, {}):
                    raise ValueError(f"side_channels: channel {channel!r} of the patch {name!r} is given twice")
                sides.setdefault(name, {})[channel] = _checked(slots[name], channel, side, frame_times)
    counts = {f"{name}.{channel}": len(side) for name, own in sides.items() for channel, side in own.items()}
    if len(set(counts.values())) > 1:
        raise ValueError(f"side_channels disagree in the number of videos: {counts}")
    return sides


def _patches_with(slots: Mapping[str, PatchSlot], channel: str, used: Sequence[str]) -> list[str]:
    """The patches that tokens named by their channel alone are for."""
    having = [name for name, slot in slots.items() if channel in slot.config.side_channels]
    if not having:
        known = {name: list(slot.config.side_channels) for name, slot in slots.items()}
        if len(known) == 1:
            alone = ", ".join(next(iter(known.values()))) or "none"
            raise ValueError(f"side_channels: this patch has no channel {channel!r}; it has: {alone}")
        raise ValueError(f"side_channels: no patch has a channel {channel!r}; the model carries {known}")
    acting = [name for name in having if name in used] or having
    first = slots[acting[0]].config.side_channels[channel]
    for name in acting[1:]:
        other = slots[name].config.side_channels[channel]
        if (other.width, other.encoder) != (first.width, first.encoder):
            raise ValueError(
                f"side_channels: the patches {', '.join(acting)} have channels {channel!r} of different encoders; name the patch as "
                f"well: side_channels={{{acting[0]!r}: {{{channel!r}: ...}}}}"
            )
    return acting


def _checked(slot: PatchSlot, name: str, side: Any, frame_times: Tensor | None) -> SideTokens:
    channel = slot.config.side_channels[name]
    if not isinstance(side, SideTokens):
        raise ValueError(f"side_channels[{name!r}]: expected SideTokens, got {type(side).__name__}")
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
    return clean


def present_videos(sides: Mapping[str, SideTokens]) -> list[bool]:
    """Per video, whether it has some channel of a patch; empty where the patch is given none."""
    if not sides:
        return []
    there: list[bool] = torch.stack([side.present_B().cpu() for side in sides.values()]).any(dim=0).tolist()
    return there


# --- fusing -----------------------------------------------------------------------------------------------------------


@torch.compiler.disable  # type: ignore[untyped-decorator]
def fuse(
    model: Any,
    slots: Mapping[str, PatchSlot],
    encoded: EncodedVideo,
    sides: Sides,
    frame_times: Tensor | None,
    plan: Plan,
    prompt: Mapping[str, Any],
) -> Fused:
    """Add strength times residual to the videos whose row uses a patch and that have its channel; all others stay bit for bit.

    Args:
        model: the base, for its config and its embeddings.
        slots: the patches by name.
        encoded: what the base made of the call's pixels.
        sides: see ``read_sides``.
        frame_times: (videos, frames) seconds, NaN-padded.
        plan: which patches act on which row, how strongly.
        prompt: the call's other arguments.

    Raises:
        ValueError: if videos, side tokens, times and placeholders do not agree in number.
    """
    outputs = {key: copy.copy(output) for key, output in encoded.outputs.items()}
    if not encoded.has_videos:
        without = {name: _lora_weights(slot, plan.lora_strengths(name), set()) for name, slot in slots.items()}
        return Fused(outputs, without, idle=_learning(p for slot in slots.values() for p in slot.parameters()))
    call = _Call(model, encoded, prompt, plan)
    times_BT = None if not sides or frame_times is None else call.step_times(frame_times)
    fused = list(call.videos)
    lora: dict[str, list[float]] = {}
    idle: list[nn.Parameter] = []
    lengthening: list[str] = []
    for name, slot in slots.items():
        own = sides.get(name, {})
        present = call.present(own)
        strengths = plan.strengths(name)
        lora[name] = _lora_weights(
            slot, plan.lora_strengths(name), {call.row_of[v] for v, there in enumerate(present) if there}
        )
        chosen = [v for v, row in enumerate(call.row_of) if present[v] and strengths[row]]
        ran = own if chosen else {}
        waited_for = [c for c in slot.fusions if c not in ran and (model.training or c in own)]
        idle += _learning(p for channel in waited_for for p in slot.fusions[channel].parameters())
        if chosen:
            residual_BTSE, touched_BT = call.residual(slot, own, chosen, times_BT)
            those = [fused[v] for v in chosen], [call.layouts[v] for v in chosen]
            added = add_residual(*those, residual_BTSE, touched_BT, [strengths[call.row_of[v]] for v in chosen])
            for v, tokens in zip(chosen, added, strict=True):
                fused[v] = tokens
        if _adds_tokens(slot, strengths, own if chosen else {}):
            lengthening.append(name)
    if idle and torch.is_grad_enabled():
        fused[0] = fused[0] + zero_of(idle).to(fused[0])
    longer = call.lengthen(lengthening, slots, sides, times_BT)
    if longer is not None:
        fused = insert_tokens(fused, longer)
    output = outputs[encoded.video_key]
    output.pooler_output = call.interface.join(fused, output.pooler_output)
    return Fused(outputs, lora, longer)


def zero_of(idle: Sequence[nn.Parameter]) -> Tensor:
    """Zero, with a gradient of zero for modules that did not run, which DDP waits for.

    It enters at the video tokens where there are some: then the decoder's first layer has an input with a gradient in every
    process, whether its batch uses a patch or not, and FSDP2 reduces its units in the same order everywhere.
    """
    return torch.stack([p.sum() for p in idle]).sum() * 0.0


def _learning(parameters: Any) -> list[nn.Parameter]:
    return [p for p in parameters if p.requires_grad]


def _lora_weights(slot: PatchSlot, strengths: Sequence[float], rows_with_channel: set[int]) -> list[float]:
    """A row without its channel gets nothing of a patch, unless the patch says that it keeps LoRA there."""
    always = slot.acts_without_channels()
    return [strength if always or row in rows_with_channel else 0.0 for row, strength in enumerate(strengths)]


def _adds_tokens(slot: PatchSlot, strengths: Sequence[float], sides: Mapping[str, SideTokens]) -> bool:
    if slot.config.newline == "grid":
        return any(strengths)
    return any(slot.config.side_channels[channel].fusion.adds_llm_tokens for channel in sides)


class _Call:
    """The videos of one call and where they stand."""

    def __init__(self, model: Any, encoded: EncodedVideo, prompt: Mapping[str, Any], plan: Plan) -> None:
        self.model = model
        self.interface: VideoLLMInterface = get_interface(model.config)
        self.encoded = encoded
        self.prompt = prompt
        self.layouts: Sequence[VideoLayout] = encoded.layouts
        self.videos = self.interface.split(encoded.outputs[encoded.video_key].pooler_output, self.layouts)
        self.plan = plan
        self.row_of = self._rows()

    def _rows(self) -> list[int]:
        ids = self.prompt.get("input_ids")
        if ids is None:  # the prompt came as embeddings
            if len(self.videos) != len(self.plan.rows):
                raise ValueError(
                    f"the call has {len(self.videos)} videos for {len(self.plan.rows)} rows given as inputs_embeds, so it is not known "
                    "which stands where; pass input_ids"
                )
            return list(range(len(self.videos)))
        is_video_BL = self.interface.is_video_token(self.model.config, ids)
        return rows_of_videos(is_video_BL, self.interface.tokens_in_prompt(self.layouts, self.prompt))

    def present(self, sides: Mapping[str, SideTokens]) -> list[bool]:
        present = present_videos(sides)
        if sides and len(present) != len(self.videos):
            raise ValueError(f"side_channels hold {len(present)} videos, but the call has {len(self.videos)} videos")
        return present or [False] * len(self.videos)

    def residual(
        self, slot: PatchSlot, sides: Mapping[str, SideTokens], chosen: list[int], times_BT: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """What a patch adds to the chosen videos: residual_BTSE and touched_BT."""
        device = next(slot.parameters()).device
        layouts = [self.layouts[v] for v in chosen]
        features = self.encoded.pre_projector if slot.needs_pre_projector() else None
        if features is None and slot.needs_pre_projector():
            raise ValueError(
                "vision_features hold nothing from before the base's projector, where this patch (query_source: pre_projector) makes its "
                "queries: make them anew with pre_projector=True"
            )
        if times_BT is not None:
            times_BT = times_BT[chosen, : max(layout.steps for layout in layouts)]
        batch = batch_videos(
            [self.videos[v] for v in chosen],
            layouts,
            None if features is None else [features[v] for v in chosen],
            times_BT,
            device,
        )
        question = self._question([self.row_of[v] for v in chosen], device) if slot.needs_question() else None
        residual_BTSE, touched_BT = slot(batch, {name: s.to(device).select(chosen) for name, s in sides.items()}, question)
        return residual_BTSE, touched_BT

    def _question(self, rows: list[int], device: torch.device) -> QuestionTokens:
        """The embedded prompt of each video's row, up to the first answer token."""
        ids, mask, labels = (self.prompt.get(name) for name in ("input_ids", "attention_mask", "labels"))
        if ids is None:
            raise ValueError("a gated channel reads the question: pass input_ids, not inputs_embeds")
        valid = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
        for placeholder in self.interface.placeholder_ids(self.model.config):
            valid = valid & (ids != placeholder)
        if labels is not None:
            valid = valid & ((labels != -100).cumsum(dim=1) == 0)
        with torch.no_grad():
            embeds = self.model.get_input_embeddings()(ids)
        index = torch.tensor(rows, device=ids.device)
        return QuestionTokens(embeds[index.to(embeds.device)].to(device), valid[index].to(device))

    def step_times(self, frame_times: Tensor) -> Tensor:
        """Seconds of every step of the model, (videos, T), 0 behind a video's last one."""
        steps = [layout.steps for layout in self.layouts]
        if frame_times.ndim != 2 or frame_times.shape[0] != len(steps):
            raise ValueError(f"frame_times must have shape ({len(steps)} videos, frames), got {tuple(frame_times.shape)}")
        times = self.interface.step_times(frame_times)
        for row, (known, T) in enumerate(zip(torch.isfinite(times).tolist(), steps, strict=True)):
            if sum(known) != T:
                raise ValueError(
                    f"frame_times: video {row} has times for {sum(known)} time steps of the model, but {T} steps were encoded "
                    f"(the model merges {self.interface.frames_per_step} sampled frame(s) into a step)"
                )
            if not all(known[:T]):
                raise ValueError(
                    f"frame_times: video {row} has no time for step {known.index(False)}; only padding at the end is NaN"
                )
        return times[:, : max(steps)].nan_to_num()

    def lengthen(
        self, names: Sequence[str], slots: Mapping[str, PatchSlot], sides: Sides, times_BT: Tensor | None
    ) -> Lengthening | None:
        """The longer prompt of this call, where a patch hands further tokens to the language model."""
        if not names:
            return None
        if len(names) > 1:
            raise ValueError(f"the patches {' and '.join(names)} both lengthen the prompt, so they cannot act in one call")
        slot, strengths = slots[names[0]], [self.plan.strengths(names[0])[row] for row in self.row_of]
        acting = [bool(strength) for strength in strengths]
        if slot.config.newline == "grid":
            return plan_newlines(self.model, self.interface, self.layouts, acting, self.prompt)
        between = [strength for strength in strengths if strength not in (0.0, 1.0)]
        if between:
            raise ValueError(
                f"channels of the patch {names[0]!r} that lengthen the prompt cannot act at strength {between[0]}: "
                "their tokens are there or not"
            )
        own = sides[names[0]]
        return plan_side_tokens(slot, own, self.model, self.interface, self.layouts, times_BT, acting, self.prompt)
