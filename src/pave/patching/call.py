"""One call of a patched model: encode, fuse and hand over, in the rows that the layers below ask for. ``patched`` is what calls it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import Cache

from pave.patching.fuse import FrameTimes, Fused, fuse, present_videos, read_sides, read_times, zero_of
from pave.patching.rows import Patches, Plan, Rows, current_rows, lora_rows
from pave.patching.slot import SLOTS, PatchSlot
from pave.tokens import SideTokens
from pave.video_llms.encode import PIXELS, EncodedVideo, encode, encoder_outputs, learning_parameters

SideChannels = Mapping[str, SideTokens | Mapping[str, SideTokens]]
"""Side tokens of every video by channel, or by patch and channel."""


@dataclass
class Prepared:
    """The base's own arguments for a call."""

    inputs: dict[str, Any]
    encoded: bool = False
    """Whether they hold encoder outputs in place of pixels."""
    idle: list[nn.Parameter] = field(default_factory=list)
    """To be touched at the loss."""


@contextlib.contextmanager
def prepared(
    model: Any,
    batch: Mapping[str, Any],
    side_channels: SideChannels | None,
    frame_times: FrameTimes | None,
    patches: Patches,
    vision_features: EncodedVideo | None,
    added_tokens: Tensor | None,
) -> Iterator[Prepared]:
    """Encode, fuse and hand over, inside the rows of the call. Where no patch acts, the base gets what it was given.

    Args:
        model: a patched model.
        batch: the base's own arguments by name.
        side_channels: as ``forward`` takes it, and so all others.

    Raises:
        ValueError: if what was given does not fit the patches or the videos.
    """
    slots: dict[str, PatchSlot] = dict(getattr(model, SLOTS).items())
    plan: Plan = model.plan(patches, _num_rows(batch))
    times_BF = read_times(frame_times)
    sides = read_sides(slots, side_channels or {}, plan.names(), times_BF)
    vocabulary = _vocabulary(slots, plan)
    _check_vision_features(model, batch, vision_features)
    held = None if side_channels or patches is not None or vision_features is not None else _rows_of_cache(model, batch)
    if held is not None:
        with _under_way(model), lora_rows(held):
            yield Prepared(dict(batch))
        return
    if not _must_fuse(model, slots, plan, sides):
        _check_video(batch, sides, vision_features or EncodedVideo({}, ""))
        fused = fuse(model, slots, EncodedVideo({}, ""), {}, None, plan, batch, added_tokens)
        fused.outputs = {} if vision_features is None else encoder_outputs(model, vision_features)
        with _under_way(model), lora_rows(Rows(model, fused.lora, vocabulary)):
            yield _handed_over(dict(batch), fused)
        return
    if vision_features is None:
        counts = None if times_BF is None else torch.isfinite(times_BF).sum(dim=1).tolist()
        features = any(slots[name].needs_pre_projector() for name in sides)
        encoded = encode(model, batch, frame_counts=counts, pre_projector=features)
    else:
        encoded = vision_features.to(model.get_input_embeddings().weight.device, vision_features.dtype)
    _check_video(batch, sides, encoded)
    grids = [name for name in plan.names() if slots[name].config.newline == "grid"]
    if grids and (batch.get("mm_encoder_outputs") or {}).get("video") is not None:
        raise ValueError(
            "newline 'grid' needs the video's pixels in the call: pass pixel_values_videos, not mm_encoder_outputs"
        )
    prompt = {name: value for name, value in batch.items() if not name.startswith(PIXELS)}
    fused = fuse(model, slots, encoded, sides, times_BF, plan, prompt, added_tokens)
    with _under_way(model), lora_rows(Rows(model, fused.lora, vocabulary)):
        yield _handed_over(prompt, fused)


# A decoding loop of one's own hands the cache of one call to the next, and the rows with it.


def keep_rows(output: Any) -> None:
    """Let the cache that a call returns remember its rows."""
    found = (output,) if isinstance(output, Tensor) else output
    found = found if isinstance(found, tuple) else (getattr(output, "past_key_values", None),)
    for cache in found:
        if isinstance(cache, Cache):
            cache.pave_rows = current_rows()  # type: ignore[attr-defined]


def _rows_of_cache(model: Any, batch: Mapping[str, Any]) -> Rows | None:
    """The rows of the call whose cache this one goes on from, unless it brings a video or the patches are disabled."""
    names, strength = model.patch_names, model.patch_strength
    rows: Rows | None = getattr(batch.get("past_key_values"), "pave_rows", None)
    video = any(name.startswith(PIXELS) and value is not None for name, value in batch.items())
    if rows is None or rows.owner is not model or video or strength == 0.0:
        return None
    gone = [name for name, weights in rows.weights.items() if any(weights) and name not in names]
    if gone:
        raise ValueError(f"past_key_values come from a call with the patch {gone[0]!r}, which is not attached any more")
    return rows


_RUNNING: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()
_LOCK = threading.Lock()


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _count(model: nn.Module, by: int) -> None:
    with _LOCK:
        _RUNNING[model] = _RUNNING.get(model, 0) + by


