"""A recipe from its files to a saved patch, on real video files and a real tiny base on disk."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from safetensors.torch import load_file

from pave.config import EncoderConfig
from pave.data.media import read_audio
from pave.data.samples import read_samples
from pave.patching import detach_patch, load_patch, patch_parameters, read_record
from pave.side_channels import build_encoder
from pave.training import run_recipe
from signing import resign_checkpoint
from tiny_models import tiny_llava_onevision
from tiny_training import RATE, make_world, plan, tensors


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def finished(world, tmp_path_factory):
    output = tmp_path_factory.mktemp("run")
    return output, run_recipe(plan(world, output), folder=world)


def test_saved_patch_is_the_trained_one_and_says_where_it_came_from(world, finished):
    output, result = finished
    assert result.steps == 5 and np.isfinite([result.train_loss, result.eval_loss]).all()
    assert not result.model.training
    model, _ = tiny_llava_onevision()
    load_patch(model, result.patch, processor=result.processor)
    trained = dict(result.model.named_parameters())
    assert all(torch.equal(value, trained[name]) for name, value in model.named_parameters())
    provenance = read_record(result.patch).provenance
    assert provenance["seed"] == 0 and provenance["steps"] == 5
    assert provenance["recipe"]["data"]["frames"]["num_frames"] == 4
    assert provenance["data"]["train"].startswith("sha256:") and provenance["data"]["train_samples"] == 12
    assert yaml.safe_load((output / "recipe.yaml").read_text())["training"]["batch_size"] == 2


def test_resumed_run_saves_the_same_patch(world, finished, tmp_path):
    output, result = finished
    again = tmp_path / "again"
    shutil.copytree(output / "checkpoint-2", again / "checkpoint-2")
    shutil.copy(output / "recipe.yaml", again)
    (again / "checkpoint-4").mkdir()  # a checkpoint whose writing was cut short
    (again / "recipe.yaml").write_text((again / "recipe.yaml").read_text().replace(str(output), str(again)))
    resumed = run_recipe(plan(world, again), folder=world, resume=True)
    assert resumed.steps == 5 and resumed.eval_loss == result.eval_loss
    expected, actual = tensors(result.patch), tensors(resumed.patch)
    assert expected.keys() == actual.keys()
    assert all(torch.equal(expected[name], actual[name]) for name in expected)


def test_output_folders_are_not_mixed_up(world, finished, tmp_path):
    output, _ = finished
    with pytest.raises(ValueError, match="checkpoints of an earlier run"):
        run_recipe(plan(world, output), folder=world)
    with pytest.raises(ValueError, match=r"another recipe, 'training.seed' was 0 and is 3"):
        run_recipe(plan(world, output, "training.seed=3"), folder=world, resume=True)
    with pytest.raises(ValueError, match="nothing to resume from"):
        run_recipe(plan(world, tmp_path), folder=world, resume=True)


def nudged(folder):
    file = folder / "model.safetensors"
    weights = safetensors.torch.load_file(file)
    weights[next(name for name in weights if name.endswith("layers.0.mlp.down_proj.weight"))] *= 1.05
    safetensors.torch.save_file(weights, file, metadata={"format": "pt"})


def other_mean(folder):
    file = folder / "processor_config.json"
    file.write_text(file.read_text().replace('"image_mean": [\n      0.', '"image_mean": [\n      0.1'))


@pytest.mark.parametrize(("change", "says"), [(nudged, "other weights"), (other_mean, r"processor \S*image_mean")])
def test_a_run_does_not_go_on_on_another_base(world, finished, tmp_path, change, says):
    shutil.copytree(finished[0] / "checkpoint-4", tmp_path / "run" / "checkpoint-4")
    shutil.copytree(world / "base", tmp_path / "base")
    change(tmp_path / "base")
    with pytest.raises(ValueError, match=rf"checkpoint-4: the base is not the one .* it differs in: {says}"):
        run_recipe(plan(world, tmp_path / "run"), folder=world, base=tmp_path / "base", resume=True)


def test_a_run_goes_on_though_its_recipe_was_written_before_a_field_was_added(world, finished, tmp_path):
    output, result = finished
    shutil.copytree(output / "checkpoint-4", tmp_path / "checkpoint-4")
    file = tmp_path / "checkpoint-4" / "patch_config.json"
    record = json.loads(file.read_text())
    recipe = record["provenance"]["recipe"]
    del recipe["init"], recipe["data"]["tasks"], recipe["data"]["mixing"], recipe["training"]["channel_dropout"]
    file.write_text(json.dumps(record))
    resign_checkpoint(file.parent)
    assert run_recipe(plan(world, tmp_path), folder=world, resume=True).eval_loss == result.eval_loss


def test_a_run_goes_on_with_its_own_samples_only(world, finished, tmp_path):
    output, result = finished
    shutil.copytree(output, tmp_path / "again")
    record = tmp_path / "again" / "recipe.yaml"
    record.write_text(record.read_text().replace(str(output), str(tmp_path / "again")))
    lines = (world / "train.jsonl").read_text().splitlines(keepends=True)
    try:
        (world / "train.jsonl").write_text("".join(reversed(lines)))
        with pytest.raises(ValueError, match=r"checkpoint-5: .*other training samples .*train was sha256"):
            run_recipe(plan(world, tmp_path / "again"), folder=world, resume=True)
    finally:
        (world / "train.jsonl").write_text("".join(lines))
    video = Path(read_samples(world / "train.jsonl")[0].video)
    content = video.read_bytes()
    try:
        video.write_bytes(content + b"\0")
        with pytest.raises(ValueError, match=r"checkpoint-5: .*files of other sizes behind its samples \(sizes was sha256"):
            run_recipe(plan(world, tmp_path / "again"), folder=world, resume=True)
    finally:
        video.write_bytes(content)
    file = tmp_path / "again" / "checkpoint-5" / "patch_config.json"
    file.write_text(file.read_text().replace('"samples_per_step": 4', '"samples_per_step": 8'))
    resign_checkpoint(file.parent)
    with pytest.raises(ValueError, match=r"another number of processes \(samples_per_step was 8, now it is 4\)"):
        run_recipe(plan(world, tmp_path / "again"), folder=world, resume=True)


def test_resuming_a_run_that_was_finished_changes_nothing(world, tmp_path):
    changes = ["data.stages=[{steps: 2}]", "data.eval=null"]
    first = run_recipe(plan(world, tmp_path, *changes), folder=world)
    again = run_recipe(plan(world, tmp_path, *changes), folder=world, resume=True)
    assert again.steps == 2 and again.train_loss is None
    expected = tensors(tmp_path / "checkpoint-2")
    assert all(torch.equal(value, tensors(again.patch)[name]) for name, value in expected.items())
    assert first.train_loss is not None


def test_epochs_count_the_batches_that_the_trainer_makes(world, tmp_path):
    changes = ["data.stages=[]", "training.save_every=null", "data.eval=null", "training.accumulation=1"]
    sizes = "training.trainer={per_device_train_batch_size: 6}"
    assert run_recipe(plan(world, tmp_path, *changes, sizes), folder=world).steps == 2  # 12 samples


def test_a_channel_may_be_stored_in_a_folder_but_a_video_may_not(world, tmp_path):
    (tmp_path / "folder").mkdir()
    row = {"id": "a", "video": str(world / "0.mp4"), "question": "q?", "answer": "a"}
    for name, change, message in (
        ("side.jsonl", {"side_channels": {"audio": "folder"}}, "base 'not/there'"),
        ("video.jsonl", {"video": "folder"}, "1 of 1 files are not there"),
        ("gone.jsonl", {"side_channels": {"audio": "gone"}}, "1 of 2 files are not there"),
    ):
        (tmp_path / name).write_text(json.dumps({**row, **change}))
        changes = [f"data.train={tmp_path / name}", "base.model=not/there", "data.eval=null", "data.stages=[]"]
        with pytest.raises(ValueError, match=message):
            run_recipe(plan(world, tmp_path / "out", *changes), folder=world)


def test_wrong_files_are_found_before_anything_slow(world, tmp_path):
    def attempt(name, *overrides):
        return run_recipe(plan(world, tmp_path / "out", f"data.train={name}", "base.model=not/there", *overrides), folder=world)

    with pytest.raises(ValueError, match=r"none\.jsonl: there is no such file"):
        attempt("none.jsonl")
    (world / "empty.jsonl").write_text("\n")
    with pytest.raises(ValueError, match=r"empty\.jsonl: the file holds no sample"):
        attempt("empty.jsonl")
    row = {"id": "a", "video": "0.mp4", "question": "q"}
    (world / "unanswered.jsonl").write_text(json.dumps(row))
    with pytest.raises(ValueError, match=r"unanswered\.jsonl: sample 'a' has no answer"):
        attempt("unanswered.jsonl")
    (world / "gone.jsonl").write_text(json.dumps({**row, "answer": "b", "video": "gone.mp4"}))
    with pytest.raises(ValueError, match=r"gone\.jsonl: 1 of 1 files are not there.*gone\.mp4 of sample 'a'"):
        attempt("gone.jsonl")
    with pytest.raises(ValueError, match=r"base 'not/there' is no folder with a model"):
        attempt("train.jsonl")
    with pytest.raises(ValueError, match=r"set the channel's width"):
        run_recipe(plan(world, tmp_path / "out", "patch.side_channels.audio.width=3"), folder=world)
    with pytest.raises(ValueError, match=r"stage 1: no training sample has the type 'sounds'"):
        run_recipe(plan(world, tmp_path / "out", "data.stages=[{steps: 1, weights: {sounds: 1}}]"), folder=world)


def test_epochs_and_progress_messages(world, tmp_path, caplog, capsys):
    recipe = plan(world, tmp_path, "data.stages=[]", "training.epochs=0.5", "training.save_every=null", "data.eval=null")
    with caplog.at_level(logging.INFO, logger="pave"):
        result = run_recipe(recipe, folder=world)
    assert result.steps == 2 and result.eval_loss is None  # half of 12 samples, 4 a step
    assert any("step 2 of 2: loss" in record.message for record in caplog.records)
    assert any("the cache holds" in record.message for record in caplog.records)
    assert capsys.readouterr().out == ""
    assert not list(tmp_path.glob("checkpoint-*"))


def test_bfloat16_trains_a_float32_patch_and_leaves_the_model_as_it_was(world, tmp_path):
    changes = ["base.dtype=bfloat16", "training.precision=bfloat16", "training.save_every=null", "data.stages=[{steps: 4}]"]
    result = run_recipe(plan(world, tmp_path, *changes), folder=world)
    assert np.isfinite(result.train_loss)
    assert {p.dtype for p in patch_parameters(result.model)} == {torch.float32}
    assert "forward" not in vars(result.model)
    detach_patch(result.model)
    base, _ = tiny_llava_onevision()
    assert all(torch.equal(a, b.bfloat16()) for a, b in zip(result.model.parameters(), base.parameters(), strict=True))


def test_tensorboard_gets_the_losses(world, tmp_path, monkeypatch):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "logs"))
    changes = ["data.stages=[{steps: 2}]", "training.save_every=null", "data.eval=null", "training.report_to=[tensorboard]"]
    run_recipe(plan(world, tmp_path / "out", *changes), folder=world)
    events = event_accumulator.EventAccumulator(str(tmp_path / "logs"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2]


def test_folder_cache_and_worker_processes_train_the_same_patch(world, finished, tmp_path):
    _, result = finished
    recipe = plan(world, tmp_path / "out", f"data.cache={tmp_path / 'cache'}", "training.workers=2")
    other = run_recipe(dataclasses.replace(recipe), folder=world)
    expected, actual = tensors(result.patch), tensors(other.patch)
    assert all(torch.equal(expected[name], actual[name]) for name in expected)
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) >= 6


def test_standardize_measures_the_training_features_and_the_patch_keeps_the_numbers(world, tmp_path):
    recipe = plan(world, tmp_path / "run", "patch.side_channels.audio.fusion.standardize=true", "patch.storage_dtype=bfloat16")
    run_recipe(recipe, folder=world)
    encoder = build_encoder(EncoderConfig())
    heard = [encoder.encode(read_audio(world / f"{i}.mp4", sample_rate=RATE)) for i in range(6)]
    rows = torch.cat([features.features_KMC.flatten(0, 1) for features in heard]).double()
    saved = load_file(tmp_path / "run" / "patch" / "patch.safetensors")
    assert saved["audio.standardize.mean_C"].dtype == torch.float32 and saved["audio.side_embed.weight"].dtype == torch.bfloat16
    torch.testing.assert_close(saved["audio.standardize.mean_C"], rows.mean(dim=0).float(), rtol=0, atol=0)
    torch.testing.assert_close(saved["audio.standardize.deviation_C"], rows.std(dim=0, correction=0).float(), rtol=1e-6, atol=0)
    assert rows.mean(dim=0).abs().amax() > 0.1  # or nothing was at stake
    for last in sorted((tmp_path / "run").glob("checkpoint-*"))[1:]:
        shutil.rmtree(last)
    run_recipe(recipe, folder=world, resume=True, progress=False)
    again = load_file(tmp_path / "run" / "patch" / "patch.safetensors")
    assert saved.keys() == again.keys() and all(torch.equal(saved[key], again[key]) for key in saved)


def test_standardize_without_any_feature_is_refused(world, tmp_path):
    rows = [json.loads(line) for line in (world / "train.jsonl").read_text().splitlines()]
    silent = [{**row, "video": str(world / row["video"]), "side_channels": {"audio": None}} for row in rows]
    (tmp_path / "silent.jsonl").write_text("".join(json.dumps(row) + "\n" for row in silent))
    recipe = plan(
        world, tmp_path / "run", f"data.train={tmp_path}/silent.jsonl", "patch.side_channels.audio.fusion.standardize=true"
    )
    with pytest.raises(ValueError, match="'audio': standardize has nothing to measure"):
        run_recipe(recipe, folder=world)
