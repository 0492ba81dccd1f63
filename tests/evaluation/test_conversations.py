"""Conversations of ms-swift, LLaMA-Factory and LLaVA become samples and nothing of them is lost in silence."""

from __future__ import annotations

import json
import random

import pytest

from pave.cli import main
from pave.data.samples import read_samples
from pave.evaluation.conversations import FORMATS, convert_conversations


def convert(tmp_path, form, rows, suffix="jsonl", **options):
    """(result, samples) of the rows in a file of their own."""
    path = tmp_path / f"rows.{suffix}"
    path.write_text("\n".join(map(json.dumps, rows)) if suffix == "jsonl" else json.dumps(rows))
    done = convert_conversations(FORMATS[form], [path], tmp_path, tmp_path / "out.jsonl", **options)
    return done, read_samples(tmp_path / "out.jsonl")


def ms_swift(*texts, **more):
    roles = ("user", "assistant") * len(texts)
    return {"messages": [{"role": role, "content": text} for role, text in zip(roles, texts)], "videos": ["a.mp4"], **more}


def share_gpt(*texts, **more):
    roles = ("human", "gpt") * len(texts)
    return {"conversations": [{"from": role, "value": text} for role, text in zip(roles, texts)], **more}


def test_ms_swift(tmp_path):
    rows = [
        ms_swift("<video><audio>What is heard?", "a bell", audios=["a.wav"]),
        ms_swift("<video>\nWho?", "a dog", "And then?", "a cat", task="chat", id=7, objects=None),
    ]
    done, samples = convert(tmp_path, "ms_swift", rows)
    assert [(s.id, s.question, s.answer, dict(s.side_channels)) for s in samples[:1]] == [
        ("rows-000001", "What is heard?", "a bell", {"audio": str(tmp_path / "a.wav")})
    ]
    assert samples[1].turns == (("Who?", "a dog"), ("And then?", "a cat"))
    assert (samples[1].id, samples[1].video, samples[1].meta) == ("7", str(tmp_path / "a.mp4"), {"row": {"task": "chat"}})
    assert (done.n_rows, done.n_samples, done.n_videos, done.moved, done.unfit) == (2, 2, 1, (), ())
    assert done.missing == (
        ("rows-000001", str(tmp_path / "a.mp4")),
        ("rows-000001", str(tmp_path / "a.wav")),
        ("7", str(tmp_path / "a.mp4")),
    )


def test_ms_swift_with_parts_in_the_turns(tmp_path):
    parts = [{"type": "video", "video": "b.mp4"}, {"type": "text", "text": "Which colour?"}]
    row = {"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": "red"}]}
    _, (sample,) = convert(tmp_path, "ms_swift", [row])
    assert (sample.video, sample.question, sample.answer) == (str(tmp_path / "b.mp4"), "Which colour?", "red")


def test_llama_factory_and_the_channel_of_its_sound(tmp_path):
    row = share_gpt("<video>Is it loud?<audio>", "yes", videos=["v/c.mp4"], audios="c.wav")
    done, (sample,) = convert(tmp_path, "llama_factory", [row], suffix="json", channel="hearing")
    assert (sample.question, sample.answer, sample.video) == ("Is it loud?", "yes", str(tmp_path / "v" / "c.mp4"))
    assert dict(sample.side_channels) == {"hearing": str(tmp_path / "c.wav")}
    assert done.moved == ("rows-000001",)  # the sound's placeholder stood behind the question


def test_an_id_that_is_made_is_no_id_of_another_row(tmp_path):
    ids = ["v#2", "v", "v", "v", "v#2", "rows-000007", None]
    rows = [share_gpt("<image>\nWhat?", "A cat.", video="1.mp4", **({} if name is None else {"id": name})) for name in ids]
    _, samples = convert(tmp_path, "llava", rows, suffix="json")
    assert [sample.id for sample in samples] == ["v#2", "v", "v#3", "v#4", "v#2#2", "rows-000007", "rows-000007#2"]


def test_llava_names_the_video_image_and_repeats_ids(tmp_path):
    rows = [
        share_gpt("<image>\nDescribe it.", "A dog.", id="v1", video="x/1.mp4", data_source="academic"),
        share_gpt("What else?\n<image>", "A cat.", id="v1", video="x/1.mp4"),
    ]
    done, samples = convert(tmp_path, "llava", rows, suffix="json")
    assert [(s.id, s.question, s.answer) for s in samples] == [
        ("v1", "Describe it.", "A dog."),
        ("v1#2", "What else?", "A cat."),
    ]
    assert [s.meta for s in samples] == [{"row": {"data_source": "academic"}}, {"row": {"id": "v1"}}]
    assert done.n_videos == 1 and done.moved == ("v1#2",)


