"""``pave data convert``, ``pave eval`` and ``pave score`` on a benchmark, from its official file to its own tables."""

import json

import pytest

from benchmark_files import write_json
from pave.cli import main
from pave.data.samples import Sample, read_samples, write_samples
from pave.evaluation.predictions import PredictionFile, as_prediction
from tiny_runs import save_base_and_patch, write_clip


def run(capsys, *arguments):
    """(exit code, parsed standard output, standard error)."""
    code = main([*map(str, arguments), "--json"])
    out, err = capsys.readouterr()
    return code, json.loads(out), err


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    base, _ = save_base_and_patch(folder)
    (folder / "media").mkdir()
    for name in ("00000001", "sa00000002"):
        write_clip(folder / "media" / f"{name}.mp4", 1)
    rows = [
        {
            "video_id": video,
            "question_id": number,
            "type": kind,
            "question_content": "Is the <Object> heard?",
            "templ_values": '["piano"]',
            "anser": "no",
        }
        for number, (video, kind) in enumerate(
            [
                ("00000001", '["Audio", "Counting"]'),
                ("sa00000002", '["Visual", "Location"]'),
                ("sa00000003", '["Visual", "Location"]'),
            ]
        )
    ]
    write_json(folder / "avqa-test.json", rows)
    return folder, base


def convert(folder, *more):
    files = ("--annotations", folder / "avqa-test.json", "--media", folder / "media", "--out", folder / "test.jsonl")
    return ("data", "convert", "music_avqa", *files, *more)


def test_from_the_official_file_to_the_table_of_the_benchmark(world, capsys):
    folder, base = world
    code, data, err = run(capsys, *convert(folder, "--subset"))
    assert code == 0 and data["n_samples"] == 3 and data["official"] == {"json": 9185, "json_update": 9129}
    assert [one["id"] for one in data["missing"]] == ["music_avqa-test-2"] and "no video for music_avqa-test-2" in err
    options = ("--base", base, "--frames", 2, "--max-new-tokens", 3, "--out", folder / "run")
    code, data, err = run(capsys, "eval", folder / "test.jsonl", *options)
    assert code == 0 and "no answer to music_avqa-test-2" in err
    (paper, strict) = data["benchmark"]["tables"]
    assert (paper["version"], strict["version"]) == ("music_avqa-paper-2", "music_avqa-strict-1")
    assert [(row["name"], row["n_scored"], row["n_expected"]) for row in strict["rows"]] == [
        ("overall", 2, 3),
        ("Audio", 1, 1),
        ("Visual", 1, 2),
        ("Audio Counting", 1, 1),
        ("Visual Location", 1, 2),
    ]
    code, again, _ = run(capsys, "score", folder / "run" / "predictions.jsonl")
    assert code == 0 and again["benchmark"] == data["benchmark"] and again["overall"] == data["overall"]
    code, again, _ = run(capsys, "score", folder / "run", "--protocol", "strict", "--samples", folder / "test.jsonl")
    assert code == 0 and again["benchmark"]["tables"] == [strict]
    for number in (2, 1):
        code, data, err = run(capsys, "eval", folder / "test.jsonl", *options[:-1], folder / "parts", "--shard", f"{number}/2")
        assert code == 0 and data["predictions"].endswith(f"parts/predictions-{number}-of-2.jsonl")
    code, data, _ = run(capsys, "score", folder / "parts")
    assert code == 0 and data["benchmark"] == again["benchmark"] | {"tables": [paper, strict]}
    one, two = (folder / name / "predictions.jsonl" for name in ("run", "parts"))
    assert one.read_bytes() == two.read_bytes()


