"""AVSD: three shapes of files, histories, answers that are kept back, and caption scores on one reference."""

import importlib.util
import json
import shutil
import sys

import pytest

from benchmark_files import answered, converted, result_of, touch, write_json
from pave.cli import main
from pave.evaluation.benchmarks import get_benchmark
from pave.evaluation.metrics.captions import bleu, caption_tokens, cider, meteor, rouge_l
from pave.evaluation.predictions import PredictionFile

QA = [("Is there a dog ?", "no, just a man"), ("What does he do?", "he doesn't move, he sits.")]
OTHER = [("Where is she?", "in the kitchen"), ("Is it 1,000 degrees?", "yes it is 1,000 degrees")]


def lower(video, turns):
    dialog = [{"question": question, "answer": answer} for question, answer in turns]
    return {"image_id": video, "dialog": dialog, "caption": "a caption", "summary": "a summary"}


def capital(video, turns):
    dialog = [{"Question": question, "Answer": answer} for question, answer in turns]
    return {"Image_id": video, "Dialog": dialog, "Caption": "a caption", "Summary": "a summary"}


SHAPES = {
    "dialogs": {"type": "dialogs", "dialogs": [lower("ABC12", QA), lower("XYZ99", OTHER)]},
    "Dialogs": {"Dialogs": [capital("ABC12", QA), capital("XYZ99", OTHER)]},
    "by video": {video: {"data": lower(video, turns)["dialog"]} for video, turns in (("ABC12", QA), ("XYZ99", OTHER))},
}


@pytest.fixture
def media(tmp_path):
    return touch(tmp_path / "media", "Charades_v1_480/ABC12.mp4", "XYZ99.mp4")


def samples_of(tmp_path, media, content, split="test"):
    return converted("avsd", tmp_path, write_json(tmp_path / f"{split}_set4DSTC10-AVSD.json", content), media)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_last_turn_is_asked_with_the_true_history(tmp_path, media, shape):
    done, samples = samples_of(tmp_path, media, SHAPES[shape])
    assert [s.id for s in samples] == ["avsd-test-ABC12", "avsd-test-XYZ99"]
    assert samples[0].turns == tuple(QA)  # as chat turns, without caption and summary
    assert samples[0].references == ("he doesn't move, he sits.",)
    assert [s.video.split("media/")[1] for s in samples] == ["Charades_v1_480/ABC12.mp4", "XYZ99.mp4"]
    assert samples[1].meta["official"] == {"image_id": "XYZ99"}
    assert (done.split, done.n_secret, done.official) == ("test", 0, {"": 1710})


def test_training_dialogues_are_cut_in_samples_of_five_turns(tmp_path, media):
    turns = [(f"question {i}", f"answer {i}") for i in range(12)]
    done, samples = samples_of(tmp_path, media, {"dialogs": [lower("ABC12", turns)]}, "train")
    assert [s.turns for s in samples] == [tuple(turns[:5]), tuple(turns[5:10]), tuple(turns[10:])]
    assert [s.id for s in samples] == ["avsd-train-ABC12-0", "avsd-train-ABC12-1", "avsd-train-ABC12-2"]
    assert done.official == {"": 15318}


def test_an_answer_that_is_kept_back_is_no_reference(tmp_path, media):
    secret = [QA[0], (QA[1][0], "__UNDISCLOSED__")]
    done, samples = samples_of(tmp_path, media, {"dialogs": [lower("ABC12", secret), lower("XYZ99", OTHER)]})
    assert samples[0].turns == (QA[0], (QA[1][0], None)) and samples[0].references == ()
    assert done.n_secret == 1
    result = result_of(samples, ["he sits", "in the kitchen"])
    assert result.n_secret == 1 and result.table("paper").row("overall").n_expected == 1
    written = get_benchmark("avsd").submission(answered(samples, ["he sits", None]))
    assert written == [{"image_id": "ABC12", "caption": "he sits"}, {"image_id": "XYZ99", "caption": ""}]


@pytest.mark.parametrize(
    ("content", "split", "message"),
    [
        ({"dialogs": [lower("A", [(QA[0][0], "__UNDISCLOSED__"), QA[1]])]}, "test", r"item 1, turn 1: the answer is kept back"),
        ({"dialogs": [lower("A", [(QA[0][0], "__UNDISCLOSED__")])]}, "train", r"item 1: the last answer is kept back"),
        ({"dialogs": [lower("A", [])]}, "test", r"item 1: the dialogue has no turn"),
        ({"dialogs": [{"dialog": [{"question": "a", "answer": "b"}]}]}, "test", r"item 1: the field 'image_id' is missing"),
        ({"A": {"data": [{"question": "a"}]}}, "test", r"'A', turn 1: the field 'answer' is missing"),
        ([lower("A", QA)], "test", r"dialogues are needed"),
        ({}, "test", r"dialogues are needed"),
    ],
)
def test_what_is_no_dialogue_is_refused(tmp_path, media, content, split, message):
    with pytest.raises(ValueError, match=message):
        samples_of(tmp_path, media, content, split)


