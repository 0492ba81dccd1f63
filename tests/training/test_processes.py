"""Two processes train what one does, replicated or sharded; what stops one stops both; each resumes with its own random state."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pave.data.samples import read_samples
from pave.evaluation.inference import VideoQA
from pave.evaluation.judging import GeneratedAnswers
from pave.evaluation.runner import evaluate
from pave.patching import load_patch, read_record
from pave.training import last_checkpoint, run_recipe
from tiny_trainers import Items, base, build, shared_videos, two_tasks, weights
from tiny_training import make_world, plan

WORKER = Path(__file__).parents[1] / "training_worker.py"


def launch(*arguments, processes=2):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run([str(a) for a in command], capture_output=True, text=True, timeout=900, env=environment)


def scenes(kind, folder, *names):
    done = launch(WORKER, kind, folder, *names)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    for name in names:
        assert all(f"process {rank}: {kind} {name} done" in done.stdout for rank in (0, 1))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_two_processes_train_the_patch_of_one(tmp_path, kind):
    scenes(kind, tmp_path, "train", "resume", *(["half"] if kind == "fsdp2" else []))
    one = build(
        tmp_path / "one", dataset=Items(16, missing=(2, 3)), eval_dataset=Items(6), batch_size=4, steps=4,
        trainer={"train_sampling_strategy": "sequential"}, log_every=3,
    )  # fmt: skip
    mean = one.train().training_loss
    losses = [entry["loss"] for entry in one.state.log_history if "loss" in entry]
    expected = [*losses, one.evaluate()["eval_loss"], mean]
    np.testing.assert_allclose(json.loads((tmp_path / "losses.json").read_text()), expected, rtol=1e-4)
    model, _ = base()
    load_patch(model, tmp_path / "run" / "checkpoint-4")  # an ordinary patch folder, whatever the model was wrapped in
    for two, own in zip(weights(model), weights(one.model), strict=True):
        torch.testing.assert_close(two, own, rtol=1e-3, atol=2e-5)
    record = read_record(tmp_path / "patch")
    assert record.base.weights is not None  # taken before the base was sharded
    names = {path.name for path in (tmp_path / "run" / "checkpoint-4").rglob("*")}
    assert {"rng_state_0.pth", "rng_state_1.pth", "patch.safetensors"} <= names
    assert not names & {"pytorch_model_fsdp.bin", "model.safetensors"}
    assert sum(p.stat().st_size for p in (tmp_path / "run" / "checkpoint-4").rglob("*") if p.is_file()) < 300_000


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_two_processes_mix_tasks_and_drop_channels_as_one(tmp_path, kind):
    scenes(kind, tmp_path, "tasks")
    for name, train in (("tasks", None), ("frozen", ["fusion"])):
        one = build(tmp_path / f"one_{name}", **two_tasks(train=train), batch_size=4)
        one.train()
        found, expected = json.loads((tmp_path / f"{name}.json").read_text()), one.evaluate()
        assert found.keys() == {"eval_loss", "eval_loud_loss", "eval_quiet_loss"}
        assert all(found[key] == pytest.approx(expected[key], rel=1e-4) for key in found)
        model, _ = base()
        load_patch(model, tmp_path / f"{name}_patch")
        for two, own in zip(weights(model), weights(one.model), strict=True):
            torch.testing.assert_close(two, own.to(torch.bfloat16).float(), rtol=1e-2, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_two_processes_share_videos_as_one_and_resume(tmp_path, kind):
    scenes(kind, tmp_path, "shared")
    found = json.loads((tmp_path / "shared.json").read_text())
    for name, arguments in (
        ("one", {"batch_size": 8, "accumulation": 2}),
        ("large", {"batch_size": 16}),
        ("alone", {"batch_size": 8, "accumulation": 2, "share_videos": None}),
    ):
        one = build(tmp_path / name, **{**shared_videos(), **arguments})
        one.train()
        losses = [entry["loss"] for entry in one.state.log_history if "loss" in entry]
        np.testing.assert_allclose(found, [*losses, one.evaluate()["eval_loss"]], rtol=1e-4, err_msg=name)
        model, _ = base()
        load_patch(model, tmp_path / "shared_patch")
        for two, own in zip(weights(model), weights(one.model), strict=True):
            torch.testing.assert_close(two, own.to(torch.bfloat16).float(), rtol=1e-2, atol=2e-5, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_what_stops_one_process_stops_both_and_keeps_the_last_checkpoint(tmp_path, kind):
    last = ["refused"] if kind == "ddp" else []  # accelerate shards on accelerators only and would replicate without a word
    scenes(kind, tmp_path, "nan_loss", "nan_gradient", "nan_feature", "full_disk", *last)


@pytest.mark.slow
def test_a_recipe_over_two_processes_goes_on_in_two_processes_only(tmp_path):
    world = make_world(tmp_path)
    train = [
        "-m",
        "pave.cli",
        "train",
        world / "recipe.yaml",
        f"output={tmp_path / 'run'}",
        "training.batch_size=1",
        "data.eval=null",
    ]
    done = launch(*train)
    assert done.returncode == 0, done.stderr[-3000:]
    assert last_checkpoint(tmp_path / "run").name == "checkpoint-5"
    changes = ["training.batch_size=1", "data.eval=null"]
    with pytest.raises(ValueError, match=r"another number of processes \(samples_per_step was 4, now it is 2\)"):
        run_recipe(plan(world, tmp_path / "run", *changes), folder=world, resume=True)


@pytest.mark.slow
def test_two_processes_judge_together_and_print_one_object(tmp_path):
    world = make_world(tmp_path)
    changes = ["evaluation.generate=true", "evaluation.max_new_tokens=6", "data.eval=train.jsonl", "training.log_every=5"]
    changes += ["data.stages=[{steps: 12}]", "training.learning_rate=2e-2", "patch.lora.dropout=0"]
    run = [world / "recipe.yaml", f"output={tmp_path / 'run'}", *changes, "training.batch_size=1"]
    done = launch("-m", "pave.cli", "train", *run, "--json")
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout)
    qa = VideoQA.from_pretrained(world / "base", result["patch"], device="cpu")
    score = evaluate(qa, read_samples(world / "train.jsonl"), max_new_tokens=6, progress=False).overall
    assert result["eval_accuracy"] == pytest.approx(score.accuracy)
    alone = run_recipe(plan(world, tmp_path / "one", *changes), folder=world, progress=False, judge=GeneratedAnswers())
    assert result["train_loss"] == pytest.approx(alone.train_loss, rel=1e-3)
