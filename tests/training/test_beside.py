"""A patch trained in the presence of frozen ones: they act, they do not learn, and what is saved is the trained one alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cases import shake
from pave import attach_patch, load_patch, save_patch
from pave.config import EncoderConfig, FusionConfig, LoraSettings, PatchConfig, SideChannelConfig
from pave.patching import freeze_patch, patch_name, patch_parameters, read_record
from pave.side_channels import build_encoder
from pave.training import run_recipe
from pave.training.dry_run import dry_run
from pave.training.recipe import read_recipe
from pave.video_llms.loading import load_base
from tiny_training import assert_same, make_world, plan, tensors


def beside_config(mels=16, **fusion):
    encoder = EncoderConfig(name="log_mel", settings={"n_mels": mels})
    small = FusionConfig(**{"width": 16, "embed_width": 16, "num_heads": 2, "dropout": 0.5, **fusion})
    channel = SideChannelConfig(width=build_encoder(encoder).width, encoder=encoder, fusion=small)
    return PatchConfig(side_channels={"tones": channel}, lora=LoraSettings(rank=2, dropout=0.5), storage_dtype="float32")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A world to train in, with a saved patch that acts: its folder is ``tones``."""
    folder = make_world(tmp_path_factory.mktemp("world"))
    model, processor = load_base(folder / "base")
    attach_patch(model, beside_config())
    save_patch(shake(model, 5), folder / "tones", processor=processor)
    return folder


def test_the_frozen_patch_acts_and_is_neither_changed_nor_saved(world, tmp_path):
    alone = run_recipe(plan(world, tmp_path / "alone"), folder=world, progress=False)
    beside = run_recipe(plan(world, tmp_path / "beside", "patches={tones: tones}"), folder=world, progress=False)
    model = beside.model
    assert model.patch_names == ("tones", "default")
    saved, _ = load_base(world / "base")
    load_patch(saved, world / "tones", name="tones")
    for mine, theirs in zip(patch_parameters(model, "tones"), patch_parameters(saved, "tones"), strict=True):
        assert torch.equal(mine, theirs) and not mine.requires_grad
    record = read_record(beside.patch)
    assert record.name == "default" and list(record.patch.side_channels) == ["audio"]
    assert record.provenance["beside"] == {"tones": {"patch": "tones", "files": read_record(world / "tones").files}}
    assert "trained beside the frozen patch tones" in (beside.patch / "README.md").read_text()
    one, other = tensors(alone.patch), tensors(beside.patch)
    assert one.keys() == other.keys() and any(not torch.equal(one[key], other[key]) for key in one)
    assert abs(alone.train_loss - beside.train_loss) > 1e-3
    again, _ = load_base(world / "base")
    load_patch(load_patch(again, world / "tones", name="tones"), beside.patch)
    trained = dict(model.named_parameters())
    assert all(torch.equal(value, trained[name]) for name, value in again.named_parameters())


def test_a_resumed_run_goes_on_beside_it(world, tmp_path):
    whole = run_recipe(plan(world, tmp_path / "run", "patches={tones: tones}"), folder=world, progress=False)
    import shutil

    again = tmp_path / "again"
    shutil.copytree(tmp_path / "run" / "checkpoint-2", again / "checkpoint-2")
    resumed = run_recipe(plan(world, again, "patches={tones: tones}"), folder=world, resume=True, progress=False)
    assert_same(whole.patch, resumed.patch)
    with pytest.raises(ValueError, match="another recipe, 'patches"):
        run_recipe(plan(world, again), folder=world, resume=True, progress=False)


def test_a_frozen_patch_has_no_dropout_and_is_not_meant(world):
    model, _ = load_base(world / "base")
    load_patch(model, world / "tones", name="tones")
    attach_patch(model, beside_config(), name="other")
    with pytest.raises(ValueError, match="carries several patches"):
        patch_name(model)
    freeze_patch(model, "tones")
    assert patch_name(model) == "other" and patch_name(model, "tones") == "tones"
    model.train()
    rates = {name: m.p for name, m in model.named_modules() if isinstance(m, nn.Dropout) and m.p}
    assert rates and all("other" in name for name in rates)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("patches={default: tones}", "'default' is no name for a patch beside"),
        ("patches={'a b': tones}", "'a b' is no name for a patch beside"),
        ("evaluation.generate=true", "evaluation.generate answers with the patch that is trained alone"),
        ("patch.side_channels.audio.fusion.kind=concat", "the patch that is trained lengthens the prompt"),
    ],
)
def test_recipes_that_cannot_be_are_refused(world, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        plan(world, tmp_path, *([] if change.startswith("patches") else ["patches={tones: tones}"]), change)


def test_patches_that_cannot_act_beside_are_refused_also_by_a_dry_run(world, tmp_path):
    model, processor = load_base(world / "base")
    attach_patch(model, beside_config(kind="concat"))
    save_patch(model, world / "longer", processor=processor)
    other = read_recipe(world / "recipe.yaml").patch.side_channels["audio"]
    assert other.encoder != beside_config().side_channels["tones"].encoder
    for change, message in (
        ("patches={longer: longer}", "patches.longer: the patch at .*longer lengthens the prompt"),
        ("patches={gone: gone/away}", "no patch at 'gone/away'"),
        (
            "patch.side_channels={tones: {width: 128, fusion: {width: 16, embed_width: 16, num_heads: 2}}}",
            "reads the side channel 'tones' with another encoder",
        ),
    ):
        recipe = plan(world, tmp_path, *(["patches={tones: tones}"] if "tones:" in change else []), change)
        with pytest.raises(ValueError, match=message):
            run_recipe(recipe, folder=world, progress=False)
        assert any(message.split(".*")[-1] in sentence for sentence in dry_run(recipe, world).missing)
