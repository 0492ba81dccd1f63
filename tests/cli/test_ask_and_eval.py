"""``pave ask`` and ``pave eval`` in-process on real files."""

import json

import pytest

from pave.cli import main
from pave.data.media import FrameSampling
from pave.data.samples import Sample, write_samples
from pave.evaluation.inference import VideoQA
from pave.evaluation.result import rescore
from tiny_runs import save_base_and_patch, write_clip

QUESTION = "what sound is heard?"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    base, patch = save_base_and_patch(folder)
    for number in range(3):
        write_clip(folder / f"{number}.mp4", number)
    samples = [
        Sample(id=f"s{n}", video=str(folder / f"{n}.mp4"), question=QUESTION, answer="bell", type="sound") for n in range(3)
    ]
    samples.append(Sample(id="gone", video=str(folder / "gone.mp4"), question="red?", answer="yes", type="colour"))
    write_samples(folder / "test.jsonl", samples)
    return folder, str(base), str(patch)


def run(capsys, *arguments):
    """(exit code, parsed standard output, standard error)."""
    code = main([*map(str, arguments), "--json"])
    out, err = capsys.readouterr()
    assert out.count("\n") == 1
    return code, json.loads(out), err


def test_ask_gives_the_answer_of_the_library(world, capsys):
    folder, base, patch = world
    options = ("--base", base, "--patch", patch, "--frames", 4, "--max-new-tokens", 6, "--device", "cpu")
    code, data, _ = run(capsys, "ask", folder / "0.mp4", QUESTION, "--compare", *options)
    qa = VideoQA.from_pretrained(base, patch, device="cpu", sampling=FrameSampling(num_frames=4))
    expected = {name: qa.ask(folder / "0.mp4", QUESTION, patch=name == "patch", max_new_tokens=6) for name in ("base", "patch")}
    assert code == 0 and list(data["answers"]) == ["base", "patch"]
    for name, answer in expected.items():
        assert data["answers"][name]["text"] == answer.text
        assert data["answers"][name]["frame_times"] == list(answer.frame_times)
    assert data["answers"]["patch"]["side_channels"]["audio"]["steps"] > 0
    assert (data["base"], data["patch"], data["question"]) == (base, patch, QUESTION)


def test_ask_prints_the_answer_alone_or_side_by_side(world, capsys):
    folder, base, patch = world
    options = ["--base", base, "--frames", "4", "--max-new-tokens", "6"]
    qa = VideoQA.from_pretrained(base, patch, sampling=FrameSampling(num_frames=4))
    without = qa.ask(folder / "1.mp4", QUESTION, patch=False, max_new_tokens=6).text
    with_patch = qa.ask(folder / "1.mp4", QUESTION, max_new_tokens=6).text
    capsys.readouterr()
    assert main(["ask", str(folder / "1.mp4"), QUESTION, *options]) == 0
    out, err = capsys.readouterr()
    assert out == without + "\n" and "4 frames from" in err
    assert main(["ask", str(folder / "1.mp4"), QUESTION, "--patch", patch, "--compare", *options]) == 0
    out, err = capsys.readouterr()
    assert out == f"base:  {without}\npatch: {with_patch}\n" and "audio: 8 steps from 0.1" in err


def test_ask_offers_choices(world, capsys):
    folder, base, _ = world
    code, data, _ = run(
        capsys, "ask", folder / "0.mp4", "red?", "--base", base, "--choice", "yes", "--choice", "no", "--frames", 2
    )
    assert code == 0 and data["answers"]["base"]["choice"] in (None, "yes", "no")
    assert main(["ask", str(folder / "0.mp4"), "red?", "--base", base, "--choice", "yes", "--frames", "2"]) == 2
    assert "2 to 26" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("ask", "{folder}/test.jsonl", "x", "--base", "{base}"), "test.jsonl"),
        (("ask", "{folder}/0.mp4", "x", "--base", "{folder}/nowhere"), "nowhere"),
        (("ask", "{folder}/0.mp4", "x", "--base", "{base}", "--patch", "{folder}/nowhere"), "no patch at"),
        (("ask", "{folder}/0.mp4", "x", "--base", "{base}", "--dtype", "int4"), "dtype must be one of"),
        (("ask", "{folder}/0.mp4", " ", "--base", "{base}"), "question"),
        (("eval", "{folder}/nowhere.jsonl", "--base", "{base}"), "nowhere.jsonl"),
        (("eval", "{folder}/0.mp4", "--base", "{base}"), "0.mp4"),
    ],
)
def test_bad_input_is_one_sentence(world, arguments, message, capsys):
    folder, base, _ = world
    assert main([a.format(folder=folder, base=base) for a in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "Traceback" not in err
    assert message in err.splitlines()[-1] and err.splitlines()[-1].startswith("pave: ")


def test_eval_scores_stores_and_goes_on(world, tmp_path, capsys):
    folder, base, patch = world
    options = ("--base", base, "--patch", patch, "--frames", 4, "--max-new-tokens", 4, "--out", tmp_path / "run")
    code, data, err = run(capsys, "eval", folder / "test.jsonl", *options)
    assert code == 0 and "no answer to gone" in err
    assert data["overall"]["n_expected"] == 4 and data["overall"]["n_scored"] == 3
    assert data["by_type"]["colour"]["accuracy"] == 0.0
    assert [f["id"] for f in data["failures"]] == ["gone"]
    assert json.loads((tmp_path / "run" / "scores.json").read_text()) == data
    assert rescore(tmp_path / "run" / "predictions.jsonl").to_dict() == {
        k: data[k] for k in ("overall", "by_type", "failures", "settings")
    }
    again = run(capsys, "eval", folder / "test.jsonl", *options)[1]
    assert again == data
    assert main(["eval", str(folder / "test.jsonl"), "--base", base, "--frames", "4", "--out", str(tmp_path / "run")]) == 2
    assert "predictions of another run: patch was" in capsys.readouterr().err


def test_eval_prints_a_table(world, capsys):
    folder, base, _ = world
    assert main(["eval", str(folder / "test.jsonl"), "--base", base, "--frames", "2", "--max-new-tokens", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["accuracy", "95", "%", "interval", "n"]
    assert [line.split()[0] for line in lines[1:]] == ["sound", "colour", "overall"]
    assert lines[1].split()[-1] == "3" and "(0 answered)" in lines[2]


def test_eval_fails_if_nothing_could_be_answered(world, tmp_path, capsys):
    _, base, _ = world
    write_samples(tmp_path / "t.jsonl", [Sample(id="a", video="gone.mp4", question="red?", answer="yes")])
    assert main(["eval", str(tmp_path / "t.jsonl"), "--base", base]) == 1
    err = capsys.readouterr().err
    assert "none of the 1 samples could be answered" in err and "gone.mp4" in err
    (tmp_path / "t.jsonl").write_text("")
    assert main(["eval", str(tmp_path / "t.jsonl"), "--base", base]) == 2
    assert "holds no sample" in capsys.readouterr().err
