"""``pave ask`` and ``pave eval`` in-process on real files."""

import json

import pytest
import torch

from cases import shake
from media_files import write_header_matrix
from pave import EncoderConfig, FusionConfig, PatchConfig, SideChannelConfig, attach_patch, save_patch
from pave.cli import main
from pave.data.media import FrameSampling
from pave.data.samples import Sample, write_samples
from pave.evaluation.inference import VideoQA
from pave.evaluation.result import rescore
from pave.side_channels import SideFeatures
from pave.side_channels.features import save_features
from pave.video_llms.loading import load_base
from tiny_runs import save_base_and_patch, write_clip

QUESTION = "what sound is heard?"
PATCHED = ("--base", "{base}", "--patch", "{patch}")


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


def test_ask_says_how_the_video_was_read(world, tmp_path, capsys):
    folder, base, patch = world
    path = tmp_path / "selfie.mp4"
    path.write_bytes((folder / "0.mp4").read_bytes())
    write_header_matrix(path, (-1, 0, 0, 1))
    options = ("--base", base, "--frames", 4, "--max-new-tokens", 2, "--device", "cpu")
    code, data, err = run(capsys, "ask", path, QUESTION, *options)
    assert code == 0 and data["remarks"] == ["the file says that its pictures are shown mirrored, and so they are read"]
    assert data["remarks"][0] in err
    assert run(capsys, "ask", folder / "0.mp4", QUESTION, *options)[1]["remarks"] == []


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


