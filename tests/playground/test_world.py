"""Scenes are what they say they are, the same each time, and no split meets another."""

import json

import numpy as np
import pytest

from pave.playground.world import NUM_SEGMENTS, SEGMENT, SPLITS, Scene, draw_scene

SCENES = [draw_scene(3, "train", i) for i in range(400)]


def test_the_same_arguments_give_the_same_scene_and_others_another_one():
    assert draw_scene(3, "train", 5) == SCENES[5]
    others = [draw_scene(3, "train", 6), draw_scene(4, "train", 5), draw_scene(3, "test", 5)]
    assert all(other != SCENES[5] for other in others)


def test_splits_share_no_scene():
    drawn = [draw_scene(0, split, i) for split in SPLITS for i in range(300)]
    assert len({json.dumps({**scene.to_dict(), "seed": 0}) for scene in drawn}) == len(drawn)


def test_leaving_the_sound_out_changes_nothing_visible():
    for i in range(20):
        heard, silent = draw_scene(3, "train", i).to_dict(), draw_scene(3, "train", i, silent=True).to_dict()
        assert heard.pop("sounds") and silent.pop("sounds") == ()
        assert heard == silent


def test_a_scene_survives_json():
    for scene in SCENES[:20]:
        assert Scene.from_dict(json.loads(json.dumps(scene.to_dict()))) == scene


def test_objects_differ_in_colour_shape_and_lane_and_both_move():
    for scene in SCENES:
        first, second = scene.things
        assert first.colour != second.colour and first.shape != second.shape and {first.lane, second.lane} == {0, 1}
        assert len(scene.movers) == NUM_SEGMENTS and set(scene.movers) == {0, 1}


def test_events_lie_inside_one_segment_each():
    for scene in SCENES:
        assert 1 <= len(scene.flashes) <= 3 and len(scene.sounds) == 1
        assert (
            len({flash.kind for flash in scene.flashes})
            == len({flash.segment for flash in scene.flashes})
            == len(scene.flashes)
        )
        for event in (*scene.flashes, *scene.sounds):
            assert event.segment * SEGMENT < event.start < event.end < (event.segment + 1) * SEGMENT


@pytest.mark.parametrize(
    "times", [np.arange(8) + 0.5, np.arange(8.0), np.linspace(0, 31, 8).astype(int) / 4], ids=["centres", "floor", "endpoints"]
)
def test_however_eight_frames_are_sampled_the_events_are_seen_and_fall_on_the_right_object(times):
    borders = np.concatenate([[-np.inf], (times[1:] + times[:-1]) / 2, [np.inf]])
    for scene in SCENES:
        for flash in scene.flashes:
            assert any(flash.start <= t < flash.end for t in times)
        (sound,) = scene.sounds
        owners = [t for t, low, high in zip(times, borders, borders[1:]) if low < sound.end and sound.start < high]
        assert {scene.mover_at(t) for t in owners} == {scene.mover_during(sound)}


def test_an_unknown_split_is_named():
    with pytest.raises(ValueError, match="split must be one of train, validation, test, got 'tset'"):
        draw_scene(0, "tset", 0)
