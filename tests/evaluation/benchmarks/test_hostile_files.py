"""Annotations that nobody should trust: no way out of the folders, no traceback, every error names file and item."""

import json

import pytest

from benchmark_files import converted, touch, write_json
from pave.evaluation.benchmarks.files import read_json

MUSIC = {
    "video_id": "00001",
    "question_id": 1,
    "type": '["Audio", "Counting"]',
    "question_content": "How many?",
    "templ_values": "[]",
    "anser": "two",
}
CLIP = {"video": "v.mp4", "question": "?", "candidates": ["a dog", "a cat"], "answer": "a dog", "start": 0, "end": 1}
TAKE = {"take_uid": "t1", "video_paths": {"ego": "e.mp4", "exo1": "x.mp4"}, "scenario_name": "s", "proficiency_score": "Novice"}
SCENE = {"scene_id": "scene0", "question_id": "q1", "question": "What is it?", "answers": ["a chair"]}


@pytest.mark.parametrize(
    ("benchmark", "file", "item", "message"),
    [
        ("music_avqa", "avqa-test.json", {**MUSIC, "type": "[" * 100_000}, "not a list written as JSON"),
        ("music_avqa", "avqa-test.json", {**MUSIC, "video_id": "../x"}, "outside of the folder of media"),
        ("music_avqa", "avqa-test.json", {**MUSIC, "question_content": "q\x07"}, "control character"),
        ("music_avqa", "avqa-test.json", {**MUSIC, "anser": "\ud800"}, "control character"),
        ("mvbench", "action_sequence.json", {**CLIP, "start": 10**400, "end": 10**401}, "must start before it ends"),
        ("mvbench", "action_sequence.json", {**CLIP, "end": float("inf")}, "must start before it ends"),
        ("mvbench", "action_sequence.json", {**CLIP, "end": float("nan")}, "must start before it ends"),
        ("mvbench", "episodic_reasoning.json", {**CLIP, "video": "../../../x"}, "outside of the folder of media"),
        ("ego_exo4d", "proficiency_demonstrator_val.json", {**TAKE, "take_uid": "../evil"}, "without folders"),
        ("ego_exo4d", "proficiency_demonstrator_val.json", {**TAKE, "take_uid": "/evil"}, "without folders"),
        ("ego_exo4d", "proficiency_demonstrator_val.json", {**TAKE, "take_uid": ".."}, "without folders"),
        ("scanqa", "ScanQA_v1.0_val.json", {**SCENE, "scene_id": ".."}, "without folders"),
        ("scanqa", "ScanQA_v1.0_val.json", {**SCENE, "scene_id": "a/scene0"}, "without folders"),
    ],
)
def test_what_an_item_may_not_say_is_refused_with_its_place(tmp_path, benchmark, file, item, message):
    content = {"annotations": [item]} if benchmark == "ego_exo4d" else [item]
    path = write_json(tmp_path / "in" / "deep" / file, content)
    media = touch(tmp_path / "in" / "media", "00001.mp4", "v.mp4", "e.mp4", "x.mp4", "scene0.mp4", "scene0/color/0.jpg")
    before = sorted(p.name for p in tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=rf"{file}, item 1: .*{message}"):
        converted(benchmark, tmp_path / "in", path, media)
    assert sorted(p.name for p in tmp_path.rglob("*")) == before


def test_a_name_longer_than_the_file_system_takes_is_a_missing_video(tmp_path):
    rows = [MUSIC, {**MUSIC, "question_id": 2, "video_id": "v" * 5000}]
    media = touch(tmp_path / "media", "00001.mp4")
    done, _ = converted("music_avqa", tmp_path, write_json(tmp_path / "avqa-test.json", rows), media)
    assert [name for name, _ in done.missing] == ["music_avqa-test-2"]


def test_json_lines_end_at_line_ends_only(tmp_path):
    path = tmp_path / "avqa-test.jsonl"
    path.write_text(json.dumps({**MUSIC, "question_content": "a\u2028b\x85c"}, ensure_ascii=False) + "\n", encoding="utf-8")
    assert read_json(path) == [{**MUSIC, "question_content": "a\u2028b\x85c"}]
    with pytest.raises(ValueError, match="not a folder|Is a directory"):
        (tmp_path / "folder.json").mkdir()
        read_json(tmp_path / "folder.json")


def test_dialogues_under_one_key_are_not_lost(tmp_path):
    turn = json.dumps({"data": [{"question": "Why?", "answer": "so"}]})
    (tmp_path / "test.json").write_text(f'{{"V": {turn}, "V": {turn}}}')
    with pytest.raises(ValueError, match=r"test\.json: .*key 'V' comes twice"):
        converted("avsd", tmp_path, tmp_path / "test.json", touch(tmp_path / "media", "V.mp4"))


def test_two_annotations_of_one_question_are_refused(tmp_path):
    question = {"situation": "I sit.", "alternative_situation": [], "question": "What?", "question_id": 7, "scene_id": "scene0"}
    note = {"answers": [{"answer": "a"}], "question_id": 7, "scene_id": "scene0"}
    paths = [
        write_json(tmp_path / "v1_balanced_questions_test_scannetv2.json", {"questions": [question]}),
        write_json(tmp_path / "v1_balanced_sqa_annotations_test_scannetv2.json", {"annotations": [note, note]}),
    ]
    with pytest.raises(
        ValueError, match=r"annotations_test_scannetv2\.json, item 2: the question_id 7 is also that of .*item 1"
    ):
        converted("sqa3d", tmp_path, paths, touch(tmp_path / "media", "scene0.mp4"))
