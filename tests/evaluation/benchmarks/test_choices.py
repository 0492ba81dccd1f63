"""The multiple-choice benchmarks: AVQA, Video-MME, MVBench, MLVU. What paper and strict scorers make of every form of a letter."""

import os
import shutil

import numpy as np
import pytest

from benchmark_files import answered, converted, result_of, touch, verdicts, write_json
from pave.data.media import read_audio, read_frames, write_picture, write_video
from pave.evaluation.benchmarks import get_benchmark
from pave.evaluation.benchmarks.choices import first_letter
from pave.evaluation.counterfactuals import Counterfactual
from pave.evaluation.metrics import accuracy_interval, compare_paired
from pave.evaluation.result import compare_results, score_predictions

# --- AVQA


def avqa_row(number, answer, options, video, kind="Which", relation="Sound"):
    return {
        "id": number,
        "video_name": video,
        "video_id": number + 100,
        "question_text": "What is heard?",
        "multi_choice": options,
        "answer": answer,
        "question_relation": relation,
        "question_type": kind,
    }


@pytest.fixture
def avqa(tmp_path):
    rows = [
        avqa_row(7, 2, ["dog", None, "bell", "cat"], "-00uubiDNU_000210"),
        avqa_row(8, 0, ["dog", "train", "bell", "cat"], "0012y1s1bJI_000350", "Happening", "Both"),
        avqa_row(9, 1, ["dog", "train", "bell", "cat"], "gone_000001", "Happening", "Both"),
    ]
    media = touch(tmp_path / "media", "a/-00uubiDNU_000210.mp4", "b/0012y1s1bJI_000350.mp4")
    return converted("avqa", tmp_path, write_json(tmp_path / "val_qa.json", rows), media)


