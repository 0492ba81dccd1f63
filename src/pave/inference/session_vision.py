"""The frames of a stream through the base's vision tower, each once where the base allows that exactly."""

from __future__ import annotations

import dataclasses
import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pave.data.items import VideoVision
from pave.data.vision import ProcessedVideo, VisionEncoder
from pave.inference.session_streams import Frame
from pave.video_llms import VideoLayout, VideoLLMInterface, get_interface
from pave.video_llms.encode import EncodedVideo, check_vision_stored


@dataclass(frozen=True, eq=False)
class _Step:
    """One time step as the base encodes it."""

    vision: VideoVision
    """Of the step's frames as a video of their own."""

    @property
    def layout(self) -> VideoLayout:
        return self.vision.encoded.layouts[0]

    def rows(self) -> dict[str, tuple[Tensor, Tensor]]:
        """By tensor, the tokens of the step and those that belong to no step."""
        count = self.layout.tokens_per_step
        flat = {name: x.reshape(-1, x.shape[-1]) for name, x in self.vision.encoded.tensors().items()}
        return {name: (x[:count], x[count:]) for name, x in flat.items()}


class StreamVision:
    """Encodes clips of a stream. Where the base encodes every time step by itself, a step is encoded once and alone, so that what comes
    out depends neither on how the frames arrived nor on which clips were asked about. Elsewhere only the last clip is kept.

    Args:
        model: the base, patched or not.
        processor: its processor.

    One thread at a time encodes; ``keep_only`` and ``num_bytes`` may be called meanwhile.

    Attributes:
        encoded: time steps that went through the tower.
        reused: time steps of clips that did not have to.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        self._model = model
        self._processor = processor
        self._family: VideoLLMInterface = get_interface(model.config)
        self._encoder: VisionEncoder | None = None
        self._pre_projector = False
        self._steps: dict[tuple[int, ...], _Step] = {}
        self._clip: tuple[tuple[int, ...], VideoVision] | None = None
        self._described: dict[tuple[int, tuple[int, int]], ProcessedVideo] = {}
        self._table = threading.Lock()
        self.encoded = self.reused = 0

    @property
    def num_bytes(self) -> int:
        with self._table:
            kept = [step.vision for step in self._steps.values()] + ([self._clip[1]] if self._clip else [])
        return sum(vision.num_bytes for vision in kept)

    def encode(self, frames: Sequence[Frame], *, pre_projector: bool) -> None:
        """Encode the time steps that these frames fill, as far as they are not there. Does nothing where the base allows no reuse.

        Args:
            frames: from the first one of a time step on.
            pre_projector: also keep what enters the projector.
        """
        if self._family.encodes_steps_apart and self._storable():
            whole = len(frames) // self._family.frames_per_step * self._family.frames_per_step
            self._encode_steps(self._grouped(frames[:whole]), self._encoder_for(pre_projector))

    def of(self, frames: Sequence[Frame], *, pre_projector: bool) -> VideoVision | None:
        """A clip as the base encodes it; None where its features cannot be kept, so that it must be given as pixels.

        Args:
            frames: of the clip.
            pre_projector: with what enters the projector.
        """
        if not self._storable():
            return None
        encoder = self._encoder_for(pre_projector)
        if not self._family.encodes_steps_apart:
            return self._whole(frames, encoder)
        before = self.encoded
        steps = self._encode_steps(self._grouped(frames), encoder)
        self.reused += len(steps) - (self.encoded - before)
        outputs, pixels = self._describe(len(frames), frames[0].pixels_HWC.shape[:2], encoder)
        if any(_pixels_a_step(step.vision.pixels, 1) != _pixels_a_step(pixels, len(steps)) for step in steps):
            return self._whole(frames, encoder)  # the processor gives a frame another size in a clip of this length
        return VideoVision(_joined(steps), outputs, pixels, _times(frames), frames[0].pixels_HWC.shape[:2])

    def keep_only(self, frames: Sequence[Frame]) -> None:
        """Let go of what was made of other frames."""
        held = {frame.serial for frame in frames}
        with self._table:
            self._steps = {key: step for key, step in self._steps.items() if held.issuperset(key)}
            if self._clip is not None and not held.issuperset(self._clip[0]):
                self._clip = None

    def _storable(self) -> bool:
        try:
            check_vision_stored(self._model)
        except ValueError:
            return False
        return True

    def _grouped(self, frames: Sequence[Frame]) -> list[Sequence[Frame]]:
        size = self._family.frames_per_step
        return [frames[first : first + size] for first in range(0, len(frames), size)]

    def _encoder_for(self, pre_projector: bool) -> VisionEncoder:
        if self._encoder is None or (pre_projector and not self._pre_projector):
            self._encoder = VisionEncoder(self._model, self._processor, pre_projector=pre_projector)
            self._pre_projector = pre_projector
            self._steps, self._clip = {}, None
        return self._encoder

    def _encode_steps(self, groups: Sequence[Sequence[Frame]], encoder: VisionEncoder) -> list[_Step]:
        found = []
        for group in groups:
            step = self._steps.get(_key(group))
            if step is None:
                filled = [*group, *group[-1:] * (self._family.frames_per_step - len(group))]  # as the processors fill a video
                step = _Step(encoder.encode(_pixels(filled), _times(filled)))
                self.encoded += 1
            if len(group) == self._family.frames_per_step:  # else the frame that completes it is still to come
                with self._table:
                    self._steps[_key(group)] = step
            found.append(step)
        return found

    def _whole(self, frames: Sequence[Frame], encoder: VisionEncoder) -> VideoVision:
        steps = -(-len(frames) // self._family.frames_per_step)
        if self._clip is not None and self._clip[0] == _key(frames):
            vision = self._clip[1]
            self.reused += steps
        else:
            vision = encoder.encode(_pixels(frames), _times(frames))
            self.encoded += steps
        with self._table:
            self._clip = _key(frames), vision
        return vision

    def _describe(self, num_frames: int, size: tuple[int, int], encoder: VisionEncoder) -> ProcessedVideo:
        if (num_frames, size) not in self._described:
            self._described[num_frames, size] = encoder.describe(num_frames, size)
        return self._described[num_frames, size]


def _key(frames: Sequence[Frame]) -> tuple[int, ...]:
    return tuple(frame.serial for frame in frames)


def _pixels(frames: Sequence[Frame]) -> NDArray[np.uint8]:
    return np.stack([frame.pixels_HWC for frame in frames])


def _times(frames: Sequence[Frame]) -> NDArray[np.float64]:
    return np.array([frame.time for frame in frames])


def _pixels_a_step(pixels: Mapping[str, tuple[tuple[int, ...], torch.dtype]], steps: int) -> dict[str, float]:
    return {name: math.prod(shape) / steps for name, (shape, _) in pixels.items()}


def _joined(steps: Sequence[_Step]) -> EncodedVideo:
    """Time steps that were encoded one by one, as one video."""
    first = steps[0].vision.encoded
    rows = [step.rows() for step in steps]
    tensors = {}
    for name, like in first.tensors().items():
        parts = [step[name][0] for step in rows]
        flat = torch.cat([*parts, rows[-1][name][1]])
        tensors[name] = flat if like.ndim == 2 else flat[None]
    layout = dataclasses.replace(steps[0].layout, steps=len(steps))
    return EncodedVideo.of_tensors(tensors, first.video_key, [layout], first.dtype)
