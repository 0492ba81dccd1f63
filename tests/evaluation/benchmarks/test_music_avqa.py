"""Music-AVQA: the misspelt field, JSON inside strings, slots, and answers that merely contain the truth."""

from pathlib import Path

import pytest

from benchmark_files import converted, result_of, touch, verdicts, write_json


def row(number, question, answer, kinds='["Audio", "Counting"]', values="[]", video="00000001"):
    return {
        "video_id": video,
        "question_id": number,
        "type": kinds,
        "question_content": question,
        "templ_values": values,
        "question_deleted": 0,
        "anser": answer,
    }


@pytest.fixture
def files(tmp_path):
    rows = [
        row(1, "How many sounds of <Object> are there?", "one", values='["saxophone"]'),
        row(2, "Is the <Object> left of the <Object2>?", "no", '["Audio-Visual", "Location"]', '["piano", "flute"]'),
        row(3, "How many instruments are there?", "two", '["Visual", "Counting"]', video="sa00000002"),
    ]
    media = touch(tmp_path / "media", "MUSIC-AVQA-videos-Real/00000001.mp4", "MUCIS-AVQA-videos-Synthetic/sa00000002.mp4")
    return write_json(tmp_path / "avqa-test.json", rows), media


def test_official_rows_become_samples(files, tmp_path):
    done, samples = converted("music_avqa", tmp_path, *files)
    assert [s.question for s in samples] == [
        "How many sounds of saxophone are there?",
        "Is the piano left of the flute?",
        "How many instruments are there?",
    ]
    assert [s.answer for s in samples] == ["one", "no", "two"]
    assert [s.type for s in samples] == ["Audio Counting", "Audio-Visual Location", "Visual Counting"]
    assert [s.video.split("media/")[1] for s in samples] == [
        "MUSIC-AVQA-videos-Real/00000001.mp4",
        "MUSIC-AVQA-videos-Real/00000001.mp4",
        "MUCIS-AVQA-videos-Synthetic/sa00000002.mp4",
    ]
    assert samples[0].meta["benchmark"] == "music_avqa" and samples[0].meta["split"] == "test"
    assert samples[1].meta["official"] == {"question_id": "2", "video_id": "00000001"}
    assert done.n_samples == 3 and done.n_videos == 2 and done.missing == ()
    assert done.subtypes["modality"] == {"Audio": 1, "Audio-Visual": 1, "Visual": 1}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"anser": ""}, r"avqa-test.json, item 1: the field 'anser' holds '', which is not text"),
        ({"type": "Audio"}, r"item 1: the field 'type' holds 'Audio', which is not a list written as JSON"),
        ({"type": '["Audio"]'}, r"item 1: the field 'type' must hold two words"),
        ({"templ_values": "[]"}, r"item 1: the question .* has 1 slots, but 'templ_values' 0 values"),
        ({"video_id": None}, r"item 1: the field 'video_id' holds None"),
        ({"video_id": "../1"}, r"the video .* is outside of the folder of media"),
    ],
)
def test_rows_that_are_not_official_are_refused(files, tmp_path, change, message):
    write_json(files[0], [{**row(1, "How many <Object>?", "one", values='["drum"]'), **change}])
    with pytest.raises(ValueError, match=message):
        converted("music_avqa", tmp_path, *files)
    assert not (tmp_path / "samples.jsonl").exists()


def test_paper_finds_the_truth_inside_of_other_words_and_strict_does_not(files, tmp_path):
    _, samples = converted("music_avqa", tmp_path, *files)
    answers = ["saxophone", "piano", "2"]
    assert verdicts(samples, answers, "paper") == [True, True, False]
    assert verdicts(samples, answers, "strict") == [False, False, True]
    assert verdicts(samples, ["One.", "No", "two"], "strict") == [True, True, True]
    assert verdicts(samples, ["one", "no", "two instruments"], "paper") == [True, True, True]
    assert verdicts(samples, ["One.", "No", "TWO"], "paper") == [True, True, True]
    for protocol in ("paper", "strict"):
        assert verdicts(samples, ["", None, " "], protocol) == [False, False, False]


def test_a_question_id_that_comes_twice_is_two_samples_and_is_listed(files, tmp_path):
    """As in data/json: one question of one video with two answers, of which every row counts."""
    rows = [row(7, "How many?", "two"), row(8, "Is it?", "no"), row(7, "How many?", "four"), row(7, "How many?", "two")]
    done, samples = converted("music_avqa", tmp_path, write_json(files[0], rows), files[1])
    assert [(s.id, s.answer) for s in samples] == [
        ("music_avqa-test-7", "two"),
        ("music_avqa-test-8", "no"),
        ("music_avqa-test-7-2", "four"),
        ("music_avqa-test-7-3", "two"),
    ]
    assert [name for name, _ in done.odd] == ["music_avqa-test-7-2", "music_avqa-test-7-3"]
    assert "question id 7" in done.odd[0][1] and "item 3 is also that of" in done.odd[0][1] and "item 1;" in done.odd[0][1]
    assert done.to_dict()["odd"][0] == {"id": done.odd[0][0], "what": done.odd[0][1]}
    assert verdicts(samples, ["two"] * 4, "paper") == [True, False, False, True]
    assert [s.meta["official"]["question_id"] for s in samples] == ["7", "8", "7", "7"]
    with pytest.raises(ValueError, match=r"avqa-test\.json: the file of annotations is given twice"):
        converted("music_avqa", tmp_path, [files[0], files[0]], files[1])


def test_tables_have_modalities_and_types(files, tmp_path):
    _, samples = converted("music_avqa", tmp_path, *files)
    result = result_of(samples, ["saxophone", None, "2"])
    paper, strict = result.table("paper"), result.table("strict")
    assert (paper.version, strict.version) == ("music_avqa-paper-2", "music_avqa-strict-1")
    assert paper.row("overall").value == strict.row("overall").value == pytest.approx(1 / 3)
    assert paper.row("Audio", "modality").value == 1 and strict.row("Audio", "modality").value == 0
    assert strict.row("Visual Counting", "type").value == 1
    overall = strict.row("overall")
    assert (overall.n_scored, overall.n_counted, overall.n_expected) == (2, 3, 3)
    assert result.notes == ["3 samples, but the split test has 9,185 or 9,129: not comparable with published numbers"]


def test_a_folder_named_from_where_the_command_runs_is_found_from_the_folder_of_the_samples(files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("elsewhere").mkdir()
    done, samples = converted("music_avqa", Path("elsewhere"), Path("avqa-test.json"), Path("media"))
    assert done.missing == () and [s.video for s in samples] == [s.video for s in converted("music_avqa", tmp_path, *files)[1]]
    assert all(Path(sample.video).exists() for sample in samples)