def test_avqa_has_the_prompt_of_the_paper_and_a_letter_as_answer(avqa):
    done, samples = avqa
    assert samples[0].question == (
        "Select the best answer to the following multiple-choice question based on the video and the subtitles. "
        "Respond with only the letter (A, B, C, or D) of the correct option.\nWhat is heard?\nA. dog\nB. None\nC. bell\nD. cat\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert [s.answer for s in samples] == ["C", "A", "B"]
    assert [s.id for s in samples] == ["avqa-val-7", "avqa-val-8", "avqa-val-9"]
    assert done.split == "val" and [name for name, _ in done.missing] == ["avqa-val-9"]


def test_avqa_paper_leaves_missing_videos_out_and_strict_counts_them(avqa):
    _, samples = avqa
    answers = ["Best option: C", "(A) dog", None]
    assert verdicts(samples, answers, "paper") == [False, True, None]
    assert verdicts(samples, answers, "strict") == [True, True, False]
    result = result_of(samples, answers)
    paper, strict = result.table("paper").row("overall"), result.table("strict").row("overall")
    assert (paper.value, paper.n_counted, paper.n_expected) == (0.5, 2, 3)
    assert (strict.value, strict.n_counted, strict.n_scored) == (pytest.approx(2 / 3), 3, 2)
    assert result.table("strict").row("Happening", "type").value == 0.5


def test_avqa_refuses_an_answer_that_is_no_option(tmp_path):
    media = touch(tmp_path / "media")
    for answer, message in ((4, "the answer 4 is not the position"), (1, "number 1, is null"), ("A", "'answer' holds 'A'")):
        path = write_json(tmp_path / "val_qa.json", [avqa_row(1, answer, ["a", None, "b", "c"], "x")])
        with pytest.raises(ValueError, match=rf"val_qa\.json, item 1: .*{message}"):
            converted("avqa", tmp_path, path, media)


# --- Video-MME


def video_mme_row(number, answer="C", **changes):
    return {
        "video_id": "001",
        "duration": "short",
        "domain": "Knowledge",
        "sub_category": "Humanity & History",
        "url": "https://www.youtube.com/watch?v=x",
        "videoID": "fFjv93ACGo8",
        "question_id": number,
        "task_type": "Counting Problem",
        "question": "How many?",
        "options": ["A. Apples.", "B. Candles.", "C. Berries.", "D. The three kinds are of the same number."],
        "answer": answer,
        **changes,
    }


FORMS = (
    "C",
    "(C)",
    "C.",
    "c",
    "Best option: C",
    "Answer: C",
    "The best answer is: C",
    "C. Berries.",
    "Berries.",
    "All of them: C",
    "",
)


def test_video_mme_letters_in_every_form(tmp_path):
    media = touch(tmp_path / "media", "fFjv93ACGo8.mp4")
    path = write_json(tmp_path / "videomme.json", [video_mme_row(f"001-{i}") for i in range(len(FORMS))])
    done, samples = converted("video_mme", tmp_path, path, media)
    assert done.split == "test" and done.missing == () and done.n_videos == 1
    assert "\nC. Berries.\n" in samples[0].question and samples[0].answer == "C"
    assert [first_letter(form) for form in FORMS] == ["C", "C", "C", "", "B", "A", "C", "C", "B", "A", ""]
    right = dict(zip(FORMS, verdicts(samples, FORMS, "paper"), strict=True))
    assert [form for form, value in right.items() if not value] == [
        "c",
        "Best option: C",
        "Answer: C",
        "Berries.",
        "All of them: C",
        "",
    ]
    strict = dict(zip(FORMS, verdicts(samples, FORMS, "strict"), strict=True))
    assert [form for form, value in strict.items() if not value] == ["All of them: C", ""]


def test_video_mme_by_duration_domain_and_task_and_back_to_the_official_file(tmp_path):
    media = touch(tmp_path / "media", "fFjv93ACGo8.mp4")
    rows = [
        video_mme_row("001-1"),
        video_mme_row("001-2", "A", task_type="OCR"),
        video_mme_row("002-1", "B", video_id="002", videoID="y", duration="long", domain="Sport"),
    ]
    done, samples = converted("video_mme", tmp_path, write_json(tmp_path / "v.json", rows), media)
    assert [name for name, _ in done.missing] == ["video_mme-002-1"]
    result = result_of(samples, ["C", "B", None])
    table = result.table("paper")
    assert table.row("short", "duration").value == 0.5 and table.row("OCR", "task").value == 0
    assert table.row("long").n_counted == 0 and result.table("strict").row("Sport", "domain").n_counted == 1
    submission = get_benchmark("video_mme").submission(answered(samples, ["C", "B", None]))
    assert [(v["video_id"], v["missing"], [q["response"] for q in v["questions"]]) for v in submission] == [
        ("001", False, ["C", "B"]),
        ("002", True, [""]),
    ]
    assert submission[0]["questions"][0]["options"] == rows[0]["options"]
    assert submission[0]["questions"][0]["answer"] == "C"
    touch(media, "001.mp4", "002.mp4")
    _, again = converted("video_mme", tmp_path, write_json(tmp_path / "results.json", submission), media)
    assert [(s.id, s.question, s.answer) for s in again] == [(s.id, s.question, s.answer) for s in samples]


def test_video_mme_rows_as_parquet(tmp_path):
    import pyarrow
    import pyarrow.parquet

    rows = [video_mme_row("001-1"), video_mme_row("001-2", "A")]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "test-00000-of-00001.parquet")
    media = touch(tmp_path / "media", "fFjv93ACGo8.mp4")
    done, samples = converted("video_mme", tmp_path, tmp_path / "test-00000-of-00001.parquet", media)
    assert [s.answer for s in samples] == ["C", "A"] and done.split == "test"


# --- MVBench


def mvbench_row(video, answer, **more):
    return {"video": video, "question": "What happened?", "candidates": ["a dog", "the bell", "3"], "answer": answer, **more}


