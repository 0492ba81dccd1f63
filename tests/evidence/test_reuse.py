"""What is in a folder already: runs and data that would be made otherwise now are refused, and so is company."""

import json

import pytest
import yaml

from evidence import execution
from evidence.bases import report_of
from evidence.contents import SECTIONS
from evidence.execution import execute, execute_all
from evidence.features import fill_store
from evidence.page import reproduce
from evidence.plan import SHORT
from evidence.reuse import check_runs, earlier_sections, note_page
from evidence.runs import AS_IT_IS, RESULT, TRAINED, Run, recipe_of
from evidence.worlds import WORLDS, check_world, write_world
from evidence_files import leave
from pave.demo.plan import video_only_patch
from pave.evaluation.inference import VideoQA
from pave.training import checkpoints
from pave.training.resuming import RECIPE_FILE


def trained(run, root, change=lambda values: None):
    """The files of a run's training, its recipe changed."""
    folder = run.folder(root)
    folder.mkdir(parents=True, exist_ok=True)
    values = recipe_of(run, root / "data", folder, root / "features").to_dict()
    change(values)
    (folder / RECIPE_FILE).write_text(yaml.safe_dump(json.loads(json.dumps(values))))
    (folder / TRAINED).write_text("{}")


def test_a_run_that_would_be_trained_otherwise_now_is_refused(tmp_path):
    run = Run("audio", "x", WORLDS["audio"].patch())
    check_runs([run, Run("audio", "base", None)], tmp_path)
    trained(run, tmp_path)
    check_runs([run], tmp_path / "elsewhere")
    check_runs([run, Run("audio", "base", None)], tmp_path)  # where it lies and what feeds it is no part of how it was trained

    def store(values):
        values["data"].update(store=None, vision="memory", train="/another/train.jsonl")

    def rate(values):
        values["training"]["lora_learning_rate"] = 0.5

    def share(values):
        values["data"]["stages"][0]["weights"]["sound"] = 9.0

    def layers(values):
        values["patch"]["side_channels"]["audio"]["fusion"]["num_layers"] = 7

    def frames(values):
        values["data"]["frames"]["num_frames"] = 4

    trained(run, tmp_path, store)
    check_runs([run], tmp_path)
    for change, message in (
        (rate, r"training\.lora_learning_rate 0\.5, now it would be 0\.0015; remove that folder"),
        (share, r"data\.stages \[.*9\.0"),
        (layers, r"patch\.side_channels\.audio\.fusion\.num_layers 7, now it would be 2"),
        (frames, r"data\.frames\.num_frames 4, now it would be 8"),
    ):
        trained(run, tmp_path, change)
        with pytest.raises(ValueError, match=message):
            check_runs([run], tmp_path)
    (run.folder(tmp_path) / TRAINED).unlink()  # not finished: it is made anew anyway
    check_runs([run], tmp_path)


@pytest.mark.parametrize("name", ["audio", "sensor"])
def test_data_of_another_version_are_refused(tmp_path, name):
    write_world(name, tmp_path, 2, 1)
    check_world(name, tmp_path, 2, 1)
    for file in ("test.jsonl", "train.jsonl", "manifest-train.json"):
        before = (tmp_path / file).read_text()
        (tmp_path / file).write_text(before.replace("0", "1", 1))
        with pytest.raises(ValueError, match=f"{file} is not what this version of pave writes"):
            check_world(name, tmp_path, 2, 1)
        (tmp_path / file).write_text(before)
    (tmp_path / "test.jsonl").unlink()
    with pytest.raises(ValueError, match="test.jsonl is not what"):
        check_world(name, tmp_path, 2, 1)


def test_a_reproduction_is_alone_in_its_folder_and_needs_a_process(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "PATIENCE", 0.01)
    with checkpoints.held(tmp_path), pytest.raises(ValueError, match="another run is writing into this folder"):
        reproduce(tmp_path, ["cost"], "short")
    with pytest.raises(ValueError, match="processes must be at least 1, got 0"):
        reproduce(tmp_path, ["cost"], "short", processes=0)
    assert "What it costs" in reproduce(tmp_path, ["cost"], "short").read_text()


