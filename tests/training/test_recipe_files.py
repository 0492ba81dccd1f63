"""Recipes made of several files: what extends and a file laid over a recipe mean, and what is refused."""

from __future__ import annotations

import os
import re
import tracemalloc

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
        ({"recipe": "extends: gone.yaml\n"}, r"gone.yaml: there is no such file \(extends in .*recipe.yaml\)"),
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


LAUGHS = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 40))
MERGES = "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 40))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "extends: /dev/zero",
            r"/dev/zero: cannot be read \(it is a device, not an ordinary file\) \(extends in .*recipe.yaml\)",
        ),
        ("extends: pipe", r"pipe: cannot be read \(it is a pipe, not an ordinary file\) \(extends in"),
        ("extends: circle", r"circle: cannot be read \(its links lead round in a circle\) \(extends in"),
        ('extends: "a\\0b"', r"'.*a\\x00b': cannot be read \(embedded null byte\) \(extends in"),
        ("extends: .", r"cannot be read \(Is a directory\) \(extends in"),
        ("#" * 150_000, r"recipe.yaml: the file is too large \(0.143 MiB; at most 0.125 MiB are read\)$"),
        ("a0: &a0 [x]\n" + LAUGHS, r"recipe.yaml: not valid YAML: with its aliases it holds over 100000 values"),
        ("a0: &a0 {x: 1}\n" + MERGES, r"recipe.yaml: not valid YAML: with its aliases it holds over 100000 values"),
        ("a: &a {x: 1}\nb: {<<: *a}", r"not valid YAML: merged keys \(<<\) are not read; name a file with extends$"),
        ("a: &a {x: *a}", r"recipe.yaml: not valid YAML: with its aliases .* nested over 50 deep$"),
        ("[" * 2000, r"recipe.yaml: not valid YAML: with its aliases .* nested over 50 deep$"),
        ("a: 1e400", r"the number 1e400 is too large; write .inf where infinity is meant$"),
        ("a: " + "9" * 400, r"the number 99999999999999999999... of 400 digits is too large$"),
        ("a: -9223372036854775808", r"the number -9223372036854775808... of 20 digits is too large$"),
    ],
)
def test_what_would_never_end_or_fill_the_memory_is_refused_in_one_sentence(tmp_path, text, message):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    write(tmp_path, recipe=text)
    tracemalloc.start()
    with pytest.raises(ValueError, match=message) as caught:
        read_values(tmp_path / "recipe.yaml")
    assert tracemalloc.get_traced_memory()[1] < 64 * 2**20 and "\n" not in str(caught.value)
    tracemalloc.stop()


def test_all_that_a_recipe_extends_is_bounded_together(tmp_path):
    write(tmp_path, part="#" * 120_000, recipe=WHOLE.replace("{width: 64}", "{extends: [part.yaml, part.yaml], width: 64}"))
    with pytest.raises(ValueError, match=r"part.yaml: a file that is extended is a mapping"):
        read_values(tmp_path / "recipe.yaml")
    write(tmp_path, part="#" * 120_000 + "\nkind: sound\n", recipe=f"extends: [{', '.join(['part.yaml'] * 9)}]\n")
    with pytest.raises(
        ValueError, match=r"part.yaml: the file is too large \(0.114 MiB; at most 0.0\d+ MiB are read\) \(extends"
    ):
        read_values(tmp_path / "recipe.yaml")


def test_large_overrides_are_shortened_in_messages(tmp_path):
    write(tmp_path, recipe=WHOLE)
    for value, why in (
        ("9" * 400, "of 400 digits is too large"),
        ("1e400", "the number 1e400"),
        ("[" * 2000, "nested over 50"),
    ):
        with pytest.raises(ValueError, match=f"^override 'output={re.escape(value[:20])}.*not a YAML value: .*{why}") as caught:
            read_recipe(tmp_path / "recipe.yaml", [f"output={value}"])
        assert len(str(caught.value)) < 300


def test_infinity_and_aliases_are_read(tmp_path):
    write(tmp_path, recipe="a: .inf\nb: &b {x: [1, 9223372036854775807]}\nc: *b\n" + "d: " + "[" * 49 + "]" * 49 + "\n")
    values = read_values(tmp_path / "recipe.yaml")[0]
    assert values["a"] == float("inf") and values["b"] == values["c"] == {"x": [1, 2**63 - 1]}


def test_a_file_that_is_laid_over_must_be_there_and_a_mapping(tmp_path):
    write(tmp_path, recipe=WHOLE, row="[1]\n")
    with pytest.raises(ValueError, match=r"gone.yaml: there is no such file"):
        read_recipe(tmp_path / "recipe.yaml", [str(tmp_path / "gone.yaml")])
    with pytest.raises(ValueError, match=r"row.yaml: a file laid over a recipe is a mapping"):
        read_recipe(tmp_path / "recipe.yaml", [str(tmp_path / "row.yaml")])
