"""Several tasks in one run: shares, batches of one task, held-out losses by task, and what a patch records of them."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch
import yaml

from pave.data.samples import manifest_hash, read_samples
from pave.patching import read_record
from pave.training import Mixing, Task, run_recipe
from pave.training.recipe import read_recipe
from pave.training.sampler import LengthGrouping, Stage, StagedSampler, TaskMix, shares_by_size
from pave.training.tasks import RunSamples, task_shares
from tiny_trainers import Items, build, weights
from tiny_training import assert_same, make_world, plan

TASKS = ["a"] * 4 + ["b"] * 16 + ["c"] * 4
TYPES = ["x", "y"] * 2 + ["x"] * 16 + ["z"] * 4


# --- shares and order


@pytest.mark.parametrize(("temperature", "share"), [(0.5, 1 / 17), (1, 1 / 5), (2, 1 / 3), (1e9, 1 / 2)])
def test_shares_by_size_are_powers_of_the_counts(temperature, share):
    shares = shares_by_size({"a": 100, "b": 400}, temperature)
    assert shares == pytest.approx({"a": share, "b": 1 - share}, rel=1e-6)


def test_a_small_temperature_and_large_tasks_do_not_overflow():
    assert shares_by_size({"a": 10**6, "b": 1}, 0.001) == {"a": 1.0, "b": 0.0}


def test_a_type_that_no_drawn_task_has_is_refused_rather_than_left_out():
    for stage, drawn in (
        (Stage(steps=1, tasks={"a": 1, "b": 1}, weights={"x": 1, "z": 2}), "a, b"),
        (Stage(steps=1, tasks={"b": 1}, weights={"x": 1, "y": 2}), "b"),
    ):
        with pytest.raises(ValueError, match=rf"stage 1: no task that it draws from \({drawn}\) has a sample of the type"):
            StagedSampler(TYPES, [stage], 4, seed=0, mix=TaskMix(TASKS, {"a": 1, "b": 1, "c": 1}))
    zero = Stage(steps=1, tasks={"a": 1}, weights={"x": 1, "z": 0})
    StagedSampler(TYPES, [zero], 4, seed=0, mix=TaskMix(TASKS, {}))


def test_weights_whose_sum_overflows_are_shares_all_the_same():
    sampler = StagedSampler(TYPES, [Stage(steps=50, weights={"x": 1.5e308, "z": 1.5e308})], 4, seed=0)
    kinds = Counter(TYPES[i] for i in sampler)
    assert kinds["x"] / 200 == pytest.approx(0.5, abs=0.1) and kinds["x"] + kinds["z"] == 200
    weights = {"a": 1.5e308, "b": 1.5e308}
    assert task_shares(weights, {"a": 1, "b": 9}, Mixing()) == {"a": 0.5, "b": 0.5}


def test_tasks_are_drawn_by_their_shares_and_pass_over_their_own_samples():
    sampler = StagedSampler(TASKS, [Stage(steps=500)], 4, seed=0, mix=TaskMix(TASKS, {"a": 1, "b": 2, "c": 1}))
    drawn = list(sampler)
    counts = Counter(TASKS[i] for i in drawn)
    assert counts["b"] / 2000 == pytest.approx(0.5, abs=0.03) and counts["a"] / 2000 == pytest.approx(0.25, abs=0.03)
    large = [i for i in drawn if TASKS[i] == "b"]
    assert sorted(large[:16]) == sorted(large[16:32]) == list(range(4, 20)) and large[:16] != large[16:32]


def test_without_shares_the_order_is_that_of_one_task():
    plain = StagedSampler(TYPES, [Stage(steps=9), Stage(steps=9, weights={"x": 1, "z": 2})], 4, seed=3)
    named = StagedSampler(TYPES, plain.stages, 4, seed=3, mix=TaskMix(TASKS, {}))
    assert list(plain) == list(named)


@pytest.mark.parametrize("shares", [{}, {"a": 1, "b": 1, "c": 1}])
@pytest.mark.parametrize("grouped", [False, True])
def test_per_task_every_forward_pass_holds_one_task(shares, grouped):
    lengths = np.random.default_rng(0).permutation(24).tolist()
    grouping = LengthGrouping(lengths, window=5, passes=3, tasks=TASKS) if grouped else None
    sampler = StagedSampler(TASKS, [Stage(steps=200)], 12, seed=0, mix=TaskMix(TASKS, shares, run=4), grouping=grouping)
    drawn = list(sampler)
    passes = [[TASKS[i] for i in drawn[n : n + 4]] for n in range(0, len(drawn), 4)]
    assert len(passes) == 600 and all(len(set(one)) == 1 for one in passes)
    share = Counter(one[0] for one in passes)["b"] / 600
    assert share == pytest.approx(1 / 3 if shares else 16 / 24, abs=0.06)
    if grouped:  # the same samples in each window
        plain = list(StagedSampler(TASKS, sampler.stages, 12, seed=0, mix=sampler.mix))
        assert all(sorted(drawn[n : n + 60]) == sorted(plain[n : n + 60]) for n in range(0, len(drawn), 60)) and drawn != plain


def test_order_over_tasks_is_a_function_of_the_arguments():
    def sampler(seed=5):
        return StagedSampler(TYPES, [Stage(steps=9)], 4, seed, mix=TaskMix(TASKS, {"a": 1, "b": 1}, run=2))

    one = sampler()
    assert list(islice(one, 7)) == list(sampler())[:7] and list(one) == list(sampler()) != list(sampler(6))


def test_a_stage_may_have_its_own_shares_of_tasks_and_of_types_inside_them():
    stages = [Stage(steps=20, tasks={"c": 1}), Stage(steps=400, tasks={"a": 1, "b": 3}, weights={"x": 1})]
    drawn = list(StagedSampler(TYPES, stages, 4, seed=1, mix=TaskMix(TASKS, {"a": 1, "b": 1, "c": 1})))
    assert {TASKS[i] for i in drawn[:80]} == {"c"}
    assert {TYPES[i] for i in drawn[80:]} == {"x"}
    assert Counter(TASKS[i] for i in drawn[80:])["b"] / 1600 == pytest.approx(0.75, abs=0.03)
    with pytest.raises(ValueError, match=r"stage 1: there is no task 'd'; the tasks are \['a', 'b', 'c'\]"):
        StagedSampler(TYPES, [Stage(steps=1, tasks={"d": 1})], 4, 0, mix=TaskMix(TASKS, {}))
    with pytest.raises(ValueError, match=r"stage 1: there is no task 'd'; data.tasks names none"):
        StagedSampler(TYPES, [Stage(steps=1, tasks={"d": 1})], 4, 0)
    with pytest.raises(ValueError, match=r"stage 1: the task 'c' has no sample of the types \['x'\]"):
        StagedSampler(TYPES, [Stage(steps=1, weights={"x": 1})], 4, 0, mix=TaskMix(TASKS, {"a": 1, "c": 1}))
    with pytest.raises(ValueError, match="a step of 6 samples cannot be cut into runs of 4"):
        StagedSampler(TYPES, [Stage(steps=1)], 6, 0, mix=TaskMix(TASKS, {}, run=4))


# --- recipes and files


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Two tasks with the same ids: sounds beside the clips, and objects in a folder of their own that the clips are found from."""
    folder = make_world(tmp_path_factory.mktemp("world"))
    (folder / "objects").mkdir()
    for name, target in (("train", "heard"), ("eval", "heard_val")):
        rows = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
        for kind, file in (("sound", f"{target}.jsonl"), ("silent", f"objects/{target.replace('heard', 'seen')}.jsonl")):
            chosen = [{**row, "id": str(i)} for i, row in enumerate(r for r in rows if r["type"] == kind)]
            (folder / file).write_text("".join(json.dumps(row) + "\n" for row in chosen))
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    recipe["patch"]["missing_channel"] = "lora_only"
    for key in ("train", "eval", "stages"):
        del recipe["data"][key]
    recipe["data"]["tasks"] = {
        "heard": {"train": "heard.jsonl", "eval": "heard_val.jsonl", "weight": 3},
        "seen": {"train": "objects/seen.jsonl", "eval": "objects/seen_val.jsonl", "root": ".", "channels": []},
    }
    recipe["data"]["mixing"] = {"batches": "per_task"}
    recipe["training"] |= {"steps": 4, "eval_every": 2, "channel_dropout": 0.5}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder


