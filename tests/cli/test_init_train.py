"""``pave init`` writes what ``pave train`` runs, on real files."""

from __future__ import annotations

import json
import re
import shlex
from collections import Counter
from dataclasses import replace

import pytest

from pave.cli import main
from pave.cli.init import _held_out
from pave.cli.init_recipe import steps_for
from pave.data.media import probe
from pave.data.samples import Sample, read_samples, write_samples
from pave.patching import load_patch, read_record
from pave.playground.shakes import write_shakes
from pave.side_channels import build_encoder
from pave.training import read_recipe
from tiny_models import tiny_llava_onevision


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    folder = tmp_path_factory.mktemp("start") / "my-patch"
    assert main(["init", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    model, processor = tiny_llava_onevision()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def test_init_writes_a_valid_recipe_and_real_clips(started):
    recipe = read_recipe(started / "recipe.yaml")
    assert recipe.base.model == "playground" and recipe.output == str(started / "run")
    samples = read_samples(started / recipe.data.train)
    assert {sample.type for sample in samples} == {kind for stage in recipe.data.stages for kind in stage.weights}
    info = probe(samples[0].video)
    assert info.video is not None and info.audio is not None
    train = {sample.video for sample in samples}
    held_out = {sample.video for sample in read_samples(started / recipe.data.eval)}
    assert train and held_out and not train & held_out


@pytest.mark.parametrize("name", ["\N{GRINNING FACE}", 'two "words" \\ é', "# a: {b}"])
def test_init_writes_a_recipe_for_any_folder(tmp_path, name, capsys):
    folder = tmp_path / name
    assert main(["init", str(folder)]) == 0
    recipe = read_recipe(folder / "recipe.yaml")
    assert recipe.output == str(folder / "run")
    command = shlex.split(capsys.readouterr().out.splitlines()[-1].removeprefix("next: "))
    assert command == ["pave", "train", str(folder / "recipe.yaml")]


@pytest.fixture(scope="module")
def shaken(tmp_path_factory):
    """A newcomer's own data: 20 clips, a log each with a column that is no number and one that says nothing."""
    folder = tmp_path_factory.mktemp("own")
    samples = write_shakes(folder, "train", 20, seed=5, name="imu")
    for log in (folder / "clips").rglob("*.csv"):
        header, *rows = log.read_text().splitlines()
        log.write_text("\n".join([f"{header},place,level", *(f"{row},home,1" for row in rows)]) + "\n")
    return folder, samples


def test_init_for_a_sensor_writes_clips_logs_and_a_recipe_that_fits(tmp_path):
    folder = tmp_path / "start"
    assert main(["init", str(folder), "--channel", "sensor"]) == 0
    recipe = read_recipe(folder / "recipe.yaml")
    train, held_out = (read_samples(folder / str(name)) for name in (recipe.data.train, recipe.data.eval))
    assert len({s.video for s in train}) == 40 and not {s.video for s in train} & {s.video for s in held_out}
    assert all(4 <= probe(video).video.duration <= 6.2 for video in {s.video for s in train})
    ((stage,), channel) = recipe.data.stages, recipe.patch.side_channels["shake"]
    assert stage.steps == 300 and set(stage.weights) == {s.type for s in train} and recipe.data.swap_pictures == ("shake",)
    assert channel.width == build_encoder(channel.encoder).width == 17
    fusion = channel.fusion
    assert (fusion.gate, fusion.standardize, fusion.empty_frames) == (True, True, "nearest_inside")
    assert {s.answer for s in train if s.type == "shake"} == {"slow", "steady", "fast"}


@pytest.mark.parametrize("order", ["in turns", "sorted"])
def test_the_held_out_clips_have_every_answer(order):
    """Also where the answers come in turns of five, of which every fifth would be the same."""
    answers = [f"{i % 5}" for i in range(50)]
    samples = [
        Sample(id=f"{i}-{n}", video=f"{i}.mp4", question="?", answer=answer)
        for i, answer in enumerate(answers if order == "in turns" else sorted(answers))
        for n in range(2)
    ]
    held_out = _held_out(samples)
    assert Counter(sample.answer for sample in samples if sample.video in held_out) == {str(i): 4 for i in range(5)}
    assert held_out == _held_out(samples) and held_out != {f"{i}.mp4" for i in range(4, 50, 5)}


def test_init_makes_a_recipe_for_samples_that_are_there(shaken, tmp_path, capsys):
    data, samples = shaken
    folder = tmp_path / "start"
    assert main(["init", str(folder), "--channel", "sensor", "--samples", str(data / "train.jsonl")]) == 0
    out = capsys.readouterr().out
    assert "columns shake, level; 16 clips to learn from, 4 held out" in out and "these features hold the answer" in out
    recipe = read_recipe(folder / "recipe.yaml")
    channel = recipe.patch.side_channels["imu"]
    assert channel.encoder.settings["columns"] == ["shake", "level"] and channel.width == 34
    assert recipe.data.swap_pictures == ("shake",) and recipe.data.stages[0].steps == 300
    train, held_out = (read_samples(folder / str(name)) for name in (recipe.data.train, recipe.data.eval))
    assert sorted(s.id for s in [*train, *held_out]) == sorted(s.id for s in samples)
    assert not {s.video for s in train} & {s.video for s in held_out}
    assert main(["train", str(folder / "recipe.yaml"), "--dry-run"]) == 0
    assert "nothing is missing" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: replace(s, side_channels={}), "one side channel each.*they name none"),
        (lambda s: replace(s, side_channels={**s.side_channels, "gps": "x.csv"}), "they name gps, imu"),
        (
            lambda s: replace(s, video=f"{int(s.id[6:11]) % 3}.mp4"),
            "3 videos are too few to learn from; at least 10 are needed",
        ),
        (lambda s: replace(s, side_channels={"imu": "log.npz"}), "log.npz: there is no such file"),
    ],
)
def test_init_says_what_samples_lack(shaken, tmp_path, capsys, change, words):
    data, samples = shaken
    write_samples(tmp_path / "own.jsonl", map(change, samples))
    assert main(["init", str(tmp_path / "start"), "--channel", "sensor", "--samples", str(tmp_path / "own.jsonl")]) == 2
    assert re.search(words, capsys.readouterr().err) and not (tmp_path / "start").exists()