def test_mvbench_letters_in_every_form(tmp_path):
    forms = ("", "A", "(A) a dog", "A.", "a", "a dog", "A) a dog", "(B)", "Option A", "(A)\n(B)")
    path = write_json(tmp_path / "state_change.json", [mvbench_row(f"{i}.mp4", "a dog") for i in range(len(forms))])
    _, samples = converted("mvbench", tmp_path, path, touch(tmp_path / "media"))
    assert (
        samples[0].question == "Question: What happened?\nOptions:\n(A) a dog\n(B) the bell\n(C) 3\nOnly give the best option."
    )
    paper = dict(zip(forms, verdicts(samples, forms, "paper"), strict=True))
    assert [form for form, right in paper.items() if not right] == ["(B)", "Option A"]
    strict = dict(zip(forms, verdicts(samples, forms, "strict"), strict=True))
    assert [form for form, right in strict.items() if not right] == ["", "(B)", "Option A", "(A)\n(B)"]
    assert verdicts(samples[:1], ["B\n(A)"], "paper") == [False]  # the first line alone
    texts = ["the bell", "a dog barks"]  # the right text alone is wrong; a text that begins with "a" is option A
    (tmp_path / "two").mkdir()
    path = write_json(tmp_path / "two/state_change.json", [mvbench_row("x.mp4", "the bell"), mvbench_row("x.mp4", "a dog")])
    _, two = converted("mvbench", tmp_path, path, tmp_path / "media")
    assert verdicts(two, texts, "paper") == [False, True] and verdicts(two, texts, "strict") == [True, False]
    assert verdicts(samples, [None] * len(forms), "paper") == [None] * len(forms)
    assert verdicts(samples, [None] * len(forms), "strict") == [False] * len(forms)


