"""Accuracy while a patch is trained: the answers of ``pave eval``, in every evaluation, and the best checkpoint by it."""

from __future__ import annotations

import json
import logging

import pytest

from pave.data.samples import read_samples
from pave.evaluation.inference import VideoQA
from pave.evaluation.judging import GeneratedAnswers
from pave.evaluation.runner import evaluate
from pave.training import read_recipe, run_recipe
from tiny_trainers import base
from tiny_training import assert_same, make_world, plan

GENERATE = ("evaluation.generate=true", "evaluation.max_new_tokens=6", "data.eval=train.jsonl", "training.learning_rate=2e-2")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Its base has a sharper head than fresh weights have, so that a patch can make it say something else."""
    folder = make_world(tmp_path_factory.mktemp("world"))
    model, processor = base()
    model.save_pretrained(folder / "base"), processor.save_pretrained(folder / "base")
    return folder


def accuracy_of(world, patch, max_new_tokens=6):
    qa = VideoQA.from_pretrained(world / "base", patch, device="cpu")
    return evaluate(qa, read_samples(world / "train.jsonl"), max_new_tokens=max_new_tokens, progress=False).overall.accuracy


def test_every_evaluation_says_the_accuracy_of_pave_eval_and_the_best_is_chosen_by_it(world, tmp_path, caplog):
    best = "training.trainer={load_best_model_at_end: true, metric_for_best_model: eval_accuracy}"
    changes = [*GENERATE, "data.stages=[{steps: 60}]", "training.save_every=20", "training.eval_every=20", best]
    with caplog.at_level(logging.INFO, logger="pave"):
        result = run_recipe(plan(world, tmp_path / "run", *changes), folder=world, judge=GeneratedAnswers())
    state = json.loads((tmp_path / "run" / "checkpoint-60" / "trainer_state.json").read_text())
    found = {entry["step"]: entry["eval_accuracy"] for entry in state["log_history"] if "eval_accuracy" in entry}
    assert list(found) == [20, 40, 60] and max(found.values()) > min(found.values())
    for step, accuracy in found.items():
        assert accuracy == pytest.approx(accuracy_of(world, tmp_path / "run" / f"checkpoint-{step}"))
    assert result.eval_accuracy == max(found.values()) == pytest.approx(accuracy_of(world, result.patch))
    assert any("eval accuracy" in record.message for record in caplog.records)


def test_answering_on_the_way_changes_nothing_in_the_training(world, tmp_path):
    changes = ["training.eval_every=2", "data.eval=train.jsonl"]
    plain = run_recipe(plan(world, tmp_path / "plain", *changes), folder=world, progress=False)
    changes.append("evaluation.generate=true")
    judged = run_recipe(plan(world, tmp_path / "judged", *changes), folder=world, progress=False, judge=GeneratedAnswers())
    assert_same(plain.patch, judged.patch)
    assert plain.eval_accuracy is None and judged.eval_loss == plain.eval_loss


def test_tasks_have_accuracies_of_their_own(world, tmp_path):
    rows = (world / "train.jsonl").read_text().splitlines(keepends=True)
    for name, kind in (("heard", "sound"), ("seen", "silent")):
        (world / f"{name}.jsonl").write_text("".join(row for row in rows if json.loads(row)["type"] == kind))
    tasks = "data.tasks={heard: {train: heard.jsonl, eval: heard.jsonl}, seen: {train: seen.jsonl, eval: seen.jsonl}}"
    changes = [*GENERATE[:2], "data.train=null", "data.eval=null", tasks, "data.stages=[{steps: 16}]", "training.eval_every=16"]
    run_recipe(
        plan(world, tmp_path / "run", *changes, "training.save_every=16", "training.learning_rate=2e-2"),
        folder=world, progress=False, judge=GeneratedAnswers(),
    )  # fmt: skip
    state = json.loads((tmp_path / "run" / "checkpoint-16" / "trainer_state.json").read_text())
    (found,) = [entry for entry in state["log_history"] if "eval_accuracy" in entry]
    assert found["eval_accuracy"] == pytest.approx((found["eval_heard_accuracy"] + found["eval_seen_accuracy"]) / 2)


def test_what_cannot_be_judged_is_refused_before_a_base_is_loaded(world, tmp_path):
    row = {"id": "a", "video": "0.mp4", "question": "q?", "answer": "a", "meta": {"benchmark": "nope"}}
    (world / "odd.jsonl").write_text(json.dumps(row))
    recipe = plan(world, tmp_path / "run", "evaluation.generate=true", "data.eval=odd.jsonl", "base.model=not/there")
    with pytest.raises(ValueError, match="nope"):
        run_recipe(recipe, folder=world, judge=GeneratedAnswers())
    with pytest.raises(ValueError, match=r"evaluation.generate: pass what answers and judges, run_recipe\(judge="):
        run_recipe(recipe, folder=world)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["data.eval=null"], "evaluation.generate needs data.eval"),
        (["training.trainer={fsdp: true}"], "evaluation.generate needs the whole model in every process"),
        (["evaluation.max_new_tokens=0"], "max_new_tokens must be at least 1"),
        (
            ["training.trainer={load_best_model_at_end: true, metric_for_best_model: eval_acuracy}"],
            "metric_for_best_model is 'eval_acuracy'; what is watched are eval_loss, eval_accuracy",
        ),
    ],
)
def test_recipes_that_ask_for_what_cannot_be_are_refused(world, changes, message):
    with pytest.raises(ValueError, match=message):
        read_recipe(world / "recipe.yaml", ["evaluation.generate=true", *changes])
