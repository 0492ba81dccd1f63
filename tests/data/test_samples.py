"""The sample file: what is read is what was written, and every mistake is named with its file, line and field."""

import dataclasses
import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pave.data import samples as samples_module
from pave.data.samples import Message, Sample, manifest_hash, question_with_choices, read_samples, write_samples

GOOD = {"id": "a", "video": "clips/a.mp4", "question": "What is heard?", "answer": "a bell"}


def write(path, *records):
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records), encoding="utf-8")
    return path


def test_a_file_becomes_samples_with_paths_from_here(tmp_path, monkeypatch):
    chat = [
        {"role": "user", "content": "What?"},
        {"role": "assistant", "content": "A bell."},
        {"role": "user", "content": "Then?"},
    ]
    path = write(
        tmp_path / "train.jsonl",
        GOOD,
        "",
        {"id": "b", "video": "/data/b.mp4", "messages": chat, "type": "order", "meta": {"x": [1, None]}, "answer": None},
        {**GOOD, "id": "c", "choices": ["a bell", "a horn"], "side_channels": {"audio": "c.wav", "depth": None}},
        {"id": "d", "video": "d.mp4", "question": "Where?", "answers": ["kitchen", "a kitchen"]},
    )
    a, b, c, d = read_samples(path)
    assert a == Sample(id="a", video=str(tmp_path / "clips/a.mp4"), question="What is heard?", answer="a bell")
    assert (a.turns, a.references) == ((("What is heard?", "a bell"),), ("a bell",))
    assert b.video == "/data/b.mp4"
    assert b.messages == tuple(Message(**message) for message in chat)
    assert (b.turns, b.references) == ((("What?", "A bell."), ("Then?", None)), ())
    assert (b.type, b.meta) == ("order", {"x": [1, None]})
    assert c.side_channels == {"audio": str(tmp_path / "c.wav"), "depth": None}
    assert c.choices == ("a bell", "a horn")
    assert (d.turns, d.references) == ((("Where?", "kitchen"),), ("kitchen", "a kitchen"))
    assert read_samples(path, data_root="/elsewhere")[0].video == "/elsewhere/clips/a.mp4"
    monkeypatch.chdir(tmp_path)
    assert read_samples("train.jsonl")[0].video == "clips/a.mp4"


