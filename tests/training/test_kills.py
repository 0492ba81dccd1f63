"""Runs that are killed without warning, anywhere and inside the writing of checkpoints, and disks that are full."""

from __future__ import annotations

import os
import random
import time

import pytest

from kills import LineCounter, in_fork
from pave.training import last_checkpoint, run_recipe
from pave.training.checkpoints import checkpoints, read_manifest
from tiny_training import assert_same, make_world, plan

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
WATCHED = ("pave/training", "pave/utils/files", "pave/patching/checkpoint", "transformers/trainer", "shutil.py", "kills.py")
CHANGES = (
    "data.stages=[{steps: 4, weights: {sound: 1}}, {steps: 4, weights: {sound: 1, silent: 1}}]",
    "patch.side_channels.audio.fusion.dropout=0.2",
    "training.save_every=1",
)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = make_world(tmp_path_factory.mktemp("world"))
    run_recipe(plan(folder, folder / "warm-up", *CHANGES, f"data.cache={folder / 'cache'}"), folder=folder, progress=False)
    return folder


def attempt(world, output, keep=2):
    """What a person does: start the run, or resume it where there is something to resume."""
    recipe = plan(world, output, *CHANGES, f"data.cache={world / 'cache'}", f"training.keep_checkpoints={keep or 'null'}")
    run_recipe(recipe, folder=world, resume=last_checkpoint(output) is not None, progress=False)


@pytest.fixture(scope="module")
def uninterrupted(world, tmp_path_factory):
    """The run that nobody disturbs: its folder with every checkpoint, its lines, those inside checkpoints, its seconds."""
    output = tmp_path_factory.mktemp("whole") / "run"
    inside = in_fork(lambda: attempt(world, output, None), LineCounter(WATCHED, "_save_checkpoint"))
    lines = in_fork(lambda: attempt(world, output.parent / "counted"), LineCounter(WATCHED))
    start = time.monotonic()
    in_fork(lambda: attempt(world, output.parent / "timed"))
    return output, lines, inside, time.monotonic() - start


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_with_the_weights_of_an_undisturbed_one(world, uninterrupted, tmp_path):
    whole, lines, inside, seconds = uninterrupted
    rng = random.Random(0)
    kills, in_checkpoints, by_the_clock, resumed = 0, 0, 0, 0
    for campaign in range(3):
        output = tmp_path / f"run{campaign}"
        newest = 0
        for number in range(8):
            work = lambda output=output: attempt(world, output)  # noqa: E731
            how = number % 4
            if how == 3:
                done = in_fork(work, seconds=rng.uniform(0.1, 0.8) * seconds)
                by_the_clock += done is None
            elif how == 2:
                done = in_fork(work, LineCounter(WATCHED, kill_at=rng.randrange(1, lines // 3)))
            else:
                done = in_fork(work, LineCounter(WATCHED, "_save_checkpoint", rng.randrange(1, inside // 5)))
                in_checkpoints += done is None
            if done is not None:
                break
            kills += 1
            there = checkpoints(output)
            for step, path in there.items():  # whatever has the name of a checkpoint is one
                assert read_manifest(path).step == step
                assert_same(whole / f"checkpoint-{step}", path)
            assert max(there, default=0) >= newest  # nothing that was reached is lost
            newest = max(there, default=0)
            resumed += newest > 0
        attempt(world, output)
        assert_same(whole / "patch", output / "patch")
        assert {path.name for path in output.iterdir()} == {".lock", "patch", "recipe.yaml", "checkpoint-7", "checkpoint-8"}
    assert kills >= 20 and in_checkpoints >= 8 and resumed >= 8
    print(f"{kills} kills, {in_checkpoints} inside checkpoints, {by_the_clock} by the clock, {resumed} with something to resume")
