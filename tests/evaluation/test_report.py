"""The report page: right numbers, true times, hostile text stays text, nothing is loaded from outside."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from evaluation_page import Page
from pave.evaluation.metrics import Interval, PairedComparison, Score
from pave.evaluation.report import (
    AnswerView,
    ExampleView,
    FrameView,
    NamedComparison,
    RunTable,
    SideView,
    SoundView,
    write_report,
)
from pave.evaluation.report_graphics import COLUMNS, TimeAxis, on_timeline, step_columns, wave_path

HOSTILE = "</title><script>alert(1)</script>\"' onerror='x' <img src=http://evil/x.png> {{ 7*7 }} & ünï"


def make_score(correct, n, low, high, scored=None):
    return Score(correct, n if scored is None else scored, n, Interval(low, high, "bootstrap"))


def make_run(name="base", **changes):
    values = {
        "name": name,
        "overall": make_score(30, 80, 0.301, 0.4567),
        "by_type": {"sound": make_score(10, 40, 0.1251, 0.4, scored=38), "colour": make_score(20, 40, 0.35, 0.65)},
    }
    return RunTable(**{**values, **changes})


def make_example(**changes):
    times = [0.5, 1.5, 3.5, 7.5]
    values = {
        "id": "video_1/q2",
        "question": "What is heard?",
        "truth": "bell",
        "answers": [AnswerView(run="base", text="buzz", correct=False), AnswerView(run="patch", text="bell", correct=True)],
        "frames": [FrameView(time=t, pixels_HWC=np.full((48, 64, 3), 10 * i, np.uint8)) for i, t in enumerate(times)],
        "sound": SoundView(samples=np.sin(np.arange(16000 * 6)), sample_rate=16000, start=2.0),
        "sides": [
            SideView(
                name="audio",
                times_K=2.5 + np.arange(6.0),
                features_KC=np.eye(6),
                attention_TK=np.array([[0] * 6, [0, 0, 0, 0, 0, 0.2], [0.5, 0.25, 0, 0, 0, 0.25], [0, 0, 0, 0, 1.0, 0]]),
            )
        ],
    }
    return ExampleView(**{**values, **changes})


def render(tmp_path, **changes):
    values = {"title": "A title", "runs": [make_run("base"), make_run("patch")], "examples": [make_example()], "facts": {}}
    write_report(tmp_path / "report.html", **{**values, **changes})
    return (tmp_path / "report.html").read_text(encoding="utf-8")


def image_of(tag_attributes):
    data = base64.b64decode(tag_attributes["src"].partition("base64,")[2])
    return np.asarray(Image.open(io.BytesIO(data)))


def test_the_page_is_well_formed_and_loads_nothing(tmp_path):
    text = render(tmp_path)
    page = Page(text)
    assert page.stack == []
    assert {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "a", "form"} == set()
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href"):
                assert tag == "img" and value.startswith("data:image/")
    assert "url(" not in text and "@import" not in text
    policy = next(a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy and "script-src" not in policy


def test_hostile_text_stays_text_everywhere(tmp_path):
    plain = Page(render(tmp_path, summary="x", facts={"a": "b"}, comparisons=[make_comparison("a")], chance={"sound": 0.25}))
    run = make_run(HOSTILE, note="n", by_type={HOSTILE: make_score(1, 2, 0.1, 0.9)}, failures=[(HOSTILE, HOSTILE)])
    example = make_example(
        id=HOSTILE,
        question=HOSTILE,
        question_type=HOSTILE,
        truth=HOSTILE,
        choices=[HOSTILE, "b"],
        answers=[AnswerView(run=HOSTILE, text=HOSTILE, correct=True)],
        sides=[SideView(name=HOSTILE, times_K=np.ones(1), features_KC=np.ones((1, 2)), attention_TK=np.ones((4, 1)))],
    )
    text = render(
        tmp_path,
        title=HOSTILE,
        summary=HOSTILE,
        runs=[run],
        examples=[example],
        facts={HOSTILE: HOSTILE, "list": [HOSTILE], "dict": {HOSTILE: HOSTILE}},
        comparisons=[make_comparison(HOSTILE)],
        chance={HOSTILE: 0.5},
    )
    page = Page(text)
    assert page.stack == []
    assert {tag for tag, _ in page.tags} <= {tag for tag, _ in plain.tags} | {"ol", "li", "code", "b", "i"}
    assert all(not name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert "".join(page.text).count(HOSTILE) >= 18
    assert all(a["src"].startswith("data:") for t, a in page.tags if t == "img")


def make_comparison(name):
    result = PairedComparison(0.125, Interval(0.05, 0.2, "bootstrap"), 3, 13, 0.0213)
    return NamedComparison(first=name, second=name + "2", subset=name, result=result)


def test_the_numbers_of_the_table(tmp_path):
    page = Page(render(tmp_path, comparisons=[make_comparison("a")], chance={"sound": 0.25}))
    text = re.sub(r"\s+", " ", " ".join(page.text))
    assert "All questions n = 80" in text and "37.5 30.1 to 45.7" in text
    assert "38 of 40 answered, chance 25.0 %" in text and "25.0 12.5 to 40.0" in text
    assert "+12.5 +5.0 to +20.0 13 / 3 0.0213" in text
    styles = [a["style"] for _, a in page.tags if a.get("class") == "whisker"]
    assert styles[0] == "left:30.10%;width:15.57%"
    assert [a["style"] for _, a in page.tags if a.get("class") == "chance"] == ["left:25.0%"] * 2


def test_failures_are_counted_and_the_list_is_bounded(tmp_path):
    failures = [(f"id{i}", "broken file") for i in range(70)]
    text = render(tmp_path, runs=[make_run("base", failures=failures)])
    assert "70, all counted as wrong (the first 50 are listed)" in text
    assert "id49" in text and "id50" not in text


def test_attention_is_drawn_at_true_times(tmp_path):
    """The axis runs from 0 to 9.5 s (half a gap after the last frame); steps are 1 s wide and start at 2 s."""
    page = Page(render(tmp_path))
    attributes = next(a for t, a in page.tags if t == "img" and a["alt"].startswith("attention"))
    alpha = image_of(attributes)[..., 3]
    assert alpha.shape == (4 * 6, COLUMNS)
    rows = alpha[2::6] / 255
    column = {time: round(COLUMNS * time / 9.5) for time in (2.1, 2.9, 3.5, 5.5, 6.5, 6.9, 7.5, 8.5)}
    assert rows[0].max() == 0
    assert rows[1, column[7.5]] == 1 and rows[1].mean() == pytest.approx(1 / 9.5, abs=0.01)
    assert rows[2, column[2.1]] == rows[2, column[2.9]] == 1
    assert rows[2, column[3.5]] == rows[2, column[7.5]] == pytest.approx(0.5, abs=0.01)
    assert rows[2, column[5.5]] == rows[2, column[8.5]] == 0
    assert rows[3, column[6.5]] == rows[3, column[6.9]] == 1 and rows[3, column[7.5]] == 0
    assert alpha[5::6].max() == 0
    marks = [a["style"] for _, a in page.tags if a.get("class") == "now"]
    assert [float(re.match(r"left:([\d.]+)%", m)[1]) for m in marks] == [
        pytest.approx(100 * t / 9.5, abs=1e-3) for t in (0.5, 1.5, 3.5, 7.5)
    ]


def test_features_are_drawn_bottom_up_and_the_sound_at_its_start(tmp_path):
    page = Page(render(tmp_path))
    attributes = next(a for t, a in page.tags if t == "img" and a["alt"].startswith("features"))
    alpha = image_of(attributes)[..., 3]
    for k in range(6):
        column = round(COLUMNS * (2.5 + k) / 9.5)
        assert list(np.flatnonzero(alpha[:, column])) == [5 - k]
    assert alpha[:, : round(COLUMNS * 1.9 / 9.5)].max() == 0
    wave = next(a for t, a in page.tags if t == "svg" and "viewbox" in a)
    assert float(wave["x"].rstrip("%")) == pytest.approx(100 * 2 / 9.5, abs=1e-3)
    assert float(wave["width"].rstrip("%")) == pytest.approx(100 * 6 / 9.5, abs=1e-3)


def test_thumbnails_are_the_frames(tmp_path):
    large = np.zeros((270, 480, 3), np.uint8)
    large[:, 240:] = (250, 10, 10)
    frames = [FrameView(time=0.0, pixels_HWC=large), FrameView(time=1.0, pixels_HWC=np.full((48, 48, 3), 77, np.uint8))]
    page = Page(render(tmp_path, examples=[make_example(frames=frames, sides=[])]))
    first, second = (image_of(a) for t, a in page.tags if t == "img")
    assert first.shape == (108, 192, 3)
    assert first[50, 20].max() < 12 and abs(int(first[50, 170, 0]) - 250) < 12
    assert (second == 77).all() and second.shape == (48, 48, 3)


def test_a_gap_in_the_stream_stays_clear_and_no_step_vanishes():
    axis = TimeAxis(0.0, 20.0)
    times = np.array([1.0, 0.0, 2.0, 15.0, 16.0])
    spans = step_columns(times, axis, columns=200)
    assert spans == [(5, 15), (0, 5), (15, 25), (145, 155), (155, 165)]
    dense = np.linspace(0, 20, 5000)
    for k in range(1230, 1240):
        peak = np.zeros((1, 5000))
        peak[0, k] = 1.0
        drawn = on_timeline(peak, dense, axis)
        assert drawn.max() == 1.0 and abs(int(drawn.argmax()) - COLUMNS * dense[k] / 20) <= 1


def test_ticks_are_round_and_bounded():
    for start, end in ((0, 8), (0, 61.3), (-0.4, 1.2), (0, 3600), (0, 0.05), (5, 5)):
        ticks = TimeAxis(start, end).ticks()
        assert 1 <= len(ticks) <= 9
        assert all(-1e-6 <= float(t["x"]) <= 100 + 1e-6 for t in ticks)
        assert len({t["label"] for t in ticks}) == len(ticks)
    assert [t["label"] for t in TimeAxis(0, 8).ticks()] == [str(i) for i in range(9)]
    assert [t["label"] for t in TimeAxis(0, 1.2).ticks()] == ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0", "1.2"]


def test_the_wave_keeps_short_peaks():
    samples = np.zeros(100_000)
    samples[70_000] = 0.5
    samples[20_000] = -0.25
    points = np.array([[float(v) for v in p.split(",")] for p in wave_path(samples)[1:-1].split("L")])
    assert points[points[:, 1].argmin(), 0] == pytest.approx(700, abs=2) and points[:, 1].min() == pytest.approx(1.5)
    assert points[points[:, 1].argmax(), 0] == pytest.approx(200, abs=2) and points[:, 1].max() == pytest.approx(74.5)
    assert wave_path(np.zeros(0)) == "M0,50H1000"


@pytest.mark.parametrize(
    ("side", "message"),
    [
        ({"attention_TK": np.ones((3, 6))}, r"'video_1/q2'.*'audio'.*\(3, 6\).*4 frames and 6 steps"),
        ({"attention_TK": -np.ones((4, 6))}, "not negative"),
        ({"attention_TK": np.full((4, 6), np.nan)}, "finite"),
        ({"features_KC": np.ones((5, 2))}, r"6 step times but features of shape \(5, 2\)"),
        ({"times_K": np.array([0, 1, 2, 3, 4, np.inf])}, "time is not finite"),
    ],
)
def test_arrays_that_do_not_fit_are_refused_by_name(tmp_path, side, message):
    values = {"name": "audio", "times_K": np.arange(6.0), **side}
    with pytest.raises(ValueError, match=message):
        render(tmp_path, examples=[make_example(sides=[SideView(**values)])])
    assert not (tmp_path / "report.html").exists()
