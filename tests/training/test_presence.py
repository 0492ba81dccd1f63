"""A run that can learn nothing does not begin, or stops when it shows."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pave.data.media import write_video
from pave.training import NoGradientError, run_recipe
from pave.training.callbacks import MOST_IDLE_STEPS
from pave.training.dry_run import dry_run
from tiny_models import SIDE
from tiny_trainers import Items, build, patch_config
from tiny_training import make_world, plan

SHORT = ("data.stages=[]", "data.eval=null", "training.steps=2", "training.save_every=null")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """With ``silent.jsonl``, whose videos have no sound, and ``one.jsonl``, where the last of them has."""
    folder = make_world(tmp_path_factory.mktemp("world"))
    rows = []
    for number in range(4):
        frames = np.random.default_rng(number).integers(0, 256, (8, SIDE, SIDE, 3), dtype=np.uint8)
        write_video(folder / f"silent{number}.mp4", frames, fps=8)
        rows.append({"id": str(number), "video": f"silent{number}.mp4", "question": "what sound is heard?", "answer": "bell"})
    (folder / "silent.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "one.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in [*rows, {**rows[0], "id": "4", "video": "0.mp4"}])
    )
    return folder


NEVER = r"no training sample has the side channel 'audio' \(of 4 videos looked at\), so its fusion can learn nothing"


@pytest.mark.parametrize("missing_channel", ["base", "lora_only"])
def test_a_channel_that_no_sample_has_is_refused_before_the_first_step(world, tmp_path, missing_channel):
    changes = [*SHORT, "data.train=silent.jsonl", f"patch.missing_channel={missing_channel}"]
    with pytest.raises(ValueError, match=NEVER):
        run_recipe(plan(world, tmp_path / "run", *changes), folder=world, progress=False)
    assert not (tmp_path / "run" / "patch").exists()
    found = dry_run(plan(world, tmp_path / "run", *changes), world).missing
    assert len(found) == 1 and found[0].startswith("no sample has side channel 'audio': no video has sound")


def test_one_sample_with_the_channel_is_enough_and_a_frozen_fusion_needs_none(world, tmp_path):
    recipe = plan(world, tmp_path / "one", *SHORT, "data.train=one.jsonl", "training.batch_size=5", "training.accumulation=1")
    assert run_recipe(recipe, folder=world, progress=False).steps == 2
    assert dry_run(recipe, world).missing == []
    frozen = [*SHORT, "data.train=silent.jsonl", "patch.missing_channel=lora_only", "training.train=[lora]"]
    assert run_recipe(plan(world, tmp_path / "frozen", *frozen), folder=world, progress=False).steps == 2
    assert dry_run(plan(world, tmp_path / "other", *frozen), world).missing == []


def test_a_run_stops_when_nothing_has_had_a_gradient_for_two_passes(tmp_path):
    """With few samples the limit is MOST_IDLE_STEPS, with many two passes over them."""
    few = build(tmp_path / "few", dataset=Items(4, missing=range(4)), steps=100)
    with pytest.raises(
        NoGradientError, match=f"step {MOST_IDLE_STEPS}: nothing of the patch had a gradient in the last 20 steps"
    ):
        few.train()
    many = build(tmp_path / "many", dataset=Items(48, missing=range(48)), steps=100, batch_size=2)
    with pytest.raises(NoGradientError, match="step 48: nothing of the patch had a gradient in the last 48 steps"):
        many.train()


def test_a_short_run_without_any_gradient_is_no_success(tmp_path):
    with pytest.raises(NoGradientError, match="nothing of the patch had a gradient in any step, so nothing is learnt"):
        build(tmp_path, dataset=Items(4, missing=range(4)), steps=2).train()


def test_steps_without_the_channel_between_others_are_no_reason_to_stop(tmp_path):
    """One sample of 24 has the channel; and under lora_only the rows without it train LoRA."""
    rare = build(tmp_path / "rare", dataset=Items(24, missing=range(1, 24)), steps=60, batch_size=1)
    rare.train()
    assert rare.state.global_step == 60
    config = patch_config(missing_channel="lora_only")
    build(tmp_path / "lora", config=config, dataset=Items(4, missing=range(4)), steps=3).train()