def test_nothing_is_lost_of_rows_drawn_at_random(tmp_path):
    """Every text, path and further field of a row is found again in its sample."""
    rng = random.Random(0)
    words = ["red", "<b>", "a  b", "\u2028", "line\nbreak", "<vid>", "é", '"quoted"']
    rows = []
    for number in range(200):
        texts = [f"{rng.choice(words)} {number}.{i}" for i in range(2 * rng.randint(1, 4))]
        tag = rng.choice(["", "<video>", "<video>\n"])
        rows.append(ms_swift(tag + texts[0], *texts[1:], source=rng.choice(words), n=number, videos=[f"{number % 7}.mp4"]))
    done, samples = convert(tmp_path, "ms_swift", rows)
    assert done.n_samples == done.n_rows == 200
    for row, sample in zip(rows, samples, strict=True):
        texts = [turn["content"] for turn in row["messages"]]
        texts[0] = texts[0].removeprefix("<video>").removeprefix("\n")
        assert [text for turn in sample.turns for text in turn] == texts
        assert sample.meta["row"] == {"source": row["source"], "n": row["n"]} and sample.video.endswith(row["videos"][0])


UNFIT = {
    "no video": (ms_swift("Q", "A", videos=[]), "the row has none under 'videos'"),
    "two videos": (ms_swift("Q", "A", videos=["a", "b"]), "the row has 2 under 'videos'"),
    "two sounds": (ms_swift("Q", "A", audios=["a", "b"]), "2 sounds under 'audios'"),
    "pictures": (ms_swift("Q", "A", images=["a.png"]), "the field 'images' changes what is learnt"),
    "a system message": (
        {"messages": [{"role": "system", "content": "Be brief."}], "videos": ["a"]},
        "turn 1 is of the role 'system'",
    ),
    "a rejected answer": (ms_swift("Q", "A", rejected_response="B"), "the field 'rejected_response' changes"),
    "no answer": (ms_swift("Q", "A", "Q2"), "has 3 turns"),
    "roles out of order": (
        {"messages": [{"role": "assistant", "content": "A"}, {"role": "user", "content": "Q"}], "videos": ["a"]},
        "turns alternate",
    ),
    "an answer that is not learnt": (
        {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A", "loss": False}], "videos": ["a"]},
        "turn 2 is not to be learnt",
    ),
    "a placeholder too many": (ms_swift("<video><video>Q", "A"), "more placeholders <video>"),
    "a placeholder without a file": (ms_swift("<audio>Q", "A"), "more placeholders <audio>"),
    "a picture's placeholder": (ms_swift("<image>Q", "A"), "a placeholder <image>, and the row has no file"),
    "an empty answer": (ms_swift("Q", " "), "is empty"),
    "no conversation": ({"query": "Q", "response": "A", "videos": ["a"]}, "the field 'messages' is missing"),
}


@pytest.mark.parametrize(("row", "why"), UNFIT.values(), ids=UNFIT)
def test_rows_that_a_sample_cannot_hold_are_an_error_or_are_left_out_and_listed(tmp_path, row, why):
    good = ms_swift("Q", "A")
    with pytest.raises(ValueError, match="1 of 2 rows cannot become samples.*--skip-unfit") as error:
        convert(tmp_path, "ms_swift", [good, row])
    assert why in str(error.value) and "rows.jsonl, item 2" in str(error.value) and not (tmp_path / "out.jsonl").exists()
    done, samples = convert(tmp_path, "ms_swift", [good, row], skip_unfit=True)
    assert len(samples) == 1 and why in done.unfit[0][1]


def test_samples_without_video_are_left_out_on_request(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"")
    rows = [ms_swift("Q", "A"), ms_swift("Q", "A", videos=["gone.mp4"])]
    done, samples = convert(tmp_path, "ms_swift", rows, drop_missing=True)
    assert len(samples) == 1 and done.dropped and done.missing == (("rows-000002", str(tmp_path / "gone.mp4")),)
    with pytest.raises(ValueError, match="no sample is left; .*gone.mp4 is not there"):
        convert(tmp_path, "ms_swift", rows[1:], drop_missing=True)


def test_on_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text(
        json.dumps(ms_swift("<video>Q", "A")) + "\n" + json.dumps(ms_swift("Q", "A", videos=[]))
    )
    words = ["data", "convert", "ms_swift", "--annotations", "rows.jsonl", "--media", ".", "--out", "s.jsonl"]
    assert main(words) == 2
    assert "the row has none under 'videos'; 1 of 2 rows cannot become samples" in capsys.readouterr().err
    assert main([*words, "--skip-unfit"]) == 0
    shown = capsys.readouterr()
    assert "wrote s.jsonl: 1 samples about 1 videos, of 2 rows\n1 rows left out" in shown.out
    assert "left out: rows.jsonl, item 2: " in shown.err and "not there, for rows-000001: " in shown.err
    assert main([*words, "--split", "test"]) == 2 and "--split is for benchmarks" in capsys.readouterr().err
    assert main([*words[:2], "sqa3d", *words[3:], "--skip-unfit"]) == 2
    assert "--skip-unfit is for conversations (ms_swift, llama_factory, llava)" in capsys.readouterr().err
