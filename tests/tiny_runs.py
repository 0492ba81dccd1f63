"""A tiny base and patch on disk, and real clips with sound, for tests that go from files to answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from cases import shake
from pave import EncoderConfig, FusionConfig, LoraSettings, PatchConfig, SideChannelConfig, attach_patch, save_patch
from pave.data.media import write_video
from tiny_models import SIDE, tiny_llava_onevision

RATE = 16_000


def write_clip(path: Path, seed: int, seconds: float = 2.0, sound: bool = True, fps: int = 8) -> Path:
    """A clip of coloured noise with a tone whose pitch and place depend on the seed."""
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 256, (int(seconds * fps), SIDE, SIDE, 3), dtype=np.uint8)
    t = np.arange(int(seconds * RATE)) / RATE
    tone = np.sin(2 * np.pi * (200 + 150 * seed) * t) * ((t > 0.2 * seed % seconds) & (t < 0.2 * seed % seconds + 0.6))
    write_video(path, frames, fps=fps, audio=(0.5 * tone).astype(np.float32) if sound else None, sample_rate=RATE)
    return path


def hearing_config(**changes: Any) -> PatchConfig:
    """An audio patch for the tiny bases, on log-mel tokens."""
    fusion = FusionConfig(width=16, embed_width=16, num_heads=2)
    channel = SideChannelConfig(width=16, encoder=EncoderConfig(name="log_mel", settings={"n_mels": 16}), fusion=fusion)
    return PatchConfig(side_channels={"audio": channel}, lora=LoraSettings(rank=2), storage_dtype="float32", **changes)


def save_base_and_patch(folder: Path, provenance: dict[str, Any] | None = None) -> tuple[Path, Path]:
    """Folders of a base (with embeddings so large that a random model says different things) and of a patch that acts."""
    model, processor = tiny_llava_onevision()
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(20)
    model.save_pretrained(folder / "base")
    processor.save_pretrained(folder / "base")
    attach_patch(model, hearing_config())
    save_patch(shake(model, scale=0.7), folder / "patch", processor=processor, provenance=provenance)
    return folder / "base", folder / "patch"