def test_sections_that_were_made_stay_on_the_page(tmp_path, caplog):
    note_page(tmp_path, "short", ["cost", "time"], ())
    assert earlier_sections(tmp_path, SHORT, "short") == ["cost"] and earlier_sections(tmp_path, SHORT, "full") == []
    assert "the section time does not stay on the page: some of its runs are not there" in caplog.text
    for world in ("audio", "sensor"):
        write_world(world, SHORT.data(world, tmp_path), SHORT.train_clips, SHORT.test_clips)
        (SHORT.data(world, tmp_path) / "complete").touch()
    runs = SECTIONS["time"].runs(SHORT)
    for run in runs:
        suffix = "".join(f"-{key}={value}" for key, value in run.asked_with.items())
        for change in (AS_IT_IS, *run.counterfactuals):
            leave(run, tmp_path, {kind: [1, 0] for kind in WORLDS[run.world].own}, change + suffix)
        (run.folder(tmp_path) / RESULT).write_text("{}")
        for answered in run.folder(tmp_path).glob("*.jsonl"):
            answered.with_suffix(".done").touch()
    text = reproduce(tmp_path, ["cost"], "short").read_text()
    assert "Made by `python -m evidence time cost --size short`" in text and "![Accuracy by timestamps" in text
    assert (
        "with the same `--out`, adds them" in text
        and "`time`" not in text.partition("## What is not here")[2].partition(".")[0]
    )
    questions = SHORT.data("sensor", tmp_path) / "test.jsonl"
    before = questions.read_text()
    questions.write_text(before.replace("0", "1", 1))
    assert earlier_sections(tmp_path, SHORT, "short") == ["cost"] and "test.jsonl is not what this version" in caplog.text
    questions.write_text(before)
    assert earlier_sections(tmp_path, SHORT, "short") == ["time", "cost"]
    assert earlier_sections(tmp_path, SHORT, "short", ["time"]) == ["cost"]
    trained(runs[0], tmp_path, lambda values: values["training"].update(lora_learning_rate=0.5))
    assert earlier_sections(tmp_path, SHORT, "short") == ["cost"]
    assert "the section time does not stay on the page: " in caplog.text and "lora_learning_rate 0.5" in caplog.text


def test_a_broken_file_is_named(tmp_path):
    run = Run("audio", "x", video_only_patch())
    run.folder(tmp_path).mkdir(parents=True)
    (run.folder(tmp_path) / RESULT).write_text('{"run": ')
    with pytest.raises(ValueError, match=r"result\.json: not JSON: .*; remove it"):
        run.facts(tmp_path)
    (tmp_path / "bases" / "small").mkdir(parents=True)
    (tmp_path / "bases" / "small" / "accuracy.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"accuracy\.json: not JSON"):
        report_of("small", tmp_path)


def test_a_question_that_cannot_be_asked_is_no_wrong_answer(tmp_path, monkeypatch):
    """A run with such a question fails, and asks it again the next time."""
    write_world("sensor", tmp_path / "data", 1, 1)
    run = Run("sensor", "base alone", None, steps=0)
    fill_store([run], {"sensor": tmp_path / "data"}, tmp_path, processes=0)
    ask = VideoQA.answer_samples
    with monkeypatch.context() as patched:
        patched.setattr(VideoQA, "answer_samples", lambda *a, **k: [ValueError("a broken file"), *ask(*a, **k)[1:]])
        with pytest.raises(ValueError, match=r"1 of the questions could not be asked, the first test-00000-\d: a broken file"):
            execute(run, tmp_path / "data", tmp_path)
    assert not (run.folder(tmp_path) / RESULT).exists()
    execute(run, tmp_path / "data", tmp_path)
    assert (run.folder(tmp_path) / RESULT).exists() and all(p.prediction for p in run.answers(tmp_path))


def test_a_setting_that_is_none_is_not_set():
    from cases import CASES, patched, small_config

    slot = execution.patch_slot(patched(CASES["llava_onevision"], small_config())[0])
    execution.change_settings(slot, {"empty_frames": "nearest", "missing_channel": "lora_only"})
    assert slot.config.missing_channel == "lora_only"
    assert {fusion.empty_frames for fusion in slot.fusions.values()} == {"nearest"}
    with pytest.raises(ValueError, match="the fusion has no setting 'empty_frame'"):
        execution.change_settings(slot, {"empty_frame": "nearest"})


@pytest.mark.slow
def test_a_clip_that_is_gone_is_named_and_its_run_is_not_finished(tmp_path):
    run = Run("audio", "x", video_only_patch())
    world = WORLDS["audio"]
    write_world(world.name, tmp_path / "data", 1, 1)
    samples = tmp_path / "data" / "test.jsonl"
    samples.write_text(samples.read_text().replace("test/00000.mp4", "test/00009.mp4"))
    with pytest.raises(RuntimeError, match="00009.mp4"):
        execute_all([run], {"audio": tmp_path / "data"}, tmp_path, 1)
    assert not run.finished(tmp_path)
