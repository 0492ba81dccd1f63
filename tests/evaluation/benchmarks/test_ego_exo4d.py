"""Ego-Exo4D proficiency: further cameras as a side channel, classes by name, the official format of results."""

import json
from pathlib import Path

import pytest

from benchmark_files import answered, converted, result_of, touch, verdicts, write_json
from pave.data.media import FrameSampling
from pave.data.views import read_views
from pave.evaluation.benchmarks import get_benchmark

FOLDER = "takes/one/frame_aligned_videos"


def annotation(take, label, scenario="Cooking", **changes):
    paths = {"ego": f"{FOLDER}/aria01.mp4", "exo1": f"{FOLDER}/cam01.mp4", "exo2": f"{FOLDER}/cam02.mp4"}
    return {
        "take_uid": take,
        "video_paths": paths,
        "scenario_name": scenario,
        "task_name": "omelet",
        "proficiency_score": label,
        **changes,
    }


@pytest.fixture
def world(tmp_path):
    rows = [annotation("u1", "Late Expert"), annotation("u2", "Novice", "Music"), annotation("u3", "Novice", "Music")]
    path = write_json(tmp_path / "proficiency_demonstrator_val.json", {"annotations": rows})
    media = touch(tmp_path / "media", f"{FOLDER}/downscaled/448/aria01.mp4", f"{FOLDER}/cam01.mp4")
    return converted("ego_exo4d", tmp_path, path, media)


def test_takes_become_samples_with_their_cameras(world):
    done, samples = world
    assert done.split == "val" and done.missing == () and done.subtypes == {"scenario": {"Cooking": 1, "Music": 2}}
    assert samples[0].video.endswith(f"{FOLDER}/downscaled/448/aria01.mp4") and samples[0].answer == "Late Expert"
    path = samples[0].side_channels["views"]
    assert [entry["video"] is None for entry in json.loads(Path(path).read_text())["views"]] == [False, True]
    views = read_views(path, ["exo1", "exo2", "exo3", "exo4"], FrameSampling(num_frames=2))
    assert list(views) == ["exo1", "exo2"] and views["exo1"] is not None and views["exo2"] is None
    assert "views" not in samples[0].meta["official"]


def test_another_take_never_stands_in(tmp_path):
    path = write_json(tmp_path / "proficiency_demonstrator_val.json", {"annotations": [annotation("u1", "Novice")]})
    media = touch(tmp_path / "media", "takes/two/frame_aligned_videos/aria01.mp4")
    done, _ = converted("ego_exo4d", tmp_path, path, media)
    assert [name for name, _ in done.missing] == ["ego_exo4d-val-u1"]


def test_classes_by_name(world):
    _, samples = world
    answers = ["late expert", "Novice.", "the Novice"]
    assert verdicts(samples, answers, "paper") == [True, False, False]
    assert verdicts(samples[:1], [" Late Expert"], "paper") == [True]
    assert verdicts(samples, answers, "strict") == [True, True, True]
    assert verdicts(samples, ["Expert", "", None], "strict") == verdicts(samples, ["Expert", "", None], "paper") == [False] * 3
    table = result_of(samples, ["Late Expert", "Novice", "Late Expert"]).table("strict")
    assert table.row("Music").value == 0.5 and table.row("Cooking").value == 1


def test_results_have_the_keys_of_the_readme_and_of_the_script(world):
    _, samples = world
    result = get_benchmark("ego_exo4d").submission(answered(samples, ["Late Expert", "the novice.", "Early Expert"]))
    assert result["videos"] == ["u1", "u2", "u3"]
    assert result["predictions"] == ["Late Expert", "Novice", "Early Expert"]
    assert result["ego_model_predictions"] == [[0, 0, 0, 1], [1, 0, 0, 0], [0, 1, 0, 0]]
    assert result["exo_model_predictions"] == [[row] * 4 for row in result["ego_model_predictions"]]


def test_an_answer_that_names_no_class_does_not_become_novice(world):
    _, samples = world
    with pytest.raises(
        ValueError, match=r"2 of 3 answers name none of Novice.*ego_exo4d-val-u2: 'who knows'; ego_exo4d-val-u3: no answer"
    ):
        get_benchmark("ego_exo4d").submission(answered(samples, ["Late Expert", "who knows", None]))


def test_an_unknown_class_is_refused(tmp_path):
    path = write_json(tmp_path / "proficiency_demonstrator_val.json", {"annotations": [annotation("u1", "Expert")]})
    with pytest.raises(ValueError, match=r"item 1: the proficiency_score 'Expert' is none of Novice, Early Expert"):
        converted("ego_exo4d", tmp_path, path, touch(tmp_path / "media"))
    with pytest.raises(ValueError, match="a list of objects is needed under 'annotations'"):
        converted("ego_exo4d", tmp_path, write_json(path, []), tmp_path / "media")
