"""What one forward or generate call of a patched model knows, carried in a context variable.

Why a context variable: the side channels enter at the outermost ``forward`` or ``generate`` and are needed at the video
features and at every LoRA layer, with the base's own code in between. An attribute on the model would mix up two threads
that call one model; a ``threading.local`` cannot be deep-copied. A context variable is set for the time of the call only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pave.tokens import SideTokens

FrameTimes = Tensor | NDArray[np.floating] | Sequence[Sequence[float]]
"""Seconds of the sampled frames, (videos, frames), NaN-padded."""

_CALL: ContextVar[PatchCall | None] = ContextVar("pave_call", default=None)
_STRENGTH: ContextVar[dict[int, float] | None] = ContextVar("pave_strength", default=None)


class PatchCall:
    """The state of one call."""

    __slots__ = (
        "attention_mask",
        "captured",
        "consumed",
        "extra_tokens",
        "feature_calls",
        "frame_times",
        "fused",
        "input_ids",
        "inputs",
        "labels",
        "lora_weight",
        "name",
        "owner",
        "side_channels",
        "strength",
    )

    def __init__(
        self,
        owner: nn.Module,
        name: str,
        strength: float,
        side_channels: Mapping[str, SideTokens],
        frame_times: Tensor | None,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        labels: Tensor | None,
        inputs: Mapping[str, Any],
    ) -> None:
        self.owner = owner
        self.name = name
        self.strength = strength
        self.side_channels = side_channels
        self.frame_times = frame_times
        self.input_ids = input_ids
        self.attention_mask = attention_mask
        self.labels = labels
        self.inputs = inputs
        """All arguments of the call by name, for what a family's description reads from them."""
        self.feature_calls = 0
        """Calls of the features method so far."""
        self.captured: Tensor | None = None
        """What entered the projector, where queries come from there."""
        self.consumed = False
        """True once the video features have met the side channels."""
        self.fused: set[str] = set()
        """Channels whose fusion module has run in this call."""
        self.lora_weight: float | Tensor = 0.0
        """Weight of the LoRA update: one for all rows, or (rows,)."""
        self.extra_tokens: Any = None
        """Side tokens to hand to the language model as further tokens (the concat and interleave baselines)."""


def current_call() -> PatchCall | None:
    """The call that this code runs in, if any."""
    return _CALL.get()


@contextlib.contextmanager
def entered(call: PatchCall | None) -> Iterator[PatchCall | None]:
    """Make ``call`` the current one for the time of the block."""
    token = _CALL.set(call)
    try:
        yield call
    finally:
        _CALL.reset(token)


class CheckpointInCall:
    """A gradient-checkpointing function that recomputes inside the call it was first run in.

    The recomputation happens during backward, after the call has ended and perhaps in a thread of the autograd engine, yet
    the LoRA layers must again act on the same rows.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.keywords: dict[str, Any] = getattr(function, "keywords", {})
        """Of the checkpointing itself, such as ``use_reentrant``."""

    def __call__(self, layer: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        call = current_call()

        def run(*inner_args: Any, **inner_kwargs: Any) -> Any:
            with entered(call):
                return layer(*inner_args, **inner_kwargs)

        return self.function(run, *args, **kwargs)


def strength_override(owner: nn.Module) -> float | None:
    """The strength set for ``owner`` by a context manager in this thread or task, if any."""
    overrides = _STRENGTH.get()
    return None if overrides is None else overrides.get(id(owner))


@contextlib.contextmanager
def strength_overridden(owner: nn.Module, strength: float) -> Iterator[None]:
    """Override the strength of ``owner``'s patch in this thread or task, for the time of the block."""
    token = _STRENGTH.set({**(_STRENGTH.get() or {}), id(owner): strength})
    try:
        yield
    finally:
        _STRENGTH.reset(token)


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


def weights_of_rows(present: Sequence[bool], rows: Sequence[int], num_rows: int, weight: float) -> float | list[float]:
    """``weight`` for every row with a video that has a side channel, 0 elsewhere; one number where all rows agree."""
    with_channel = {row for row, there in zip(rows, present, strict=True) if there}
    if len(with_channel) == num_rows:
        return weight
    if not with_channel:
        return 0.0
    return [weight if row in with_channel else 0.0 for row in range(num_rows)]


def as_row_tensor(weight: float | Sequence[float], device: torch.device) -> float | Tensor:
    """A number stays one; a list becomes a tensor."""
    return weight if isinstance(weight, float) else torch.tensor(list(weight), device=device)
