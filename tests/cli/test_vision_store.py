"""The base's stored vision features from the command line: extracted, trained with, evaluated with; the numbers of the tower."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file

from pave.cli import main
from pave.data.samples import Sample, write_samples
from pave.training import read_recipe, run_recipe
from tiny_runs import hearing_config, save_base_and_patch, write_clip


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with a tiny base, a patch, four clips, samples, a recipe, and a store that is filled."""
    folder = tmp_path_factory.mktemp("world")
    save_base_and_patch(folder)
    samples = []
    for i in range(4):
        write_clip(folder / f"{i}.mp4", seed=i, seconds=1.0, sound=i != 2)
        samples.append(Sample(id=f"s{i}", video=str(folder / f"{i}.mp4"), question="what sound is heard ?", answer="a bell"))
    write_samples(folder / "train.jsonl", samples[:3])
    write_samples(folder / "test.jsonl", samples[3:])
    recipe = {
        "base": {"model": "base"},
        "patch": hearing_config().to_dict(),
        "data": {
            "train": "train.jsonl",
            "eval": "test.jsonl",
            "store": "features",
            "vision": "store",
            "frames": {"num_frames": 4},
        },
        "training": {"steps": 3, "batch_size": 1},
        "output": str(folder / "run"),
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(recipe))))
    assert main(["extract", str(folder / "recipe.yaml")]) == 0
    return folder


def trained(folder, output, **overrides):
    """(training loss, held-out loss, tensors of the patch)."""
    recipe = read_recipe(folder / "recipe.yaml", [f"output={output}", *(f"{k}={v}" for k, v in overrides.items())])
    result = run_recipe(recipe, folder=folder, progress=False)
    tensors = {
        f"{file.name}.{name}": value for file in result.patch.glob("*.safetensors") for name, value in load_file(file).items()
    }
    assert len(tensors) > 4
    return result.train_loss, result.eval_loss, tensors


def same(one, other):
    return one[:2] == other[:2] and all(torch.equal(one[2][name], other[2][name]) for name in one[2] | other[2])


def test_a_patch_comes_out_the_same_from_the_store_memory_and_the_tower(world, tmp_path):
    """One video a batch: every bit. Several: a batch goes through the tower together, stored videos never did."""
    tower = trained(world, tmp_path / "tower", **{"data.vision": "tower"})
    assert same(trained(world, tmp_path / "store"), tower)
    assert same(trained(world, tmp_path / "memory", **{"data.vision": "memory"}), tower)
    assert not same(trained(world, tmp_path / "other", **{"training.seed": 1}), tower)

    pairs = {"training.batch_size": 2}
    store = trained(world, tmp_path / "store2", **pairs, **{"data.cache": "memory"})
    assert same(trained(world, tmp_path / "memory2", **pairs, **{"data.vision": "memory"}), store)
    assert same(
        trained(world, tmp_path / "disk2", **pairs, **{"data.cache": str(tmp_path / "cache"), "training.steps": 3}), store
    )
    tower = trained(world, tmp_path / "tower2", **pairs, **{"data.vision": "tower"})
    assert store[:2] == pytest.approx(tower[:2], rel=1e-5)
    for name, value in tower[2].items():
        torch.testing.assert_close(store[2][name], value, atol=1e-4, rtol=1e-3)


def test_training_from_the_store_opens_no_video_and_runs_no_tower(world, tmp_path, monkeypatch):
    for place in ("pave.data.dataset.read_frames", "pave.data.vision.read_frames", "pave.data.sources.read_frames"):
        monkeypatch.setattr(place, lambda *_: pytest.fail("a video was decoded"))
    towers = []
    monkeypatch.setattr("pave.video_llms.encode.encode", lambda *_, **__: towers.append(1))
    trained(world, tmp_path / "out", **{"training.workers": 1})
    assert not towers


