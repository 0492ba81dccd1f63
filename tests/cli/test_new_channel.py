"""``pave new-channel`` writes a channel whose own tests pass, and that recipes and the command line take as it is."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from pave.cli import main
from pave.data.media import write_video
from pave.patching import read_record
from pave.side_channels import build_encoder
from pave.training import read_recipe
from tiny_models import SIDE, tiny_llava_onevision


@pytest.fixture
def at(tmp_path, monkeypatch):
    """In a new folder, with imports from it forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None)
        if file and Path(file).is_relative_to(tmp_path):
            del sys.modules[name]


def write_experiment(folder, channel, encoders):
    """A base, four clips with a log each (the last without), and a recipe with the channel."""
    model, processor = tiny_llava_onevision()
    model.save_pretrained(folder / "base")
    processor.save_pretrained(folder / "base")
    rows = []
    for i in range(4):
        frames = np.random.default_rng(i).integers(0, 256, (8, SIDE, SIDE, 3), dtype=np.uint8)
        write_video(folder / f"{i}.mp4", frames, fps=8)
        (folder / f"{i}.csv").write_text("time,value\n" + "".join(f"{0.1 * t},{i + t}\n" for t in range(10)))
        side = {} if i == 3 else {"side_channels": {next(iter(channel)): f"{i}.csv"}}
        rows.append({"id": str(i), "video": f"{i}.mp4", "question": "is it warm?", "answer": "a bell", **side})
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {
        "base": {"model": "base"},
        "patch": {"side_channels": channel, "lora": {"rank": 2}, "storage_dtype": "float32"},
        "data": {"train": "samples.jsonl", "frames": {"num_frames": 4}, "cache": "memory"},
        "training": {"steps": 2, "batch_size": 2},
        "output": str(folder / "run"),
        "encoders": encoders,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))


def test_the_tests_it_writes_pass(tmp_path, capsys):
    folder = tmp_path / "mine"
    assert main(["new-channel", "room_climate", "--out", str(folder), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["encoder"] == "room_climate:RoomClimateEncoder"
    assert sorted(told["files"]) == sorted(map(str, folder.iterdir()))
    assert not any(re.search("CLASS|CHANNEL", Path(file).read_text()) for file in told["files"])
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_room_climate.py"]
    done = subprocess.run(command, cwd=folder, env=os.environ, capture_output=True, text=True)
    assert done.returncode == 0 and "4 passed" in done.stdout, done.stdout[-2000:]


def test_it_trains_and_answers_through_a_recipe(at, capsys):
    """The lines that the command prints are the recipe's, and the finished patch finds the class again."""
    assert main(["new-channel", "thermometer"]) == 0
    out = capsys.readouterr().out
    printed = yaml.safe_load(re.search(r"  encoders: .*\n  patch:\n.*\n.*", out)[0])
    channel = printed["patch"]["side_channels"]
    channel["thermometer"]["fusion"] = {"width": 16, "embed_width": 16, "num_heads": 2}
    write_experiment(at, channel, printed["encoders"])
    assert main(["train", "recipe.yaml", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 2
    recorded = read_record(at / "run" / "patch").patch.side_channels["thermometer"].encoder
    assert build_encoder(recorded, "thermometer").spec().settings == {"step_seconds": 0.5}
    assert (
        main(["eval", "samples.jsonl", "--base", "base", "--patch", "run/patch", "--encoders", *printed["encoders"], "--json"])
        == 0
    )
    assert read_recipe("recipe.yaml").patch.side_channels["thermometer"].width == 2
    Path("0.csv").write_text("time,value\n0,warm\n")
    assert main(["train", "recipe.yaml", f"output={at / 'again'}"]) == 2
    err = capsys.readouterr().err
    assert "sample '0': " in err and "0.csv: cannot be read as two columns of numbers" in err


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Thermometer", "use lower-case letters"),
        ("../evil", "use lower-case letters"),
        ("class", "is no module of Python"),
        ("numpy", "is installed already and would be hidden"),
    ],
)
def test_names_that_cannot_be(at, name, words, capsys):
    assert main(["new-channel", name]) == 2
    assert words in capsys.readouterr().err
    assert list(at.iterdir()) == []


def test_nothing_is_overwritten(at, capsys):
    Path("test_gauge.py").write_text("mine")
    assert main(["new-channel", "gauge"]) == 2
    assert "test_gauge.py is there already" in capsys.readouterr().err
    assert [path.name for path in at.iterdir()] == ["test_gauge.py"] and Path("test_gauge.py").read_text() == "mine"
