"""A small world to train in: a tiny base on disk, clips with a tone or none, samples and a recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import load_file

from pave.config import EncoderConfig
from pave.data.media import write_video
from pave.side_channels import build_encoder
from pave.training import Recipe, read_recipe
from tiny_models import SIDE, tiny_llava_onevision

RATE = 16000
SOUNDS = {"bell": 880.0, "drum": 110.0}


def make_world(folder: Path) -> Path:
    """Write base, eight clips, 12 samples to train on, 4 others, and ``recipe.yaml``."""
    model, processor = tiny_llava_onevision()
    model.save_pretrained(folder / "base")
    processor.save_pretrained(folder / "base")
    rng = np.random.default_rng(0)
    rows = []
    for i in range(8):
        kind = list(SOUNDS)[i % 2]
        tone = (0.4 * np.sin(np.arange(RATE) / RATE * 2 * np.pi * SOUNDS[kind])).astype(np.float32)
        frames = rng.integers(0, 256, (8, SIDE, SIDE, 3), dtype=np.uint8)
        write_video(folder / f"{i}.mp4", frames, fps=8, audio=None if i == 7 else tone, sample_rate=RATE)
        rows.append({"id": f"s{i}", "video": f"{i}.mp4", "type": "sound", "question": "what sound is heard?", "answer": kind})
        rows.append({"id": f"v{i}", "video": f"{i}.mp4", "type": "silent", "question": "which object?", "answer": "a circle"})
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:12]))
    (folder / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[12:]))
    recipe = {
        "base": {"model": "base"},
        "patch": {
            "side_channels": {
                "audio": {
                    "width": build_encoder(EncoderConfig()).width,
                    "fusion": {"width": 16, "embed_width": 16, "num_heads": 2},
                }
            },
            "lora": {"rank": 2, "dropout": 0.1},
            "storage_dtype": "float32",
        },
        "data": {
            "train": "train.jsonl",
            "eval": "eval.jsonl",
            "frames": {"num_frames": 4},
            "cache": "memory",
            "stages": [{"steps": 2, "weights": {"sound": 1}}, {"steps": 3, "weights": {"sound": 1, "silent": 1}}],
        },
        "training": {
            "batch_size": 2,
            "accumulation": 2,
            "learning_rate": 1e-2,
            "save_every": 2,
            "keep_checkpoints": None,
            "log_every": 1,
        },
        "output": "set by each test",
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder


def plan(world: Path, output: Path, *overrides: str) -> Recipe:
    """The recipe with another output and other changes."""
    return read_recipe(world / "recipe.yaml", [f"output={output}", *overrides])


def tensors(patch: Path) -> dict[str, Any]:
    """All tensors of a patch folder."""
    return {**load_file(patch / "patch.safetensors"), **load_file(patch / "lora" / "adapter_model.safetensors")}


def assert_same(expected: Path, actual: Path) -> None:
    """Two patch folders hold the same tensors, bit for bit."""
    one, other = tensors(expected), tensors(actual)
    assert one.keys() == other.keys()
    different = [name for name, value in one.items() if not torch.equal(value, other[name])]
    assert not different, different
