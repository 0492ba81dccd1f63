"""The script behind the shipped patch, at a size that shows that it runs."""

import json

import pytest

from evidence.small_patch import make_patch
from pave.demo.plan import Plan, audio_patch
from pave.patching import read_record


@pytest.mark.slow
def test_it_leaves_a_patch_with_what_was_measured_and_nothing_of_this_machine(tmp_path):
    report = make_patch(tmp_path / "patch", tmp_path / "work", seed=1, plan=Plan(6, 2, 2, 4))
    record = read_record(tmp_path / "patch")
    assert record.base.model_id == "pave:playground" and record.patch == audio_patch()
    assert json.loads((tmp_path / "patch" / "accuracy.json").read_text()) == report
    assert report["accuracy"]["patch"].keys() == report["accuracy"]["base"].keys() >= {"sound", "sound_vision", "colour"}
    assert {row["questions"] for row in report["accuracy"]["patch"].values()} == {2}
    for name in ("patch_config.json", "README.md", "accuracy.json"):
        assert str(tmp_path) not in (tmp_path / "patch" / name).read_text(encoding="utf-8")