def test_written_samples_are_read_back_also_from_a_moved_folder(tmp_path):
    folder = tmp_path / "one"
    samples = [
        Sample(id="ä", video=str(folder / "clips/ü.mp4"), question="Zeile 1\nZeile 2", answer="ja – 好", meta={"rate": 0.1}),
        Sample(id="b", video="/data/b.mp4", messages=[{"role": "user", "content": "?"}], type="t", side_channels={"audio": None}),
        Sample(id="c", video=str(folder / "c.mp4"), question="q", choices=["x", "y"], answers=["y"], side_channels={"a": str(folder / "c.wav")}),
    ]  # fmt: skip
    write_samples(folder / "s.jsonl", samples)
    assert read_samples(folder / "s.jsonl") == samples
    first = json.loads((folder / "s.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert first == {
        "id": "ä",
        "video": "clips/ü.mp4",
        "question": "Zeile 1\nZeile 2",
        "answer": "ja – 好",
        "meta": {"rate": 0.1},
    }
    folder.rename(tmp_path / "two")
    moved = read_samples(tmp_path / "two" / "s.jsonl")
    assert moved[0].video == str(tmp_path / "two" / "clips/ü.mp4")
    assert moved[1].video == "/data/b.mp4"


def test_writing_is_atomic_and_refuses_repeated_ids(tmp_path):
    path = tmp_path / "s.jsonl"
    sample = Sample(id="a", video="a.mp4", question="q")
    write_samples(path, [sample])
    before = path.read_bytes()
    with pytest.raises(ValueError, match="two samples have the id 'a'"):
        write_samples(path, [sample, sample])
    with pytest.raises(ValueError, match="sample 'b', field 'meta'"):
        write_samples(path, [Sample(id="b", video="b.mp4", question="q", meta={"x": float("nan")})])
    with pytest.raises(ValueError, match="sample 'b', field 'meta'"):
        write_samples(path, [Sample(id="b", video="b.mp4", question="q", meta={"x": {1, 2}})])
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["s.jsonl"]


MESSAGE = {"role": "user", "content": "q"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"anwser": "x"}, r"unknown field 'anwser'; did you mean 'answer(s)?'\?"),
        ({"zzz": "x"}, "unknown field 'zzz'; known fields: id, video, .*'meta'"),
        ({"id": 12}, r"field 'id': text is needed, got a number \(12\)"),
        ({"id": " "}, "field 'id' is empty"),
        ({"id": "a\nb"}, "field 'id' holds the control character '\\\\n' at position 1"),
        ({"video": None}, "field 'video': text is needed, got null"),
        ({"video": "a\x00.mp4"}, "field 'video' holds the control character"),
        ({"video": "https://x.org/a.mp4"}, "field 'video': .* is an address; download"),
        ({"question": None}, "needs either 'question' or 'messages', and has none"),
        ({"messages": [MESSAGE]}, "either 'question' or 'messages', not both"),
        ({"question": ["q"]}, "field 'question': text is needed, got a list"),
        ({"question": "bell \x07"}, r"field 'question' holds the control character '\\x07' at position 5"),
        ({"answer": ""}, "field 'answer' is empty"),
        ({"answer": True}, "field 'answer': text is needed, got true or false"),
        ({"question": None, "messages": [MESSAGE]}, "field 'answer': with 'messages'"),
        (
            {"question": None, "answer": None, "messages": [MESSAGE, MESSAGE]},
            r"'messages\[1\].role': 'assistant' is next .* got 'user'",
        ),
        ({"question": None, "answer": None, "messages": [{"role": "user"}]}, r"'messages\[0\]': it needs 'role' and 'content'"),
        (
            {"question": None, "answer": None, "messages": [{**MESSAGE, "x": 1}]},
            r"'messages\[0\]': it needs 'role' and 'content'",
        ),
        ({"question": None, "answer": None, "messages": ["q"]}, r"'messages\[0\]': an object is needed, got text"),
        ({"question": None, "answer": None, "messages": [{**MESSAGE, "content": ""}]}, r"'messages\[0\].content' is empty"),
        ({"choices": ["a bell"]}, "field 'choices': there must be at least 2"),
        ({"choices": ["a bell", "a bell"]}, "field 'choices': .* all different"),
        ({"choices": ["A bell", "a horn"]}, "field 'answer': 'a bell' is not one of the choices; did you mean 'A bell'"),
        ({"choices": ["x", "y"]}, "field 'answer': 'a bell' is not one of the choices: 'x', 'y'"),
        ({"choices": "ab"}, "field 'choices': a list is needed, got text"),
        ({"choices": ["a bell", 3]}, r"field 'choices\[1\]': text is needed, got a number"),
        ({"answers": ["a", ""]}, r"field 'answers\[1\]' is empty"),
        ({"type": 3}, "field 'type': text is needed, got a number"),
        ({"side_channels": ["a.wav"]}, "field 'side_channels': an object is needed, got a list"),
        ({"side_channels": {"my audio": "a.wav"}}, "'my audio' is no name of a channel"),
        ({"side_channels": {"audio": 3}}, "field 'side_channels.audio': text is needed, got a number"),
        ({"meta": "x"}, "field 'meta': an object is needed, got text"),
    ],
)
def test_mistakes_are_named(tmp_path, change, words):
    path = write(tmp_path / "bad.jsonl", GOOD, {**GOOD, "id": "b", **change})
    with pytest.raises(ValueError, match=rf"bad\.jsonl, line 2: .*{words}") as caught:
        read_samples(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"id": "x"', "not JSON: .* at column"),
        ("[1, 2]", "a sample is an object in braces, one a line, got a list"),
        ('{"id": "x", "id": "y", "video": "v", "question": "q"}', "the key 'id' comes twice"),
        ('{"id": "x", "video": "v", "question": "q", "meta": {"a": 1, "a": 2}}', "the key 'a' comes twice"),
        ('{"id": "x", "video": "v", "question": "q", "meta": {"a": NaN}}', "NaN is no number of JSON"),
        ('{"id": "x", "video": "v", "question": "\\ud800"}', "control character"),
        ('{"id": "x", "question": "q"}', "field 'video' is missing"),
        ('{"id": "a", "video": "v", "question": "q"}', "field 'id': 'a' is also the id of line 1"),
        ('{"id": "x", "video": "v", "question": "q", "meta": {"a": 1e999}}', "1e999 is too large for a number"),
        ('{"id": "x", "video": "v", "question": "q", "meta": {"a": "\\ud800"}}', "field 'meta': .*surrogates not allowed"),
        ('{"id": "x", "video": "v", "question": "q", "meta": ' + '{"a":' * 600 + "1" + "}" * 601, "nested too deeply"),
        ("[" * 100_000, "nested too deeply"),
        ("hello", "not JSON"),
    ],
)
def test_broken_lines_are_named(tmp_path, line, words):
    path = write(tmp_path / "bad.jsonl", GOOD, "", line)
    with pytest.raises(ValueError, match=rf"bad\.jsonl, line 3: .*{words}"):
        read_samples(path)


