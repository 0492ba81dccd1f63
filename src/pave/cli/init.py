"""``pave init``: a recipe and a few samples to start from, or a recipe for samples that are there."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from pave.cli.shared import JsonOption, Result, check_choice

if TYPE_CHECKING:
    from pave.data.answer_probe import ProbeScore
    from pave.data.samples import Sample

RECIPE, TRAIN, HELD_OUT = "recipe.yaml", "train.jsonl", "held_out.jsonl"
_STATISTICS = ("mean", "std", "min", "max", "slope", "last", "share", "crossings", "centroid", "peak", "bands")
_ENCODER: dict[str, Any] = {"window_seconds": 2.0, "stride_seconds": 0.5, "statistics": list(_STATISTICS)}
_EXAMPLE = {"shake": 0.6, "colour": 0.1, "shape": 0.1, "first_mover": 0.2}
"""Shares of the question types in the example: 40 % of them silent, which keeps what the base knows."""
_FEWEST_CLIPS = 10


def command(
    folder: Path = typer.Argument(..., help="A new or empty folder."),
    channel: str = typer.Option("audio", "--channel", help="audio, or sensor: logs of numbers beside the videos."),
    samples: Path | None = typer.Option(
        None,
        "--samples",
        help="With --channel sensor: your own .jsonl file of samples, each naming its log, instead of made-up ones.",
    ),
    json_output: bool = JsonOption,
) -> Result:
    """\b
    pave init my-patch && pave train my-patch/recipe.yaml
    pave init my-patch --channel sensor --samples shakes.jsonl

    Write a commented recipe and a few samples with real video files. It runs as it is, on the small base inside pave; then
    put in your own base, samples and side channels. With --samples the recipe is made for them: which columns, how many steps, and
    a fifth of the clips held out.
    """
    check_choice("--channel", channel, ("audio", "sensor"))
    if samples is not None and channel != "sensor":
        raise ValueError(
            "--samples needs --channel sensor; for sound, put the name of your file into the recipe that pave init writes"
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is there and not an empty folder; choose another name")
    from pave.utils.files import atomic_folder

    further: list[str] = []
    with atomic_folder(folder) as work:
        if samples is not None:
            further = _for_samples(work, folder, samples)
        elif channel == "sensor":
            _sensor_example(work, folder)
        else:
            _audio_example(work, folder)
    names = [name for name in (RECIPE, TRAIN, HELD_OUT, "clips") if (folder / name).exists()]
    files = [str(folder / name) for name in names]
    lines = [f"wrote {', '.join(files)}", *further, f"next: pave train {shlex.quote(files[0])}"]
    return Result("\n".join(lines), {"folder": str(folder), "files": files})


def _audio_example(work: Path, folder: Path) -> None:
    from pave.cli.init_recipe import audio_recipe
    from pave.playground.clips import clip_name, render_clip, write_samples
    from pave.playground.world import draw_scene

    (work / RECIPE).write_text(audio_recipe(str(folder / "run")), encoding="utf-8")
    splits: tuple[tuple[str, Any, int], ...] = ((TRAIN, "train", 16), (HELD_OUT, "test", 4))
    for name, split, count in splits:
        for index in range(count):
            render_clip(work / clip_name(split, index), draw_scene(0, split, index))
        write_samples(work / name, split, count, [["sound"], ["first_mover"]])


def _sensor_example(work: Path, folder: Path) -> None:
    from pave.cli.init_recipe import sensor_recipe
    from pave.playground.shakes import SHAKE, write_shakes

    clips = 40
    write_shakes(work, "train", clips)
    write_shakes(work, "test", 20)
    (work / "test.jsonl").rename(work / HELD_OUT)
    recipe = sensor_recipe(
        str(folder / "run"),
        channel="shake",
        columns=["shake"],
        width=_width(["shake"]),
        encoder=_ENCODER,
        clips=clips,
        weights=_EXAMPLE,
        swapped=[SHAKE],
    )
    (work / RECIPE).write_text(recipe, encoding="utf-8")


def _width(columns: list[str]) -> int:
    from pave.side_channels.sensor import SensorWindows

    return SensorWindows(columns=columns, **_ENCODER).width


# --- samples that are there


def _for_samples(work: Path, folder: Path, path: Path) -> list[str]:
    """Write the recipe and the two files of samples; what was found out about them, for the user."""
    from pave.cli.init_recipe import sensor_recipe
    from pave.cli.probe import probe_text
    from pave.data.samples import read_samples, write_samples
    from pave.data.sensor_files import columns_of

    samples = read_samples(path)
    channel = _channel_of(samples, path)
    videos = list(dict.fromkeys(sample.video for sample in samples))
    if len(videos) < _FEWEST_CLIPS:
        raise ValueError(f"{path}: {len(videos)} videos are too few to learn from; at least {_FEWEST_CLIPS} are needed")
    log = next(file for sample in samples if (file := sample.side_channels.get(channel)))
    columns = columns_of(log)
    held_out = _held_out(samples)
    for name, wanted in ((TRAIN, False), (HELD_OUT, True)):
        write_samples(work / name, (_absolute(sample) for sample in samples if (sample.video in held_out) == wanted))
    train = [sample for sample in samples if sample.video not in held_out]
    scores = _probe(train, channel, columns)
    doubted = {score.type for score in scores if not score.holds}
    held = list(dict.fromkeys(score.type for score in scores if score.type not in doubted))
    types = list(dict.fromkeys(sample.type for sample in train))
    recipe = sensor_recipe(
        str(folder / "run"),
        channel=channel,
        columns=columns,
        width=_width(columns),
        encoder=_ENCODER,
        clips=len(videos) - len(held_out),
        weights=dict.fromkeys(types, 1),
        swapped=held,
    )
    (work / RECIPE).write_text(recipe, encoding="utf-8")
    return [
        f"side channel {channel!r}, columns {', '.join(columns)}; {len(videos) - len(held_out)} clips to learn from, {len(held_out)} held out",
        probe_text(scores),
    ]


def _held_out(samples: list[Sample]) -> set[str]:
    """A fifth of the videos, drawn once and spread over the answers: files are often sorted by answer, or take them in turns."""
    import numpy as np

    answers: dict[str, str] = {}
    for sample in samples:
        answers.setdefault(sample.video, " ".join(str(sample.turns[-1][1]).lower().split()))
    videos = list(answers)
    drawn = [videos[i] for i in np.random.default_rng(0).permutation(len(videos))]
    return set(sorted(drawn, key=answers.__getitem__)[4::5])  # stable: within an answer as drawn


def _channel_of(samples: list[Sample], path: Path) -> str:
    names = sorted({name for sample in samples for name, file in sample.side_channels.items() if file is not None})
    if len(names) != 1:
        found = f"they name {', '.join(names)}" if names else "they name none"
        raise ValueError(
            f'{path}: --channel sensor needs samples with one side channel each, such as "side_channels": {{"shake": "1.csv"}}; {found}'
        )
    return names[0]


def _absolute(sample: Sample) -> Sample:
    from dataclasses import replace

    sides = {name: file and os.path.abspath(file) for name, file in sample.side_channels.items()}
    return replace(sample, video=os.path.abspath(sample.video), side_channels=sides)


def _probe(samples: list[Sample], channel: str, columns: list[str]) -> list[ProbeScore]:
    from pave.config import EncoderConfig, SideChannelConfig
    from pave.data.answer_probe import probe_samples
    from pave.data.dataset import PatchDataset
    from pave.data.media import FrameSampling
    from pave.side_channels import build_encoder

    config = EncoderConfig(name="sensor_windows", settings={"columns": columns, **_ENCODER})
    encoder = build_encoder(config)
    channels = {channel: SideChannelConfig(kind="sensor", width=encoder.width, encoder=config)}
    return probe_samples(samples, PatchDataset((), FrameSampling(num_frames=8), {channel: encoder}, channels))
