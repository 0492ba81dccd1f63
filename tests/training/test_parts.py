"""Training parts of a patch, and going on from a saved patch in a recipe."""

from __future__ import annotations

import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file

from pave.patching import patch_digest, patch_slot, read_record, save_patch
from pave.training import run_recipe, train_only
from pave.training.parts import check_parts
from tiny_trainers import build, patch_config
from tiny_training import assert_same, make_world, plan, tensors


@pytest.mark.parametrize("part", ["lora", "fusion", "fusion.audio"])
def test_only_the_named_part_is_trained_and_the_rest_is_saved_as_it_is(tmp_path, part):
    trainer = build(tmp_path, steps=2, save_every=2, train=[part], config=patch_config(gate=True))
    with torch.no_grad():
        for parameter in patch_slot(trainer.model).parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    save_patch(trainer.model, tmp_path / "before", storage_dtype="float32")
    trainer.train()
    before, after = tensors(tmp_path / "before"), tensors(tmp_path / "checkpoint-2")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    trained = {name for name in before if ("lora_" in name) == (part == "lora")}
    assert changed == trained and len(trained) < len(before)
    wanted = [p for p in trainer.model.parameters() if p.requires_grad]
    state = torch.load(tmp_path / "checkpoint-2" / "optimizer.pt", weights_only=True)["state"]
    assert len(state) == len(wanted) == len(trained)
    assert all(p.grad is None for p in trainer.model.parameters() if not p.requires_grad)


def test_a_frozen_part_resumes(tmp_path):
    common = {"steps": 4, "train": ["fusion"], "config": patch_config(dropout=0.2)}
    whole = build(tmp_path / "whole", save_every=2, keep_checkpoints=None, **common)
    again = build(tmp_path / "again", save_every=4, **common)
    whole.train(), again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert_same(tmp_path / "whole" / "checkpoint-4", tmp_path / "again" / "checkpoint-4")
    other = build(tmp_path / "other", **{**common, "train": ["lora"]})
    with pytest.raises(
        ValueError, match="the optimizer there knows the parameters of the patch in another order or by other names"
    ):
        other.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))


def test_parts_are_checked():
    config = patch_config()
    check_parts(None, config), check_parts(("fusion.audio", "lora"), config)
    with pytest.raises(ValueError, match=r"'fusion.sound' is no part of the patch; its parts are: fusion, fusion.audio, lora"):
        check_parts(("lora", "fusion.sound"), config)
    with pytest.raises(ValueError, match=r"training.train is empty"):
        check_parts((), config)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A world whose audio channel is standardized, and a patch trained in it."""
    folder = make_world(tmp_path_factory.mktemp("world"))
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    recipe["patch"]["side_channels"]["audio"]["fusion"]["standardize"] = True
    recipe["data"] |= {"stages": [{"steps": 2, "weights": {"sound": 1}}], "eval": None}
    recipe["training"]["save_every"] = None
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    run_recipe(plan(folder, folder / "first"), folder=folder)
    return folder


def test_a_run_goes_on_from_a_patch_with_a_further_channel(world, tmp_path):
    """The new channel alone is trained, on other samples; what the parent had comes out as it went in, its statistics included."""
    parent = world / "first" / "patch"
    more = (
        "patch.side_channels.loud={width: 64, kind: audio, fusion: {width: 8, embed_width: 8, num_heads: 2, standardize: true}}"
    )
    changes = [more, "init=first/patch", "training.train=[fusion.loud]", "training.save_every=1"]
    changes += ["data.stages=[{steps: 2, weights: {silent: 1}}]"]
    result = run_recipe(plan(world, tmp_path / "run", *changes), folder=world)
    was, now = tensors(parent), tensors(result.patch)
    assert all(torch.equal(value, now[name]) for name, value in was.items()) and len(now) > len(was)
    assert float(now["loud.output_norm.weight"].abs().max()) > 0
    measured = load_file(tmp_path / "run" / "checkpoint-1" / "patch.safetensors")
    assert torch.equal(measured["loud.standardize.mean_C"], was["audio.standardize.mean_C"])  # the same encoder and streams
    recorded = read_record(result.patch).provenance["parent"]
    before = read_record(parent).provenance
    assert recorded == {"patch": "first/patch", "revision": None, "tensors": patch_digest(parent), "data": before["data"]}
    assert (
        f"went on from the patch first/patch, whose tensors are {patch_digest(parent)}"
        in (result.patch / "README.md").read_text()
    )
    again = tmp_path / "again"
    shutil.copytree(tmp_path / "run" / "checkpoint-1", again / "checkpoint-1")
    (world / "first").rename(world / "gone")  # a resumed run does not need its parent any more
    try:
        resumed = run_recipe(plan(world, again, *changes), folder=world, resume=True)
    finally:
        (world / "gone").rename(world / "first")
    assert_same(result.patch, resumed.patch)
    assert read_record(resumed.patch).provenance["parent"] == recorded


def test_measured_numbers_of_a_channel_that_goes_on_are_kept(world, tmp_path):
    (tmp_path / "few.jsonl").write_text(
        (world / "train.jsonl").read_text().splitlines()[0].replace('"0.mp4"', f'"{world}/0.mp4"')
    )
    changes = [f"data.train={tmp_path}/few.jsonl", "data.stages=[{steps: 1}]"]
    kept = run_recipe(plan(world, tmp_path / "kept", "init=first/patch", *changes), folder=world)
    fresh = run_recipe(plan(world, tmp_path / "fresh", *changes), folder=world)
    name = "audio.standardize.mean_C"
    assert torch.equal(tensors(kept.patch)[name], tensors(world / "first" / "patch")[name])
    assert not torch.allclose(tensors(fresh.patch)[name], tensors(kept.patch)[name])


def test_a_parent_that_does_not_fit_is_found_before_anything_slow(world, tmp_path):
    changes = ["init=first/patch", "base.model=not/there"]
    with pytest.raises(ValueError, match=r"is no part of this one: lora.rank is 2 there and 3 here"):
        run_recipe(plan(world, tmp_path / "run", *changes, "patch.lora.rank=3"), folder=world)
    with pytest.raises(ValueError, match=r"base 'not/there' is no folder"):
        run_recipe(plan(world, tmp_path / "run", *changes), folder=world)
    with pytest.raises(ValueError, match=r"init_revision is given, but there is no init"):
        plan(world, tmp_path, "init_revision=abc")


def test_parts_and_rates_of_a_recipe_are_those_of_its_patch(world, tmp_path):
    with pytest.raises(ValueError, match=r"training.train: 'fusion.sound' is no part of the patch"):
        plan(world, tmp_path, "training.train=[fusion.sound]")
    with pytest.raises(ValueError, match=r"channel_dropout would take away 'audio', the only channel"):
        plan(world, tmp_path, "training.channel_dropout=0.2")
    assert plan(world, tmp_path, "training.channel_dropout={audio: 0.3}", "patch.missing_channel=lora_only")


def test_all_is_trained_by_default(tmp_path):
    trainer = build(tmp_path, steps=1)
    train_only(trainer.model, ["lora"])
    train_only(trainer.model, None)
    assert sum(p.requires_grad for p in trainer.model.parameters()) == sum(
        len(group["params"]) for group in trainer.create_optimizer().param_groups
    )