def test_files_that_are_no_text(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"no\.jsonl: there is no such file"):
        read_samples(tmp_path / "no.jsonl")
    path = tmp_path / "s.jsonl"
    path.write_bytes(json.dumps(GOOD).encode() + b"\n\xff\xfe\n")
    with pytest.raises(ValueError, match=r"s\.jsonl, line 2: byte 0 of the line is not UTF-8"):
        read_samples(path)
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b"\r\n")
    assert [s.id for s in read_samples(path)] == ["a"]
    monkeypatch.setattr(samples_module, "MAX_LINE_BYTES", 1000)
    path.write_text(json.dumps({**GOOD, "question": "q" * 2000}) + "\n")
    with pytest.raises(ValueError, match=r"s\.jsonl, line 1: the line is longer than"):
        read_samples(path)
    path.write_text(json.dumps(GOOD))  # no line end
    assert len(read_samples(path)) == 1
    path.write_text("")
    assert read_samples(path) == []


def test_the_manifest_hash_tells_content_not_place(tmp_path):
    def samples(root, **change):
        first = Sample(id="a", video=f"{root}/clips/a.mp4", question="q", answer="x", side_channels={"audio": f"{root}/a.wav"})
        second = Sample(id="b", video=f"{root}/clips/b.mp4", question="q", meta={"x": 1, "y": 2})
        return [first, dataclasses.replace(second, **change)]

    base = manifest_hash(samples("/data"))
    assert base == manifest_hash(samples("/mnt/other/place"))
    assert base == manifest_hash(samples("/data", meta={"y": 2, "x": 1}))
    assert base.startswith("sha256:")
    others = [
        manifest_hash(samples("/data", question="Q")),
        manifest_hash(samples("/data", video="/data/clips/c.mp4")),
        manifest_hash(samples("/data", answer="x")),
        manifest_hash(samples("/data")[::-1]),
        manifest_hash(samples("/data")[:1]),
        manifest_hash([]),
    ]
    assert len({base, *others}) == 7


def test_choices_are_listed_behind_letters():
    assert question_with_choices("Which?", ["tap", "bell"]) == "Which?\nA. tap\nB. bell"


TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=30).filter(str.strip)


@given(
    st.lists(
        st.builds(
            Sample,
            id=TEXT,
            video=TEXT.map(lambda t: "/v/" + t.replace("/", "_") + ".mp4"),
            question=TEXT,
            answer=st.none() | TEXT,
            answers=st.lists(TEXT, max_size=3),
            type=st.just("") | TEXT,
            meta=st.dictionaries(TEXT, st.none() | st.integers() | TEXT | st.lists(st.booleans()), max_size=3),
        ),
        max_size=4,
        unique_by=lambda s: s.id,
    )
)
def test_any_sample_survives_the_file(tmp_path_factory, samples):
    path = tmp_path_factory.mktemp("any") / "s.jsonl"
    write_samples(path, samples)
    back = read_samples(path)
    assert back == samples
    assert manifest_hash(back) == manifest_hash(samples)
