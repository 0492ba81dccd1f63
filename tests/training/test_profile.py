"""Where the time of a step goes: the parts add up to the step, each is charged to what it is, and nothing stays behind."""

from __future__ import annotations

import json
import time

import pytest

from pave.cli import main
from pave.training import run_recipe
from pave.training.profile import PARTS, PROFILE_FILE, PartClock, StepProfile
from tiny_training import assert_same, make_world, plan


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"))


def test_every_moment_is_charged_to_the_innermost_part():
    at = iter([0.0, 1.0, 3.0, 6.0, 10.0, 15.0, 21.0, 28.0, 30.0, 31.0, 35.0])
    clock = PartClock(lambda: next(at))
    with clock.part("forward"), clock.part("fusion"):  # from 1 to 10, from 3 to 6
        pass
    with clock.part("saving"), clock.part("forward"):  # from 15 to 31: all that is inside of saving is saving
        total, parts = clock.cut()  # at 28
    assert total == 28.0
    assert {k: v for k, v in parts.items() if v} == {"other": 6.0, "forward": 6.0, "fusion": 3.0, "saving": 13.0}
    total, parts = clock.cut()
    assert total == 7.0 and {k: v for k, v in parts.items() if v} == {"saving": 3.0, "other": 4.0}


class Checked(StepProfile):
    """Counts the time of each step by itself as well."""

    def attach(self, trainer):
        super().attach(trainer)
        self.trainer = trainer
        self.marks = []

    def _next_step(self):
        self.marks.append(time.perf_counter())
        super()._next_step()
        self.marks.append(time.perf_counter())


def test_the_parts_of_a_run_add_up_to_its_steps_and_leave_nothing_behind(world, tmp_path):
    changes = ["training.eval_every=2", "training.save_every=2", "data.cache=null"]
    run_recipe(plan(world, tmp_path / "plain", *changes), folder=world, progress=False)
    profile = Checked(steps=3)
    result = run_recipe(plan(world, tmp_path / "timed", *changes), folder=world, progress=False, profile=profile)
    assert len(profile.taken) == 4 and len(profile.marks) == 10
    for number, (seconds, parts) in enumerate(profile.taken):
        assert sum(parts.values()) == pytest.approx(seconds, rel=1e-6)
        before, after = profile.marks[2 * number], profile.marks[2 * number + 3]
        inside = profile.marks[2 * number + 2] - profile.marks[2 * number + 1]
        assert inside <= seconds <= after - before
        assert all(value >= 0 for value in parts.values())
        used = {part for part, value in parts.items() if value}
        assert used - {"saving", "evaluation"} == set(PARTS) - {"saving", "evaluation"}
        assert ("saving" in used) == ("evaluation" in used) == (number in (1, 3))
    report = json.loads((tmp_path / "timed" / PROFILE_FILE).read_text())
    assert report == profile.report() and report["steps"] == 3
    timed = sum(seconds for seconds, _ in profile.taken[1:])
    assert report["seconds_per_step"] == pytest.approx(timed / 3)
    assert report["samples_per_second"] == pytest.approx(3 * 4 / timed)
    assert sum(report["seconds"].values()) == pytest.approx(report["seconds_per_step"], rel=1e-6)
    assert sum(report["shares"].values()) == pytest.approx(1, rel=1e-6)
    assert_same(tmp_path / "plain" / "patch", tmp_path / "timed" / "patch")  # also that timers change nothing
    model, trainer = result.model, profile.trainer
    for owner in (model, model.base_model, trainer, trainer.train_dataset, trainer.accelerator):
        left = [name for name, value in vars(owner).items() if getattr(value, "__name__", "") == "timed"]
        assert not left
    assert not any(module._forward_pre_hooks for module in (model.get_decoder(), model.get_output_embeddings()))


def test_a_run_shorter_than_the_profile_is_reported_whole_and_workers_are_waited_for(world, tmp_path):
    profile = StepProfile(steps=50)
    changes = ["training.workers=1", "data.stages=[{steps: 2}]", "data.eval=null", "training.save_every=null"]
    run_recipe(plan(world, tmp_path / "run", *changes), folder=world, progress=False, profile=profile)
    assert len(profile.taken) == 2 and profile.report()["steps"] == 1
    assert profile.report()["seconds"]["waiting"] > 0
    assert not any(profile.report()["seconds"][part] for part in ("decode", "side_features", "collate"))


def test_the_command_prints_a_table_and_json(world, tmp_path, capsys):
    changes = [f"output={tmp_path / 'run'}", "data.stages=[{steps: 2}]", "data.eval=null", "training.save_every=null"]
    command = ["train", str(world / "recipe.yaml"), *changes, "--profile", "--profile-steps", "1", "--json"]
    assert main(command) == 0
    printed = capsys.readouterr()
    profile = json.loads(printed.out)["profile"]
    assert profile == json.loads((tmp_path / "run" / PROFILE_FILE).read_text())
    assert "forward: language model" in printed.err and "backward" in printed.err
    with pytest.raises(ValueError, match="at least 1, got 0"):
        StepProfile(0)
