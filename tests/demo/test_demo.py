"""The demo in its short form on the embedded base, and the parts that decide what it compares."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest
import torch

from pave.data.samples import read_samples
from pave.demo import run_demo
from pave.demo.plan import FULL, MIXTURE, SHORT, SILENT, SOUND, audio_patch, recipe, video_only_patch
from pave.demo.story import BASE, PATCH, VIDEO_ONLY, pooled
from pave.demo.workers import run_side_by_side
from pave.evaluation.predictions import Prediction
from pave.evaluation.result import rescore, score_predictions
from pave.patching import read_record
from pave.training.recipe import read_recipe


def made(patch, plan=FULL):
    return recipe(patch, plan, base="base", train="train.jsonl", output="out", seed=3)


def test_both_patches_have_one_budget_and_differ_in_the_side_channel_alone():
    ours, other = made(audio_patch()), made(video_only_patch())
    assert other == dataclasses.replace(ours, patch=dataclasses.replace(ours.patch, side_channels={}))
    assert set(MIXTURE) == {*SILENT, *SOUND}
    assert [stage.steps for stage in ours.data.stages] == [FULL.steps]


def test_the_recipe_of_the_playground_is_that_of_the_demo():
    written = read_recipe(Path(__file__).parents[2] / "recipes" / "playground_audio.yaml")
    ours = made(audio_patch())
    assert (written.patch, written.data.frames, written.data.stages) == (ours.patch, ours.data.frames, ours.data.stages)
    assert dataclasses.replace(written.training, seed=3) == ours.training


@pytest.mark.slow
def test_the_short_demo_runs_from_rendering_to_the_report(tmp_path):
    result = run_demo(tmp_path, short=True, seed=1)
    samples = list(read_samples(tmp_path / "data-short" / "test.jsonl"))
    assert len(samples) == SHORT.test_clips * len([*SILENT, *SOUND])
    for name, file in ((BASE, "base"), (VIDEO_ONLY, "video-only"), (PATCH, "patch")):
        again = rescore(tmp_path / f"{file}.jsonl", seed=1)
        assert [p.id for p in again.predictions] == [s.id for s in samples] and not again.failures
        assert again.overall == result.results[name].overall
        assert [p.references for p in again.predictions] == [(s.turns[-1][1],) for s in samples]
    assert read_record(result.patch).patch == audio_patch()
    assert read_record(result.patch).provenance["recipe"]["training"]["seed"] == 1
    trained, heard = (rescore(tmp_path / f, seed=1).settings["patch_weights"] for f in ("base.jsonl", "patch.jsonl"))
    assert trained is None and heard is not None
    page = result.report.read_text()
    assert result.asked["question"] in page and "where each frame looks" in page and "<script" not in page
    written = json.loads((tmp_path / "result.json").read_text())
    assert written["findings"]["sound_gain"] == pytest.approx(result.findings()["sound_gain"])
    assert str(result.report) in str(result) and "audio patch" in str(result)
    # a second run keeps the clips and replaces the rest
    before = (tmp_path / "data-short" / "clips" / "test" / "00000.mp4").stat().st_mtime_ns
    assert run_demo(tmp_path, short=True, seed=1).findings() == result.findings()
    assert (tmp_path / "data-short" / "clips" / "test" / "00000.mp4").stat().st_mtime_ns == before


def test_pooling_takes_the_named_types_only():
    rows = [
        Prediction(id=str(i), type=kind, video=f"v{i}", question="q", references=("a",), prediction="a" if right else "b")
        for i, (kind, right) in enumerate([("sound", True), ("sound", False), ("sound_vision", True), ("colour", False)])
    ]
    found = pooled(score_predictions(rows), SOUND)
    assert found["accuracy"] == pytest.approx(2 / 3) and found["low"] < 2 / 3 < found["high"]


def _succeed(*, path, tell):
    tell(1, 2)
    path.write_text(str(torch.get_num_threads()))


def _fail(*, tell):
    raise ValueError("no such clip")


def _die(*, tell):
    os._exit(7)


def test_jobs_run_in_their_own_processes_with_one_thread(tmp_path):
    run_side_by_side({"a": (_succeed, {"path": tmp_path / "a"}), "b": (_succeed, {"path": tmp_path / "b"})})
    assert (tmp_path / "a").read_text() == (tmp_path / "b").read_text() == "1"


@pytest.mark.parametrize(
    ("job", "message"), [(_fail, "b: ValueError: no such clip"), (_die, "b: its process was ended from outside")]
)
def test_a_job_that_fails_or_dies_is_named(job, message, tmp_path):
    with pytest.raises(RuntimeError, match=message):
        run_side_by_side({"a": (_succeed, {"path": tmp_path / "a"}), "b": (job, {})})
