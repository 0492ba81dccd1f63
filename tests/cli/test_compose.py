"""``pave compose`` and ``pave export --merged`` from files to a patch with what adding it up changed."""

from __future__ import annotations

import json

import pytest

from cases import shake
from pave import attach_patch, save_patch
from pave.cli import main
from pave.cli.compose import _check_apart, parse_patches, parse_weights
from pave.data.media import FrameSampling
from pave.data.samples import Sample, read_samples, write_samples
from pave.evaluation.runner import evaluate
from pave.inference import VideoQA
from pave.patching import read_record
from pave.video_llms.loading import load_base
from tiny_runs import hearing_config, save_base_and_patch, write_clip


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """(base, two patches with a channel of one name, samples whose truth is what the first of them says)."""
    folder = tmp_path_factory.mktemp("compose")
    trained = {"recipe": {"data": {"frames": {"num_frames": 4}}}}
    base, one = save_base_and_patch(folder, trained)
    model, processor = load_base(base)
    attach_patch(model, hearing_config(), name="other")
    other = save_patch(shake(model, 3, scale=0.7), folder / "other", processor=processor, provenance=trained)
    qa = VideoQA.from_pretrained(base, one)
    samples = []
    for seed in range(4):
        clip = write_clip(folder / f"{seed}.mp4", seed, sound=seed != 3)
        said = qa.ask(clip, "what sound?", max_new_tokens=4).text
        samples.append(Sample(id=str(seed), video=clip.name, question="what sound?", answer=said or "?"))
    write_samples(folder / "test.jsonl", samples)
    return base, one, other, folder / "test.jsonl"


