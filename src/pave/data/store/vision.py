"""The base's frozen vision features as entries of a store."""

from __future__ import annotations

from typing import Any

import torch

from pave.data.items import VideoVision
from pave.data.store.shards import Parts
from pave.video_llms import VideoLayout
from pave.video_llms.encode import EncodedVideo

_FEATURE, _OUTPUT, _TIMES = "feature.", "output.", "times"


def vision_parts(vision: VideoVision) -> Parts:
    """The features of a video as they are stored."""
    encoded = vision.encoded
    tensors = {f"{_FEATURE}{name}": tensor for name, tensor in encoded.tensors().items()}
    tensors |= {f"{_OUTPUT}{name}": tensor for name, tensor in sorted(vision.outputs.items())}
    tensors[_TIMES] = torch.from_numpy(vision.times_F)
    pixels = {name: [list(shape), _name(dtype)] for name, (shape, dtype) in sorted(vision.pixels.items())}
    layouts = [[layout.steps, *layout.grid, layout.trailing, layout.leading] for layout in encoded.layouts]
    about = {"dtype": _name(encoded.dtype), "key": encoded.video_key, "layouts": layouts}
    return Parts(tensors, {**about, "size": list(vision.size), "pixels": pixels})


def vision_of_parts(parts: Parts) -> VideoVision:
    """The inverse of ``vision_parts``."""
    about: Any = parts.about
    features = {name.removeprefix(_FEATURE): x for name, x in parts.tensors.items() if name.startswith(_FEATURE)}
    layouts = [VideoLayout(steps, (rows, columns), *others) for steps, rows, columns, *others in about["layouts"]]
    return VideoVision(
        encoded=EncodedVideo.of_tensors(features, about["key"], layouts, getattr(torch, about["dtype"])),
        outputs={name.removeprefix(_OUTPUT): x for name, x in parts.tensors.items() if name.startswith(_OUTPUT)},
        pixels={name: (tuple(shape), getattr(torch, dtype)) for name, (shape, dtype) in about["pixels"].items()},
        times_F=parts.tensors[_TIMES].numpy(),
        size=(int(about["size"][0]), int(about["size"][1])),
    )


def _name(dtype: torch.dtype | None) -> str:
    return str(dtype).removeprefix("torch.")
