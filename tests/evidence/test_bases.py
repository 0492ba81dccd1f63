"""Other bases: runs that know their base, names that resolve to folders, and one real short section."""

import json

import pytest

from evidence import bases
from evidence.contents import SECTIONS
from evidence.page import reproduce
from evidence.plan import BASE, FULL, ONE_SEED, PATCH, SHORT, VIDEO_ONLY, Plan
from evidence.runs import RESULT, Run
from evidence.sections import bases as section
from evidence.worlds import WORLDS
from evidence_files import leave
from pave.demo.plan import video_only_patch
from pave.patching.record import read_record
from pave.utils.embedded import PLAYGROUND


def test_a_base_is_part_of_what_a_run_is_and_its_folder_is_not(tmp_path):
    own = Run("audio", "x", video_only_patch())
    other = Run("audio", "x", video_only_patch(), base="small")
    assert (
        own.folder(tmp_path) != other.folder(tmp_path) != Run("audio", "x", video_only_patch(), base="large").folder(tmp_path)
    )
    assert other.folder(tmp_path).name == other.folder(tmp_path / "elsewhere").name
    assert Run("audio", "x", video_only_patch(), asked=5).folder(tmp_path) != own.folder(tmp_path)
    assert "base" not in own.identity and "asked" not in own.identity  # at their defaults: runs made before stay what they were
    assert bases.folder_of("small", tmp_path) == str(tmp_path / "bases" / "small")
    assert bases.folder_of(PLAYGROUND, tmp_path) == PLAYGROUND


def test_the_playgrounds_own_base_is_compared_by_the_runs_that_are_there_already(monkeypatch):
    monkeypatch.setattr(section, "installed", lambda: True)
    runs = SECTIONS["bases"].runs(FULL)
    audio = [run for run in SECTIONS["channels"].runs(FULL) if run.world == "audio"]
    assert [run for run in runs if run.base == PLAYGROUND] == audio
    counts = {name: sum(run.base == name for run in runs) for name in ("small", "large", "qwen2_5_vl", "smollm2")}
    assert counts == {"small": 7, "large": 7, "qwen2_5_vl": 7, "smollm2": 3}
    assert {run.base for run in SECTIONS["bases"].runs(SHORT)} == {PLAYGROUND, *(f"{name}-short" for name in counts)}
    for run in (run for run in SECTIONS["bases"].runs(ONE_SEED) if run.base == "smollm2"):
        assert (run.steps, run.training) == (
            (0, {}) if run.variant == BASE else (150, {"batch_size": 8, "lora_learning_rate": 5e-4})
        )
        assert run.asked == 30 and run.seed == 0
    monkeypatch.setattr(section, "installed", lambda: False)
    assert not any(run.base.startswith("smollm2") for run in SECTIONS["bases"].runs(FULL))


def test_bases_in_short_and_the_pre_trained_one_where_its_runs_are_there(tmp_path, monkeypatch):
    plan = Plan(seeds=(0,), steps=4)
    monkeypatch.setattr(section, "installed", lambda: True)
    for run in SECTIONS["bases"].runs(plan):
        right = {BASE: [1, 1, 1, 1], VIDEO_ONLY: [1, 0, 0, 0], PATCH: [1, 1, 1, run.base == PLAYGROUND]}[run.variant]
        leave(run, tmp_path, dict.fromkeys(WORLDS["audio"].own, right))
        if run.base.startswith("smollm2"):
            (run.folder(tmp_path) / RESULT).write_text("{}")
            (run.folder(tmp_path) / "answers-as_it_is.done").touch()
    expected = (
        "LLaVA-OneVision, the playground's own +75.0; LLaVA-OneVision, smaller +50.0; LLaVA-OneVision, larger +50.0; tiny Qwen2.5-VL +50.0; "
        "SmolLM2-135M-Instruct behind the playground's vision tower +50.0 (one seed, 2 clips)."
    )
    for there in (True, False):  # what was made with the extra stays on the page without it
        monkeypatch.setattr(section, "installed", lambda there=there: there)
        (line,) = SECTIONS["bases"].in_short(plan, tmp_path)
        assert line.endswith(f"in points: {expected}")


@pytest.mark.slow
def test_a_base_is_trained_once_patched_and_compared(tmp_path, monkeypatch):
    monkeypatch.setattr(section, "installed", lambda: False)
    monkeypatch.setattr(section, "FURTHER", {name: bases.FURTHER[name] for name in ("qwen2_5_vl", "smollm2")})
    text = reproduce(tmp_path, ["bases"], "short").read_text()
    report = json.loads((tmp_path / "bases/qwen2_5_vl-short/accuracy.json").read_text())
    assert (report["kind"], report["clips"], report["language_steps"]) == ("qwen2_5_vl", 12, 2)
    assert f"Qwen2.5-VL<br><sub>{report['parameters'] / 1e6:.1f} M parameters, silent " in text
    assert "LLaVA-OneVision, the playground's own<br><sub>1.2 M parameters, silent 94.4</sub>" in text
    assert "was left out: the extra `smollm2` is not installed" in text
    runs = {run.variant: run for run in SECTIONS["bases"].runs(SHORT) if run.base == "qwen2_5_vl-short"}
    assert set(runs) == {BASE, VIDEO_ONLY, PATCH}
    assert runs[PATCH].facts(tmp_path)["run"]["base"] == "qwen2_5_vl-short"
    record = read_record(runs[PATCH].folder(tmp_path) / "patch")
    assert record.base.architecture["model_type"] == "qwen2_5_vl"
    assert len(runs[BASE].answers(tmp_path)) == 10 * 7
    stamp = (tmp_path / "bases/qwen2_5_vl-short/model.safetensors").stat().st_mtime_ns
    assert reproduce(tmp_path, ["bases"], "short").read_text() == text
    assert (tmp_path / "bases/qwen2_5_vl-short/model.safetensors").stat().st_mtime_ns == stamp
