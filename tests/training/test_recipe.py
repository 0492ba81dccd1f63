"""Recipes: strict reading, overrides, and errors that name the file and the key."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import yaml

from pave.config import field_docs
from pave.training.arguments import PatchTrainingArguments, TrainingConfig
from pave.training.recipe import BaseConfig, DataConfig, Recipe, read_recipe
from pave.training.recipe_files import read_values, write_values
from pave.training.sampler import Stage

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))

TEXT = """
base: {model: some/base}
patch:
  side_channels: {audio: {width: 64}}
data:
  train: train.jsonl
  frames: {num_frames: 8}
training: {learning_rate: 1e-4, batch_size: 2}
output: runs/x
"""

# every line holds the one before it nine times
_LINES = ", ".join(f"b{i}: &a{i + 1} [{', '.join([f'*a{i}'] * 9)}]" for i in range(9))
BOMB = f"{{a: &a0 [1], {_LINES}}}"


def write(tmp_path, text=TEXT):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return path


def test_reads_values_and_defaults(tmp_path):
    recipe = read_recipe(write(tmp_path))
    assert recipe.base.model == "some/base" and recipe.patch.side_channels["audio"].width == 64
    assert recipe.training.learning_rate == 1e-4 and recipe.training.seed == 0
    assert recipe.data.frames.num_frames == 8
    assert Recipe.from_dict(yaml.safe_load(yaml.safe_dump(_lists(recipe.to_dict())))) == recipe


def _lists(value):
    if isinstance(value, dict):
        return {k: _lists(v) for k, v in value.items()}
    return [_lists(v) for v in value] if isinstance(value, (list, tuple)) else value


def test_overrides(tmp_path):
    text = TEXT.replace("train: train.jsonl", "train: train.jsonl\n  stages: [{steps: 3}, {steps: 4, weights: {sound: 1}}]")
    recipe = read_recipe(
        write(tmp_path, text),
        [
            "training.learning_rate=3e-3",
            "data.stages.1.steps=9",
            "patch.lora=null",
            "patch.side_channels.audio.fusion.width=32",
            "training.report_to=[tensorboard]",
        ],
    )
    assert recipe.training.learning_rate == 3e-3 and recipe.data.stages == (
        Stage(steps=3),
        Stage(steps=9, weights={"sound": 1}),
    )
    assert recipe.patch.lora is None and recipe.patch.side_channels["audio"].fusion.width == 32
    assert recipe.training.report_to == ("tensorboard",)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "learning_rate",
            "learning_rat",
            r"recipe.yaml: unknown key 'training.learning_rat'; did you mean 'training.learning_rate'",
        ),
        ("batch_size: 2", "batch_size: many", r"recipe.yaml: training.batch_size: .*'many'"),
        ("batch_size: 2", "batch_size: 0", r"recipe.yaml: training: batch_size must be at least 1"),
        ("output: runs/x", "", r"recipe.yaml: output"),
        (
            "{width: 64}",
            "{width: 64, widht: 3}",
            r"recipe.yaml: unknown key 'patch.side_channels.audio.widht'; did you mean 'patch.side_channels.audio.width'",
        ),
        ("num_frames: 8", "num_frames: 8, fps: 1", r"recipe.yaml: data.frames: num_frames cannot be combined"),
        ("batch_size: 2", "steps: 3, eval_every: 2", r"training.eval_every needs data.eval"),
        ("batch_size: 2", "trainer: {learning_rte: 1}", r"no argument 'learning_rte'"),
        ("batch_size: 2", "batch_size: 2, batch_size: 3", r"recipe.yaml: not valid YAML: the key 'batch_size' is given twice"),
        ("output: runs/x", "output: [", r"recipe.yaml: not valid YAML"),
        ("output: runs/x", "output: runs/x\n? [a]\n: 1", r"recipe.yaml: not valid YAML: unhashable"),
        ("batch_size: 2", "steps: !!int two", r"recipe.yaml: not valid YAML: invalid literal"),
        ("batch_size: 2", "seed: 2024-99-99", r"recipe.yaml: training.seed: Input should be a valid integer, got '2024-99-99'"),
        ("batch_size: 2", "seed: " + "9" * 5000, r"recipe.yaml: not valid YAML: the number 9+... of 5,000 digits"),
        (
            "batch_size: 2",
            "trainer: " + "[" * 3000 + "]" * 3000,
            r"recipe.yaml: not valid YAML: with its aliases .* nested over 50 deep",
        ),
        ("batch_size: 2", "trainer: &a {x: *a}", r"recipe.yaml: not valid YAML: with its aliases .* nested over 50 deep"),
        ("batch_size: 2", "trainer: " + BOMB, r"recipe.yaml: not valid YAML: with its aliases it holds over 100000 values"),
        ("output: runs/x", "output: ''", r"recipe.yaml: output is empty"),
        ("train: train.jsonl", "train: ' '", r"recipe.yaml: data.train is empty"),
        ("train: train.jsonl", "train: a\n  cache_gigabytes: .inf", r"recipe.yaml: data: cache_gigabytes .* finite"),
        ("train: train.jsonl", "train: a\n  max_length: -1", r"recipe.yaml: data: max_length must be at least 1"),
        ("batch_size: 2", "epochs: .inf", r"recipe.yaml: training: epochs must be a positive, finite number"),
        ("batch_size: 2", "seed: -1", r"recipe.yaml: training: seed must be between 0"),
        ("batch_size: 2", "seed: 4294967296", r"recipe.yaml: training: seed must be between 0"),
        ("batch_size: 2", "max_grad_norm: .nan", r"recipe.yaml: training: max_grad_norm must be a finite number"),
        ("learning_rate: 1e-4", "learning_rate: -1e-4", r"recipe.yaml: training: learning_rate must be a finite number"),
        ("batch_size: 2", "workers: -1", r"recipe.yaml: training: workers must be"),
        ("batch_size: 2", "workers: 1025", r"training: a step of .* by 1025 workers is a slip of the pen"),
        ("batch_size: 2", "batch_size: 1001, accumulation: 1000", r"a step of 1001 x 1000 samples .* at most 1,000,000"),
        ("num_frames: 8", "num_frames: 9223372036854775808", r"the number 92233720368547758[0-9.]+ of 19 digits is too large"),
        (TEXT, "just text", r"recipe.yaml: a recipe is a mapping"),
        ("train: train.jsonl", "train: a\n  stages: [{step: 1}]", r"data.stages.0"),
    ],
)
def test_errors_name_the_file_and_the_key(tmp_path, old, new, message):
    assert old in TEXT
    with pytest.raises(ValueError, match=message):
        read_recipe(write(tmp_path, TEXT.replace(old, new)))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.learning_rat=1", r"with training.learning_rat=1: unknown key"),
        ("training.learning_rate", r"expected key=value"),
        ("output.x=1", r"output is 'runs/x' and has no keys"),
        ("data.stages=[{steps: 1}]", None),
        ("data.stages.0.steps=1", r"data.stages.0.steps=1"),
        ("training.seed=[", r"not a YAML value"),
        ("training.seed=!!int x", r"override 'training.seed=!!int x': not a YAML value"),
    ],
)
def test_bad_overrides_are_named(tmp_path, override, message):
    if message is None:
        read_recipe(write(tmp_path), [override])
        return
    with pytest.raises(ValueError, match=message):
        read_recipe(write(tmp_path), [override])


def test_steps_and_stages_together_are_refused(tmp_path):
    with pytest.raises(
        ValueError,
        match=r"both say how long to train; set the steps of the stages .*, or leave the stages out \(data.stages=null\)",
    ):
        read_recipe(write(tmp_path), ["training.steps=5", "data.stages=[{steps: 1}]"])


def test_null_stands_for_an_empty_list_or_mapping(tmp_path):
    recipe = read_recipe(
        write(tmp_path),
        ["data.stages=null", "data.tasks=null", "training.steps=5", "training.report_to=null", "training.trainer=null"],
    )
    assert (recipe.data.stages, recipe.data.tasks, recipe.training.steps) == ((), {}, 5)
    assert (recipe.training.report_to, recipe.training.trainer) == ((), {})
    recipe = read_recipe(write(tmp_path), ["patch.side_channels=null", "patch.lora.ranks=null"])
    assert recipe.patch.side_channels == {} and recipe.patch.lora.ranks == {}
    stage = read_recipe(write(tmp_path), ["data.stages=[{steps: 3, weights: null, tasks: null}]"]).data.stages[0]
    assert stage == Stage(steps=3)


@pytest.mark.parametrize(
    ("override", "got"),
    [
        ("training.seed=yes", "integer, got 'yes'"),
        ("training.seed=true", "integer, got True"),
        ("training.seed='5'", "integer, got '5'"),
        ("training.seed=5.0", "integer, got 5.0"),
        ("training.seed=010", "integer, got '010'"),
        ("training.seed=1_000", "integer, got '1_000'"),
        ("training.seed=0x1F", "integer, got '0x1F'"),
        ("training.steps=1:30", "integer, got '1:30'"),
        ("training.learning_rate=on", "number, got 'on'"),
        ("training.learning_rate=true", "number, got True"),
        ("training.activation_checkpointing=yes", "boolean, got 'yes'"),
        ("training.activation_checkpointing=1", "boolean, got 1"),
        ("training.report_to=tensorboard", "array, got 'tensorboard'"),
        ("patch.lora.targets=q_proj", "array, got 'q_proj'"),
        ("output=3", "string, got 3"),
        ("output=false", "string, got False"),
        ("training.trainer={1: 2}", "the key 1 is no text"),
        ("training.channel_dropout=true", "number, got True"),
    ],
)
def test_no_value_is_taken_for_one_of_another_type(tmp_path, override, got):
    with pytest.raises(ValueError, match=re.escape(got)):
        read_recipe(write(tmp_path), [override])


def test_text_stays_text_and_whole_numbers_may_be_written_with_an_exponent(tmp_path):
    """By the rules of YAML 1.1 these would be a boolean, a number of base 60, a date and an octal number."""
    for text in ("no", "1:30", "2024-05-01", "010", "0x1F", "1_000"):
        assert read_recipe(write(tmp_path), [f"output={text}", f"base.revision={text}"]).output == text
    recipe = read_recipe(write(tmp_path), ["training.steps=2e3", "training.learning_rate=1", "training.warmup=.1"])
    assert (recipe.training.steps, type(recipe.training.steps), recipe.training.learning_rate) == (2000, int, 1.0)
    assert recipe.training.warmup == 0.1


def test_a_written_recipe_reads_as_it_was(tmp_path):
    odd = ["no", "1e5", "12e45", "010", "1:30", "~", "", "true", ".inf", "2024-05-01", "- x", "a: b", "#", "0o7", "+.5", "<<"]
    values = {
        "text": odd,
        "numbers": [1, -2, 1e-5, 1e300, 0.1, 2.0, float("inf")],
        "others": [True, None],
        **dict.fromkeys(odd, 1),
    }
    (tmp_path / "values.yaml").write_text(write_values(values))
    assert repr(read_values(tmp_path / "values.yaml")[0]) == repr(values)


def test_published_labels_go_with_what_reads_no_label(tmp_path):
    assert read_recipe(RECIPES[0].parent / "avsd_paper.yaml").data.labels == "published"
    assert read_recipe(RECIPES[0].parent / "avsd_compact.yaml").data.labels == "answers"
    with pytest.raises(ValueError, match="the gate of side channel 'audio' reads the question up to the first label"):
        read_recipe(write(tmp_path), ["data.labels=published", "patch.side_channels.audio.fusion.gate=true"])
    with pytest.raises(ValueError, match="labels 'published' are also of the text before the video"):
        read_recipe(write(tmp_path), ["data.labels=published", "data.share_videos=2"])


def test_missing_file(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere.yaml: there is no such file"):
        read_recipe(tmp_path / "nowhere.yaml")


def test_numbers_reach_the_trainer():
    training = TrainingConfig(
        learning_rate=1e-3, warmup=0.1, schedule="linear", weight_decay=0.01, beta2=0.98, accumulation=3, save_every=7, seed=5
    )
    args = training.arguments("out", 200)
    assert isinstance(args, PatchTrainingArguments)
    assert (args.learning_rate, args.warmup_steps, args.weight_decay, args.adam_beta2) == (1e-3, 20, 0.01, 0.98)
    assert (args.max_steps, args.gradient_accumulation_steps, args.save_steps, args.seed) == (200, 3, 7, 5)
    assert args.lr_scheduler_type == "linear" and args.save_strategy == "steps" and args.report_to == []
    assert TrainingConfig(trainer={"weight_decay": 0.5}).arguments("out", 1).weight_decay == 0.5
    assert TrainingConfig(activation_checkpointing=True).arguments("out", 1).gradient_checkpointing is True
    with pytest.raises(ValueError, match="output_norm_multiplier"):
        TrainingConfig(output_norm_multiplier=-1).arguments("out", 1)


@pytest.mark.parametrize(("epochs", "steps"), [(1, 13), (2, 25), (0.5, 7), (0.01, 1)])
def test_epochs_are_rounded_up_to_whole_steps(epochs, steps):
    assert TrainingConfig(epochs=epochs, batch_size=4, accumulation=2).num_steps(100) == steps


@pytest.mark.parametrize("config", [Recipe, BaseConfig, DataConfig, TrainingConfig, Stage])
def test_every_field_is_documented(config):
    assert set(field_docs(config)) == {f.name for f in dataclasses.fields(config)}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_recipes_of_the_project_are_valid(path):
    recipe = read_recipe(path)
    assert path.read_text().startswith("# "), "a recipe starts with what it is and how to run it"
    assert f"pave train recipes/{path.name}" in path.read_text()
    recipe.training.arguments("unused", 10)


def test_passes_are_counted_as_written_and_absurd_numbers_are_refused():
    assert 0.07 * 100 > 7  # a step too many, if steps were counted so
    assert TrainingConfig(epochs=0.07, batch_size=1).num_steps(100) == 7
    assert TrainingConfig(epochs=0.1, batch_size=1).num_steps(30) == 3
    with pytest.raises(ValueError, match=r"training\.epochs 1e\+300 makes 3e\+300 steps of 12 samples; lower it"):
        TrainingConfig(epochs=1e300, batch_size=4).num_steps(12)
    for name, value, complaint in (
        ("steps", 10**12, "steps must be at most 1,000,000,000, got 1,000,000,000,000"),
        ("trainer", {"max_steps": -5}, "trainer: max_steps is decided elsewhere; set training.steps or data.stages"),
        ("trainer", {"seed": 3}, "trainer: seed is decided elsewhere; set training.seed"),
        ("trainer", {"output_dir": "x"}, "trainer: output_dir is decided elsewhere; set output"),
        (
            "trainer",
            {"gradient_accumulation_steps": 0},
            "trainer: gradient_accumulation_steps must be a whole number of at least 1",
        ),
        (
            "trainer",
            {"per_device_train_batch_size": "two"},
            "trainer: per_device_train_batch_size must be a whole .* got 'two'",
        ),
        ("beta1", 1.0, "beta1 must be at least 0 and below 1, got 1.0"),
        ("beta2", float("nan"), "beta2 must be at least 0 and below 1, got nan"),
    ):
        with pytest.raises(ValueError, match=complaint):
            TrainingConfig(**{name: value})
