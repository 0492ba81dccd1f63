"""``pave init``: a recipe and a few samples to start from."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import typer

from pave.cli.shared import JsonOption, Result

RECIPE, TRAIN, HELD_OUT = "recipe.yaml", "train.jsonl", "held_out.jsonl"


def command(
    folder: Path = typer.Argument(..., help="A new or empty folder."),
    json_output: bool = JsonOption,
) -> Result:
    """\b
    pave init my-patch && pave train my-patch/recipe.yaml

    Write a commented recipe and a few samples with real video files. It runs as it is, on the small base inside pave; then
    put in your own base, samples and side channels.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is there and not an empty folder; choose another name")
    from pave.playground.clips import clip_name, render_clip, write_samples
    from pave.playground.world import draw_scene
    from pave.utils.files import atomic_folder

    splits: tuple[tuple[str, Any, int], ...] = ((TRAIN, "train", 16), (HELD_OUT, "test", 4))
    with atomic_folder(folder) as work:
        (work / RECIPE).write_text(
            _RECIPE.replace("OUTPUT", json.dumps(str(folder / "run"), ensure_ascii=False)), encoding="utf-8"
        )
        for name, split, count in splits:
            for index in range(count):
                render_clip(work / clip_name(split, index), draw_scene(0, split, index))
            write_samples(work / name, split, count, [["sound"], ["first_mover"]])
    files = [str(folder / name) for name in (RECIPE, TRAIN, HELD_OUT, "clips")]
    return Result(
        f"wrote {', '.join(files)}\nnext: pave train {shlex.quote(files[0])}", {"folder": str(folder), "files": files}
    )


_RECIPE = """\
# A training run. Paths count from this file, except output, which counts from where the command runs.
# Any value can be changed on the command line:
#   pave train recipe.yaml training.learning_rate=1e-3 data.stages.0.steps=50

base:
  model: playground        # the small base inside pave; or a folder, or a hub id such as
                           # llava-hf/llava-onevision-qwen2-7b-ov-hf or Qwen/Qwen2.5-VL-7B-Instruct
  dtype: auto              # as stored; bfloat16 for a large base on a GPU

patch:
  side_channels:
    audio:                 # any name; it is also the key in side_channels={...} and in a sample's side_channels
      kind: audio
      width: 64            # C, what the encoder gives
      encoder:
        name: log_mel      # no weights needed; clap, ast or whisper with model: <hub id> hear more
      fusion:
        width: 64          # D, inside the fusion module
        embed_width: 64
        num_heads: 4
        num_layers: 2
  lora:                    # low-rank updates of the language model; null for none
    rank: 8
    alpha: 16
    targets: [q_proj, v_proj]

data:
  train: train.jsonl       # one sample a line: id, video, question, answer, and optionally choices, type, side_channels
  eval: held_out.jsonl
  frames: {num_frames: 8}  # spread over the video; or {fps: 1, max_frames: 64}
  cache: memory            # keep decoded videos; a folder keeps them between runs
  stages:                  # first open the channel on questions that need it, then mix in the others
    - {steps: 20, weights: {sound: 1}}
    - {steps: 20, weights: {sound: 1, first_mover: 1}}

training:
  batch_size: 8            # videos in one forward pass; accumulation: n makes a step of n passes
  learning_rate: 3e-3      # of the fusion. Small bases like large rates; try 1e-4 on a base of billions
  lora_learning_rate: 1e-3
  output_norm_multiplier: 20   # the layer that opens the channel learns that much faster; 1 is the published behaviour
  seed: 0
  log_every: 5
  save_every: 20           # a checkpoint every so many steps; pave train --resume goes on from the last
  # report_to: [tensorboard]

output: OUTPUT   # checkpoints, logs, and the finished patch in its folder patch/
"""
