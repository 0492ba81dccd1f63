"""docs/your_own_side_channel.md does what it says: its class, recipe and sample train a patch, in under 60 lines."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from pave import EncoderConfig
from pave.cli import main
from pave.data.media import write_video
from pave.side_channels import build_encoder
from tiny_models import SIDE, tiny_llava_onevision

PAGE = (Path(__file__).parents[2] / "docs" / "your_own_side_channel.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    (found,) = re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    return found


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "tilt.py").write_text(block("python"))
    yield tmp_path
    sys.modules.pop("tilt", None)


def test_all_that_is_written_is_under_60_lines():
    lines = [line for language in ("python", "yaml", "json") for line in block(language).splitlines() if line.strip()]
    assert 30 < len(lines) < 60


def test_what_the_class_says_of_a_log(folder, monkeypatch):
    monkeypatch.syspath_prepend(str(folder))
    (folder / "ride.log").write_text("0;-20\n500;-10\n2250;20\n2500;-20\n2750;20\n")
    encoder = build_encoder(EncoderConfig(name="tilt:TiltEncoder"), "tilt")
    features = encoder.encode(encoder.read("ride.mp4", "ride.log"))
    assert features.times_K.tolist() == [0.5, 2.5]
    torch.testing.assert_close(features.features_KMC[:, 0], torch.tensor([[-0.75, 0.0], [1 / 3, 2.0]]))


def test_the_recipe_and_the_sample_of_the_page_train(folder, capsys):
    model, processor = tiny_llava_onevision()
    model.save_pretrained("base")
    processor.save_pretrained("base")
    sample = json.loads(block("json"))
    (folder / "samples.jsonl").write_text(block("json"))
    write_video(folder / sample["video"], np.zeros((16, SIDE, SIDE, 3), np.uint8), fps=8)
    (folder / sample["side_channels"]["tilt"]).write_text("0;-20\n500;-10\n1250;20\n")
    printed = yaml.safe_load(block("yaml"))
    patch = {**printed["patch"], "lora": {"rank": 2}}
    recipe = {
        "base": {"model": "base"},
        "patch": patch,
        "encoders": printed["encoders"],
        "data": {"train": "samples.jsonl", "frames": {"num_frames": 2}},
        "training": {"steps": 2, "batch_size": 1},
        "output": "run",
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["train", "recipe.yaml", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 2
    assert main(["eval", "samples.jsonl", "--base", "base", "--patch", "run/patch", "--encoders", "tilt.py", "--json"]) == 0
    capsys.readouterr()
    assert main(["eval", "samples.jsonl", "--base", "base", "--patch", "run/patch"]) == 2
    assert "'tilt:TiltEncoder' is code" in capsys.readouterr().err
