"""Questions about one video that share its tokens in training: the order of the samples, and whole runs."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from itertools import islice

import pytest
import torch

import pave.data.collator
from pave.data.collator import PatchCollator
from pave.data.dataset import PatchDataset
from pave.data.samples import read_samples
from pave.data.store import FeatureStore, extract, plan_features
from pave.data.store.plan import VISION
from pave.patching import attach_patch
from pave.side_channels import build_encoder
from pave.training import PatchTrainer, TrainingConfig, run_recipe
from pave.training.run import base_vision
from pave.training.sampler import Stage, StagedSampler
from pave.training.sharing import VideoGrouping
from tiny_models import tiny_llava_onevision
from tiny_trainers import Items, base, patch_config
from tiny_training import assert_same, make_world, plan, tensors

VIDEOS = [video for video in range(20) for _ in range(1 + video % 6)]
"""Of 66 samples: videos with one to six questions."""
TYPES = ["odd" if index % 2 else "even" for index in range(len(VIDEOS))]


def order(stages, most=3, batch=6, per_step=12, seed=0, share=True):
    grouping = VideoGrouping(VIDEOS, most, batch) if share else None
    return list(StagedSampler(TYPES, stages, per_step, seed, grouping))


def rows(samples, batch=6, most=3):
    """Rows that the samples become, forward pass by forward pass."""
    passes = [Counter(VIDEOS[i] for i in samples[at : at + batch]) for at in range(0, len(samples), batch)]
    return sum(math.ceil(count / most) for videos in passes for count in videos.values())


def test_every_sample_comes_once_before_any_comes_again_and_videos_stay_together():
    drawn = order([Stage(steps=66)])
    assert len(drawn) == 66 * 12
    for start in range(0, len(drawn), 132):  # two passes in eleven steps
        assert Counter(drawn[start : start + 132]) == dict.fromkeys(range(66), 2)
    fewest = sum(math.ceil(VIDEOS.count(video) / 3) for video in range(20))
    assert rows(drawn) <= 1.05 * 12 * fewest < 0.6 * rows(order([Stage(steps=66)], share=False))
    assert drawn[:132] != drawn[132:264]


def test_full_bundles_fill_forward_passes_without_a_cut():
    videos = [video for video in range(12) for _ in range(6)]
    drawn = list(StagedSampler(["x"] * 72, [Stage(steps=12)], 6, 0, VideoGrouping(videos, 6, 6)))
    passes = [drawn[at : at + 6] for at in range(0, 72, 6)]
    assert all(len({videos[i] for i in samples}) == 1 for samples in passes)
    assert [videos[samples[0]] for samples in passes] != sorted(range(12))


def test_the_order_is_a_function_of_the_arguments():
    stages = [Stage(steps=5, weights={"odd": 1, "even": 2}), Stage(steps=5)]
    sampler = StagedSampler(TYPES, stages, 12, 7, VideoGrouping(VIDEOS, 3, 6))
    assert list(islice(sampler, 20)) == order(stages, seed=7)[:20] and list(sampler) == order(stages, seed=7)
    assert order(stages, seed=7) != order(stages, seed=8)


def test_weighted_stages_draw_as_many_of_every_type_in_every_step_as_without():
    stages = [Stage(steps=30, weights={"odd": 1, "even": 2})]
    shared, plain = order(stages), order(stages, share=False)
    assert Counter(TYPES[i] for i in shared)["even"] == pytest.approx(240, abs=25)
    assert rows(shared) < 0.8 * rows(plain)
    odd = [i for i in shared if TYPES[i] == "odd"][:33]
    assert len(set(odd)) > 28  # bundles are cut at steps, so a pass over a type may end inside one


def test_a_forward_pass_smaller_than_a_bundle_is_refused():
    with pytest.raises(ValueError, match=r"data\.share_videos is 4, but a forward pass has 3 questions"):
        VideoGrouping(VIDEOS, most=4, batch=3)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"))


CHANGES = ("data.share_videos=2", "data.stages=[{steps: 4}]", "training.save_every=null")


def test_a_run_trains_as_with_a_row_for_each_question_from_files_memory_or_stores(world, tmp_path, monkeypatch):
    # Adam makes steps of any size out of the rounding of a gradient that is nearly zero
    changes = [*CHANGES, "patch.lora.dropout=0", "training.trainer={adam_epsilon: 1e-4}"]
    shared = run_recipe(plan(world, tmp_path / "shared", *changes), folder=world, progress=False)
    recipe = plan(
        world, tmp_path / "stored", *changes, f"data.store={tmp_path / 'store'}", "data.vision=store", "data.cache=null"
    )
    store = FeatureStore(tmp_path / "store", create=True)
    samples = [*read_samples(world / "train.jsonl"), *read_samples(world / "eval.jsonl")]
    encoders = {name: build_encoder(channel.encoder) for name, channel in recipe.patch.side_channels.items()}
    extract(
        plan_features(samples, {**encoders, VISION: base_vision(recipe, world / "base")}, store.hashes()), store, processes=0
    )
    run_recipe(recipe, folder=world, progress=False)
    run_recipe(plan(world, tmp_path / "memory", *changes, "data.vision=memory"), folder=world, progress=False)
    run_recipe(plan(world, tmp_path / "decoded", *changes, "data.cache=null"), folder=world, progress=False)
    assert_same(shared.patch, tmp_path / "decoded" / "patch")
    monkeypatch.setattr(pave.data.collator, "in_rows", lambda items, most: [[item] for item in items])
    alone = run_recipe(plan(world, tmp_path / "alone", *changes), folder=world, progress=False)
    expected = tensors(alone.patch)
    for other in (shared.patch, tmp_path / "stored" / "patch", tmp_path / "memory" / "patch"):
        for name, value in tensors(other).items():
            torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=2e-5, msg=f"{other}: {name}")
    assert shared.train_loss == pytest.approx(alone.train_loss, rel=1e-5)
    assert shared.eval_loss == pytest.approx(alone.eval_loss, rel=1e-4)


def test_a_run_resumes_bit_for_bit(world, tmp_path):
    changes = [*CHANGES[:2], "training.save_every=1", "data.eval=null"]
    whole = run_recipe(plan(world, tmp_path / "whole", *changes), folder=world, progress=False)
    (tmp_path / "again").mkdir()
    (tmp_path / "whole" / "checkpoint-2").rename(tmp_path / "again" / "checkpoint-2")
    run_recipe(plan(world, tmp_path / "again", *changes), folder=world, resume=True, progress=False)
    assert_same(whole.patch, tmp_path / "again" / "patch")


TASKS = (
    "data.train=null",
    "data.eval=null",
    "data.stages=[{steps: 4}, {steps: 4, tasks: {quiet: 1, both: 1}, weights: {silent: 1}}]",
    "data.tasks={both: {train: train.jsonl, eval: eval.jsonl, weight: 2}, quiet: {train: train.jsonl, channels: []}}",
    "data.share_videos=2",
    "patch.missing_channel=lora_only",
)


def test_tasks_that_share_videos_train_as_alone_and_resume_within_a_pass(world, tmp_path, monkeypatch):
    """Two tasks have the same videos, one of them without their sound; workers decode; the resumed run begins within a pass."""
    changes = [*TASKS, "training.save_every=3", "patch.lora.dropout=0.1"]
    whole = run_recipe(plan(world, tmp_path / "whole", *changes), folder=world, progress=False)
    (tmp_path / "again").mkdir()
    (tmp_path / "whole" / "checkpoint-3").rename(tmp_path / "again" / "checkpoint-3")
    again = plan(world, tmp_path / "again", *changes, "training.workers=1")
    run_recipe(again, folder=world, resume=True, progress=False)
    assert_same(whole.patch, tmp_path / "again" / "patch")
    changes = [*TASKS, "training.save_every=null", "patch.lora.dropout=0", "training.trainer={adam_epsilon: 1e-4}"]
    rows = []
    in_rows = pave.data.collator.in_rows
    monkeypatch.setattr(pave.data.collator, "in_rows", lambda *args: rows.append(in_rows(*args)) or rows[-1])
    shared = run_recipe(plan(world, tmp_path / "shared", *changes), folder=world, progress=False)
    together = [row for made in rows for row in made if len(row) == 2]
    assert any(len({item.id.split("/")[0] for item in row}) == 1 for row in together)
    assert all(len({(item.source, item.side["audio"] is None) for item in row}) == 1 for row in together)
    monkeypatch.setattr(pave.data.collator, "in_rows", lambda items, most: [[item] for item in items])
    alone = run_recipe(plan(world, tmp_path / "alone", *changes), folder=world, progress=False)
    expected = tensors(alone.patch)
    for name, value in tensors(shared.patch).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=2e-5, msg=name)
    assert shared.eval_losses == pytest.approx(alone.eval_losses, rel=1e-4)


def test_the_video_of_a_forward_pass_is_read_once(world, monkeypatch, tmp_path):
    recipe = plan(world, tmp_path)
    channels = recipe.patch.side_channels
    encoders = {name: build_encoder(channel.encoder) for name, channel in channels.items()}
    data = PatchDataset(read_samples(world / "train.jsonl"), recipe.data.frames, encoders, channels)
    decoded = []
    original = data._decode
    monkeypatch.setattr(data, "_decode", lambda sample: decoded.append(sample.video) or original(sample))
    items = data.__getitems__([2, 0, 1, 3])
    assert [item.id for item in items] == ["s1", "s0", "v0", "v1"] and len(decoded) == 2
    assert items[1].source == items[2].source != items[0].source


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        (["data.share_videos=1"], "share_videos must be at least 2 or null, got 1"),
        (
            ["data.share_videos=2", "training.channel_dropout=0.5", "patch.missing_channel=lora_only"],
            "draws for every question whether a channel is taken away",
        ),
        (["data.share_videos=2", "training.length_grouping=1"], "both say which samples stand in one forward pass"),
        (
            [*TASKS, "data.mixing.batches=per_task"],
            "data.mixing.batches 'per_task' keeps tasks apart; give only one",
        ),
        (
            ["data.share_videos=2", "patch.side_channels.audio.fusion.gate=true"],
            "the gate of channel 'audio' reads the question",
        ),
        (
            ["data.share_videos=2", "patch.newline=grid", "patch.missing_channel=lora_only"],
            "newline 'grid' lengthens the prompt",
        ),
    ],
)
def test_what_cannot_be_shared_is_refused_by_the_recipe(world, tmp_path, changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        plan(world, tmp_path, *changes)


def test_a_trainer_of_ones_own_refuses_channel_dropout_for_shared_videos(tmp_path):
    model, processor = base(tiny_llava_onevision)
    attach_patch(model, dataclasses.replace(patch_config(), missing_channel="lora_only"))
    collator = PatchCollator(processor, model.config, model.patch_config.side_channels, share_videos=2)
    args = TrainingConfig().arguments(str(tmp_path), 1)
    with pytest.raises(ValueError, match=r"training\.channel_dropout draws for every question.*data\.share_videos"):
        PatchTrainer(model, args, data_collator=collator, train_dataset=Items(), channel_dropout=0.5)
