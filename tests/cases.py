"""The base families that every attachment test runs over, each with a batch of two videos as its processor makes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from pave import FusionConfig, LoraSettings, PatchConfig, SideChannelConfig, SideTokens, attach_patch
from pave.patching import patch_parameter_groups, patch_parameters
from tiny_models import SIDE, tiny_llava_onevision, tiny_qwen2_5_vl

WIDTH = 12
"""C of the side features in these tests."""


@dataclass(frozen=True)
class Case:
    """One family: how its tiny base is built, and how many frames make the videos of a batch (ragged where it can)."""

    build: Callable[..., tuple[Any, Any]]
    frames: tuple[int, ...]
    side: int = SIDE

    def batch(
        self, processor: Any, questions: tuple[str, ...] = ("what sound?", "which object?"), seed: int = 0
    ) -> dict[str, Any]:
        """The processor's batch, with frame times one second apart."""
        generator = torch.Generator().manual_seed(seed)
        videos = [torch.randint(0, 256, (n, self.side, self.side, 3), generator=generator).byte().numpy() for n in self.frames]
        videos = videos[: len(questions)]
        texts = [
            processor.apply_chat_template(
                [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": q}]}],
                add_generation_prompt=True,
                tokenize=False,
            )
            for q in questions
        ]
        batch = dict(
            processor(
                text=texts,
                videos=videos,
                do_sample_frames=False,
                padding=True,
                padding_side="left",
                return_tensors="pt",
                video_metadata=[
                    {"fps": 1.0, "total_num_frames": len(v), "frames_indices": list(range(len(v)))} for v in videos
                ],
            )
        )
        times = torch.full((len(videos), max(map(len, videos))), float("nan"), dtype=torch.float64)
        for row, video in enumerate(videos):
            times[row, : len(video)] = torch.arange(len(video)) + 0.5
        return {**batch, "frame_times": times}


CASES = {
    "llava_onevision": Case(tiny_llava_onevision, (4, 4)),
    "qwen2_5_vl": Case(tiny_qwen2_5_vl, (4, 6)),
}


def side_tokens(videos: int = 2, steps: int = 9, per_step: int = 4, seed: int = 1, width: int = WIDTH) -> SideTokens:
    """Random side tokens, two steps a second from the start of the video."""
    generator = torch.Generator().manual_seed(seed)
    embeds = torch.randn(videos, steps, per_step, width, generator=generator)
    return SideTokens(embeds, times_BK=(torch.arange(steps).double() * 0.5 + 0.25).expand(videos, -1).clone())


TARGETS = ("q_proj", "v_proj", "down_proj")


def small_config(
    lora: bool = True, missing_channel: str = "base", targets: tuple[str, ...] = TARGETS, **fusion: Any
) -> PatchConfig:
    """A patch with one channel "audio", small enough for the tiny bases."""
    return PatchConfig(
        side_channels={
            "audio": SideChannelConfig(width=WIDTH, fusion=FusionConfig(width=16, embed_width=16, num_heads=2, **fusion))
        },
        lora=LoraSettings(rank=2, alpha=4.0, targets=targets) if lora else None,
        missing_channel=missing_channel,  # type: ignore[arg-type]
        storage_dtype="float32",
    )


def shake(model: Any, seed: int = 7, scale: float = 0.3) -> Any:
    """Give every parameter of the patch a random value, as training would, so that the patch does something."""
    shake_parameters(patch_parameters(model), seed, scale)
    return model


def shake_parameters(parameters: list[torch.nn.Parameter], seed: int = 7, scale: float = 0.3) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)


def patched(case: Case, config: PatchConfig | None = None, trained: bool = True) -> tuple[Any, Any]:
    """(model, processor) with a patch attached, shaken unless ``trained`` is False."""
    model, processor = case.build()
    attach_patch(model, config or small_config())
    if trained:
        shake(model)
    assert sum(len(g) for g in patch_parameter_groups(model).values()) == len(patch_parameters(model))
    return model, processor
