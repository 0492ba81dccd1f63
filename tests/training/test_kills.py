"""Runs that are killed without warning, anywhere and inside the writing of checkpoints, and disks that are full."""

from __future__ import annotations

import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

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
    while kills < 20:
        output = tmp_path / f"run{kills}"
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
    assert in_checkpoints >= 8 and resumed >= 8
    print(
        f"{kills} kills, {in_checkpoints} inside checkpoints, {by_the_clock} by the clock, {resumed} with something to resume"
    )


def limited(work, size):
    """Run ``work`` with files of at most ``size`` bytes: what a full disk does to whoever writes, without filling one."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    work()


@pytest.mark.slow
def test_a_full_disk_stops_with_one_error_and_the_earlier_checkpoints_stay(world, uninterrupted, tmp_path):
    whole = uninterrupted[0]
    started = tmp_path / "started"
    started.mkdir()
    shutil.copytree(whole / "checkpoint-2", started / "checkpoint-2")
    sizes = sorted({p.stat().st_size for p in (whole / "checkpoint-3").rglob("*") if p.is_file()})
    seen = set()
    for number, size in enumerate([100, *(size - 1 for size in sizes if size > 2000)]):
        output = tmp_path / f"full{number}"
        shutil.copytree(started, output)
        said = in_fork(lambda output=output, size=size: limited(lambda: attempt(world, output), size), errors=True)
        assert f"error: CheckpointError: {output}" in said and "\n" not in said
        if size > 5000:  # the recipe fits, the checkpoint does not
            assert f"CheckpointError: {output}/checkpoint-3: the checkpoint could not be written (" in said
            assert "checkpoint-2 is whole, and the run can be resumed from it" in said
        seen.add(said.partition("(")[2].partition(")")[0])
        assert last_checkpoint(output) == output / "checkpoint-2"
        assert not list(output.glob(".checkpoint*"))
        attempt(world, output)  # there is room again
        assert_same(whole / "patch", output / "patch")
    assert any("File too large" in reason for reason in seen), seen


def in_small_file_system(folder, script):
    """Run a Python script with a file system of 250 kB at ``folder``; None where this machine does not let us make one."""
    mount = f"mount -t tmpfs -o size=250k none {folder} && exec {sys.executable} -c '{script}'"
    done = subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True, text=True, timeout=300)
    return None if "unshare" in done.stderr or "mount:" in done.stderr else done


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("unshare"), reason="needs unshare")
def test_a_disk_that_fills_up_while_a_checkpoint_is_written(world, tmp_path):
    folder = tmp_path / "small"
    folder.mkdir()
    tests = Path(__file__).parents[1]
    script = f"""
import sys; sys.path[:0] = ["{tests}", "{tests / "training"}"]
from pathlib import Path
import torch; torch.set_num_threads(1)
import pave.training.run
from pave.training import CheckpointError, last_checkpoint, run_recipe
from tiny_training import plan
pave.training.run.check_room = lambda *_: None
changes = ["training.save_every=1", "training.keep_checkpoints=null", "data.stages=[{{steps: 40}}]"]
try:
    run_recipe(plan(Path("{world}"), Path("{folder}"), *changes), folder=Path("{world}"), progress=False)
except CheckpointError as error:
    print("said:", error)
print("last:", last_checkpoint("{folder}").name)
"""
    done = in_small_file_system(folder, script)
    if done is None:
        pytest.skip("this machine lets nobody mount a file system of their own")
    assert done.returncode == 0, done.stderr[-3000:]
    said, last = done.stdout.split("said: ")[1].strip().splitlines()[:2]
    step = int(last.rpartition("-")[2])
    assert f"checkpoint-{step + 1}: the checkpoint could not be written (" in said
    assert f"checkpoint-{step} is whole" in said


def test_a_cache_that_cannot_be_written_is_done_without(world, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    changes = ["data.stages=[{steps: 1}]", "training.save_every=null", f"data.cache={tmp_path / 'file' / 'cache'}"]
    run_recipe(plan(world, tmp_path / "run", *changes), folder=world, progress=False)
    said = [record.message for record in caplog.records if record.levelname == "WARNING" and "cache" in record.message]
    missing = f"{tmp_path / 'file' / 'cache'}: the cache cannot be written ("  # said of each set of samples
    assert len(said) == 2 and all(message.startswith(missing) for message in said)


def test_a_run_that_would_not_fit_is_refused_before_it_begins(world, tmp_path, monkeypatch):
    free = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free._replace(free=10_000))
    with pytest.raises(ValueError, match=r"the patch and its checkpoints will take 0\.\d MB, but 0\.0 MB are free; make room"):
        run_recipe(plan(world, tmp_path / "run", *CHANGES), folder=world, progress=False)


def test_a_folder_that_cannot_be_written_to_is_one_clear_error(world, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"file/run: the output folder cannot be written to \(Not a directory\)"):
        run_recipe(plan(world, tmp_path / "file" / "run"), folder=world, progress=False)
    with tempfile.TemporaryDirectory() as outer:
        os.chmod(outer, 0o755)
        locked = Path(outer) / "locked"
        locked.mkdir(mode=0o555)
        recipe = plan(world, locked)

        def as_anybody():
            if os.getuid() == 0:  # nothing is forbidden to root
                os.seteuid(65534)
            run_recipe(recipe, folder=world, progress=False)

        said = in_fork(as_anybody, errors=True)
        expected = "the output folder cannot be written to (Permission denied); choose another output"
        assert said == f"error: ValueError: {locked}: {expected}"


def test_two_runs_do_not_write_into_one_folder(world, tmp_path, monkeypatch):
    from pave.training import checkpoints as module

    monkeypatch.setattr(module, "PATIENCE", 0.1)
    with (
        module.held(tmp_path / "run"),
        pytest.raises(ValueError, match="another run is writing into this folder; wait for it"),
    ):
        run_recipe(plan(world, tmp_path / "run", *CHANGES), folder=world, progress=False)