@pytest.fixture(scope="module")
def finished(world, tmp_path_factory):
    output = tmp_path_factory.mktemp("run")
    return output, run_recipe(plan(world, output), folder=world)


def test_ids_are_prefixed_and_a_task_has_the_channels_it_says(world):
    recipe = plan(world, world)
    samples = RunSamples(recipe.data.all_tasks(), recipe.data.mixing, world, ["audio"])
    assert [s.id for s in samples.train] == [f"heard/{i}" for i in range(6)] + [f"seen/{i}" for i in range(6)]
    assert [dict(s.side_channels) for s in samples.train] == [{}] * 6 + [{"audio": None}] * 6
    assert samples.shares() == {"heard": 0.75, "seen": 0.25}
    assert set(samples.held_out_tasks.values()) == {"heard", "seen"}
    by_size = RunSamples(recipe.data.all_tasks(), Mixing(), world, ["audio"])
    by_size.tasks[0].train.extend(by_size.tasks[0].train)
    by_size.weights, by_size.mixing = {"heard": None, "seen": None}, Mixing(temperature=0.5)
    assert by_size.shares() == pytest.approx({"heard": 0.8, "seen": 0.2})


def test_a_run_over_tasks_reports_the_loss_of_each(world, finished):
    output, result = finished
    assert result.eval_losses.keys() == {"heard", "seen"}
    state = json.loads((output / "checkpoint-4" / "trainer_state.json").read_text())
    logged = [entry for entry in state["log_history"] if "eval_heard_loss" in entry]
    assert [entry["step"] for entry in logged] == [2, 4]
    assert logged[-1]["eval_seen_loss"] == result.eval_losses["seen"]
    low, high = sorted(result.eval_losses.values())
    assert low < result.eval_loss < high
    provenance = read_record(result.patch).provenance
    assert provenance["eval_losses"] == result.eval_losses
    recorded = provenance["data"]["tasks"]
    assert recorded["heard"]["share"] == 0.75 and recorded["seen"]["train_samples"] == 6
    recipe = plan(world, world)
    samples = RunSamples(recipe.data.all_tasks(), recipe.data.mixing, world, ["audio"])
    assert [recorded[t.name]["train"] for t in samples.tasks] == [manifest_hash(t.train) for t in samples.tasks]
    assert recorded["heard"]["eval"] == manifest_hash(samples.tasks[0].held_out)
    card = (result.patch / "README.md").read_text()
    assert f"| heard | 6 | 0.75 | `{recorded['heard']['train']}` | {result.eval_losses['heard']:.4g} |" in card