def test_init_wants_samples_for_a_sensor_only(tmp_path, capsys):
    assert main(["init", str(tmp_path / "a"), "--samples", "x.jsonl"]) == 2
    assert "--samples needs --channel sensor" in capsys.readouterr().err
    assert main(["init", str(tmp_path / "a"), "--channel", "smell"]) == 2
    assert "--channel is audio or sensor, got 'smell'" in capsys.readouterr().err


def test_more_clips_get_more_steps():
    assert [steps_for(clips) for clips in (30, 100, 300, 301, 5000)] == [300, 300, 300, 301, 5000]


def test_init_does_not_touch_a_folder_with_files(started, capsys):
    assert main(["init", str(started)]) == 2
    assert "not an empty folder" in capsys.readouterr().err


def test_train_runs_what_init_wrote(started, base, tmp_path, capsys):
    changes = [f"base.model={base}", f"output={tmp_path / 'out'}", "data.stages=[{steps: 2, weights: {sound: 1}}]"]
    changes += ["training.save_every=1", "training.batch_size=4"]
    assert main(["train", str(started / "recipe.yaml"), *changes, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["steps"] == 2 and result["train_loss"] > 0 and result["eval_loss"] > 0
    model, processor = tiny_llava_onevision()
    load_patch(model, result["patch"], processor=processor)
    assert read_record(result["patch"]).provenance["recipe"]["training"]["batch_size"] == 4
    assert main(["train", str(started / "recipe.yaml"), *changes]) == 2
    assert "earlier run" in capsys.readouterr().err
    assert main(["train", str(started / "recipe.yaml"), *changes, "--resume"]) == 0
    out = capsys.readouterr().out
    assert "patch saved to" in out and "2 steps" in out


def test_train_says_in_one_sentence_why_a_run_stopped(started, base, tmp_path, capsys, monkeypatch):
    from pave.training import NonFiniteError, trainer

    def no_loss(*args, **kwargs):
        raise NonFiniteError("step 1: the loss is nan for the samples a")

    monkeypatch.setattr(trainer.PatchTrainer, "training_step", no_loss)
    arguments = [f"output={tmp_path}", f"base.model={base}", "data.stages=[{steps: 1}]", "data.cache=null"]
    assert main(["train", str(started / "recipe.yaml"), *arguments]) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said == "pave: step 1: the loss is nan for the samples a"


def test_train_names_what_is_wrong(started, tmp_path, capsys):
    assert main(["train", str(tmp_path / "no.yaml")]) == 2
    assert "no.yaml: there is no such file" in capsys.readouterr().err
    assert main(["train", str(started / "recipe.yaml"), "training.learning_rat=1"]) == 2
    assert "did you mean 'training.learning_rate'" in capsys.readouterr().err


def test_every_command_that_is_shown_for_a_recipe_runs_with_that_of_init(started, capsys):
    """The example of ``train --help``, and those in the comments of the recipe itself."""
    assert main(["train", "--help"]) == 0
    shown = capsys.readouterr().out + (started / "recipe.yaml").read_text()
    commands = [line.strip(" #") for line in shown.splitlines() if line.strip(" #").startswith("pave train recipe.yaml")]
    assert len(commands) >= 3
    for command in commands:
        overrides = [word for word in shlex.split(command)[3:] if "=" in word]
        read_recipe(started / "recipe.yaml", overrides)


def test_trackers_that_are_not_there_are_told_before_a_run(started, capsys):
    recipe = str(started / "recipe.yaml")
    for option in ("training.report_to=[flyte, mine]", "training.trainer={report_to: [flyte, mine]}"):
        assert main(["train", recipe, option, "--dry-run", "--json"]) == 1
        missing = json.loads(capsys.readouterr().out)["missing"]
        assert [text.split(";")[0] for text in missing] == [
            "training.report_to: flyte needs a package that is not installed",
            "training.report_to: there is no tracker 'mine'",
        ]
        assert main(["train", recipe, option, "base.model=not/there"]) == 2
        assert "flyte needs a package that is not installed" in capsys.readouterr().err
