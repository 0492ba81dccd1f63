"""What is in a folder already: runs and data that would be made otherwise now are refused, and so is company."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from evidence_files import dies, leave
from pave.evaluation.inference import VideoQA
from pave.evidence import runs as making
from pave.evidence.bases import report_of
from pave.evidence.document import reproduce
from pave.evidence.kept import check_runs, earlier_sections, note_page
from pave.evidence.processes import one_thread_no_gpu, side_by_side
from pave.evidence.runs import AS_IT_IS, RESULT, TRAINED, Run, answers, execute, facts_of, recipe_of
from pave.evidence.sections import SECTIONS, SHORT
from pave.evidence.sections.common import data_folder, video_only
from pave.evidence.stored import fill_store
from pave.evidence.worlds import WORLDS, check_world, write_world
from pave.training import checkpoints
from pave.training.arguments import TrainingConfig, uses_accelerator
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
        write_world(world, data_folder(world, tmp_path, SHORT), SHORT.train_clips, SHORT.test_clips)
        (data_folder(world, tmp_path, SHORT) / "complete").touch()
    runs = SECTIONS["time"].runs(SHORT)
    for run in runs:
        suffix = "".join(f"-{key}={value}" for key, value in run.asked_with.items())
        for change in (AS_IT_IS, *run.counterfactuals):
            leave(run, tmp_path, {kind: [1, 0] for kind in WORLDS[run.world].own}, change + suffix)
        (run.folder(tmp_path) / RESULT).write_text("{}")
        for answered in run.folder(tmp_path).glob("*.jsonl"):
            answered.with_suffix(".done").touch()
    text = reproduce(tmp_path, ["cost"], "short").read_text()
    assert "Made by `pave reproduce time cost --size short`" in text and "![Accuracy by timestamps" in text
    assert (
        "with the same `--out`, adds them" in text
        and "`time`" not in text.partition("## What is not here")[2].partition(".")[0]
    )
    questions = data_folder("sensor", tmp_path, SHORT) / "test.jsonl"
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
    run = Run("audio", "x", video_only())
    run.folder(tmp_path).mkdir(parents=True)
    (run.folder(tmp_path) / RESULT).write_text('{"run": ')
    with pytest.raises(ValueError, match=r"result\.json: not valid JSON; remove it"):
        facts_of(run, tmp_path)
    (tmp_path / "bases" / "small").mkdir(parents=True)
    (tmp_path / "bases" / "small" / "accuracy.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"accuracy\.json: not valid JSON"):
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
    assert (run.folder(tmp_path) / RESULT).exists() and all(p.prediction for p in answers(run, tmp_path))


def test_a_setting_that_is_none_is_not_set():
    from cases import CASES, patched, small_config

    slot = making.patch_slot(patched(CASES["llava_onevision"], small_config())[0])
    making._set(slot, {"empty_frames": "nearest", "missing_channel": "lora_only"})
    assert slot.config.missing_channel == "lora_only"
    assert {fusion.empty_frames for fusion in slot.fusions.values()} == {"nearest"}
    with pytest.raises(ValueError, match="the fusion has no setting 'empty_frame'"):
        making._set(slot, {"empty_frame": "nearest"})


def test_processes_of_a_reproduction_see_no_gpu(monkeypatch):
    for name in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "ACCELERATE_USE_CPU"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda *args, **settings: True)
    assert uses_accelerator()
    one_thread_no_gpu()
    assert (os.environ["OMP_NUM_THREADS"], os.environ["CUDA_VISIBLE_DEVICES"]) == ("1", "")
    assert not uses_accelerator()  # nor one of another kind, such as MPS
    assert TrainingConfig().arguments("out", num_steps=1).use_cpu


def test_two_pieces_of_one_name_are_both_made(tmp_path):
    """As a variant with one seed on two bases is."""
    files = [tmp_path / name for name in "ab"]
    assert sorted(side_by_side(Path.touch, [("x", (file,)) for file in files], 2)) == [0, 1]
    assert all(file.exists() for file in files)
    with pytest.raises(RuntimeError, match="^y: .*nowhere"):
        list(side_by_side(Path.touch, [("y", (tmp_path / "nowhere" / "file",))], 1))


@pytest.mark.slow
def test_a_killed_process_is_told_from_a_failing_run(tmp_path, monkeypatch):
    run = Run("audio", "x", video_only())
    with pytest.raises(RuntimeError, match="audio, x, seed 0: .*nowhere"):
        list(making._made([[run]], {"audio": Path("nowhere")}, tmp_path, 1))
    monkeypatch.setattr(making, "execute_alike", dies)
    with pytest.raises(RuntimeError, match="a process was killed from outside"):
        list(making._made([[replace(run, seed=1)]], {"audio": tmp_path}, tmp_path, 1))
