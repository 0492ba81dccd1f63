"""The recipes that ``pave init`` writes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

FEWEST_STEPS = 300
"""Of 8 samples: in trials on 30 and on 100 clips, fewer were too few at times."""


def steps_for(clips: int) -> int:
    """Optimizer steps of 8 for a number of training clips: 300, and from 300 clips on one a clip, so that each is seen about 8 times."""
    return max(FEWEST_STEPS, clips)


def audio_recipe(output: str) -> str:
    """For the samples that ``pave init`` makes by itself."""
    return _filled(_AUDIO + _END, {"OUTPUT": output, "SAVE": "20", "LOG": "5"})


def sensor_recipe(
    output: str,
    *,
    channel: str,
    columns: Sequence[str],
    width: int,
    encoder: Mapping[str, object],
    clips: int,
    weights: Mapping[str, float],
    swapped: Sequence[str],
) -> str:
    """For samples that name a log of a sensor.

    Args:
        output: the run's folder.
        channel: its name in the samples.
        columns: of the log.
        width: what the encoder gives.
        encoder: its settings beside the columns.
        clips: training clips.
        weights: shares of the question types.
        swapped: types whose pictures are swapped.
    """
    steps = steps_for(clips)
    settings = "\n".join(f"          {key}: {json.dumps(value, ensure_ascii=False)}" for key, value in encoder.items())
    names = ", ".join(json.dumps(kind, ensure_ascii=False) for kind in swapped)
    values = {
        "CHANNEL": json.dumps(channel),
        "COLUMNS": json.dumps(list(columns), ensure_ascii=False),
        "WIDTH": str(width),
        "SETTINGS": settings,
        "STEPS": str(steps),
        "CLIPS": str(clips),
        "WEIGHTS": json.dumps(dict(weights), ensure_ascii=False),
        "SWAPPED": f"[{names}]" if swapped else "false",
        "OUTPUT": output,
        "SAVE": "100",
        "LOG": "25",
    }
    return _filled(_SENSOR + _END, values)


def _filled(template: str, values: Mapping[str, str]) -> str:
    values = {**values, "OUTPUT": json.dumps(values["OUTPUT"], ensure_ascii=False)}
    for name, value in values.items():
        template = template.replace(f"@{name}@", value)
    return template


_TOP = """\
# A training run. Paths count from this file, except output, which counts from where the command runs.
# Any value can be changed on the command line:
#   pave train recipe.yaml training.learning_rate=1e-3 data.stages.0.steps=50
# What the settings are worth: docs/defaults.md.

base:
  model: playground        # the small base inside pave; or a folder, or a hub id such as
                           # llava-hf/llava-onevision-qwen2-7b-ov-hf or Qwen/Qwen2.5-VL-7B-Instruct
  dtype: auto              # as stored; bfloat16 for a large base on a GPU

"""
_FUSION = """\
        width: 64          # D, inside the fusion module
        embed_width: 64
        num_heads: 4
        num_layers: 2
        gate: true         # questions that need no channel are answered as before
        empty_frames: nearest_inside   # a gap in the stream is bridged
"""
_LORA = """\
  lora:                    # low-rank updates of the language model; null for none
    rank: 8
    alpha: 16
    targets: [q_proj, v_proj]

"""
_AUDIO = f"""\
{_TOP}patch:
  side_channels:
    audio:                 # any name; it is also the key in side_channels={{...}} and in a sample's side_channels
      kind: audio
      width: 64            # C, what the encoder gives
      encoder:
        name: log_mel      # no weights needed; clap, ast or whisper with model: <hub id> hear more
      fusion:
{_FUSION}{_LORA}data:
  train: train.jsonl       # one sample a line: id, video, question, answer, and optionally choices, type, side_channels
  eval: held_out.jsonl
  frames: {{num_frames: 8}}  # spread over the video; or {{fps: 1, max_frames: 64}}
  cache: memory            # keep decoded videos; a folder keeps them between runs
  stages:                  # first open the channel on questions that need it, then mix in the others
    - {{steps: 20, weights: {{sound: 1}}}}
    - {{steps: 20, weights: {{sound: 1, first_mover: 1}}}}

"""
_SENSOR = f"""\
{_TOP}patch:
  side_channels:
    @CHANNEL@:               # any name; it is also the key in side_channels={{...}} and in a sample's side_channels
      kind: sensor
      width: @WIDTH@            # C, what the encoder gives; a mismatch is an error that says the right number
      encoder:
        name: sensor_windows
        settings:          # docs/side_channels.md has the formulas
          columns: @COLUMNS@
@SETTINGS@
      fusion:
{_FUSION}        standardize: true  # numbers of any unit to about unit size, measured on the training samples
{_LORA}data:
  train: train.jsonl       # one sample a line: id, video, question, answer, type, side_channels
  eval: held_out.jsonl
  frames: {{num_frames: 8}}  # spread over the video; or {{fps: 1, max_frames: 64}}
  cache: memory            # keep decoded videos; a folder keeps them between runs
  vision: memory           # and what the base's frozen vision tower makes of them
  swap_pictures: @SWAPPED@   # question types that need the channel alone see the picture of another clip: nothing to memorise
  stages:                  # @CLIPS@ clips: at least 300 steps, and from 300 clips on as many steps as clips
    - {{steps: @STEPS@, weights: @WEIGHTS@}}

evaluation:
  generate: true           # held-out questions are answered, too; few of them say little

"""
_END = """\
training:
  batch_size: 8            # videos in one forward pass; accumulation: n makes a step of n passes
  learning_rate: 3e-3      # of the fusion. Small bases like large rates; try 1e-4 on a base of billions
  lora_learning_rate: 1e-3
  output_norm_multiplier: 20   # the layer that opens the channel learns that much faster; 1 is the published behaviour
  seed: 0
  log_every: @LOG@
  save_every: @SAVE@           # a checkpoint every so many steps; pave train --resume goes on from the last
  # report_to: [tensorboard]

output: @OUTPUT@   # checkpoints, logs, and the finished patch in its folder patch/
"""