def test_a_run_over_tasks_with_channel_dropout_resumes_bit_for_bit(world, finished, tmp_path):
    output, result = finished
    again = tmp_path / "again"
    shutil.copytree(output / "checkpoint-2", again / "checkpoint-2")
    resumed = run_recipe(plan(world, again), folder=world, resume=True)
    assert resumed.eval_losses == result.eval_losses
    assert_same(result.patch, resumed.patch)


def test_other_samples_of_a_task_are_refused_by_its_name(world, finished, tmp_path):
    output, _ = finished
    shutil.copytree(output / "checkpoint-2", tmp_path / "checkpoint-2")
    file = world / "objects" / "seen_val.jsonl"
    text = file.read_text()
    try:
        file.write_text("".join(reversed(text.splitlines(keepends=True))))
        with pytest.raises(ValueError, match=r"checkpoint-2: .* other samples of the task 'seen' \(seen was .* restore them"):
            run_recipe(plan(world, tmp_path), folder=world, resume=True)
    finally:
        file.write_text(text)


def test_the_order_of_a_recipe_holds_one_task_in_every_pass(world, finished):
    output, _ = finished
    lines = (world / "recipe.yaml").read_text()
    assert "per_task" in lines
    recipe = plan(world, output)
    samples = RunSamples(recipe.data.all_tasks(), recipe.data.mixing, world, ["audio"])
    assert samples.mix(2).run == 2
    assert RunSamples(recipe.data.all_tasks(), Mixing(), world, []).mix(2).run == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["data.train=heard.jsonl"], r"data: tasks have files of their own, but train or eval is given as well"),
        (["data.tasks={}"], r"data: there is nothing to learn from; give train, or tasks"),
        (["data.tasks={}", "data.train=x.jsonl"], r"data: mixing says how tasks are mixed, but there are no tasks"),
        (["data.mixing.temperature=2"], r"mixing.temperature takes the shares from .* the task 'heard' has a weight"),
        (["data.mixing.temperature=0"], r"data.mixing: temperature must be positive and finite, got 0"),
        (["data.tasks.heard.weight=0"], r"data.tasks.heard: weight must be positive and finite, got 0"),
        (["data.tasks.heard.wieght=1"], r"data.tasks.heard.wieght'; did you mean 'data.tasks.heard.weight'"),
        (["data.tasks.a/b={train: x}"], r"tasks: 'a/b' is no name of a task"),
        (
            ["data.tasks.seen.channels=[sound]"],
            r"data.tasks.seen.channels: the patch has no side channel 'sound'; it has: audio",
        ),
        (["data.tasks.seen.eval=null", "data.tasks.heard.eval=null"], r"eval_every needs data.eval, or a task with eval"),
        (
            ["training.trainer={load_best_model_at_end: true, metric_for_best_model: eval_herd_loss}"],
            r"metric_for_best_model is 'eval_herd_loss'; what is watched are eval_loss, eval_heard_loss, eval_seen_loss",
        ),
        (
            ["training.trainer={load_best_model_at_end: true}", "training.eval_every=2", "training.save_every=3"],
            r"load_best_model_at_end needs training.eval_every, and training.save_every as a multiple of it, got 2 and 3",
        ),
    ],
)
def test_wrong_tasks_are_refused_in_a_sentence(world, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        plan(world, tmp_path, *change)


def test_the_best_checkpoint_may_be_chosen_by_every_loss_that_is_watched(world, tmp_path):
    for metric in ("heard_loss", "eval_seen_loss", "eval_loss"):
        best = f"training.trainer={{load_best_model_at_end: true, metric_for_best_model: {metric}}}"
        recipe = plan(world, tmp_path, best, "training.eval_every=2", "training.save_every=4")
        assert recipe.training.trainer["metric_for_best_model"] == metric


def test_a_recipe_of_one_file_is_what_it_was(tmp_path):
    world = make_world(tmp_path)
    recipe = read_recipe(world / "recipe.yaml")
    assert recipe.data.all_tasks() == {"": Task(train="train.jsonl", eval="eval.jsonl")}
    samples = RunSamples(recipe.data.all_tasks(), recipe.data.mixing, world, ["audio"])
    assert samples.train == read_samples(world / "train.jsonl") and samples.held_out_tasks == {}
    assert samples.facts() == {"train": manifest_hash(samples.train), "train_samples": 12}


# --- held-out losses


def test_the_loss_of_a_task_is_that_of_its_samples_alone(tmp_path):
    held_out = Items(6)
    tasks = {item.id: ("odd" if i % 2 else "even") for i, item in enumerate(held_out.items)}
    trainer = build(tmp_path, eval_dataset=held_out, held_out_tasks=tasks, batch_size=4)
    with torch.no_grad():
        for parameter in weights_of(trainer):
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    found = trainer.evaluate()
    for task in ("even", "odd"):
        alone = Items(6)
        alone.items = [item for item in held_out.items if tasks[item.id] == task]
        assert found[f"eval_{task}_loss"] == pytest.approx(trainer.evaluate(alone)["eval_loss"], rel=1e-4)
    assert found["eval_even_loss"] != pytest.approx(found["eval_odd_loss"], rel=1e-2)
    assert "eval_odd_loss" not in trainer.evaluate(Items(1))  # no sample of it


def weights_of(trainer):
    from pave.patching import patch_parameters

    return patch_parameters(trainer.model)


def test_accumulated_passes_of_one_task_equal_the_larger_batch(tmp_path):
    """Two trainers draw the same samples, one in passes of 8 and one in passes of 2."""
    dataset = Items()
    mix = TaskMix(dataset.types, {"loud": 3, "quiet": 1}, run=8)
    common = {"dataset": dataset, "steps": 3, "stages": [Stage(steps=3)], "mix": mix}
    large = build(tmp_path / "large", batch_size=8, accumulation=1, **common)
    small = build(tmp_path / "small", batch_size=2, accumulation=4, **common)
    large.train(), small.train()
    for a, b in zip(weights(large.model), weights(small.model), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-5)


# --- other commands


def test_extract_and_doctor_read_recipes_of_several_tasks(world, tmp_path):
    from pave.cli.doctor import _of_recipe
    from pave.cli.extract import _recipe_job

    samples, encoders, _ = _recipe_job(world / "recipe.yaml", tmp_path / "store", None)
    assert list(encoders) == ["audio"] and Counter(s.id.split("/")[0] for s in samples) == {"heard": 8, "seen": 8}
    assert all(("audio" in s.side_channels) == s.id.startswith("seen/") for s in samples)
    found = _of_recipe(world / "recipe.yaml", None, quick=True)
    assert [file.name for file in found.files] == ["heard.jsonl", "heard_val.jsonl", "seen.jsonl", "seen_val.jsonl"]
    assert [found.root[str(file)] for file in found.files] == [None, None, world, world]
    from pave.data.doctor import examine

    report = examine(found.files, found.setup(quick=True), data_root=found.root, workers=0, progress=False)
    assert report.videos == 8 and "media-missing" not in report.codes