def test_scores_are_the_caption_scores_of_the_last_answers(tmp_path, media):
    _, samples = samples_of(tmp_path, media, SHAPES["dialogs"])
    result = result_of(samples, ["he sits<eos>", "yes, it is 1,000 degrees."])
    paper, strict = result.table("paper"), result.table("strict")
    assert (paper.measure, paper.version, strict.version) == ("CIDEr", "avsd-paper-2", "avsd-strict-1")
    wanted = [caption_tokens([QA[1][1]]), caption_tokens([OTHER[1][1]])]
    said = ["he sits", "yes it is 1000 degrees"]  # signs are taken from the answer only, so that 1,000 is no more 1,000
    plain = ["he sits <eos>", "yes it is 1,000 degrees"]  # the paper's own evaluation takes answers as they are
    assert caption_tokens(["he sits<eos>"]) == plain[:1]
    for texts, suffix in ((plain, ""), (said, " as DSTC7")):
        assert result.table("paper", f"CIDEr{suffix}").row("overall").value == pytest.approx(sum(cider(texts, wanted)) / 2)
        for order, value in enumerate(bleu(texts, wanted), start=1):
            row = result.table("paper", f"BLEU-{order}{suffix}").row("overall")
            assert row.value == pytest.approx(value) and row.interval is None
        assert result.table("paper", f"ROUGE-L{suffix}").row("overall").value == pytest.approx(sum(rouge_l(texts, wanted)) / 2)
    assert (
        strict.row("overall").value
        == paper.row("overall").value
        != result.table("paper", "CIDEr as DSTC7").row("overall").value
    )
    assert strict.row("overall").interval.method == "bootstrap"
    assert result.table("strict", "EM").row("overall").value == 0.5


def test_a_sample_that_failed_says_nothing_and_counts(tmp_path, media):
    _, samples = samples_of(tmp_path, media, SHAPES["dialogs"])
    result = result_of(samples, ["he doesn't move, he sits", None])
    for protocol in ("paper", "strict"):
        row = result.table(protocol).row("overall")
        wanted = [caption_tokens([QA[1][1]]), caption_tokens([OTHER[1][1]])]
        assert row.value == pytest.approx(sum(cider([wanted[0][0], ""], wanted)) / 2)
        assert (row.n_scored, row.n_counted, row.n_expected) == (1, 2, 2)
        one, two = result.table(protocol, "BLEU-1").row("overall"), result.table(protocol, "ROUGE-L").row("overall")
        assert 0 < one.value < 1 and two.value == pytest.approx(0.5)
    empty = result_of(samples, ["", "..."])
    _, unsaid = samples_of(tmp_path, media, {"dialogs": [lower("ABC12", [("Why?", "...")]), lower("XYZ99", OTHER)]})
    assert result_of(unsaid, ["", "yes it is 1,000 degrees"]).table("strict", "EM").row("overall").value == 0.5
    assert empty.table("strict", "EM").row("overall").value == 0 and empty.table("paper").row("overall").value == 0


def write_run(tmp_path, samples, answers):
    file = PredictionFile(tmp_path / "predictions.jsonl", {"base": "b"})
    file.append(answered(samples, answers))
    file.finish([sample.id for sample in samples])
    return str(file.path)


def test_meteor_is_made_on_request_and_says_at_once_what_it_lacks(tmp_path, media, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pycocoevalcap", None)
    assert main(["score", str(tmp_path / "there is no such file"), "--meteor"]) == 2
    assert "METEOR needs the package 'pycocoevalcap'" in capsys.readouterr().err
    _, samples = samples_of(tmp_path, media, SHAPES["dialogs"])
    run = write_run(tmp_path, samples, ["he sits", "yes it is"])
    assert main(["score", run]) == 0
    assert "METEOR" not in capsys.readouterr().out


@pytest.mark.skipif(
    importlib.util.find_spec("pycocoevalcap") is None or shutil.which("java") is None, reason="needs pycocoevalcap and Java"
)
def test_meteor_of_a_run(tmp_path, media, capsys):
    _, samples = samples_of(tmp_path, media, SHAPES["dialogs"])
    run = write_run(tmp_path, samples, ["he sits", "yes it is 1,000 degrees"])
    assert main(["score", run, "--meteor", "--json"]) == 0
    tables = json.loads(capsys.readouterr().out)["benchmark"]["tables"]
    found = {table["protocol"]: table["rows"][0]["value"] for table in tables if table["measure"] == "METEOR"}
    wanted = [caption_tokens([QA[1][1]]), caption_tokens([OTHER[1][1]])]
    assert found["strict"] == pytest.approx(meteor(["he sits", "yes it is 1,000 degrees"], wanted)[0])
    assert found["paper"] == found["strict"] != pytest.approx(meteor(["he sits", "yes it is 1000 degrees"], wanted)[0])
