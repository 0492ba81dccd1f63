"""Ctrl-C in a run: the step is finished and saved, and what goes on from there is the undisturbed run."""

from __future__ import annotations

import signal

import pytest
import transformers

from pave.cli import main
from pave.training import TrainingInterrupted, last_checkpoint, run_recipe
from tiny_training import assert_same, make_world, plan

CHANGES = ("training.save_every=null", "patch.side_channels.audio.fusion.dropout=0.2", "data.eval=null")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"))


class PressCtrlC(transformers.TrainerCallback):
    """In the middle of some step, so many times."""

    def __init__(self, step, times=1):
        self.step, self.times = step, times

    def on_substep_end(self, args, state, control, **kwargs):
        if state.global_step + 1 == self.step:
            for _ in range(self.times):
                signal.raise_signal(signal.SIGINT)


@pytest.fixture(autouse=True)
def _as_in_a_foreground_shell():
    """A shell starts what runs in its background with SIGINT ignored, and then nothing below is about Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def run(world, output, *callbacks, resume=False, changes=CHANGES):
    return run_recipe(plan(world, output, *changes), folder=world, progress=False, callbacks=callbacks, resume=resume)


def test_the_step_is_finished_and_saved_and_the_run_goes_on_bit_for_bit(world, tmp_path):
    whole = run(world, tmp_path / "whole")
    with pytest.raises(
        TrainingInterrupted, match=r"interrupted; .*run/checkpoint-3 is whole, and the run can be resumed from it"
    ):
        run(world, tmp_path / "run", PressCtrlC(3))
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-3"]
    assert not (tmp_path / "run" / "patch").exists()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    again = run(world, tmp_path / "run", resume=True)
    assert_same(whole.patch, again.patch)


def test_pressed_twice_it_ends_at_once_and_names_the_checkpoint_before(world, tmp_path):
    changes = ("training.save_every=2", *CHANGES[1:])
    with pytest.raises(TrainingInterrupted, match=r"checkpoint-2 is whole"):
        run(world, tmp_path / "run", PressCtrlC(4, times=2), changes=changes)
    assert last_checkpoint(tmp_path / "run").name == "checkpoint-2"
    with pytest.raises(TrainingInterrupted, match=r"interrupted; there is no checkpoint"):
        run(world, tmp_path / "other", PressCtrlC(1, times=2))


def test_in_the_last_step_there_is_nothing_left_to_stop(world, tmp_path):
    assert run(world, tmp_path / "run", PressCtrlC(5)).steps == 5


def test_who_has_a_handler_keeps_it(world, tmp_path):
    seen = []
    before = signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
    try:
        assert run(world, tmp_path / "run", PressCtrlC(2)).steps == 5
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen == [signal.SIGINT]


def test_the_command_says_how_to_go_on(world, tmp_path, capsys, monkeypatch):
    from pave.training import run as module

    press, real = PressCtrlC(2), module.run_recipe
    monkeypatch.setattr(module, "run_recipe", lambda *args, **more: real(*args, callbacks=[press], **more))
    words = [str(world / "recipe.yaml"), f"output={tmp_path / 'run it'}", *CHANGES]
    assert main(["train", *words]) == 130
    out, err = capsys.readouterr()
    said = err.splitlines()[-1]
    checkpoint = f"{tmp_path / 'run it'}/checkpoint-2 is whole, and the run can be resumed from it"
    overrides = f"'output={tmp_path / 'run it'}' {' '.join(CHANGES)}"
    assert out == "" and "Traceback" not in err
    assert said == f"pave: interrupted; {checkpoint}: pave train {world / 'recipe.yaml'} {overrides} --resume"
    press.step = 0
    assert main(["train", *words, "--resume"]) == 0
