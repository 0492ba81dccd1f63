"""Checkpoints in a folder: which are whole, which are deleted, and what a run goes on from."""

from __future__ import annotations

import dataclasses
import logging
import random

import numpy as np
import pytest
import torch

from pave.config import PatchConfig
from pave.training import last_checkpoint, run_recipe
from pave.training.checkpoints import MANIFEST, checkpoints, discard, held, publish, read_manifest, rotate, sweep
from tiny_trainers import Items, build, patch_config, weights
from tiny_training import assert_same, make_world, plan


@pytest.fixture
def run(tmp_path):
    """A folder with three checkpoints."""
    build(tmp_path / "run", steps=3, save_every=1, keep_checkpoints=None).train()
    return tmp_path / "run"


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_checkpoint_that_was_copied_in_part_is_passed_over(run):
    manifest = read_manifest(run / "checkpoint-3")
    assert (manifest.step, manifest.steps, manifest.processes, manifest.samples_per_step) == (3, 3, 1, 4)
    assert {"optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "lora/adapter_model.safetensors"} <= set(
        manifest.files
    )
    (run / "checkpoint-3" / "rng_state.pth").unlink()
    with pytest.raises(ValueError, match=r"no complete checkpoint: rng_state.pth is missing"):
        read_manifest(run / "checkpoint-3")
    assert last_checkpoint(run) == run / "checkpoint-2"
    optimizer = run / "checkpoint-2" / "optimizer.pt"
    optimizer.write_bytes(optimizer.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"optimizer.pt has \d+ bytes instead of \d+"):
        build(run, steps=3).train(resume_from_checkpoint=str(run / "checkpoint-2"))
    assert last_checkpoint(run) == run / "checkpoint-1"


