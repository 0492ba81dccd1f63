"""Every example runs as a user runs it, in a process of its own, and prints what it promises."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))


def run(name: str, folder: Path, *arguments: str) -> str:
    (script,) = [path for path in EXAMPLES if path.name.startswith(name)]
    done = subprocess.run([sys.executable, str(script), *arguments], capture_output=True, text=True, cwd=folder, env=os.environ)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_there_are_six_of_at_most_80_lines():
    assert [path.name[:2] for path in EXAMPLES] == ["01", "02", "03", "04", "05", "06"]
    for path in EXAMPLES:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 80, path.name


@pytest.mark.slow
def test_attach_a_patch(tmp_path):
    out = run("01", tmp_path, str(tmp_path / "made"))
    claims = re.findall(r": (True|False)$", out, re.MULTILINE)
    assert claims == ["True"] * 5
    assert (tmp_path / "made" / "patch" / "patch_config.json").is_file()


@pytest.mark.slow
def test_train(tmp_path):
    out = run("02", tmp_path, str(tmp_path / "made"))
    assert re.search(r"^\d+ steps, mean loss \d\.\d+, \d+ s$", out, re.MULTILINE)
    assert re.search(r"^base: '.*'\npatch: '(bell|buzz|whistle|drum)'$", out, re.MULTILINE)
    assert (tmp_path / "made" / "run" / "patch" / "patch.safetensors").is_file()


@pytest.mark.slow
def test_evaluate(tmp_path):
    out = run("03", tmp_path)
    accuracy = dict(
        re.findall(r"^  (colour|first_mover|sound) +(\d+\.\d) %", out.split("the base on eight frames\n")[1], re.MULTILINE)
    )
    assert float(accuracy["colour"]) > 80 > 60 > float(accuracy["sound"])
    assert re.search(r"first_mover +[+-]\d+\.\d points +95 % interval", out)


@pytest.mark.slow
def test_ask(tmp_path):
    out = run("04", tmp_path)
    assert len(re.findall(r"^  base: .+\(8 frames; \d+\.\d\d s\)$", out, re.MULTILINE)) == 3


@pytest.mark.slow
def test_your_own_side_channel(tmp_path):
    out = run("05", tmp_path, str(tmp_path / "made"))
    right = {name: int(count) for name, count in re.findall(r"^(base|patch): (\d+) of 60 right", out, re.MULTILINE)}
    assert right["patch"] >= 50 and right["patch"] - right["base"] >= 20
    assert (tmp_path / "made" / "patch" / "patch.safetensors").is_file()


@pytest.mark.slow
def test_every_side_channel(tmp_path):
    out = run("06", tmp_path, str(tmp_path / "made"))
    found = re.findall(
        r"^(\w+) +(\d+) steps from (-?\d+\.\d+) to (\d+\.\d+) s, (\d+) tokens of width (\d+) each$", out, re.MULTILINE
    )
    names = ["audio", "scene3d", "multiview", "high_fps", "sensor", "text", "features"]
    assert [row[0] for row in found] == names
    assert ("text", "2", "1.25", "5.75", "1", "256") in found and ("scene3d", "8", "0.50", "7.50", "36", "23") in found
    assert len(re.findall(r"\? (?:red|green|blue|yellow) \w+ \(seen beside \d+ steps", out)) == len(names)


def test_nothing_is_left_outside_the_given_folder():
    for path in EXAMPLES:
        text = path.read_text(encoding="utf-8")
        assert "TemporaryDirectory" in text and not re.search(r"Path\([\"']/|[\"']runs/\w+[\"']\)", text), path.name
