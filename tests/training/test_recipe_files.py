"""Recipes made of several files: what extends and a file laid over a recipe mean, and what is refused."""

from __future__ import annotations

import pytest

from pave.training.recipe import read_recipe
from pave.training.recipe_files import read_values

WHOLE = "base: {model: b}\npatch: {side_channels: {audio: {width: 64}}}\ndata: {train: t.jsonl}\noutput: o\n"


def write(folder, **files):
    for name, text in files.items():
        path = folder / f"{name.replace('__', '/')}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)


def test_own_values_are_laid_over_those_of_the_files_in_order(tmp_path):
    write(
        tmp_path,
        below="a: {x: 1, y: [1, 2], z: {deep: 1, kept: 2}}\nb: 1\n",
        between="a: {x: 2}\nc: 3\n",
        recipe="extends: [below.yaml, between.yaml]\na: {y: [3], z: {deep: null}}\n",
    )
    values, where = read_values(tmp_path / "recipe.yaml")
    assert values == {"a": {"x": 2, "y": [3], "z": {"deep": None, "kept": 2}}, "b": 1, "c": 3}
    assert "recipe.yaml (extends" in where and "between.yaml" in where


def test_a_mapping_at_any_depth_extends_a_file_beside_the_file_that_names_it(tmp_path):
    write(
        tmp_path,
        parts__channel="width: 64\nfusion: {extends: sizes.yaml, num_layers: 3}\n",
        parts__sizes="width: 32\nembed_width: 32\nnum_layers: 1\n",
        recipe=WHOLE.replace("{width: 64}", "{extends: parts/channel.yaml, kind: sound}"),
    )
    channel = read_recipe(tmp_path / "recipe.yaml").patch.side_channels["audio"]
    assert (channel.width, channel.kind, channel.fusion.width, channel.fusion.num_layers) == (64, "sound", 32, 3)


def test_files_and_values_are_laid_over_a_recipe_in_the_order_given(tmp_path):
    write(tmp_path, recipe=WHOLE, other="base: {model: c, dtype: bfloat16}\ntraining: {seed: 5}\n")
    other = str(tmp_path / "other.yaml")
    recipe = read_recipe(tmp_path / "recipe.yaml", ["training.seed=1", other, "base.dtype=float16"])
    assert (recipe.base.model, recipe.base.dtype, recipe.training.seed) == ("c", "float16", 5)
    assert read_recipe(tmp_path / "recipe.yaml", [other, "training.seed=1"]).training.seed == 1


def test_a_part_that_two_places_extend_is_changed_in_one_of_them_only(tmp_path):
    write(
        tmp_path,
        part="width: 64\n",
        recipe=WHOLE.replace("audio: {width: 64}", "audio: {extends: part.yaml}, other: {extends: part.yaml}"),
    )
    recipe = read_recipe(tmp_path / "recipe.yaml", ["patch.side_channels.audio.width=8"])
    assert [recipe.patch.side_channels[name].width for name in ("audio", "other")] == [8, 64]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"recipe": "extends: a.yaml\n", "a": "extends: b.yaml\n", "b": "x: {extends: a.yaml}\n"},
         r"b.yaml: extends goes round in a circle: a.yaml -> b.yaml -> a.yaml"),
        ({"recipe": "extends: recipe.yaml\n"}, r"goes round in a circle: recipe.yaml -> recipe.yaml"),
        ({"recipe": "extends: gone.yaml\n"}, r"gone.yaml: cannot be read \(No such file or directory\) \(extends in .*recipe.yaml\)"),
        ({"recipe": "extends: 3\n"}, r"recipe.yaml: extends is the name of a file or a list of them, got 3"),
        ({"recipe": "extends: []\n"}, r"recipe.yaml: extends is the name of a file or a list of them, got \[\]"),
        ({"recipe": "extends: a.yaml\n", "a": "[1]\n"}, r"a.yaml: a file that is extended is a mapping"),
        ({"recipe": "extends: a.yaml\n", "a": "x: [\n"}, r"a.yaml: not valid YAML"),
        ({"recipe": f"{{{', '.join(f'k{i}: {{extends: a.yaml}}' for i in range(300))}}}", "a": "x: 1\n"},
         r"more than 200 files are named by extends"),
        ({"recipe": "extends: a.yaml\n", "a": WHOLE + "training: {sed: 1}\n"},
         r"recipe.yaml \(extends .*a.yaml\): unknown key 'training.sed'; did you mean 'training.seed'"),
    ],
)  # fmt: skip
def test_errors_name_the_file(tmp_path, files, message):
    write(tmp_path, **files)
    with pytest.raises(ValueError, match=message):
        read_recipe(tmp_path / "recipe.yaml")


def test_a_file_that_is_laid_over_must_be_there_and_a_mapping(tmp_path):
    write(tmp_path, recipe=WHOLE, row="[1]\n")
    with pytest.raises(ValueError, match=r"gone.yaml: cannot be read"):
        read_recipe(tmp_path / "recipe.yaml", [str(tmp_path / "gone.yaml")])
    with pytest.raises(ValueError, match=r"row.yaml: a file laid over a recipe is a mapping"):
        read_recipe(tmp_path / "recipe.yaml", [str(tmp_path / "row.yaml")])
