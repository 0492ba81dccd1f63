"""Runs and what is made of their answers: numbers by hand, and one real short reproduction that goes on where it stopped."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from evidence.contents import SECTIONS
from evidence.page import default_sections, reproduce
from evidence.plan import SHORT, Plan
from evidence.runs import AS_IT_IS, RESULT, Run, mixture, recipe_of
from evidence.scores import accuracy, difference
from evidence.worlds import WORLDS, merge_worlds, write_world
from evidence_files import leave
from pave.data.samples import read_samples
from pave.demo.plan import video_only_patch
from pave.evaluation.metrics import accuracy_interval
from pave.playground.clips import read_scenes
from pave.training import read_recipe


def test_accuracy_is_pooled_over_seeds_and_clustered_by_video(tmp_path):
    first = leave(Run("audio", "x", video_only_patch(), seed=0), tmp_path, {"sound": [1, 1, 0, 0], "colour": [1, 1, 1, 1]})
    second = leave(Run("audio", "x", video_only_patch(), seed=1), tmp_path, {"sound": [1, 1, 1, 0], "colour": [0, 0, 0, 0]})
    score = accuracy([first, second], tmp_path, ["sound"])
    assert (score.mean, score.seeds) == (5 / 8, (0.5, 0.75))
    videos = ["v0", "v1", "v2", "v3"] * 2
    assert score.interval == accuracy_interval([1, 1, 0, 0, 1, 1, 1, 0], videos)
    assert accuracy([first, second], tmp_path, ["sound", "colour"]).mean == 9 / 16
    with pytest.raises(ValueError, match="no answer of the types"):
        accuracy([first], tmp_path, ["shape"])


def test_a_difference_is_taken_question_by_question(tmp_path):
    one = leave(Run("audio", "x", video_only_patch()), tmp_path, {"sound": [1, 0, 0, 0]})
    other = leave(Run("audio", "y", video_only_patch(), steps=7), tmp_path, {"sound": [1, 1, 1, 0]})
    by, interval = difference([one], [other], tmp_path, ["sound"])
    assert by == 0.5 and interval.low < by < interval.high
    leave(one, tmp_path, {"sound": [0, 0, 0, 0]}, "gap=0.2")
    assert difference([one], [one], tmp_path, ["sound"], (AS_IT_IS, "gap=0.2"))[0] == -0.25
    fewer = leave(Run("audio", "z", video_only_patch(), steps=8), tmp_path, {"sound": [1, 1]})
    with pytest.raises(ValueError, match="not asked the same questions"):
        difference([one], [fewer], tmp_path, ["sound"])


def test_runs_from_another_folder_are_about_the_same_clips(tmp_path):
    places = [f"{root}/data/audio-1200-300/clips/test/" for root in ("/here", "/there/and/more")]
    runs = [
        leave(Run("audio", "x", video_only_patch(), seed=seed), tmp_path, {"sound": [1, 1, 0, 0]}, clips=place)
        for seed, place in enumerate(places)
    ]
    assert difference(runs[:1], runs[1:], tmp_path, ["sound"])[0] == 0
    one = accuracy_interval([1, 1, 0, 0] * 2, ["v0", "v1", "v2", "v3"] * 2)
    assert accuracy(runs, tmp_path, ["sound"]).interval == one != accuracy_interval([1, 1, 0, 0] * 2, list(range(8)))


def test_what_changes_the_weights_changes_the_folder_and_what_does_not_does_not(tmp_path):
    run = Run("audio", "x", WORLDS["audio"].patch())
    same = Run("audio", "another name", WORLDS["audio"].patch(), counterfactuals=("removed",))
    assert run.folder(tmp_path) == same.folder(tmp_path)
    assert "dropout" not in json.dumps(run.identity)  # at its default: a new setting does not make it another run
    asked = Run("audio", "x", WORLDS["audio"].patch(), asked_with={"empty_frames": "nearest"})
    assert asked.folder(tmp_path) == run.folder(tmp_path)
    leave(run, tmp_path, {"sound": [1]})
    leave(asked, tmp_path, {"sound": [0]}, "as it is-empty_frames=nearest")
    assert (accuracy([run], tmp_path, ["sound"]).mean, accuracy([asked], tmp_path, ["sound"]).mean) == (1, 0)
    for other in (
        Run("audio", "x", WORLDS["audio"].patch(alignment="index")),
        Run("audio", "x", WORLDS["audio"].patch(), seed=1),
        Run("audio", "x", WORLDS["audio"].patch(), training={"learning_rate": 1e-3}),
        Run("sensor", "x", WORLDS["audio"].patch()),
    ):
        assert other.folder(tmp_path) != run.folder(tmp_path)


def test_several_worlds_share_the_budget_of_one():
    one, both = mixture("audio"), mixture("audio+sensor")
    assert sum(both.values()) == pytest.approx((sum(one.values()) + sum(mixture("sensor").values())) / 2)
    assert both["sound"] == one["sound"] / 2 and "sensor:colour" in both and "colour" not in both


def test_every_world_is_written_with_its_channel_and_merged_with_the_others(tmp_path):
    folders = {}
    for name, world in WORLDS.items():
        folders[name] = tmp_path / name
        write_world(name, folders[name], 2, 1)
        samples = read_samples(folders[name] / "train.jsonl")
        assert {s.type for s in samples} >= set(world.own)
        assert world.patch().side_channels[world.channel].width > 0
    scenes = read_scenes(folders["audio"], "train")
    for sample in read_samples(folders["audio"] / "train.jsonl"):
        scene = scenes["clips/train/" + sample.video.rpartition("/")[2]]
        expected = [[s.start, s.end] for s in scene.sounds] if sample.type in WORLDS["audio"].own else None
        assert sample.meta.get("events") == expected
    merged = tmp_path / "merged"
    merged.mkdir()
    merge_worlds(["audio", "sensor"], folders, merged)
    rows = read_samples(merged / "train.jsonl")
    assert len(rows) == 2 * 6 + 2 * 6
    sound = next(s for s in rows if s.id.startswith("audio-"))
    sensor = next(s for s in rows if s.id.startswith("sensor-"))
    assert sound.side_channels == {"sensor": None} and sound.video == str(folders["audio"] / "clips/train/00000.mp4")
    assert sensor.side_channels == {"audio": None, "sensor": str(folders["sensor"] / "sensor/train/00000.csv")}
    assert {"sound", "sensor", "audio:light", "sensor:light"} <= {s.type for s in rows}


@pytest.mark.slow
def test_a_reproduction_goes_on_where_it_stopped(tmp_path):
    page = reproduce(tmp_path, ["time"], "short")
    text = page.read_text()
    assert (
        "## Alignment by true times" in text
        and "its numbers say nothing" in text
        and "by index" in text
        and "3 s early" in text
    )
    runs = SECTIONS["time"].runs(SHORT)
    one, other = runs[0], next(run for run in runs if run.folder(tmp_path) != runs[0].folder(tmp_path))
    before = {p.id: p.prediction for p in one.answers(tmp_path)}
    early = one.answers(tmp_path, "early=3")
    assert {p.type for p in early} == set(WORLDS["audio"].own) and len(before) == 10 * 7
    curve = json.loads((one.folder(tmp_path) / RESULT).read_text())
    assert curve["run"]["steps"] == 4 and np.isfinite(curve["train_loss"])
    stamp = (other.folder(tmp_path) / "trained.json").stat().st_mtime_ns
    shutil.rmtree(one.folder(tmp_path))
    assert reproduce(tmp_path, ["time"], "short").read_text() == text
    assert {p.id: p.prediction for p in one.answers(tmp_path)} == before
    assert (other.folder(tmp_path) / "trained.json").stat().st_mtime_ns == stamp


def test_unknown_names_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no section 'magic'; known: channels"):
        reproduce(tmp_path, ["magic"])
    with pytest.raises(ValueError, match="no size 'huge'"):
        reproduce(tmp_path, ["time"], "huge")
    assert Plan().steps_of("audio+sensor") == max(WORLDS["audio"].steps, WORLDS["sensor"].steps)


@pytest.mark.parametrize("name", list(WORLDS))
def test_the_recipe_of_a_world_is_what_the_evidence_trains(name):
    recipe = read_recipe(Path(__file__).parents[2] / "recipes" / f"playground_{name}.yaml")
    run = Run(name, "patch", WORLDS[name].patch(), steps=WORLDS[name].steps)
    made = recipe_of(run, Path("data"), Path("out"), Path("features"))
    assert recipe.patch == made.patch and recipe.training == made.training
    assert (recipe.data.stages, recipe.data.frames) == (made.data.stages, made.data.frames)


def test_one_seed_leaves_out_the_long_sections_and_says_so(tmp_path):
    assert default_sections("full") == default_sections("short") == [name for name in SECTIONS if name != "own"]
    assert set(SECTIONS) - set(default_sections("one-seed")) == {"parts", "bases", "own"}
    page = reproduce(tmp_path, ["cost"], "short").read_text(encoding="utf-8")
    assert "Made by `python -m evidence cost --size short` with" in page
    left_out = page.split("## What is not here")[1]
    assert [name for name in SECTIONS if f"`{name}`" not in left_out] == ["own", "cost"]