def test_without_json_the_table_is_for_people(world, capsys):
    folder, _ = world
    assert main([*map(str, convert(folder, "--subset"))]) == 0
    out, _ = capsys.readouterr()
    assert "3 samples about 3 videos; the split test officially has 9,185 or 9,129" in out
    assert "1 sample has no video: an evaluation counts them as wrong" in out and "  Visual Location: 2\n" in out
    samples = read_samples(folder / "test.jsonl")
    for name, answers in (("one", ["piano", "no", None]), ("two", ["no", "no", "no"])):
        file = PredictionFile(folder / f"{name}.jsonl", {"base": "b"})
        file.expect(3)
        file.append(
            [as_prediction(s).__class__(**{**as_prediction(s).to_dict(), "prediction": a}) for s, a in zip(samples, answers)]
        )
    assert main(["score", str(folder / "one.jsonl")]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0] == "Music-AVQA, split test: 3 samples"
    assert lines[1] == "note: 3 samples, but the split test has 9,185 or 9,129: not comparable with published numbers"
    assert lines[3].split() == ["accuracy", "(paper)", "accuracy", "(strict)", "answered"]
    assert lines[4].startswith("overall") and "66.7 [" in lines[4] and "33.3 [" in lines[4] and lines[4].endswith("2 of 3")
    assert lines[-1] == "scorers: music_avqa-paper-2, music_avqa-strict-1"
    assert err == "no answer to music_avqa-test-2: no answer\n"
    assert main(["score", str(folder / "one.jsonl"), str(folder / "two.jsonl")]) == 0
    out, _ = capsys.readouterr()
    title = f"{folder}/two.jsonl minus {folder}/one.jsonl, accuracy (strict)"
    assert title in out.splitlines()
    row = out.splitlines()[out.splitlines().index(title) + 2].split()
    assert row[:2] == ["overall", "+66.7"] and row[-3:] == ["2", "0", "0.5000"]
    assert main(["score", str(folder / "two.jsonl"), "--submission", str(folder / "submission.json")]) == 0
    assert json.loads((folder / "submission.json").read_text())[0] == {
        "question_id": "0",
        "video_id": "00000001",
        "prediction": "no",
    }


def test_files_that_are_of_no_benchmark_are_scored_by_the_default_rule(tmp_path, capsys):
    samples = [Sample(id=f"s{n}", video="v.mp4", question="?", answer="bell", type="sound") for n in range(2)]
    write_samples(tmp_path / "s.jsonl", samples)
    for name, answer in (("a", "The bell."), ("b", "dog")):
        file = PredictionFile(tmp_path / f"{name}.jsonl", {"base": "b"})
        file.expect(2)
        file.append([as_prediction(samples[0]).__class__(**{**as_prediction(samples[0]).to_dict(), "prediction": answer})])
    assert main(["score", str(tmp_path / "a.jsonl")]) == 2
    assert "answered 1 of 2 samples" in capsys.readouterr().err
    rest = ("--samples", tmp_path / "s.jsonl")
    code, data, err = run(capsys, "score", tmp_path / "a.jsonl", tmp_path / "b.jsonl", *rest)
    assert code == 0 and data["first"]["overall"]["accuracy"] == 0.5 and data["second"]["overall"]["accuracy"] == 0
    assert data["comparison"]["all"]["difference"] == -0.5 and "no answer to s1: the run has no answer to it" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("data", "convert", "music", "--annotations", "x", "--media", ".", "--out", "o.jsonl"), "did you mean 'music_avqa'"),
        (("data", "convert", "avqa", "--annotations", "x_val.json", "--media", ".", "--out", "o.json"), "must end in .jsonl"),
        (
            ("data", "convert", "avqa", "--annotations", "x_val.json", "--media", ".", "--out", "o.jsonl"),
            "no such file of annotations",
        ),
        (
            ("data", "convert", "avqa", "--annotations", "x.json", "--media", ".", "--out", "o.jsonl"),
            "no such file of annotations",
        ),
        (("score", "x.jsonl", "--protocol", "loose"), "it is paper, strict or both"),
        (("score", "x.jsonl", "y.jsonl", "--submission", "z.json"), "leave the second one out"),
        (("score", "gone.jsonl"), "gone.jsonl"),
        (("eval", "{samples}", "--shard", "1/2"), "name the folder that the parts are written to with --out"),
        (("eval", "{samples}", "--shard", "one", "--out", "o"), "written as NUMBER/COUNT"),
    ],
)
def test_what_cannot_be_done_is_said(world, capsys, arguments, message):
    folder, _ = world
    write_samples(folder / "plain.jsonl", [Sample(id="s", video="v.mp4", question="?", answer="bell")])
    assert main([argument.format(samples=folder / "plain.jsonl") for argument in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and message in err and err.startswith("pave: ")


def test_help_of_data_names_its_verb(capsys):
    assert main(["data", "convert", "--help"]) == 0
    assert "pave data convert music_avqa --annotations" in capsys.readouterr().out
