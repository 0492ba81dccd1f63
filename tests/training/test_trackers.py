"""Project and run names reach the trackers, and what trackers collect is what the run logged."""

from __future__ import annotations

import os

import pytest

from pave.cli import main
from pave.training.arguments import TrainingConfig
from pave.training.dry_run import dry_run
from pave.training.run import run_recipe
from pave.training.trackers import names_in_trackers, project_named
from tiny_training import make_world, plan

SHORT = ["data.stages=[{steps: 2}]", "training.save_every=null", "data.eval=null"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(autouse=True)
def _no_names_from_outside(monkeypatch):
    for variable in ("WANDB_PROJECT", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(variable, raising=False)


def test_the_project_stands_where_each_tracker_reads_it_for_the_time_of_the_run(monkeypatch):
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "before")
    with project_named(TrainingConfig(report_to=("wandb", "mlflow", "tensorboard"), project="sounds")):
        assert os.environ["WANDB_PROJECT"] == os.environ["MLFLOW_EXPERIMENT_NAME"] == "sounds"
    assert "WANDB_PROJECT" not in os.environ and os.environ["MLFLOW_EXPERIMENT_NAME"] == "before"
    with project_named(TrainingConfig(report_to=("mlflow",))):
        assert os.environ["MLFLOW_EXPERIMENT_NAME"] == "before" and "WANDB_PROJECT" not in os.environ
    with project_named(TrainingConfig(report_to=("wandb",))):
        assert os.environ["WANDB_PROJECT"] == "pave"


def test_the_trainer_gets_both_names(tmp_path):
    plain = TrainingConfig().arguments(str(tmp_path / "compact-seed0"), 1)
    assert (plain.run_name, plain.project) == ("compact-seed0", "pave")
    named = TrainingConfig(project="sounds", run_name="first").arguments(str(tmp_path), 1)
    assert (named.run_name, named.project) == ("first", "sounds")
    over = TrainingConfig(run_name="first", trainer={"run_name": "own"}).arguments(str(tmp_path), 1)
    assert over.run_name == "own"


@pytest.mark.parametrize("name", ["project", "run_name"])
def test_an_empty_name_is_refused(name):
    with pytest.raises(ValueError, match=f"{name} is empty; give a name, or null"):
        TrainingConfig(**{name: " "})


def test_the_dry_run_says_where_numbers_go(world, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "outside")
    recipe = plan(world, tmp_path / "seed-3", "training.report_to=[tensorboard, wandb]")
    found = dry_run(recipe, world)
    assert "numbers go to tensorboard, run 'seed-3'" in found.notes
    assert "numbers go to wandb, project 'outside', run 'seed-3'" in found.notes
    assert names_in_trackers(TrainingConfig(report_to=("trackio",), project="p", run_name="r"), "out") == [
        "numbers go to trackio, project 'p', run 'r'"
    ]


def test_a_resumed_run_may_have_other_names(world, tmp_path):
    changes = ["data.stages=[{steps: 2}]", "training.save_every=1", "data.eval=null"]
    run_recipe(plan(world, tmp_path / "run", *changes, "training.project=one"), folder=world)
    again = plan(world, tmp_path / "run", *changes, "training.project=two", "training.run_name=r")
    assert run_recipe(again, folder=world, resume=True).steps == 2


def test_mlflow_gets_the_losses_under_its_experiment(world, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    changes = [*SHORT, "training.report_to=[mlflow]", "training.project=sounds", "training.run_name=first"]
    run_recipe(plan(world, tmp_path / "out", *changes), folder=world)
    client = mlflow.tracking.MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("sounds").experiment_id])
    assert run.info.run_name == "first"
    assert [m.step for m in client.get_metric_history(run.info.run_id, "loss")] == [1, 2]


def test_wandb_keeps_an_offline_run_under_its_project(world, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    changes = [*SHORT, "training.report_to=[wandb]", "training.project=sounds", "training.run_name=first"]
    run_recipe(plan(world, tmp_path / "out", *changes), folder=world)
    import wandb

    assert (wandb.run.project, wandb.run.name, wandb.run.summary["train/global_step"]) == ("sounds", "first", 2)
    assert 0 < wandb.run.summary["train/train_loss"] < 20
    wandb.finish()
    assert list(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))


def test_trackio_keeps_a_run_under_its_project(world, tmp_path, monkeypatch):
    pytest.importorskip("trackio")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    changes = [*SHORT, "training.report_to=[trackio]", "training.project=sounds", "training.run_name=first"]
    run_recipe(plan(world, tmp_path / "out", *changes), folder=world)
    assert list((tmp_path / "trackio").glob("sounds*"))


def test_a_name_that_is_no_name_is_one_sentence(world, capsys):
    assert main(["train", str(world / "recipe.yaml"), "output=x", "training.project=''"]) == 2
    assert "project is empty; give a name, or null" in capsys.readouterr().err