def test_a_damaged_checkpoint_is_not_resumed_from(run, tmp_path):
    """Every file of it, the manifest included; a file of another checkpoint of the same length too."""
    folder = run / "checkpoint-3"
    read_manifest(folder, content=True)
    rng = random.Random(0)
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert {"optimizer.pt", "patch.safetensors", MANIFEST} <= set(names)
    for name in names:
        whole = (folder / name).read_bytes()
        for bit in rng.sample(range(8 * len(whole)), 40):
            changed = bytearray(whole)
            changed[bit // 8] ^= 1 << bit % 8
            (folder / name).write_bytes(changed)
            with pytest.raises(ValueError, match=r"cannot be resumed from: .* is not as it was written|no readable checkpoint"):
                read_manifest(folder, content=True)
        (folder / name).write_bytes(whole)
    for name in ("optimizer.pt", "patch.safetensors", "lora/adapter_model.safetensors"):
        other = (run / "checkpoint-2" / name).read_bytes()
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(other)
        assert len(other) == len(whole) and last_checkpoint(run) == folder  # the length alone tells nothing
        with pytest.raises(ValueError, match=f"cannot be resumed from: {name} is not as it was written"):
            build(run, steps=4).train(resume_from_checkpoint=str(folder))
        assert last_checkpoint(run, content=True) == run / "checkpoint-2"
        (folder / name).write_bytes(whole)
    assert last_checkpoint(run, content=True) == folder


def test_a_file_that_torch_cut_short_is_not_published(run):
    """The file system took only a part and torch did not notice."""
    staging = run / ".checkpoint-4.writing" / "checkpoint-4"
    staging.parent.mkdir()
    (run / "checkpoint-3").rename(staging)
    (staging / MANIFEST).unlink()
    whole = (staging / "optimizer.pt").read_bytes()
    (staging / "optimizer.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(OSError, match="optimizer.pt was not written to its end"):
        publish(staging, run / "checkpoint-4", read_manifest(run / "checkpoint-2"))
    assert list(checkpoints(run)) == [1, 2]
    (staging / "optimizer.pt").write_bytes(whole)
    publish(staging, run / "checkpoint-4", read_manifest(run / "checkpoint-2"))
    assert last_checkpoint(run) == run / "checkpoint-4" and not list(run.glob(".*"))


def test_rotation_keeps_the_newest_whole_one_and_the_best_one(run):
    (run / "checkpoint-3" / "rng_state.pth").unlink()
    rotate(run, 1, [run / "checkpoint-1", None])
    assert names(run) == ["checkpoint-1", "checkpoint-2"]
    rotate(run, 1)
    assert names(run) == ["checkpoint-2"]
    rotate(run, None), rotate(run, 5)
    assert names(run) == ["checkpoint-2"]


def test_one_checkpoint_is_kept_until_the_next_is_whole(tmp_path, monkeypatch):
    from pave.training import trainer as module

    seen = []

    def publish(staging, target, manifest):
        seen.append(list(checkpoints(target.parent)))
        real(staging, target, manifest)

    real = module.publish
    monkeypatch.setattr(module, "publish", publish)
    build(tmp_path, steps=3, save_every=1, keep_checkpoints=1).train()
    assert seen == [[], [1], [2]] and list(checkpoints(tmp_path)) == [3]


def test_linked_folders(run, tmp_path):
    """A checkpoint that was moved to another disk and linked is resumed from, and only the link is ever deleted."""
    (tmp_path / "elsewhere").mkdir()
    (run / "checkpoint-1").rename(tmp_path / "elsewhere" / "one")
    (run / "checkpoint-1").symlink_to(tmp_path / "elsewhere" / "one")
    (tmp_path / "link").symlink_to(run)
    assert list(checkpoints(tmp_path / "link")) == [1, 2, 3]
    resumed = build(tmp_path / "link", steps=3, save_every=1, keep_checkpoints=2)
    resumed.train(resume_from_checkpoint=str(tmp_path / "link" / "checkpoint-1"))
    assert resumed.state.global_step == 3 and names(run) == ["checkpoint-2", "checkpoint-3"]
    assert read_manifest(tmp_path / "elsewhere" / "one").step == 1


def test_what_interrupted_runs_left_is_swept(run):
    (run / ".checkpoint-4.writing" / "checkpoint-4").mkdir(parents=True)
    (run / ".checkpoint-1.deleted").mkdir()
    sweep(run)
    assert names(run) == ["checkpoint-1", "checkpoint-2", "checkpoint-3"]
    discard(run / "checkpoint-2")
    assert names(run) == ["checkpoint-1", "checkpoint-3"]


def test_every_random_state_goes_on(tmp_path):
    """Those of Python, NumPy and torch, which a data set or a callback may draw from."""

    def state():
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    common = {"steps": 3, "save_every": 2, "config": patch_config(dropout=0.3)}
    whole = build(tmp_path / "whole", **common)
    random.random(), np.random.rand()  # somewhere else than at the seed
    whole.train()
    expected = state()
    resumed = build(tmp_path / "resumed", **common)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert state() == expected


def two_channels(order):
    channel = patch_config().side_channels["audio"]
    return PatchConfig(side_channels=dict.fromkeys(order, channel), lora=None)


class TwoChannels(Items):
    def __init__(self):
        super().__init__()
        for place, item in enumerate(self.items):
            self.items[place] = dataclasses.replace(item, side={**item.side, "depth": item.side["audio"]})


def test_channels_in_another_order_are_refused(tmp_path):
    """The optimizer knows parameters by number: the averages of one channel would go to the other without a word."""
    common = {"steps": 2, "dataset": TwoChannels()}
    build(tmp_path, config=two_channels(["audio", "depth"]), save_every=1, **common).train()
    swapped = build(tmp_path / "other", config=two_channels(["depth", "audio"]), **common)
    with pytest.raises(ValueError, match="knows the parameters of the patch in another order"):
        swapped.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


def test_another_step_is_refused_and_another_end_is_said(tmp_path, caplog):
    build(tmp_path, steps=2, save_every=1, keep_checkpoints=None).train()
    with pytest.raises(ValueError, match=r"another number of samples per step \(samples_per_step was 4, now it is 8\)"):
        build(tmp_path, steps=2, accumulation=2).train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    with caplog.at_level(logging.WARNING, logger="pave"):
        build(tmp_path / "more", steps=3).train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert "planned for 2 steps, this one for 3: from here on the learning rates follow another schedule" in caplog.text


def test_a_checkpoint_without_its_optimizer_is_not_resumed_from(tmp_path):
    build(tmp_path, steps=1, save_every=1, trainer={"save_only_model": True}).train()
    with pytest.raises(ValueError, match=r"written without optimizer, scheduler, rng_state \(save_only_model\)"):
        build(tmp_path, steps=2).train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert last_checkpoint(tmp_path) is None


def test_a_folder_is_held_by_one(tmp_path, monkeypatch):
    from pave.training import checkpoints as module

    monkeypatch.setattr(module, "PATIENCE", 0.1)
    with (
        held(tmp_path / "out"),
        pytest.raises(ValueError, match="another run is writing into this folder"),
        held(tmp_path / "out"),
    ):
        pass
    with held(tmp_path / "out"):  # let go again, after an error too
        pass


def test_a_resumed_recipe_may_change_what_no_weight_depends_on(tmp_path):
    world = make_world(tmp_path)
    changes = ["data.stages=[{steps: 3}]", "data.eval=null"]
    whole = run_recipe(plan(world, tmp_path / "run", *changes, "training.save_every=1"), folder=world, progress=False)
    (tmp_path / "moved").mkdir()
    (tmp_path / "run" / "checkpoint-1").rename(tmp_path / "moved" / "checkpoint-1")
    free = [
        "training.workers=1",
        "training.save_every=2",
        "training.log_every=2",
        "data.cache=null",
        "training.keep_checkpoints=1",
    ]
    again = run_recipe(plan(world, tmp_path / "moved", *changes, *free), folder=world, resume=True, progress=False)
    assert again.steps == 3
    assert_same(whole.patch, again.patch)
    with pytest.raises(ValueError, match=r"another recipe, 'patch.lora.dropout' was 0.1 and is 0.2"):
        run_recipe(plan(world, tmp_path / "moved", *changes, "patch.lora.dropout=0.2"), folder=world, resume=True)


def test_a_resumed_run_with_fewer_weights_to_train_is_refused(tmp_path):
    build(tmp_path, steps=1, save_every=1).train()
    other = build(tmp_path, steps=2, config=dataclasses.replace(patch_config(), lora=None))
    before = weights(other.model)
    with pytest.raises(ValueError, match="another config"):
        other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert all(torch.equal(a, b) for a, b in zip(before, weights(other.model), strict=True))
