"""``pave train --dry-run``: every recipe offline, all that is missing, and numbers that agree with a run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from pave.cli import main
from pave.training.dry_run import dry_run
from pave.training.dry_run_shape import Assumptions
from pave.training.recipe import read_recipe
from pave.training.run import run_recipe
from pave.video_llms.known import HUB_IDS

RECIPES = Path(__file__).parents[2] / "recipes"
PAPER_TASKS = ("avqa", "avsd", "ego_exo4d", "llava_video", "music_avqa", "scanqa", "sqa3d")
BASES = sorted(RECIPES.glob("bases/*.yaml"))


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """A folder made by ``pave init``, in which everything is there."""
    folder = tmp_path_factory.mktemp("started")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["init", "my"]) == 0
    return folder


@pytest.fixture(autouse=True)
def _elsewhere(started, monkeypatch):
    monkeypatch.chdir(started)


def dry(capsys, *arguments):
    code = main(["train", *map(str, arguments), "--dry-run", "--json"])
    return code, json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_says_offline_what_is_missing_and_what_it_would_cost(path, capsys, tmp_path):
    path = shutil.copytree(RECIPES, tmp_path / "recipes") / path.name  # beside these there may be the data of a demo
    code, found = dry(capsys, path, "--samples", "1000")
    recipe = read_recipe(path)
    assert code == 1 and found["missing"][0].endswith("train.jsonl: the file of samples is not there")
    assert any(recipe.base.model in line for line in found["missing"]) == (recipe.base.model in HUB_IDS)
    assert found["samples"] is None and found["samples_per_step"] == 32
    stages = sum(stage.steps for stage in recipe.data.stages)
    assert found["steps"] == (stages or -(-1000 * int(recipe.training.epochs) // 32))
    hours = found["cost"]["step_flops"] * 32 * found["steps"] / 200e12 / 3600
    assert found["device_hours"] == pytest.approx(hours)
    if recipe.base.model in HUB_IDS:
        assert 16e9 < found["cost"]["memory"]["peak"] < 80e9
        assert not any("the cost is not known" in note for note in found["notes"])


@pytest.mark.parametrize("task", PAPER_TASKS)
@pytest.mark.parametrize("base", BASES, ids=lambda path: path.stem)
def test_every_task_of_the_paper_has_a_recipe_that_every_base_can_be_laid_over(task, base):
    recipe, other = (read_recipe(RECIPES / f"{task}_paper.yaml", extra) for extra in ([], [str(base)]))
    assert recipe.base.model == "llava-hf/llava-onevision-qwen2-7b-ov-hf" and other.base.model in HUB_IDS
    assert HUB_IDS[other.base.model].replace("-qwen2", "").replace("-", "_") == base.stem.replace("-", "_")
    for each in (recipe, other):
        (channel,) = each.patch.side_channels.values()
        assert (each.patch.lora.rank, each.patch.lora.alpha, len(each.patch.lora.targets)) == (64, 16, 7)
        assert (channel.fusion.width, channel.fusion.num_heads) == (512, 4)
        assert channel.fusion.num_layers == (3 if task == "music_avqa" else 2)
        assert (each.data.frames.num_frames, each.data.frames.spacing) == (32, "endpoints")
        assert channel.width == (1028 if task == "ego_exo4d" else 1024)
    assert other.patch.newline == ("base" if "qwen" in base.stem else "grid")


def test_qwen_and_the_small_base_are_counted_too(capsys):
    for base, parameters in (("qwen2.5_vl_7b", 8_292_166_656), ("llava_onevision_0.5b", 893_675_552)):
        _, found = dry(capsys, RECIPES / "avsd_paper.yaml", RECIPES / "bases" / f"{base}.yaml")
        assert found["cost"]["base_parameters"] == parameters
        assert found["steps"] is None and found["device_hours"] is None


def test_a_run_that_can_start_has_exit_code_0_and_writes_nothing(started, capsys):
    before = sorted(started.rglob("*"))
    code, found = dry(capsys, "my/recipe.yaml")
    assert code == 0 and found["missing"] == []
    assert (found["samples"], found["steps"], found["samples_per_step"]) == (32, 40, 8)
    assert found["shape"]["side_tokens_per_step"] == {"audio": 1}
    assert sorted(started.rglob("*")) == before
    assert main(["train", "my/recipe.yaml", "--dry-run"]) == 0
    assert "nothing is missing: the run can start" in capsys.readouterr().out


def test_steps_and_samples_per_step_are_those_of_the_run(started):
    few = [
        "data.stages=[]",
        "training.epochs=0.5",
        "training.save_every=null",
        "training.batch_size=3",
        "training.accumulation=2",
    ]
    recipe = read_recipe("my/recipe.yaml", [*few, "output=short"])
    found = dry_run(recipe, "my")
    assert run_recipe(recipe, folder="my", progress=False).steps == found.steps == 3
    four = dry_run(recipe, "my", Assumptions(processes=4))
    assert (four.samples_per_step, four.steps) == (24, 1)
    over = read_recipe("my/recipe.yaml", [*few, "training.trainer={gradient_accumulation_steps: 1}"])
    assert dry_run(over, "my").steps == 6


def test_everything_that_is_missing_is_listed(started, capsys):
    lines = [json.loads(line) for line in Path("my/train.jsonl").read_text().splitlines()]
    rows = [
        {**lines[0], "video": "gone.mp4"},
        {**lines[1], "video": "gone.mp4"},
        {**lines[2], "side_channels": {"audio": "gone.wav"}},
        {k: v for k, v in lines[3].items() if k not in ("answer", "answers")},
    ]
    Path("my/broken.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("my/bad.jsonl").write_text("{}\n")
    code, found = dry(
        capsys, "my/recipe.yaml", "data.train=broken.jsonl", "data.eval=bad.jsonl", "data.store=nostore",
        "patch.side_channels.audio.width=63", "data.stages=[{steps: 2, weights: {smell: 1}}]", "base.model=some/base",
        "--resume",
    )  # fmt: skip
    text = "\n".join(found["missing"])
    assert code == 1
    for part in (
        "gone.mp4 is not there, 2 samples name it",
        "gone.wav is not there, 1 samples name it",
        f"sample {rows[3]['id']!r} has no answer to learn from",
        "bad.jsonl",
        "nostore: the feature store is not there",
        "side channel 'audio': its encoder gives features of width 64, but width is 63",
        "data.stages draws samples of type 'smell', but no training sample is of it",
        "the base, some/base, is no folder",
        "nothing to resume from",
    ):
        assert part in text
    assert len(found["missing"]) == 9 and found["cost"] is None
    assert any("the cost is not known" in note for note in found["notes"])


def test_a_channel_that_needs_files_is_missed_where_no_sample_names_one(started, capsys):
    encoder = "patch.side_channels.audio.encoder={name: features, settings: {width: 64, rate: 1}}"
    code, found = dry(capsys, "my/recipe.yaml", encoder)
    assert code == 1 and found["missing"][0].startswith(
        "no sample has side channel 'audio': its encoder 'features' reads a file for each sample"
    )


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--video-size=wide", "--video-size is width x height"),
        ("--tflops=0", "teraflops must be positive"),
        ("--seconds=-1", "seconds must be positive"),
    ],
)
def test_wrong_assumptions_are_refused(option, message, capsys):
    assert main(["train", "my/recipe.yaml", "--dry-run", option]) == 2
    assert message in capsys.readouterr().err


def test_the_size_of_videos_decides_the_tokens_of_qwen(capsys):
    overlay = RECIPES / "bases" / "qwen2.5_vl_7b.yaml"
    _, small = dry(capsys, RECIPES / "avsd_paper.yaml", overlay, "--video-size", "336x336")
    assert small["shape"]["grid"] == [12, 12] and small["cost"]["tokens"]["video"] == 16 * 144


DRY_RUNS = [
    ("music_avqa_compact", ""),
    ("music_avqa_compact", "qwen2.5_vl_7b"),
    ("avsd_paper", ""),
    ("avsd_paper", "qwen2.5_vl_7b"),
    ("avsd_paper", "llava_onevision_0.5b"),
    ("scanqa_paper", ""),
]


def test_the_table_in_the_docs_is_what_a_dry_run_says(capsys):
    text = (RECIPES.parent / "docs" / "training.md").read_text(encoding="utf-8")
    table = text.split("<!-- dry runs -->\n")[1].split("<!-- /dry runs -->")[0].splitlines()[2:]
    rows = []
    for recipe, base in DRY_RUNS:
        _, found = dry(capsys, RECIPES / f"{recipe}.yaml", *([RECIPES / "bases" / f"{base}.yaml"] if base else []))
        cost = found["cost"]
        peaks = [f"{cost[name]['peak'] / 1e9:.1f} GB" for name in ("memory", "memory_other")]
        over = f"`bases/{base}.yaml`" if base else ""
        rows.append(
            f"| `{recipe}.yaml` | {over} | {cost['patch_bytes'] / 1e6:.1f} MB | {peaks[0]} | {peaks[1]} | {cost['step_flops'] / 1e12:.0f} TFLOP |"
        )
    assert table == rows, "\n" + "\n".join(rows)


def test_the_memory_in_the_readme_is_what_a_dry_run_says(capsys):
    text = " ".join((RECIPES.parent / "README.md").read_text(encoding="utf-8").split())
    path = RECIPES / "music_avqa_compact.yaml"
    two, one = (
        dry(capsys, path, *more)[1]["cost"]["memory"]["peak"] / 1e9
        for more in ([], ["training.batch_size=1", "training.accumulation=32"])
    )
    assert f"activation checkpointing is about {two:.0f} GB." in text, two
    assert f"`training.batch_size=1 training.accumulation=32`, about {one:.0f} GB." in text, one


def test_several_tasks_are_looked_at_one_by_one(started, capsys):
    base = yaml.safe_load(Path("my/recipe.yaml").read_text())
    base["data"].pop("train")
    base["data"].pop("eval", None)
    base["data"]["tasks"] = {"one": {"train": "train.jsonl"}, "two": {"train": "train.jsonl", "eval": "gone.jsonl"}}
    base["init"] = "no-such-patch"
    Path("my/tasks.yaml").write_text(yaml.safe_dump(base))
    code, found = dry(capsys, "my/tasks.yaml")
    assert code == 1 and found["samples"] == 64
    text = "\n".join(found["missing"])
    assert "gone.jsonl: the file of samples is not there" in text and "init, the patch to go on from, no-such-patch" in text


SHARE = ["data.share_videos=2", "patch.side_channels.audio.fusion.gate=false", "training.batch_size=4"]


def test_questions_that_share_videos_are_counted_as_the_run_groups_them(started, capsys, monkeypatch):
    import pave.data.collator

    changes = [*SHARE, "data.stages=[]", "training.epochs=1", "training.save_every=null", "data.eval=null"]
    code, found = dry(capsys, "my/recipe.yaml", *changes)
    _, alone = dry(capsys, "my/recipe.yaml", *changes[1:])
    assert code == 0 and alone["shape"]["shared"] is None
    rows = []
    in_rows = pave.data.collator.in_rows
    monkeypatch.setattr(pave.data.collator, "in_rows", lambda *args: rows.append(in_rows(*args)) or rows[-1])
    run_recipe(read_recipe("my/recipe.yaml", changes), folder="my", progress=False)
    shared = found["shape"]["shared"]
    assert len(rows) == 8 and shared["mean_rows"] == pytest.approx(sum(map(len, rows)) / 8)
    assert shared["rows"] == max(map(len, rows)) < 4 and shared["longest"] == 2
    assert found["cost"]["step_flops"] < 0.8 * alone["cost"]["step_flops"]
    assert found["cost"]["memory"]["activations"] < alone["cost"]["memory"]["activations"]
    assert main(["train", "my/recipe.yaml", *changes, "output=other", "--dry-run"]) == 0
    said = f"of 4 questions in a forward pass: {shared['mean_rows']:.3g} videos on average and at most {shared['rows']}"
    assert said in capsys.readouterr().out


def test_without_samples_every_row_is_taken_to_be_full(capsys):
    path = RECIPES / "avsd_paper.yaml"
    changes = ["data.share_videos=2", "data.labels=answers", "patch.newline=base", "training.batch_size=8"]
    _, found = dry(capsys, path, *changes)
    assert found["shape"]["shared"] == {"rows": 4, "longest": 2, "mean_rows": 4.0}
    assert any("every row is taken to be full" in note for note in found["notes"])
    _, small = dry(capsys, path, *changes, "training.trainer={per_device_train_batch_size: 1}")
    assert any("data.share_videos is 2, but a forward pass has 1 questions" in line for line in small["missing"])
    assert small["shape"]["batch_size"] == 1 and small["shape"]["shared"] is None


def test_what_the_order_of_the_samples_refuses_is_missing(started, capsys):
    tasks = "data.tasks={one: {train: train.jsonl}, two: {train: train.jsonl}}"
    code, found = dry(
        capsys, "my/recipe.yaml", "data.train=null", "data.eval=null", tasks, "data.stages=[{steps: 2, tasks: {three: 1}}]"
    )
    assert code == 1 and found["missing"] == ["stage 1: there is no task 'three'; the tasks are ['one', 'two']"]