def run(capsys, *arguments):
    code = main([*map(str, arguments), "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_patches_are_measured_and_merged(files, tmp_path, capsys):
    base, one, other, samples = files
    named = [f"first={one}", f"second={other}"]
    asked = ["--data", samples, "--base", base, "--max-new-tokens", 4, "--device", "cpu"]
    code, data = run(capsys, "compose", *named, *asked, "--out", tmp_path / "both")
    assert code == 0
    runs = data["measured"]["runs"]
    assert list(runs) == ["base", "first", "second", "together", "merged"]
    for name, patch in (("base", None), ("first", one), ("second", other)):
        qa = VideoQA.from_pretrained(base, patch, device="cpu", sampling=FrameSampling(num_frames=4))
        alone = evaluate(qa, read_samples(samples), max_new_tokens=4, progress=False)
        assert runs[name]["overall"] == alone.overall.to_dict()
    assert runs["first"]["overall"]["accuracy"] == 1.0
    assert runs["merged"]["overall"] == runs["together"]["overall"]
    groups = data["measured"]["groups"]
    assert [(group["patches"], group["samples"]) for group in groups] == [(["first", "second"], 3), ([], 1)]
    assert groups[1]["differing_from_alone"] == {"base": 0, "first": 0, "second": 0}
    record = read_record(tmp_path / "both")
    assert list(record.patch.side_channels) == ["first_audio", "second_audio"]
    assert record.provenance["composed"]["measured"]["sentences"] == data["measured"]["sentences"]
    assert data["measured"]["sentences"][0] in (tmp_path / "both" / "README.md").read_text()
    assert VideoQA.from_pretrained(base, tmp_path / "both").sampling.num_frames == 4
    assert main(["compose", *named, *map(str, asked)]) == 0
    text = capsys.readouterr().out
    assert "with the channels of first and second, accuracy in %" in text and "together minus it" in text


def test_weights_are_found_and_kept(files, tmp_path, capsys):
    base, one, other, samples = files
    asked = ["--find-weights", samples, "--base", base, "--max-new-tokens", 4]
    code, data = run(capsys, "compose", one, other, *asked, "--out", tmp_path / "both", "--rank", 1)
    assert code == 0 and data["found"]["accuracy"] > 0
    parts = read_record(tmp_path / "both").provenance["composed"]["parts"]
    assert {part["name"]: [part["weight"], part["lora_weight"]] for part in parts} == data["weights"]
    assert data["found"]["weights"] == data["weights"] and list(data["weights"]) == ["default", "other"]
    assert 0 < data["lost"] < 1 and read_record(tmp_path / "both").patch.lora.rank == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ONE", "OTHER"], "nothing to do: give --data"),
        (["ONE", "OTHER", "--out", "OUT", "--base", "playground"], "--base answers samples"),
        (["ONE", "OTHER", "--data", "DATA", "--rank", "2"], "--rank and --method say how the merged patch is made"),
        (["ONE", "--out", "OUT"], "at least two patches, got 1"),
        (["a=ONE", "OTHER", "--out", "OUT"], "name every patch or none"),
        (["a=ONE", "a=OTHER", "--out", "OUT"], "two patches have one name"),
        (["ONE", "OTHER", "--out", "OUT", "--weights", "other=strong"], "--weights is as in hearing=0.5"),
        (["ONE", "OTHER", "--out", "OUT", "--weights", "b=1"], "weights: there is no patch 'b'"),
        (["ONE", "OTHER", "--out", "OUT", "--method", "mean"], "--method is sum or knots"),
        (["ONE", "OTHER", "--out", "OUT", "--density", "0.2"], "--density is a setting of knots"),
        (["base=ONE", "b=OTHER", "--data", "DATA", "--base", "gone/base"], "a patch cannot be called 'base'"),
        (["a=ONE", "merged=OTHER", "--find-weights", "DATA", "--base", "gone/base"], "a patch cannot be called 'merged'"),
        (["ONE", "OTHER", "--data", "DATA", "--find-weights", "DATA"], "share 4 samples, the first '0'"),
        (["ONE", "gone/away", "--out", "OUT"], "gone/away"),
    ],
)
def test_bad_input_is_one_sentence(files, arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    words = {"ONE": files[1], "OTHER": files[2], "DATA": files[3], "OUT": tmp_path / "out"}
    given = [argument.replace(word, str(path)) for argument in arguments for word, path in [_word(argument, words)]]
    code, data = run(capsys, "compose", *given)
    assert code == 2 and message in data["error"]
    assert not (tmp_path / "out").exists()


def _word(argument, words):
    return next(((word, path) for word, path in words.items() if argument.endswith(word)), ("", ""))


def test_samples_to_find_weights_on_are_not_those_of_the_test():
    def sample(name, video, question):
        return Sample(id=name, video=video, question=question, answer="a")

    find = [sample("0", "a.mp4", "what?"), sample("1", "b.mp4", "what?")]
    _check_apart(find, [sample("0", "c.mp4", "what?"), sample("2", "a.mp4", "who?")])
    for shared in (sample("0", "a.mp4", "who?"), sample("7", "b.mp4", "what?")):
        with pytest.raises(ValueError, match=f"share 1 samples, the first '{shared.id}'"):
            _check_apart(find, [sample("5", "c.mp4", "what?"), shared])


def test_what_options_say():
    assert parse_patches(["a", "b/c=d"]) == ["a", "b/c=d"]
    assert parse_patches(["x=a", "y=b=c"]) == {"x": "a", "y": "b=c"}
    assert parse_weights("a=0.5, b=1:0") == {"a": 0.5, "b": (1.0, 0.0)}


def test_a_merged_base_answers_as_the_patch_does(files, tmp_path, capsys):
    base, one, _, samples = files
    code, data = run(capsys, "export", one, "--merged", tmp_path / "fast", "--base", base)
    assert code == 0 and data["adapter"] is None
    fast, slow = VideoQA.from_pretrained(data["base"], data["patch"]), VideoQA.from_pretrained(base, one)
    heard = [sample for sample in read_samples(samples) if sample.id != "3"]
    answers = [[answer.text for answer in qa.answer_samples(heard, max_new_tokens=4)] for qa in (fast, slow)]
    assert answers[0] == answers[1]
    code, data = run(capsys, "export", one, "--merged", tmp_path / "beside", "--peft")
    assert code == 0 and data["base"] is None and data["adapter"] == str(tmp_path / "beside" / "adapter")
    for arguments, message in (
        ([], "give --out for plain files or --merged"),
        (["--out", "x", "--merged", "y"], "one of the two"),
        (["--out", "x", "--peft"], "belong to --merged"),
        (["--merged", "x", "--peft", "--base", "y"], "--base is not needed"),
    ):
        code, data = run(capsys, "export", one, *arguments)
        assert code == 2 and message in data["error"]
