"""``pave extract`` from recipes and sample files, and what ``pave train`` and ``pave eval`` do with its store."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file

from pave.cli import main
from pave.data.samples import Sample, read_samples, write_samples
from pave.data.store import FeatureStore
from pave.training import read_recipe, run_recipe
from store_files import content
from tiny_runs import hearing_config, save_base_and_patch, write_clip


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with a tiny base, a patch, clips (one silent), samples and a recipe whose store is not there yet."""
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
        "data": {"train": "train.jsonl", "eval": "test.jsonl", "store": "features", "frames": {"num_frames": 4}},
        "training": {"steps": 2, "batch_size": 2},
        "output": str(folder / "run"),
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(recipe))))
    return folder


def extract_json(capsys, *arguments, code=0):
    capsys.readouterr()
    assert main(["extract", *map(str, arguments), "--json"]) == code
    return json.loads(capsys.readouterr().out)


def trained(folder, output, **overrides):
    recipe = read_recipe(folder / "recipe.yaml", [f"output={output}", *(f"{k}={v}" for k, v in overrides.items())])
    result = run_recipe(recipe, folder=folder, progress=False)
    tensors = {
        f"{file.name}.{name}": value for file in result.patch.glob("*.safetensors") for name, value in load_file(file).items()
    }
    return result.train_loss, result.eval_loss, tensors


def test_from_extraction_to_training_and_evaluation(world, tmp_path, capsys):
    recipe, store = world / "recipe.yaml", world / "features"
    assert main(["train", str(recipe)]) == 2
    assert "there is no feature store here; pave extract makes one" in capsys.readouterr().err
    first = extract_json(capsys, world / "train.jsonl", "--patch", world / "patch", "--store", store)
    assert (first["wanted"], first["extracted"], first["without_channel"], first["failures"]) == (3, 3, 1, [])
    assert first["per_second"] > 0 and 0 < first["decode_share"] < 1 and first["sizes"][0]["entries"] == 3
    assert main(["train", str(recipe)]) == 2
    assert "lacks 1 of 4 features, the first is side channel 'audio'" in capsys.readouterr().err
    second = extract_json(capsys, recipe)
    assert (second["wanted"], second["present"], second["extracted"]) == (4, 3, 1)  # a patch's encoder is the recipe's

    with_store = trained(world, tmp_path / "with")
    without = trained(world, tmp_path / "without", **{"data.store": "null"})
    assert with_store[:2] == without[:2]
    assert len(without[2]) > 4 and with_store[2].keys() == without[2].keys()
    assert all(torch.equal(with_store[2][name], without[2][name]) for name in without[2])

    arguments = ["eval", str(world / "test.jsonl"), "--base", str(world / "base"), "--patch", str(world / "patch"), "--json"]
    arguments += ["--frames", "4", "--device", "cpu"]
    outputs = []
    for more in (["--store", str(store)], []):
        assert main([*arguments, "--out", str(tmp_path / f"eval{len(more)}"), *more]) == 0
        outputs.append((tmp_path / f"eval{len(more)}" / "predictions.jsonl").read_bytes())
    assert outputs[0] == outputs[1]


def test_training_never_encodes_where_there_is_a_store(world, tmp_path, capsys, monkeypatch):
    extract_json(capsys, world / "recipe.yaml")
    monkeypatch.setattr("pave.data.dataset.read_source", lambda *_: pytest.fail("a source was read"))
    trained(world, tmp_path / "out")


def test_failures_are_printed_and_the_exit_code_says_so(world, tmp_path, capsys):
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    shutil.copy(world / "0.mp4", tmp_path / "good.mp4")
    samples = [Sample(id=n, video=str(tmp_path / f"{n}.mp4"), question="?", answer="a") for n in ("good", "bad")]
    write_samples(tmp_path / "both.jsonl", samples)
    options = [tmp_path / "both.jsonl", "--patch", world / "patch", "--store", tmp_path / "store"]
    report = extract_json(capsys, *options, code=1)
    assert report["extracted"] == 1
    assert [(f["samples"], f["channel"]) for f in report["failures"]] == [(["bad"], "audio")]
    assert main(["extract", *map(str, options)]) == 1
    out = capsys.readouterr().out
    assert "2 features wanted, 1 were there, 0 made" in out and "bad.mp4" in out and "1 files failed" in out


def test_gc_lists_first_and_removes(world, tmp_path, capsys):
    store = tmp_path / "store"
    extract_json(capsys, world / "recipe.yaml", "--store", store)
    before = content(store)
    gc = ["extract", str(world / "test.jsonl"), "--patch", str(world / "patch"), "--store", str(store), "--gc"]
    assert main([*gc, "--dry-run"]) == 0
    found = capsys.readouterr()
    assert found.err.count("would remove ") == 3 and "0.mp4" in found.err and "3 entries would go, 1 kept" in found.out
    assert content(store) == before
    assert main(gc) == 0
    found = capsys.readouterr()
    assert found.err.count("removing ") == 3 and "3 entries removed, 1 kept" in found.out
    assert [size.entries for size in FeatureStore(store).sizes()] == [1]


def test_every_rank_makes_its_share_and_rank_0_has_standard_output_to_itself(world, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    made = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        assert main(["extract", str(world / "recipe.yaml"), "--store", str(tmp_path / "store"), "--json"]) == 0
        said = capsys.readouterr()
        assert (said.out == "") == (rank == "1")
        made.append(json.loads((said.out if rank == "0" else said.err).splitlines()[-1]))
    assert [(m["rank"], m["world_size"], m["extracted"] + m["foreign"]) for m in made] == [(0, 2, 4), (1, 2, 0)]
    assert (made[1]["present"], len(read_samples(world / "train.jsonl"))) == (4, 3)
    assert main(["extract", str(tmp_path / "gone.yaml"), "--json"]) == 2
    said = capsys.readouterr()
    assert said.out == "" and "gone.yaml: there is no such file" in said.err
    monkeypatch.setenv("RANK", "one")
    assert main(["extract", str(world / "recipe.yaml"), "--store", str(tmp_path / "store")]) == 2
    assert "the variables RANK and WORLD_SIZE must be numbers" in capsys.readouterr().err


def test_wrong_use_is_named(world, tmp_path, capsys):
    def error(*arguments):
        assert main(["extract", *map(str, arguments)]) == 2
        return capsys.readouterr().err

    assert "needs --patch, whose encoders are run, and --store" in error(world / "train.jsonl")
    assert "--dry-run goes with --gc" in error(world / "recipe.yaml", "--dry-run")
    plain = yaml.safe_load((world / "recipe.yaml").read_text())
    del plain["data"]["store"]
    (world / "plain.yaml").write_text(yaml.safe_dump(plain))
    assert "the recipe has no data.store; set it, or give --store" in error(world / "plain.yaml")
    plain["data"]["store"] = "other"
    (world / "other.yaml").write_text(yaml.safe_dump(plain))
    assert "the recipes name different feature stores" in error(world / "recipe.yaml", world / "other.yaml")
    plain["patch"]["side_channels"] = {}
    (world / "silent.yaml").write_text(yaml.safe_dump(plain))
    assert "there is no side channel" in error(world / "silent.yaml")
    assert "there is no feature store here" in error(world / "other.yaml", "--gc")
