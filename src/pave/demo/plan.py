"""What the demo does, as data: how many clips, which questions, which two recipes with one budget."""

from __future__ import annotations

from dataclasses import dataclass

from pave.config import EncoderConfig, FusionConfig, LoraSettings, PatchConfig, SideChannelConfig
from pave.data.media import FrameSampling
from pave.side_channels import build_encoder
from pave.training.arguments import TrainingConfig
from pave.training.recipe import BaseConfig, DataConfig, Recipe
from pave.training.sampler import Stage

SILENT = ("colour", "shape", "first_mover", "light", "light_vision")
"""Question types that the base answers from the frames alone."""
SOUND = ("sound", "sound_vision")
"""Question types that need the sound; the second also needs the frame that goes with it."""
CHANCE = {
    "colour": 0.25,
    "shape": 1 / 3,
    "first_mover": 0.5,
    "light": 0.25,
    "light_vision": 0.5,
    "sound": 0.25,
    "sound_vision": 0.5,
}
"""Accuracy of guessing among the answers that the frames leave open."""


@dataclass(frozen=True)
class Plan:
    """Sizes of one demo."""

    train_clips: int
    test_clips: int
    steps: int
    """Optimizer steps."""
    batch_size: int


FULL = Plan(train_clips=1200, test_clips=300, steps=350, batch_size=32)
SHORT = Plan(train_clips=24, test_clips=8, steps=6, batch_size=8)

MIXTURE = {
    "sound": 3.0,
    "sound_vision": 1.5,
    "colour": 0.4,
    "shape": 0.3,
    "first_mover": 0.3,
    "light": 0.3,
    "light_vision": 0.6,
}
"""Shares of the question types; the silent ones keep what the base knows."""

LORA = LoraSettings(rank=8, alpha=16.0, targets=("q_proj", "v_proj"))
ENCODER = EncoderConfig(name="log_mel")


def audio_patch() -> PatchConfig:
    """Log-mel tokens, fused by true time, gated by the question so that silent questions stay as they were."""
    fusion = FusionConfig(width=64, embed_width=64, num_heads=4, num_layers=2, gate=True)
    width = build_encoder(ENCODER).width
    return PatchConfig(
        side_channels={"audio": SideChannelConfig(kind="audio", width=width, encoder=ENCODER, fusion=fusion)}, lora=LORA
    )


def video_only_patch() -> PatchConfig:
    """The comparison: the same LoRA, the same questions, no side channel."""
    return PatchConfig(side_channels={}, lora=LORA)


def recipe(patch: PatchConfig, plan: Plan, *, base: str, train: str, output: str, seed: int) -> Recipe:
    """One budget for both patches."""
    return Recipe(
        base=BaseConfig(model=base, dtype="float32"),
        patch=patch,
        data=DataConfig(
            train=train,
            frames=FrameSampling(num_frames=8),
            cache="memory",
            stages=(Stage(steps=plan.steps, weights=MIXTURE),),
        ),
        training=TrainingConfig(
            seed=seed,
            batch_size=plan.batch_size,
            learning_rate=3e-3,
            lora_learning_rate=1.5e-3,
            output_norm_multiplier=40.0,
            log_every=10,
        ),
        output=output,
    )
