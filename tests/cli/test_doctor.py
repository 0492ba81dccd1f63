"""pave doctor on the command line: exit codes, JSON, the recipe that pave init writes, and a cleaned copy."""

import json

import pytest

from pave.cli import main
from pave.data.samples import read_samples


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    folder = tmp_path_factory.mktemp("started") / "p"
    assert main(["init", str(folder)]) == 0
    return folder


def test_the_files_of_init_are_clean(started, capsys):
    assert main(["doctor", str(started / "recipe.yaml"), "--quick", "--strict", "--json", "--workers", "1"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["clean"], data["errors"], data["warnings"], data["videos"], data["quick"]) == (True, 0, 0, 20, True)
    assert data["files"] == {str(started / "train.jsonl"): 32, str(started / "held_out.jsonl"): 8}


def test_defects_are_1_and_a_cleaned_copy_is_written(started, tmp_path, capsys):
    lines = (started / "held_out.jsonl").read_text().splitlines()
    lines += [json.dumps({"id": "gone", "video": "gone.mp4", "question": "what ?", "answer": "red"}), "{"]
    (started / "more.jsonl").write_text("\n".join(lines))
    out = tmp_path / "clean.jsonl"
    assert main(["doctor", str(started / "more.jsonl"), "--quick", "--workers", "1", "--fix", str(out)]) == 1
    shown = capsys.readouterr().out
    assert (
        "2 errors" in shown
        and "error media-missing: " in shown
        and "gone.mp4: there is no such file; correct the path" in shown
    )
    assert len(read_samples(out)) == 8
    left_out = json.loads((tmp_path / "clean.left_out.json").read_text())["left_out"]
    assert [(one["id"], one["line"], one["why"][0]["code"]) for one in left_out] == [
        ("gone", 9, "media-missing"),
        (None, 10, "sample-invalid"),
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere.jsonl"], "nowhere.jsonl: there is no such file of samples"),
        (["held_out.jsonl", "--fix", "held_out.jsonl"], "is one of the files that are examined"),
        (["held_out.jsonl", "--fix", "out.txt"], "must end in .jsonl"),
        (["recipe.yaml", "held_out.jsonl"], "give it alone"),
        (["recipe.yaml", "--require", "sonar"], "the patch has no channel 'sonar'"),
        (["held_out.jsonl", "--quick", "--base", "playground"], "leave out either quick or the base"),
    ],
)
def test_wrong_usage_is_2(started, monkeypatch, capsys, words, message):
    monkeypatch.chdir(started)
    assert main(["doctor", *words]) == 2
    assert message in capsys.readouterr().err
