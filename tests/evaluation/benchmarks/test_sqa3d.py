"""SQA3D: two files, the situation in the question, types by the first word, EM and refined EM."""

from dataclasses import replace

import pytest

from benchmark_files import answered, converted, result_of, touch, write_json
from pave.evaluation.benchmarks import get_benchmark
from pave.evaluation.benchmarks.sqa3d import question_type

QUESTIONS = [
    ("What is behind me?", "chair"),
    ("Is the door open?", "no"),
    ("which side is the tv?", "left"),
    ("How many beds are there?", "2"),
]


def files(folder, split="test", questions=QUESTIONS, **changes):
    rows = [
        {
            "situation": "I am facing a window.",
            "alternative_situation": ["x", "y"],
            "question": question,
            "question_id": 220602000000 + number,
            "scene_id": "scene0380_00",
        }
        for number, (question, _) in enumerate(questions)
    ]
    notes = [
        {
            "answer_type": "other",
            "answers": [{"answer": answer, "answer_confidence": "yes", "answer_id": 1}],
            "position": {"x": 0, "y": 0, "z": 0},
            "question_id": 220602000000 + number,
            "question_type": "N/A",
            "rotation": {"_x": 0, "_y": 0, "_z": 0, "_w": 1},
            "scene_id": "scene0380_00",
            **changes,
        }
        for number, (_, answer) in enumerate(questions)
    ]
    notes.reverse()  # they are joined by question_id, not by order
    return [
        write_json(folder / f"v1_balanced_questions_{split}_scannetv2.json", {"questions": rows}),
        write_json(folder / f"v1_balanced_sqa_annotations_{split}_scannetv2.json", {"annotations": notes}),
    ]


@pytest.fixture
def world(tmp_path):
    return converted("sqa3d", tmp_path, files(tmp_path), touch(tmp_path / "media", "scene0380_00.mp4"))


def test_questions_meet_their_annotations(world):
    done, samples = world
    assert samples[0].turns == (("I am facing a window. What is behind me?", "chair"),)
    assert [s.references for s in samples] == [("chair",), ("no",), ("left",), ("2",)]
    assert [s.type for s in samples] == ["What", "Is", "Others", "How"]
    assert samples[3].id == "sqa3d-test-220602000003" and samples[0].video.endswith("media/scene0380_00.mp4")
    assert samples[0].meta["official"] == {"question_id": "220602000000", "scene_id": "scene0380_00"}
    assert (done.split, done.official) == ("test", {"": 3519})


@pytest.mark.parametrize(
    ("question", "kind"),
    [
        ("What now?", "What"),
        (" What now?", "Others"),
        ("what now?", "Others"),
        ("What's that?", "Others"),
        ("Island or table?", "Others"),
        ("Can I sit?", "Can"),
        ("Which one?", "Which"),
        ("If I turn, What is there?", "Others"),
    ],
)
def test_types_go_by_the_first_word_and_its_capital_letter(question, kind):
    assert question_type(question) == kind


def test_paper_takes_parts_of_words_and_empty_answers_and_strict_does_not(world):
    _, samples = world
    result = result_of(samples, ["Chair.", "nothing", None, "."])
    paper, strict = result.table("paper", "refined EM"), result.table("strict", "refined EM")
    assert [paper.row(kind).value for kind in ("What", "Is", "Others", "How")] == [1, 1, 0, 1]  # "nothing" holds "no"
    assert [strict.row(kind).value for kind in ("What", "Is", "Others", "How")] == [1, 0, 0, 0]
    for protocol, version in (("paper", 1), ("strict", 3)):
        table = result.table(protocol)
        assert (table.measure, table.version) == ("EM", f"sqa3d-{protocol}-{version}")
        assert table.row("overall").value == 0.25 and table.row("overall").n_scored == 3
    assert result_of(samples, ["a chair", "No", "letf", "two"]).table("strict").row("overall").value == 1
    assert get_benchmark("sqa3d").submission is None
    assert len(answered(samples, ["a"] * 4)) == 4


def test_files_that_do_not_belong_together_are_refused(tmp_path):
    media = touch(tmp_path / "media", "scene0380_00.mp4")
    questions, notes = files(tmp_path)
    for wrong in (
        [questions],
        [notes],
        [questions, notes, write_json(tmp_path / "answer_dict_test.json", [{"a": 0}, {"0": "a"}])],
    ):
        with pytest.raises(ValueError, match=r"SQA3D needs two files of a split"):
            converted("sqa3d", tmp_path, wrong, media, split="test")
    short = files(tmp_path / "short", questions=QUESTIONS[:1])
    with pytest.raises(ValueError, match=r"item 2: no annotation has the question_id 220602000001"):
        converted("sqa3d", tmp_path, [questions, short[1]], media)
    moved = files(tmp_path / "moved", scene_id="scene0001_00")
    with pytest.raises(ValueError, match=r"the scene is 'scene0001_00', that of the question 'scene0380_00'"):
        converted("sqa3d", tmp_path, moved, media)
    with pytest.raises(ValueError, match=r"item 4: there is no answer"):
        converted("sqa3d", tmp_path, files(tmp_path / "none", answers=[]), media)


def test_a_reference_of_which_the_clean_up_leaves_nothing_is_right_in_no_strict_answer(tmp_path, world):
    _, samples = world
    odd = [replace(samples[0], answer=None, answers=("?!",)), replace(samples[1], answer=None, answers=("?!", "red chair"))]
    result = result_of(odd, ["anything", "red chair"])
    assert result.table("paper", "refined EM").row("overall").value == 1
    assert result.table("strict", "refined EM").row("overall").value == 0.5
