"""What is inside the package, by names that mean the same everywhere."""

import json
import re
from pathlib import Path

import pytest

from pave.cli import main
from pave.data.media import probe
from pave.patching import read_record, resolve_patch
from pave.playground import base_path
from pave.utils.embedded import AUDIO_PATCH, RECORDED, WHISTLE, embedded_path, is_playground, model_name, model_path
from pave.video_llms.loading import resolve_base


def test_the_base_has_two_names_and_one_in_records():
    assert resolve_base("playground") == resolve_base("pave:playground") == model_path(RECORDED) == str(base_path())
    assert model_name(base_path()) == "pave:playground" and model_name("somewhere") == "somewhere"
    assert is_playground("playground") and is_playground(RECORDED) and not is_playground(None) and not is_playground("play")
    assert resolve_base("org/model") == embedded_path("org/model") == "org/model"
    with pytest.raises(ValueError, match="'pave:horn' is no part of pave; there are pave:playground, pave:audio, pave:whistle"):
        embedded_path("pave:horn")


def test_the_shipped_patch_names_its_base_and_no_place_of_a_machine():
    folder = resolve_patch(AUDIO_PATCH)
    record = read_record(folder)
    assert record.base.model_id == "pave:playground" and record.patch.side_channels["audio"].fusion.gate
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 300_000
    for path in (path for path in files if path.suffix in (".json", ".md")):
        assert not re.search(r'["`(\s]/(?!/)\w', path.read_text(encoding="utf-8")), path  # no absolute path


def test_the_first_command_hears_the_whistle_where_the_base_does_not(capsys):
    assert main(["ask", "pave:whistle", "what sound is heard ?", "--device", "cpu", "--json"]) == 0
    answers = json.loads(capsys.readouterr().out)["answers"]
    assert list(answers) == ["base", "patch"]
    assert answers["patch"]["text"] == "whistle" and answers["base"]["text"] != "whistle"
    info = probe(embedded_path(WHISTLE))
    assert info.audio is not None and Path(embedded_path(WHISTLE)).stat().st_size < 100_000


def test_what_was_measured_of_the_shipped_patch_is_what_the_documents_say():
    measured = json.loads((Path(embedded_path(AUDIO_PATCH)) / "accuracy.json").read_text())
    assert (measured["test_clips"], measured["steps"], measured["base"]) == (300, 350, "pave:playground")
    text = (Path(__file__).parents[2] / "docs" / "defaults.md").read_text(encoding="utf-8")
    for kind in ("sound", "sound_vision"):
        for name in ("base", "patch"):
            row = measured["accuracy"][name][kind]
            low, high = row["interval_95"]
            assert f"{100 * row['accuracy']:.1f} [{100 * low:.1f}, {100 * high:.1f}]" in text, (name, kind)
