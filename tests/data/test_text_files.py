"""Captions and transcripts from real files, and files that are no good."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pave.config import EncoderConfig, SideChannelConfig
from pave.data.dataset import PatchDataset
from pave.data.items import SampleError
from pave.data.media import FrameSampling, write_video
from pave.data.samples import Sample
from pave.data.text_files import read_timed_text
from pave.side_channels import build_encoder

SRT = """1
00:00:01,000 --> 00:00:02,500
<i>A bell</i> rings &amp; <font color="#fff">stops</font>

2
00:00:02,500 --> 00:00:04,000 X1:10 X2:20 Y1:5 Y2:6
{\\an8}- Who is <b>there</b>?
- 2 < 3, I said

01:00:00.5 --> 01:00:00.75
"""
VTT = """WEBVTT - a title
Kind: captions

NOTE this is
no caption

STYLE
::cue { color: red }

intro
00:01.000 --> 00:02.500 align:start position:10%
<v Ann>A bell</v> rings &amp; <00:00:02.000><c.loud>stops</c>

00:02.500 --> 00:04.000
- Who is there?
- 2 < 3, I said

01:00:00.500 --> 01:00:00.750
"""
EXPECTED = [
    (1.0, 2.5, "A bell rings & stops"),
    (2.5, 4.0, "- Who is there? - 2 < 3, I said"),
    (3600.5, 3600.75, ""),
]
WHISPER = {
    "text": " A bell rings.",
    "language": "en",
    "segments": [
        {"id": 0, "seek": 0, "start": 1.0, "end": 2.5, "text": " A bell rings & stops", "tokens": [1], "no_speech_prob": 0.1},
        {"id": 1, "start": 2.5, "end": 4, "text": "- Who is there?\n- 2 < 3, I said"},
        {"id": 2, "start": 3600.5, "end": 3600.75, "text": ""},
    ],
}
CHUNKS = {"text": "", "chunks": [{"timestamp": [s["start"], s["end"]], "text": s["text"]} for s in WHISPER["segments"]]}


def read(path, content, **options):
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content, encoding="utf-8")
    return [(s.start, s.end, s.text) for s in read_timed_text(path, **options).segments]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.srt", SRT),
        ("windows.SRT", SRT.replace("\n", "\r\n")),
        ("mac.srt", SRT.replace("\n", "\r")),
        ("mark.srt", "\ufeff" + SRT),
        ("a.vtt", VTT),
        ("mark.vtt", "\ufeff" + VTT.replace("\n", "\r\n")),
        ("whisper.json", json.dumps(WHISPER)),
        ("list.json", json.dumps(WHISPER["segments"])),
        ("chunks.json", json.dumps(CHUNKS)),
    ],
)
def test_every_kind_of_file_gives_the_same_segments(tmp_path, name, content):
    assert read(tmp_path / name, content) == EXPECTED


def test_encodings(tmp_path):
    text = "1\n00:00:00,000 --> 00:00:01,000\nGrüße, Élodie\n"
    expected = [(0.0, 1.0, "Grüße, Élodie")]
    for codec in ("utf-8", "utf-8-sig", "utf-16"):
        assert read(tmp_path / "a.srt", text.encode(codec)) == expected
    assert read(tmp_path / "a.srt", text.encode("latin-1"), encoding="latin-1") == expected
    with pytest.raises(ValueError, match=r"a\.srt: byte 34 is not utf-8; say what it is in the encoder's setting encoding"):
        read(tmp_path / "a.srt", text.encode("latin-1"))
    with pytest.raises(ValueError, match="it holds zero bytes"):
        read(tmp_path / "a.srt", text.encode("utf-16-le"), encoding="latin-1")


HI_HO = [(1.0, 2.0, "hi"), (3.0, 4.0, "ho")]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.srt", "1\n00:00:01,000 --> 00:00:02,000\nhi\n2\n00:00:03,000 --> 00:00:04,000\nho\n"),
        ("a.srt", "00:00:01,000 --> 00:00:02,000\nhi\n00:00:03,000 --> 00:00:04,000\nho"),
        ("a.srt", "1\n00:01,000-->00:02,000\n \nhi\n \n2\n0:00:03.0 --> 0:00:04.0 align:start position:0%\nho\n\n\n"),
        ("a.srt", "\ufeff1\n00:00:01,000 --> 00:00:02,000\nhi\n\n\ufeff1\n00:00:03,000 --> 00:00:04,000\nho\n"),
        ("a.vtt", "WEBVTT\n\n00:01.000 --> 00:02.000\nhi\n00:03.000 --> 00:04.000\nho\n"),
        ("a.vtt", "WEBVTT\n\n1\n00:01.000 --> 00:02.000\nhi\n2\n00:03.000 --> 00:04.000\nho\n"),
        ("a.vtt", "WEBVTT\n00:01,000-->00:02,000 line:0\nhi\n\nNOTE\n00:03.000 --> 00:04.000\nho\n"),
        (
            "a.vtt",
            "WEBVTT\n\n0:00:01.000 --> 0:00:02.000\n \nhi\n \n\nSTYLE\n::cue {}\n\nREGION\nid:a\n\n00:03.0 --> 00:04.0\nho\n \n",
        ),
    ],
)
def test_a_line_of_times_begins_a_caption_wherever_it_stands(tmp_path, name, content):
    assert read(tmp_path / name, content) == HI_HO


def test_numbers_that_are_text_stay_text(tmp_path):
    times = ["00:00:01,000 --> 00:00:02,000", "00:00:03,000 --> 00:00:04,000"]
    counted = f"1\n{times[0]}\n5\n\n2\n{times[1]}\n7\n8\n"
    assert read(tmp_path / "a.srt", counted) == [(1.0, 2.0, "5"), (3.0, 4.0, "7 8")]
    assert read(tmp_path / "b.srt", counted.replace("\n\n", "\n")) == [(1.0, 2.0, "5"), (3.0, 4.0, "7 8")]
    uncounted = f"{times[0]}\nHow many?\n2\n{times[1]}\nopen 10:30-11:15, x --> y\n"
    assert read(tmp_path / "c.srt", uncounted) == [(1.0, 2.0, "How many? 2"), (3.0, 4.0, "open 10:30-11:15, x --> y")]


def test_captions_that_roll_up_are_read_as_they_stand(tmp_path):
    """As YouTube writes its automatic ones: lines of one blank, times within the text, and every line again in the next cue."""
    where = "align:start position:0%"
    content = (
        f"WEBVTT\nKind: captions\nLanguage: en\n\n00:00:00.030 --> 00:00:05.720 {where}\n \n"
        f"what's<00:00:00.719><c> up</c><00:00:00.930><c.colorE5E5E5> all</c>\n\n00:00:05.720 --> 00:00:05.730 {where}\nwhat's up all\n \n\n"
        f"00:00:05.730 --> 00:00:08.000 {where}\nwhat's up all\nand<00:00:06.719><c> more</c>\n\n"
    )
    expected = [(0.03, 5.72, "what's up all"), (5.72, 5.73, "what's up all"), (5.73, 8.0, "what's up all and more")]
    assert read(tmp_path / "a.vtt", content) == expected


def test_an_open_end_is_the_next_start(tmp_path):
    chunks = [([0.0, None], "a"), ([2.5, 4.0], "b"), ([12.0, None], "c")]
    expected = [(0.0, 2.5, "a"), (2.5, 4.0, "b"), (12.0, 12.0, "c")]
    content = {"text": "a b c", "chunks": [{"timestamp": times, "text": text} for times, text in chunks]}
    assert read(tmp_path / "a.json", json.dumps(content)) == expected
    segments = [{"start": times[0], "end": times[1], "text": text} for times, text in chunks]
    assert read(tmp_path / "b.json", "\ufeff" + json.dumps({"segments": segments})) == expected
    backward = [{"start": 3, "end": None, "text": "a"}, {"start": 2, "end": 4, "text": "b"}]
    assert read(tmp_path / "c.json", json.dumps(backward)) == [(3.0, 3.0, "a"), (2.0, 4.0, "b")]


def test_a_file_without_a_segment_is_an_ordinary_case(tmp_path):
    assert read(tmp_path / "a.srt", "") == read(tmp_path / "a.vtt", "WEBVTT\n") == read(tmp_path / "a.json", "[]") == []


GOOD = "00:00:01,000 --> 00:00:02,000\nx\n\n"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.srt", GOOD + "00:00:05,000 --> 00:00:04,000\ny\n", "line 4: the segment ends at 4 s, before it starts at 5 s"),
        ("a.srt", GOOD + "7\n00:00:61,000 --> 00:01:04,000\ny\n", "line 5: '00:00:61,000' is no time"),
        ("a.srt", "00:00:01 --> 00:00:02\nx\n", "line 1: '00:00:01' is no time"),
        ("a.srt", "-00:00:01,000 --> 00:00:02,000\nx\n", "line 1: '-00:00:01,000' is no time"),
        ("a.srt", GOOD + "only words\n", "line 4: times are expected, such as .* got 'only words'"),
        ("a.srt", "1\n", "line 1: times are expected"),
        ("a.srt", "WEBVTT\n", "line 1: times are expected"),
        ("a.srt", "x" * 20_000, "line 1 is longer than 10000 characters"),
        ("a.srt", "-->" * 3_000 + "\n", "line 1: "),
        ("a.srt", "<" * 9_000, "line 1: times are expected"),
        ("a.vtt", "00:01.000 --> 00:02.000\nx\n", "it does not begin with WEBVTT"),
        ("a.vtt", "WEBVTTx\n", "it does not begin with WEBVTT"),
        ("a.vtt", "WEBVTT\nX-TIMESTAMP-MAP=LOCAL:00:00:00.000,MPEGTS:0\n\n", "its header maps times"),
        ("a.vtt", "WEBVTT\n\n00:01 --> 00:02\nx\n", "line 3: '00:01' is no time"),
        ("a.vtt", "WEBVTT\n\n00:01.000 --> 00:02.000\nx --> y\n", "line 4: 'x' is no time"),
        ("a.vtt", "WEBVTT\n\na\nb\n00:01.000 --> 00:02.000\nx\n", "line 4: times are expected, .* got 'b'"),
        ("a.vtt", "WEBVTT\n\n00:01.000 --> 00:02.000\nx\n00:03.000 -> 00:04.000\ny\n", "line 5: times are expected"),
        ("a.srt", "1\n" + GOOD + "2\n00:00:03,000 -> 00:00:04,000\ny\n", "line 5: times are expected, .* got '2'"),
        ("a.srt", GOOD.strip() + "\n2\n00:00:03,000 \u2192 00:00:04,000\ny\n", "line 4: times are expected"),
        ("a.srt", GOOD.strip() + "\n00:00:03 --> 00:00:04\ny\n", "line 3: '00:00:03' is no time"),
        ("a.srt", "00:00:01,000 --> 00:00:02,000 words\n", "line 1: times are expected"),
        ("a.srt", "1\n" + GOOD + "2\n", "line 5: times are expected, .* got '2'"),
        ("a.vtt", "WEBVTT\n\n00:03.000 --> 00:02.000\nx\n", "line 3: the segment ends at 2 s"),
        ("a.vtt", "WEBVTT\n\ntitle alone\n", "line 4: times are expected"),
        ("a.json", "{", "it cannot be read: not JSON"),
        ("a.json", "[" * 100_000, "it cannot be read: not JSON"),
        ("a.json", "3", "a list of segments is expected"),
        ("a.json", '{"text": "x"}', "a list of segments is expected"),
        ("a.json", '[{"start": 0, "text": "x"}]', "segment 0 needs start, end and text"),
        ("a.json", "[3]", "segment 0 needs start, end and text"),
        ("a.json", '{"chunks": [{"timestamp": [1], "text": "x"}]}', "segment 0 needs timestamp and text"),
        ("a.json", '{"chunks": [{"timestamp": [null, null], "text": "x"}]}', "segment 0: .* from None to None"),
        ("a.json", '{"chunks": [{"timestamp": [null, 1], "text": "x"}]}', "segment 0: .* from None to 1"),
        ("a.json", '[{"start": NaN, "end": 1, "text": "x"}]', "NaN is no number of JSON"),
        ("a.json", '[{"start": 2, "end": 1, "text": "x"}]', "segment 0: .* got 'x' from 2 to 1"),
        ("a.json", '[{"start": 0, "end": true, "text": "x"}]', "segment 0"),
        ("a.json", '[{"start": 0, "end": 1, "text": ["x"]}]', "segment 0"),
        ("a.ass", "", r"timed text is read from \.srt, \.vtt and \.json files"),
    ],
)
def test_files_that_are_no_good_get_one_sentence(tmp_path, name, content, words):
    with pytest.raises(ValueError, match=words) as caught:
        read(tmp_path / name, content)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / name}: ") and "\n" not in message and len(message) < 400


PIECES = ["1", "\n", "\n\n", "00:00:01,000", " --> ", "00:02.500", "01:00:00.5", "<b>", "</", "WEBVTT", "NOTE", "&amp;", "{", "}", "[", "]", ",",
    '"start"', '"end"', '"text"', '"segments"', ":", "1.5", "NaN", "é", "\ufeff", "x"]  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(pieces=st.lists(st.sampled_from(PIECES), max_size=25), kind=st.sampled_from(["srt", "vtt", "json"]))
def test_anything_is_read_or_refused_in_one_sentence(tmp_path_factory, pieces, kind):
    path = tmp_path_factory.getbasetemp() / f"fuzz.{kind}"
    head = {"srt": GOOD, "vtt": "WEBVTT\n\n", "json": ""}[kind]
    try:
        segments = read(path, head + "".join(pieces))
    except ValueError as error:
        assert str(error).startswith(str(path)) and "\n" not in str(error) and len(str(error)) < 600
    else:
        assert all(start <= end and "\n" not in text for start, end, text in segments)


def test_a_file_that_is_too_large_or_missing(tmp_path):
    with (tmp_path / "huge.srt").open("wb") as file:
        file.truncate(40 * 2**20)
    with pytest.raises(ValueError, match=r"huge\.srt: it is larger than 32 MiB"):
        read_timed_text(tmp_path / "huge.srt")
    with pytest.raises(ValueError, match="there is no such file of timed text"):
        read_timed_text(tmp_path / "no.srt")
    (tmp_path / "many.json").write_text(json.dumps([{"start": 0, "end": 1, "text": ""}] * 200_001))
    with pytest.raises(ValueError, match="it holds more than 200000 segments"):
        read_timed_text(tmp_path / "many.json")


def test_a_sample_names_its_captions(tmp_path):
    video = tmp_path / "a.mp4"
    write_video(video, np.zeros((16, 32, 32, 3), np.uint8), fps=8)
    (tmp_path / "a.srt").write_text("00:00:00,500 --> 00:00:01,500\nGr\xfc\xdfe\n", encoding="latin-1")
    samples = [
        Sample(id=name, video=str(video), question="q", answer="a", side_channels=side)
        for name, side in [("none", {}), ("captions", {"text": str(tmp_path / "a.srt")})]
    ]
    config = EncoderConfig(name="text_hash", settings={"width": 32, "encoding": "latin-1", "step_seconds": 0.5})
    channels = {"text": SideChannelConfig(kind="text", width=32, encoder=config)}
    data = PatchDataset(samples, FrameSampling(num_frames=2), {"text": build_encoder(config)}, channels)
    assert data[0].side["text"] is None
    assert data[1].side["text"].times_K.tolist() == [0.75, 1.25]
    strict = EncoderConfig(name="text_hash", settings={"width": 32})
    data = PatchDataset(samples, FrameSampling(num_frames=2), {"text": build_encoder(strict)}, channels)
    with pytest.raises(SampleError, match=r"sample 'captions': .*a\.srt: byte 32 is not utf-8"):
        data[1]
