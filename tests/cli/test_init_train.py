"""``pave init`` writes what ``pave train`` runs, on real files."""

from __future__ import annotations

import json
import shlex

import pytest

from pave.cli import main
from pave.data.media import probe
from pave.data.samples import read_samples
from pave.patching import load_patch, read_record
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
