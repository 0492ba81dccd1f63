"""The notebook runs from top to bottom, as a reader would run it, but for the cells that say that they were not run."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from pave.patching import read_record

NOTEBOOK = Path(__file__).parents[2] / "docs" / "notebooks" / "first_patch.ipynb"


def cells(kind):
    return [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == kind]


def source(cell):
    return "".join(cell["source"])


def is_run(cell):
    return "not-run" not in cell["metadata"].get("tags", ())


@pytest.mark.slow
def test_the_notebook_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict = {"__name__": "__main__"}
    shown = []
    for number, cell in enumerate(cells("code")):
        if not is_run(cell):
            continue
        text = source(cell)
        if "CLIPS, STEPS = 48, 60" in text:  # a shorter run
            text = text.replace("CLIPS, STEPS = 48, 60", "CLIPS, STEPS = 8, 2")
        exec(compile(text, f"{NOTEBOOK.name}, cell {number}", "exec"), names)
        shown.append(capsys.readouterr().out)
    everything = "".join(shown)
    assert names["STEPS"] == 2 and "2 steps, mean loss " in everything and "the base as it was: True" in everything
    assert len(re.findall(r"^0000\d\.mp4: base '[\w ]+', patch '", everything, re.MULTILINE)) == 4
    assert read_record(tmp_path / "first-patch" / "run" / "patch").patch.side_channels["audio"].width == 64


def test_the_cell_for_a_gpu_says_that_it_was_not_run_and_compiles():
    (gpu,) = [cell for cell in cells("code") if "gpu" in cell["metadata"].get("tags", ())]
    assert not is_run(gpu) and '"cuda"' in source(gpu)
    compile(source(gpu), "gpu", "exec")
    assert any("**This cell was not run**" in source(cell) for cell in cells("markdown"))


def test_the_notebook_holds_no_output_and_no_path():
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells("code"))
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert not re.search(r"(?<![\w.])/(?:work|root|tmp|home|mnt|Users)/", text)
