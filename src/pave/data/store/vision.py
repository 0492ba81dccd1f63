"""The base's frozen vision features as entries of a store."""

from __future__ import annotations

from typing import Any

import torch

from pave.data.items import VideoVision
from pave.data.store.shards import Parts

_INPUT, _OUTPUT, _TIMES = "input.", "output.", "times"


def vision_parts(vision: VideoVision) -> Parts:
    """The features of a video as they are stored."""
    tensors = {f"{_INPUT}{number}": tensor for number, tensor in enumerate(vision.inputs)}
    tensors |= {f"{_OUTPUT}{name}": tensor for name, tensor in sorted(vision.outputs.items())}
    tensors[_TIMES] = torch.from_numpy(vision.times_F)
    pixels = {name: [list(shape), _name(dtype)] for name, (shape, dtype) in sorted(vision.pixels.items())}
    return Parts(tensors, {"dtype": _name(vision.dtype), "size": list(vision.size), "pixels": pixels})


def vision_of_parts(parts: Parts) -> VideoVision:
    """The inverse of ``vision_parts``."""
    about: Any = parts.about
    count = sum(name.startswith(_INPUT) for name in parts.tensors)
    return VideoVision(
        inputs=tuple(parts.tensors[f"{_INPUT}{number}"] for number in range(count)),
        dtype=getattr(torch, about["dtype"]),
        outputs={name.removeprefix(_OUTPUT): x for name, x in parts.tensors.items() if name.startswith(_OUTPUT)},
        pixels={name: (tuple(shape), getattr(torch, dtype)) for name, (shape, dtype) in about["pixels"].items()},
        times_F=parts.tensors[_TIMES].numpy(),
        size=(int(about["size"][0]), int(about["size"][1])),
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