@pytest.fixture(scope="module")
def mvbench_media(tmp_path_factory):
    """A video of 4 s with sound, its brightness 20 x second, and a folder of pictures, brightness 10 x number."""
    media = tmp_path_factory.mktemp("mvbench")
    frames = np.repeat(np.arange(40, dtype=np.uint8) // 10 * 20 + 20, 32 * 32 * 3).reshape(40, 32, 32, 3)
    sound = np.sin(np.arange(4 * 16000) / 16000 * 2 * np.pi * 440).astype(np.float32) * 0.3
    (media / "star/Charades_v1_480").mkdir(parents=True)
    write_video(media / "star/Charades_v1_480/XYZ.mp4", frames, fps=10, audio=sound)
    folder = media / "tvqa/frames_fps3_hq/friends_s01"
    folder.mkdir(parents=True)
    for number in range(1, 13):
        write_picture(folder / f"{number:05d}.png", np.full((33, 48, 3), 10 * number, np.uint8))
    return media


def test_mvbench_cuts_clips_and_makes_videos_of_folders(mvbench_media, tmp_path):
    paths = [
        write_json(
            tmp_path / "action_sequence.json",
            [mvbench_row("XYZ.mp4", "a dog", start=1.0, end=3.0), mvbench_row("XYZ.mp4", "3", start=9.0, end=11.0)],
        ),
        write_json(tmp_path / "episodic_reasoning.json", [mvbench_row("friends_s01", "the bell", start=1.0, end=2.0)]),
    ]
    done, samples = converted("mvbench", tmp_path, paths, mvbench_media)
    assert [s.id for s in samples] == ["mvbench-action_sequence-0", "mvbench-action_sequence-1", "mvbench-episodic_reasoning-0"]
    part = read_frames(samples[0].video)
    assert len(part.times_F) == 20 and abs(part.frames_FHWC.reshape(20, -1).mean(1) - np.repeat([40, 60], 10)).max() < 4
    assert read_audio(samples[0].video, 16000).samples.size == pytest.approx(32000, abs=1600)
    pictures = read_frames(samples[2].video)
    assert pictures.size == (48, 32) or pictures.size == (32, 48)
    assert abs(pictures.frames_FHWC.reshape(4, -1).mean(1) - [30, 40, 50, 60]).max() < 4
    assert [name for name, _ in done.failed] == ["mvbench-action_sequence-1"] and "9" in done.failed[0][1]
    assert samples[1].video.endswith("samples_files/mvbench-action_sequence-1-not-made.mp4")
    assert [s.answer for s in samples] == ["A", "C", "B"] and done.n_samples == 3


def test_mvbench_never_takes_a_clip_of_other_times_or_content(mvbench_media, tmp_path):
    """Neither when annotations or videos change, nor in a folder that two conversions share."""
    media = tmp_path / "media"
    shutil.copytree(mvbench_media, media)
    video, first_picture = media / "star/Charades_v1_480/XYZ.mp4", media / "tvqa/frames_fps3_hq/friends_s01/00003.png"

    def brightness(name, start, end):
        """Of the clip's first frame, and of the first picture of the folder of frames."""
        (tmp_path / name).mkdir(exist_ok=True)
        row = [mvbench_row("XYZ.mp4", "a dog", start=start, end=end)]
        paths = [write_json(tmp_path / name / "action_sequence.json", row)]
        row = [mvbench_row("friends_s01", "the bell", start=1.0, end=2.0)]
        paths.append(write_json(tmp_path / name / "episodic_reasoning.json", row))
        _, samples = converted("mvbench", tmp_path / name, paths, media, files=tmp_path / "shared")
        means = [round(float(read_frames(sample.video).frames_FHWC[0].mean()), -1) for sample in samples]
        return means, [sample.video for sample in samples]

    first, again, moved = brightness("a", 1.0, 3.0), brightness("a", 1.0, 3.0), brightness("b", 3.0, 4.0)
    assert first == again and first[0] == [40, 30] and moved[0] == [80, 30]
    assert first[1][0] != moved[1][0] and first[1][1] == moved[1][1]
    assert read_frames(first[1][0]).frames_FHWC[0].mean() == pytest.approx(40, abs=4)  # the other samples' clip is still theirs
    before = video.stat()
    write_video(video, np.full((40, 32, 32, 3), 200, np.uint8), fps=10)
    write_picture(first_picture, np.full((33, 48, 3), 150, np.uint8))
    os.utime(video, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert brightness("a", 1.0, 3.0)[0] == [200, 150]
    made = sorted((tmp_path / "shared").iterdir())
    media = media.rename(tmp_path / "elsewhere")
    assert brightness("a", 1.0, 3.0)[0] == [200, 150] and sorted((tmp_path / "shared").iterdir()) == made  # content, not place


def test_mvbench_files_keep_their_names(tmp_path):
    path = write_json(tmp_path / "actions.json", [mvbench_row("x.mp4", "3")])
    with pytest.raises(ValueError, match="no task of MVBench is called 'actions'"):
        converted("mvbench", tmp_path, path, touch(tmp_path / "media"))
    path = write_json(tmp_path / "state_change.json", [mvbench_row("x.mp4", "a cat")])
    with pytest.raises(ValueError, match=r"item 1: the answer 'a cat' is none of the options"):
        converted("mvbench", tmp_path, path, touch(tmp_path / "media"))


# --- MLVU


def mlvu_row(task, answer, **changes):
    row = {
        "video": "m_1.mp4",
        "duration": 480.0,
        "question": "What is shown?",
        "candidates": ["red", "green", "blue", "grey"],
        "answer": answer,
        "question_type": task,
    }
    return {**row, **changes}


def test_mlvu_is_the_mean_over_tasks(tmp_path):
    folder = tmp_path / "json"
    write_json(folder / "1_plotQA.json", [mlvu_row("plotQA", "red") for _ in range(3)])
    write_json(folder / "4_count.json", [mlvu_row("count", "blue")])
    write_json(
        folder / "9_summary.json", [{"video": "m_1.mp4", "question": "Sum up.", "answer": "x", "question_type": "summary"}]
    )
    media = touch(tmp_path / "media", "1_plotQA/m_1.mp4", "4_count/m_1.mp4")
    done, samples = converted("mlvu", tmp_path, folder, media)
    assert done.split == "dev" and [s.answer for s in samples] == ["A", "A", "A", "C"] and done.missing == ()
    result = result_of(samples, ["A", "(A) red", "B", "A"])
    assert [(row.name, round(row.value, 4)) for row in result.table("paper").rows] == [
        ("mean of tasks", 0.3333),
        ("overall", 0.5),
        ("plotQA", 0.6667),
        ("count", 0.0),
    ]
    mean = result.table("strict").row("mean of tasks")
    assert 0 <= mean.interval.low <= mean.value <= mean.interval.high <= 1
    mean = result_of(samples, ["A", "A", "A", "C"]).table("strict").row("mean of tasks")
    assert (mean.value, mean.interval.high) == (1, 1) and mean.interval.low < 1
    with pytest.raises(ValueError, match="item 1: there are no 'candidates'.*free text"):
        converted("mlvu", tmp_path, folder / "9_summary.json", media)


def test_mlvu_letters_in_every_form(tmp_path):
    forms = ("A", "(A) red", "A) red", "a", "A.", "Option A)", "red", "(B) red", "")
    path = write_json(tmp_path / "2_needle.json", [mlvu_row("needle", "red") for _ in forms])
    _, samples = converted("mlvu", tmp_path, path, touch(tmp_path / "media"))
    paper = dict(zip(forms, verdicts(samples, forms, "paper"), strict=True))
    assert [form for form, right in paper.items() if right] == ["A", "(A) red", "A) red", "Option A)"]
    strict = dict(zip(forms, verdicts(samples, forms, "strict"), strict=True))
    assert [form for form, right in strict.items() if not right] == ["Option A)", "(B) red", ""]


def test_mlvu_test_set_and_the_copy_of_lmms_eval(tmp_path):
    media = touch(tmp_path / "media")
    rows = [mlvu_row("anomaly_reco", None, question_id="AR_0", candidates=list("uvwxyz"))]
    del rows[0]["answer"]
    done, samples = converted("mlvu", tmp_path, write_json(tmp_path / "test_question.json", rows), media)
    assert done.split == "test" and done.n_secret == 1 and samples[0].references == ()
    result = result_of(samples, ["(F) z"])
    assert result.tables == () and "not public" in result.notes[-1]
    submission = get_benchmark("mlvu").submission
    assert submission(answered(samples, ["(F) z"])) == [{"question_id": "AR_0", "question_type": "anomaly_reco", "option": "F"}]
    assert submission(answered(samples, [None]))[0]["option"] == ""
    copy = {"video_name": "m_1.mp4", "question": "Which?\n(A) red\n(B) green", "answer": "B", "task_type": "ego"}
    _, samples = converted("mlvu", tmp_path, write_json(tmp_path / "dev.json", [copy]), media)
    assert samples[0].question == "Question: Which?\nOptions:\n(A) red\n(B) green\nOnly give the best option."
    assert samples[0].answer == "B" and samples[0].type == "ego"


def test_mlvu_items_that_are_odd_count_as_the_official_script_reads_them(tmp_path):
    """The last option that equals the answer is right; where none does, none is."""
    rows = [
        mlvu_row("plotQA", "Three", candidates=["Six", "Three", "Three", "Eight"]),
        mlvu_row("plotQA", "Catching a flying drone", candidates=["Fishing", "Catching the drone"]),
        mlvu_row("plotQA", "", question="", candidates=["", "", "", ""]),
        mlvu_row(
            "plotQA", "White", candidates=["Blue", "White ", "Red ", "Blue"]
        ),  # blanks and other options twice are not odd
    ]
    path = write_json(tmp_path / "1_plotQA.json", rows)
    done, samples = converted("mlvu", tmp_path, path, touch(tmp_path / "media", "m_1.mp4"), split="dev")
    assert [s.answer for s in samples] == ["C", "@", "D", "B"] and done.n_secret == 0
    assert [name for name, _ in done.odd] == [f"mlvu-dev-1_plotQA-{i}" for i in range(3)]
    assert done.odd[0][1] == "the answer 'Three' is that of B, C; the last counts as right"
    assert "no letter counts as right" in done.odd[1][1] and done.odd[2][1].startswith("nothing is asked; ")
    assert samples[2].question == "Question: \nOptions:\n(A) \n(B) \n(C) \n(D)\nOnly give the best option."
    assert "\n(B) White \n(C) Red \n(D) Blue\n" in samples[3].question
    assert verdicts(samples, ["C", "B", "D", "B"], "paper") == [True, False, True, True]
    assert verdicts(samples, ["B", "A", "A", "A"], "paper") == [False] * 4
    # strictly an option with the same text is as right, and so is the text itself; of nothing asked only the official letter
    assert verdicts(samples, ["B", "@", "A", "white"], "strict") == [True, False, False, True]
    assert verdicts(samples, ["three", "Catching the drone", "D", "A"], "strict") == [True, False, True, False]
    assert verdicts(samples, ["D", "", "", "Blue"], "strict") == [False] * 4
    assert get_benchmark("mlvu").totals["dev"] == {"": 2175}


def test_ids_that_come_twice_are_refused_by_name(tmp_path):
    path = write_json(tmp_path / "val_qa.json", [avqa_row(7, 0, ["a", "b", "c", "d"], "x")] * 2)
    with pytest.raises(ValueError, match=r"val_qa\.json: 1 ids come more than once, such as 'avqa-val-7'"):
        converted("avqa", tmp_path, path, touch(tmp_path / "media", "x.mp4"))


# --- Options that are letters, clips of one video


def test_options_that_are_letters_are_told_by_the_letter_that_the_prompt_asks_for(tmp_path):
    rows = [{**mvbench_row("x.mp4", "c"), "candidates": ["c", "a", "e"]}]
    path = write_json(tmp_path / "character_order.json", rows * 5)
    _, samples = converted("mvbench", tmp_path, path, touch(tmp_path / "media", "x.mp4"))
    assert samples[0].answer == "A"
    assert verdicts(samples, ["A", "(A)", "A.", "c", "a"], "strict") == [True, True, True, True, False]
    shuffled = ["A. C", "B. A", "C. B", "D. D"]
    path = write_json(tmp_path / "videomme.json", [video_mme_row("1", "A", options=shuffled)])
    _, samples = converted("video_mme", tmp_path, path, tmp_path / "media")
    assert samples[0].answer == "A"  # the letter, not the option whose text is A
    path = write_json(tmp_path / "1_plotQA.json", [mlvu_row("plotQA", "A", candidates=["C", "A", "B"])])
    _, samples = converted("mlvu", tmp_path, path, tmp_path / "media")
    assert samples[0].answer == "B"  # here it is the text
    copy = {"video_name": "x.mp4", "question": "Which?\n(A) B\n(B) A", "answer": "A", "task_type": "ego"}
    _, samples = converted("mlvu", tmp_path, write_json(tmp_path / "dev.json", [copy]), tmp_path / "media")
    assert samples[0].answer == "A"


def test_mvbench_keeps_the_points_where_the_published_rule_does(tmp_path):
    path = write_json(tmp_path / "state_change.json", [mvbench_row("x.mp4", "a dog")] * 3)
    _, samples = converted("mvbench", tmp_path, path, touch(tmp_path / "media", "x.mp4"))
    assert verdicts(samples, ["(A.)", "(A.)dog", "(A)dog"], "paper") == [True, False, True]


def test_mvbench_clips_of_one_video_are_one_cluster_and_lend_each_other_nothing(mvbench_media, tmp_path):
    def rows(*starts):
        return [mvbench_row("XYZ.mp4", "a dog", start=s, end=s + 1) for s in starts]

    one = write_json(tmp_path / "action_sequence.json", rows(0.0, 1.0, 2.0))
    two = write_json(tmp_path / "action_prediction.json", rows(0.0))
    other = write_json(tmp_path / "object_existence.json", [mvbench_row("star/Charades_v1_480/XYZ.mp4", "a dog")])
    _, samples = converted("mvbench", tmp_path, [one, two, other], mvbench_media)
    assert len({s.video for s in samples}) == 5
    result = score_predictions(answered(samples, ["A", "A", "B", "A", "A"]))
    clusters = ["clip"] * 4 + ["other"]
    right = [True, True, False, True, True]
    assert result.overall.interval == accuracy_interval(right, clusters)
    assert result.benchmark.table("strict").row("overall").interval == accuracy_interval(right, clusters)
    again = score_predictions(answered(samples, ["A"] * 5))
    pair = compare_paired(right, [True] * 5, clusters)
    assert compare_results(result, again)["all"] == pair
    lent = Counterfactual("swapped").partners(samples)
    assert {lent[s.id].id for s in samples[:4]} == {samples[4].id}
    with pytest.raises(ValueError, match="at least 2 videos"):
        Counterfactual("swapped").partners(samples[:4])