@contextlib.contextmanager
def _under_way(model: nn.Module) -> Iterator[None]:
    _count(model, 1)
    try:
        yield
    finally:
        _count(model, -1)


def calls_under_way(model: nn.Module) -> int:
    """How many calls of a patched model run at present, in all threads."""
    with _LOCK:
        return _RUNNING.get(model, 0)


def _handed_over(prompt: dict[str, Any], fused: Fused) -> Prepared:
    inputs = {**prompt, "mm_encoder_outputs": fused.outputs} if fused.outputs else prompt
    return Prepared(inputs, bool(fused.outputs), fused.idle)


def _check_vision_features(model: Any, batch: Mapping[str, Any], features: EncodedVideo | None) -> None:
    if features is None:
        return
    if not isinstance(features, EncodedVideo):
        raise ValueError(f"vision_features: expected EncodedVideo, got {type(features).__name__}")
    given = [name for name, value in batch.items() if name.startswith(PIXELS) and value is not None]
    if given:
        raise ValueError(f"vision_features stand in place of pixels, but {given[0]} was given as well; pass one of them")
    trained = learning_parameters(model) if torch.is_grad_enabled() else []
    if trained:
        raise ValueError(
            f"the vision tower is trained (the first parameter that takes gradients is {trained[0]!r}), so its features change and cannot "
            "be stored: freeze it, or pass the video's pixels"
        )


def _num_rows(batch: Mapping[str, Any]) -> int:
    """Of the prompt; of the pixels where a base makes the prompt by itself."""
    for name in ("input_ids", "inputs_embeds", "pixel_values"):
        if batch.get(name) is not None:
            return len(batch[name])
    return 1


def _must_fuse(model: Any, slots: Mapping[str, PatchSlot], plan: Plan, sides: Mapping[str, Any]) -> bool:
    if torch.is_grad_enabled():
        if model.training:
            return True  # every fusion gets a gradient, of zero at least, and nothing is kept of the frozen encoders
        if any(p.requires_grad for name in sides for p in slots[name].parameters()):
            return True
    acting = plan.names()
    return any(any(present_videos(sides.get(name, {}))) or slots[name].config.newline == "grid" for name in acting)


def _check_video(batch: Mapping[str, Any], sides: Mapping[str, Mapping[str, SideTokens]], encoded: EncodedVideo) -> None:
    given = [channel for own in sides.values() for channel in own]
    if encoded.has_videos or not any(any(present_videos(own)) for own in sides.values()):
        return
    if not encoded.video_key and any(name.startswith(PIXELS) and batch[name] is not None for name in batch):
        return  # the base encodes them
    raise ValueError(
        f"side_channels ({', '.join(given)}) were given, but no video was encoded in this call; pass the video's pixels in "
        "the same call, or leave side_channels out"
    )


def _vocabulary(slots: Mapping[str, PatchSlot], plan: Plan) -> list[int | None]:
    """How many token ids each row chooses from, empty where no patch says anything of it."""
    if all(slot.config.vocabulary is None for slot in slots.values()):
        return []
    out: list[int | None] = []
    for row in plan.rows:
        cut = [slots[use.name].config.vocabulary for use in row if use.acts]
        out.append(min((rows for rows in cut if rows is not None), default=None))
    return out


def cut_vocabulary(head: nn.Module, args: tuple[Any, ...], logits: Tensor) -> None:
    """A hook on the output embeddings: -inf for ids that a patch's ``vocabulary`` leaves out, in place.

    The softmax over the rest is then that of a head cut to ``vocabulary`` rows, in the loss and in decoding. Logits keep
    their shape, because the base's own loss flattens them by the vocabulary size of its config.
    """
    rows = current_rows()
    if rows is None or not any(rows.vocabulary) or rows.owner.get_output_embeddings() is not head:  # type: ignore[operator]
        return
    if len(set(rows.vocabulary)) == 1:
        logits[..., rows.vocabulary[0] :] = float("-inf")
        return
    if logits.ndim != 3 or len(logits) % len(rows.vocabulary):
        raise ValueError("rows with and without a patch's vocabulary cannot share this batch: pass them in separate batches")
    copies = len(logits) // len(rows.vocabulary)
    for row, count in enumerate(rows.vocabulary):
        if count is not None:
            logits[row * copies : (row + 1) * copies, ..., count:] = float("-inf")


def touched(output: Any, idle: list[nn.Parameter]) -> Any:
    """Give fusion modules a part in the graph, with gradient zero, in a batch that has no video to carry it."""
    zero = zero_of(idle)
    if isinstance(output, tuple):  # return_dict=False: the loss comes first where there is one, else the logits
        return (output[0] + zero.to(output[0].device, output[0].dtype), *output[1:])
    for key in ("loss", "logits"):
        value = getattr(output, key, None)
        if value is not None:
            setattr(output, key, value + zero.to(value.device, value.dtype))
    return output