def test_memory_runs_the_tower_once_per_video(world, tmp_path, monkeypatch):
    from pave.data import vision

    seen = []
    encode = vision.VisionEncoder.encode
    monkeypatch.setattr(vision.VisionEncoder, "encode", lambda self, *a: seen.append(1) or encode(self, *a))
    trained(world, tmp_path / "out", **{"data.vision": "memory", "training.steps": 9})
    assert len(seen) == 4  # three to learn from, one that is watched


def test_evaluation_from_the_store_predicts_the_same(world, tmp_path, capsys, monkeypatch):
    samples, base, patch = str(world / "test.jsonl"), ["--base", str(world / "base")], ["--patch", str(world / "patch")]
    store = ["--store", str(tmp_path / "features"), "--vision", "exact"]
    for which in (patch, []):
        options = [samples, *base, *which, "--frames", "4"]
        assert main(["extract", *options, *store]) == 0
        outputs = []
        for more in ([], store):
            if more:
                monkeypatch.setattr("pave.data.dataset.read_frames", lambda *_: pytest.fail("a video was decoded"))
            out = tmp_path / f"eval{len(which)}{len(more)}"
            assert main(["eval", *options, "--device", "cpu", "--out", str(out), *more]) == 0
            outputs.append((out / "predictions.jsonl").read_bytes())
        monkeypatch.undo()
        assert outputs[0] == outputs[1]
    assert "frozen" not in capsys.readouterr().err
    assert main(["eval", samples, *base, "--frames", "5", "--device", "cpu", *store]) == 2
    assert "lacks 1 of 1 features, the first is the base's vision of" in capsys.readouterr().err


def test_sixteen_bits_are_another_entry_and_half_the_size(world, tmp_path, capsys):
    shutil.copytree(world / "features", tmp_path / "features")
    recipe = ["extract", str(world / "recipe.yaml"), "--store", str(tmp_path / "features"), "--json"]
    capsys.readouterr()
    assert main([*recipe, "--vision", "bfloat16"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["wanted"], report["present"], report["extracted"]) == (8, 4, 4)
    exact, half = sorted((s["num_bytes"] for s in report["sizes"] if s["name"] == "base_vision"), reverse=True)
    assert 0.5 < half / exact < 0.75  # times and names are not halved
    whole, rounded = (
        trained(world, tmp_path / name, **{"data.store": str(tmp_path / "features"), "data.vision_dtype": name})
        for name in ("exact", "bfloat16")
    )
    assert rounded[0] == pytest.approx(whole[0], rel=2e-2) and not same(rounded, whole)


def test_wrong_use_is_named(world, tmp_path, capsys):
    def error(*arguments):
        capsys.readouterr()
        assert main([*map(str, arguments)]) == 2
        return capsys.readouterr().err

    recipe = world / "recipe.yaml"
    assert "set data.store to the folder that pave extract fills" in error("train", recipe, "data.store=null")
    assert "vision is 'tower', which keeps none" in error("train", recipe, "data.vision=tower", "data.vision_dtype=bfloat16")
    memory = ("train", recipe, "data.vision=memory", f"output={tmp_path / 'out'}")
    assert "but training.workers is set" in error(*memory, "training.workers=1")
    lacking = error("train", recipe, "data.vision_dtype=float16", f"output={tmp_path / 'out'}")
    assert "lacks 4 of 4 features, the first is the base's vision of" in lacking and "pave extract" in lacking
    assert "--vision is exact, bfloat16 or float16, got 'half'" in error("extract", recipe, "--vision", "half")
    assert "a recipe names its own base and frames" in error("extract", recipe, "--base", "other")
    assert "give --store as well" in error("eval", world / "test.jsonl", "--base", world / "base", "--vision", "exact")
    plain = yaml.safe_load(recipe.read_text())
    plain["patch"]["side_channels"], plain["data"]["vision"] = {}, "tower"
    (world / "blind.yaml").write_text(yaml.safe_dump(plain))
    assert "data.vision is not 'store', so there is nothing to extract" in error("extract", world / "blind.yaml")
