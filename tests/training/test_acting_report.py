"""A sensor whose milliseconds are read as seconds: the dry run refuses it, training says it once, a question and an evaluation say it."""

from __future__ import annotations

import json

import pytest

from pave.data.samples import read_samples
from pave.evaluation.inference import VideoQA
from pave.evaluation.runner import evaluate
from pave.training import acting_report
from pave.training.dry_run import dry_run
from pave.training.run import run_recipe
from tiny_training import make_world, plan

CHANNELS = (
    "patch.side_channels={imu: {kind: sensor, width: 7, encoder: {name: sensor_windows, settings: {columns: [x], window_seconds: 0.25}}, "
    "fusion: {width: 16, embed_width: 16, num_heads: 2}}}"
)
SHORT = ("data.stages=[]", "data.eval=null", "training.save_every=null", "training.steps=8", "training.batch_size=3")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = make_world(tmp_path_factory.mktemp("world"))
    for name, factor in (("seconds", 1), ("milliseconds", 1000)):
        rows = [f"{0.05 * i * factor},{i % 3}" for i in range(1, 20)]
        (folder / f"{name}.csv").write_text("\n".join(["time,x", *rows]) + "\n")
    return folder


def write(world, name, logs):
    rows = [json.loads(line) for line in (world / "train.jsonl").read_text().splitlines()]
    rows = [{**row, "side_channels": {"imu": f"{log}.csv"}} for row, log in zip(rows, logs, strict=True)]
    (world / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"data.train={name}.jsonl"


def warnings(caplog):
    found = [
        record.getMessage() for record in caplog.records if record.levelname == "WARNING" and "can act" in record.getMessage()
    ]
    caplog.clear()
    return found


@pytest.mark.parametrize(
    ("logs", "words", "missing"),
    [
        (["milliseconds"] * 12, "in 12 of 12 samples looked at so far that have it, nothing of it can act ('s0' 0 %", True),
        (
            ["seconds"] * 9 + ["milliseconds"] * 3,
            "in 3 of 12 samples looked at so far that have it, nothing of it can act ('s5' 0 %",
            False,
        ),
        (["seconds"] * 12, None, False),
    ],
)
def test_a_dry_run_and_a_training_say_it(world, tmp_path, caplog, logs, words, missing):
    recipe = plan(world, tmp_path / "run", CHANNELS, *SHORT, write(world, tmp_path.name, logs))
    found = dry_run(recipe, world)
    said = [text for text in (found.missing if missing else found.notes) if "can act" in text]
    assert len(said) == (words is not None)
    assert all("milliseconds read as seconds" in text for text in said)
    assert not missing or found.missing == said
    result = run_recipe(recipe, folder=world, progress=False)
    told = warnings(caplog)
    assert result.steps == 8 and len(told) == (words is not None)
    assert words is None or (words in told[0] and "milliseconds read as seconds" in told[0])


def test_training_says_it_as_soon_as_enough_was_seen_and_never_again(world, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(acting_report, "MOST_LOOKED_AT", 5)
    recipe = plan(world, tmp_path / "run", CHANNELS, *SHORT, write(world, "all", ["milliseconds"] * 12))
    run_recipe(recipe, folder=world, progress=False)
    (told,) = warnings(caplog)
    assert "in 6 of 6 samples looked at so far" in told


def test_questions_that_share_a_video_are_told_by_the_first_of_their_row(world, tmp_path, caplog):
    sharing = ("data.share_videos=2", "patch.lora.dropout=0", "training.batch_size=4")
    recipe = plan(world, tmp_path / "run", CHANNELS, *SHORT[:-1], *sharing, write(world, "shared", ["milliseconds"] * 12))
    run_recipe(recipe, folder=world, progress=False)
    (told,) = warnings(caplog)
    assert "in 6 of 6 samples looked at so far that have it, nothing" in told  # one for each of the six videos


def test_a_question_and_an_evaluation_say_it(world, tmp_path, caplog):
    name = write(world, "mixed", ["seconds"] * 9 + ["milliseconds"] * 3)
    patch = run_recipe(plan(world, tmp_path / "run", CHANNELS, *SHORT, name), folder=world, progress=False).patch
    qa = VideoQA.from_pretrained(world / "base", patch, device="cpu")
    caplog.clear()
    video = world / "0.mp4"
    good = qa.ask(video, "which object?", side_channels={"imu": world / "seconds.csv"}, max_new_tokens=2)
    assert good.side_channels["imu"].acting == 1 and warnings(caplog) == []
    bad = qa.ask(video, "which object?", side_channels={"imu": world / "milliseconds.csv"}, max_new_tokens=2)
    (told,) = warnings(caplog)
    assert bad.side_channels["imu"].acting == 0
    assert f"{video}: side channel 'imu', 19 steps from 50.12 to 950.12 s, of which 0 % can act: 19 lie outside" in told
    warnings(caplog)
    evaluate(qa, read_samples(world / "mixed.jsonl"), max_new_tokens=2, progress=False)
    (told,) = warnings(caplog)
    assert "in 3 of 12 samples that have it, nothing of it can act ('s5' 0 %, 'v4' 0 %, 'v5' 0 %)" in told
