"""Two patches on clips that have both channels: each alone, added, and with three remedies where adding hurts.

    python -m evidence.both_channels --out runs/both                              # 10 minutes of one core
    python -m evidence.both_channels --out runs/both --train 8 --test 4 --steps 2 # shows only that it runs

The clips are those of the world of sound, each with the sensor of the same scene beside it, so that a patch for either
channel can be asked about any of them. Besides the questions of the two worlds one needs both channels: "is the sound
heard before the shake ?". It is asked and never trained. Writes ``together.md`` and ``together.json`` into the folder;
patches that are there are used.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evidence.worlds import SILENT_WEIGHTS, WORLDS
from pave.data.media import FrameSampling
from pave.data.samples import Sample, read_samples
from pave.demo.plan import SILENT
from pave.evaluation.result import ALL
from pave.evaluation.together import MERGED, TOGETHER, Together, TogetherResult, find_weights
from pave.patching import load_patch
from pave.patching.compose import ComposedPatch, compose_patches, write_composed
from pave.playground.clips import as_sample, clip_name, json_lines, render_clips
from pave.playground.further import WORLDS as FURTHER
from pave.playground.questions import SOUND_TYPES, Question, ask
from pave.playground.sensors import SensedScene, draw_sensed
from pave.playground.world import SPLITS, Split, draw_scene
from pave.training.recipe import BaseConfig, DataConfig, Recipe
from pave.training.run import run_recipe
from pave.training.sampler import Stage
from pave.utils.embedded import PLAYGROUND
from pave.utils.files import atomic_write_json, atomic_write_text
from pave.video_llms.loading import load_base

logger = logging.getLogger(f"pave.{__name__}")

HEARING, FEELING = "hearing", "feeling"
CHANNELS = {HEARING: "audio", FEELING: "sensor"}
BOTH = "order"
"""The type that needs both channels; chance is 50 %."""
ADDED = "added"
DENSITIES = (0.3, 1.0)
GRID = (0.5, 0.75, 1.0)
FRAMES = FrameSampling(num_frames=8)
_SENSOR = FURTHER["sensor"]
_STREAM = 9  # of the random numbers that choose what is asked; those of the other worlds are 7 and 8
_ASKING: dict[str, Any] = {"batch_size": 64, "max_new_tokens": 4}


def write_world(folder: Path, split: Split, first: int, count: int, file: str, sides: Sequence[str]) -> list[Sample]:
    """Samples on the scenes from ``first`` on, all types on each, and the clips and logs that they name.

    Args:
        folder: of the world.
        split: of the scenes.
        first: number of the first scene.
        count: scenes.
        file: name of the .jsonl file.
        sides: the channels that the samples have, of "audio" and "sensor".
    """
    for _ in render_clips(folder, split, first + count, processes=0):
        pass
    rows = []
    for index in range(first, first + count):
        sensed, scene = draw_sensed(0, split, index), draw_scene(0, split, index)
        log = folder / str(_SENSOR.side_name(split, index))
        if not log.exists():
            _SENSOR.write_side(log, sensed)
        rng = np.random.default_rng([0, SPLITS.index(split), index, _STREAM])
        questions = [ask(scene, kind, rng) for kind in (*SOUND_TYPES, *SILENT)]
        questions += [maker(sensed, rng) for maker in _SENSOR.makers.values()]
        questions.append(_order(sensed, scene.sounds[0].start))
        own: dict[str, str | None] = {"sensor": str(log.relative_to(folder)) if "sensor" in sides else None}
        if "audio" not in sides:
            own["audio"] = None
        for question in questions:
            named = {
                "id": f"{file}-{index:05d}-{question.type}",
                "video": clip_name(split, index),
                "side_channels": own,
            }
            rows.append({**named, **as_sample([question], None)})
    atomic_write_text(folder / f"{file}.jsonl", json_lines(rows))
    return list(read_samples(folder / f"{file}.jsonl"))


def _order(sensed: SensedScene, sound: float) -> Question:
    answer = "yes" if sound < sensed.shake.start else "no"
    return Question(BOTH, "is the sound heard before the shake ?", answer, ("yes", "no"))


def train(root: Path, name: str, channel: str, steps: int, beside: dict[str, str]) -> Path:
    """The recipe of a channel on clips that have both, with other patches frozen beside it."""
    output = root / name
    if (output / "patch").exists():
        return output / "patch"
    world = WORLDS[channel]
    weights = {**world.weights, **SILENT_WEIGHTS}
    recipe = Recipe(
        base=BaseConfig(model=PLAYGROUND, dtype="float32"),
        patch=world.patch(),
        patches=beside,
        data=DataConfig(
            train=str((root / "data" / "train.jsonl").resolve()),
            frames=FRAMES,
            cache="memory",
            vision="memory",
            stages=(Stage(steps=steps, weights=weights),),
        ),
        training=world.recipe.training,
        output=str(output),
    )
    return run_recipe(recipe, progress=False).patch


def measure(
    root: Path, composed: ComposedPatch, samples: Sequence[Sample], runs: Sequence[str] | None = None
) -> TogetherResult:
    """The parts side by side with their weights, and as one patch where that is asked for."""
    weights = {part.name: (part.weight, part.lora_weight) for part in composed.parts}
    together = _together(root, composed, runs is None or MERGED in runs)
    return together.evaluate(samples, weights=weights, runs=runs, progress=False, **_ASKING)


def _together(root: Path, composed: ComposedPatch, merged: bool) -> Together:
    model, processor = load_base(PLAYGROUND, dtype="float32")
    for part in composed.parts:
        load_patch(model, part.folder, name=part.name, processor=processor)
    if merged:
        load_patch(model, write_composed(composed, root / "merged"), name=MERGED)
    return Together(model.eval(), processor, composed, sampling=FRAMES)


def run(root: Path, clips: int, test: int, steps: int) -> str:
    """Make what is missing, measure, and write the tables.

    Args:
        root: folder for data, patches and results.
        clips: to train on; a tenth as many further ones are held out to find weights on.
        test: clips to test on; a third of them are asked about again with one channel only.
        steps: of every training.
    """
    data = root / "data"
    write_world(data, "train", 0, clips, "train", tuple(CHANNELS.values()))
    held_out = write_world(data, "train", clips, max(1, clips // 10), "held_out", tuple(CHANNELS.values()))
    samples = write_world(data, "test", 0, test, "test", tuple(CHANNELS.values()))
    for channel in CHANNELS.values():
        samples += write_world(data, "test", 0, max(1, test // 3), f"{channel}_only", (channel,))
    hearing = train(root, HEARING, "audio", steps, {})
    feeling = train(root, FEELING, "sensor", steps, {})
    beside = train(root, "beside", "sensor", steps, {HEARING: str(hearing.resolve())})
    pair = {HEARING: hearing, FEELING: feeling}
    logger.info("trained; measuring")
    exact = compose_patches(pair)
    results = {ADDED: measure(root, exact, samples)}
    asked = [sample for sample in held_out if sample.type != BOTH]
    weights, score = find_weights(_together(root, exact, False), asked, grid=GRID, rounds=1, **_ASKING)
    said = ", ".join(f"{name} {residual:g} and LoRA {lora:g}" for name, (residual, lora) in weights.items())
    results["weights found"] = measure(root, compose_patches(pair, weights=weights), samples, (TOGETHER,))
    for density in DENSITIES:
        how = compose_patches(pair, method="knots", density=density)
        results[f"knots, density {density:g}"] = measure(root, how, samples, (MERGED,))
    results["rank 8"] = measure(root, compose_patches(pair, rank=8), samples, (MERGED,))
    beside_pair = compose_patches({HEARING: hearing, FEELING: beside})
    results["beside hearing"] = measure(root, beside_pair, samples, (FEELING, TOGETHER))
    first = f"weights found: {said}; {100 * score:.1f} % of the held-out questions right with them"
    text = "\n\n".join([first, *_tables(results)])
    atomic_write_text(root / "together.md", text + "\n")
    facts = {way: {run: found.to_dict() for run, found in result.runs.items()} for way, result in results.items()}
    atomic_write_json(root / "together.json", {ADDED: results[ADDED].to_dict(), "ways": facts})
    return text


def _tables(results: dict[str, TogetherResult]) -> Iterable[str]:
    """For each set of channels accuracies in percent, a row for each type and a column for each run of each way."""
    first = results[ADDED]
    for names, ids in first.groups().items():
        kinds = first.kinds(ids)
        rows: dict[str, list[str]] = {kind.kind: [] for kind in kinds}
        columns = []
        for way, result in results.items():
            for run_name in result.runs:
                columns.append(run_name if way == ADDED else f"{way}: {run_name}")
                found = result.of(run_name, ids)
                for kind, cells in rows.items():
                    score = found.overall if kind == ALL else found.by_type[kind]
                    cells.append(f"{100 * score.accuracy:.1f}")
        head = ["", *columns]
        lines = (head, ["---"] * len(head), *([kind, *cells] for kind, cells in rows.items()))
        yield f"with {' and '.join(names)}, {len(ids)} questions"
        yield "\n".join("| " + " | ".join(line) + " |" for line in lines)
        for found_kind in kinds:
            pair = found_kind.added
            points = f"{100 * pair.difference:+.1f} [{100 * pair.interval.low:+.1f}, {100 * pair.interval.high:+.1f}]"
            yield f"- {found_kind.kind}: together minus {found_kind.best} alone {points}, {found_kind.verdict}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/both"))
    parser.add_argument("--train", type=int, default=800, help="clips")
    parser.add_argument("--test", type=int, default=150, help="clips")
    parser.add_argument("--steps", type=int, default=350)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logger.info("%s", run(options.out, options.train, options.test, options.steps))


if __name__ == "__main__":
    main()