def test_ask_takes_side_channels_from_files(world, tmp_path, capsys):
    """A channel that no video holds: features in a file."""
    folder, base, _ = world
    channel = SideChannelConfig(
        kind="sensor",
        width=3,
        encoder=EncoderConfig(name="features", settings={"width": 3}),
        fusion=FusionConfig(width=16, embed_width=16, num_heads=2),
    )
    model, processor = load_base(base)
    attach_patch(model, PatchConfig(side_channels={"sensor": channel}, storage_dtype="float32"))
    save_patch(shake(model, scale=0.7), tmp_path / "patch", processor=processor)
    values = torch.randn(6, 1, 3, generator=torch.Generator().manual_seed(0))
    save_features(tmp_path / "a=b.safetensors", SideFeatures(values, torch.arange(6.0) / 3))
    options = ("--base", base, "--patch", tmp_path / "patch", "--frames", 4, "--max-new-tokens", 6)
    code, data, err = run(
        capsys, "ask", folder / "0.mp4", QUESTION, "--compare", "--side", f"sensor={tmp_path / 'a=b.safetensors'}", *options
    )
    assert code == 0 and data["side"] == {"sensor": str(tmp_path / "a=b.safetensors")}
    assert data["answers"]["patch"]["side_channels"]["sensor"]["steps"] == 6 and "sensor: 6 steps" in err
    assert data["answers"]["base"]["side_channels"] == {}
    without = run(capsys, "ask", folder / "0.mp4", QUESTION, *options)[1]
    assert without["side"] == {} and without["answers"]["patch"]["side_channels"]["sensor"]["steps"] == 0
    texts = [data["answers"]["base"]["text"], without["answers"]["patch"]["text"], data["answers"]["patch"]["text"]]
    assert texts[0] == texts[1] != texts[2]


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
        (("ask", "{folder}/0.mp4", "x", "--side", "audio={folder}/1.mp4"), "name the patch with --patch"),
        (("ask", "{folder}/0.mp4", "x", "--patch", "p", "--side", "audio"), "expected NAME=PATH"),
        (("ask", "{folder}/0.mp4", "x", "--patch", "p", "--side", "=x"), "expected NAME=PATH"),
        (
            ("ask", "{folder}/0.mp4", "x", "--patch", "p", "--side", "audio={folder}/no.wav"),
            "no file or folder {folder}/no.wav",
        ),
        (("ask", "{folder}/0.mp4", "x", "--patch", "p", *("--side", "a={folder}") * 2), "'a' is given twice"),
        (
            ("ask", "{folder}/0.mp4", "x", *PATCHED, "--side", "depth={folder}/1.mp4"),
            "no side channel 'depth': the model has audio",
        ),
        (("ask", "{folder}/0.mp4", " ", "--base", "{base}"), "question"),
        (("eval", "{folder}/nowhere.jsonl", "--base", "{base}"), "nowhere.jsonl"),
        (("eval", "{folder}/0.mp4", "--base", "{base}"), "0.mp4"),
    ],
)
def test_bad_input_is_one_sentence(world, arguments, message, capsys):
    folder, base, patch = world
    assert main([a.format(folder=folder, base=base, patch=patch) for a in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "Traceback" not in err
    assert message.format(folder=folder) in err.splitlines()[-1] and err.splitlines()[-1].startswith("pave: ")


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


def test_eval_asks_again_under_counterfactuals_and_score_reads_them(world, tmp_path, capsys):
    folder, base, patch = world
    common = ("--base", base, "--patch", patch, "--frames", 2, "--max-new-tokens", 4)
    asked = ("--counterfactuals", "--counterfactual", "audio:shifted=0.5", "--counterfactual", "removed")
    code, data, err = run(capsys, "eval", folder / "test.jsonl", *common, *asked, "--out", tmp_path / "run")
    names = ["removed", "swapped", "shifted=2", "noised=1", "audio:shifted=0.5"]
    assert code == 0 and list(data["counterfactuals"]["changes"]) == names
    swapped = data["counterfactuals"]["changes"]["swapped"]
    assert (swapped["n_scored"], swapped["n_expected"], swapped["n_compared"]) == (
        2,
        4,
        2,
    )  # one borrows from the video that is gone
    assert [line.split(":")[0].split()[4:] for line in err.splitlines() if line.startswith("no answer to s")] == [
        ["under", "swapped"]
    ]
    assert json.loads((tmp_path / "run" / "scores.json").read_text()) == data
    files = {"predictions.jsonl", "scores.json", "counterfactual-audio.shifted=0.5.jsonl"}
    assert files < {path.name for path in (tmp_path / "run").iterdir()}
    alone = run(capsys, "eval", folder / "test.jsonl", "--base", base, "--frames", 2, "--max-new-tokens", 4)[1]
    assert data["counterfactuals"]["changes"]["removed"]["value"] == alone["overall"]["accuracy"]
    code, again, _ = run(capsys, "score", tmp_path / "run")
    assert code == 0 and again["counterfactuals"] == data["counterfactuals"]
    for number in (1, 2):
        options = (*common, *asked, "--out", tmp_path / "parts", "--shard", f"{number}/2")
        assert run(capsys, "eval", folder / "test.jsonl", *options)[0] == 0
    assert run(capsys, "score", tmp_path / "parts")[1]["counterfactuals"] == data["counterfactuals"]
    assert "counterfactuals" not in run(capsys, "score", tmp_path / "run" / "predictions.jsonl")[1]
    assert main(["score", str(tmp_path / "run")]) == 0
    lines = capsys.readouterr().out.splitlines()
    start = lines.index(next(line for line in lines if line.startswith("streams")))
    assert [line.split()[0] for line in lines[start + 1 : start + 7]] == ["as", *names]
    assert lines[-1] == data["counterfactuals"]["verdict"][0]
    assert main(["eval", str(folder / "test.jsonl"), "--base", base, "--counterfactuals", "--out", str(tmp_path / "b")]) == 2
    assert "the model has no side channel to change" in capsys.readouterr().err and not (tmp_path / "b").exists()


def test_under_torchrun_every_rank_answers_its_part_and_rank_0_has_standard_output(world, tmp_path, capsys, monkeypatch):
    folder, base, patch = world
    options = ("--base", base, "--patch", patch, "--frames", 2, "--max-new-tokens", 4)
    code, whole, _ = run(capsys, "eval", folder / "test.jsonl", *options)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        assert main([*map(str, ("eval", folder / "test.jsonl", *options, "--out", tmp_path / "parts")), "--json"]) == 0
        out, err = capsys.readouterr()
        assert (out == "") == (rank == "1")
        shard = json.loads((out or err).splitlines()[-1])["shard"]
        assert (shard["index"], shard["count"]) == (int(rank) + 1, 2)
    assert main([*map(str, ("eval", folder / "test.jsonl", *options))]) == 2
    assert "under torchrun every rank, answers a part: name the folder" in capsys.readouterr().err
    monkeypatch.delenv("WORLD_SIZE"), monkeypatch.delenv("RANK")
    code, scored, _ = run(capsys, "score", tmp_path / "parts")
    assert code == 0 and scored["overall"] == whole["overall"]
