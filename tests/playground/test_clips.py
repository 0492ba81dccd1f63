"""Clips are real files that show and sound what the scene says; samples point to them."""

import hashlib
import json

import numpy as np
import pytest

from pave.data.media import probe, read_audio, read_frames
from pave.playground.clips import read_scenes, render_clip, render_clips, write_samples
from pave.playground.render import SIZE, draw_frames, draw_sound, frame_times, place
from pave.playground.world import LIGHTS, SOUNDS, Event, Scene, Thing, draw_scene

SCENE = Scene(
    seed=1,
    things=(Thing("red", "circle", 0, 0.2, 1), Thing("blue", "square", 1, 0.7, -1)),
    lanes="rows",
    movers=(1, 0, 0, 1),
    background=(30, 30, 30),
    flashes=(Event("cyan", 2.2, 3.7),),
    sounds=(Event("drum", 4.7, 5.2),),
)


def test_the_object_that_moves_is_the_one_the_scene_says():
    times = frame_times()
    segment = (times // 2).astype(int)
    for index in (0, 1):
        x, y, moving = place(SCENE, index, times)
        assert np.ptp(y) == 0
        steps = np.abs(np.diff(x)) > 1e-9
        assert (steps == (np.asarray(SCENE.movers)[segment[:-1]] == index)).all()
        assert (moving == (np.asarray(SCENE.movers)[segment] == index)).all()
        assert (x > 6).all() and (x < SIZE - 6).all()


def test_pictures_show_objects_trails_and_lights_where_they_are():
    frames = draw_frames(SCENE).astype(int)
    x, y, _ = place(SCENE, 0, frame_times())
    for i in (0, 10, 31):
        red, green, blue = frames[i, int(y[i]), int(x[i])]
        assert red > 200 and green < 60 and blue < 60
    cyan = np.all(np.abs(frames[:, 1, 1] - (30, 220, 225)) < 3, axis=1)
    assert (cyan == ((frame_times() >= 2.2) & (frame_times() < 3.7))).all()
    left_behind = frames[:, int(y[0]), :, 0].max(axis=1) > 0
    assert left_behind.all()
    trail = (frames[..., 0] - frames[..., 2] > 40).sum(axis=(1, 2))  # reddish pixels: more of them while the circle moves
    moving = np.asarray(SCENE.movers)[(frame_times() // 2).astype(int)] == 0
    assert trail[moving].min() > 1.3 * trail[~moving].max()


def test_the_sound_is_where_it_should_be_and_the_four_differ():
    spectra = []
    for kind in SOUNDS:
        samples = draw_sound(Scene(**{**vars(SCENE), "sounds": (Event(kind, 4.7, 5.2),)}))
        assert samples.dtype == np.float32 and len(samples) == 8 * 16000 and 0.2 < np.abs(samples).max() <= 0.51
        loud = np.flatnonzero(np.abs(samples) > 1e-4) / 16000
        assert 4.7 <= loud.min() < 4.75 and 4.9 < loud.max() <= 5.2
        spectrum = np.abs(np.fft.rfft(samples[75200:83200]))
        spectra.append(np.log(spectrum.reshape(-1)[:4000].reshape(40, 100).mean(axis=1) + 1e-3))
    for i in range(4):
        for j in range(i):
            assert np.abs(spectra[i] - spectra[j]).mean() > 0.5


def test_a_clip_decodes_to_what_was_drawn(tmp_path):
    scene = draw_scene(5, "test", 0)
    render_clip(tmp_path / "clip.mp4", scene)
    info = probe(tmp_path / "clip.mp4")
    assert (info.video.width, info.video.height) == (SIZE, SIZE)
    clip = read_frames(tmp_path / "clip.mp4")
    np.testing.assert_allclose(clip.times_F, frame_times(), atol=1e-6)
    assert np.abs(clip.frames_FHWC.astype(int) - draw_frames(scene)).mean() < 6
    sound = read_audio(tmp_path / "clip.mp4", sample_rate=16000)
    (event,) = scene.sounds
    loud = np.flatnonzero(np.abs(sound.samples) > 0.05) / 16000 + sound.start_time
    assert event.start - 0.05 < loud.min() and loud.max() < event.end + 0.1


def test_rendering_is_deterministic_and_resumes(tmp_path):
    def digest(folder):
        files = sorted(p for p in folder.rglob("*") if p.is_file())
        return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}

    for name, processes in (("a", 0), ("b", 2)):
        assert list(render_clips(tmp_path / name, "train", 4, seed=2, processes=processes)) == [1, 2, 3, 4]
        assert list(render_clips(tmp_path / name, "test", 2, seed=2, processes=0)) == [1, 2]
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    before = digest(tmp_path / "a")
    assert len({v for k, v in before.items() if k.endswith(".mp4")}) == 6
    (tmp_path / "a/clips/train/00002.mp4").unlink()
    assert list(render_clips(tmp_path / "a", "train", 4, seed=2, processes=0)) == [3, 4]
    assert digest(tmp_path / "a") == before
    with pytest.raises(ValueError, match="choose another folder"):
        list(render_clips(tmp_path / "a", "train", 4, seed=3, processes=0))


def test_samples_point_to_clips_and_hold_right_answers(tmp_path):
    list(render_clips(tmp_path, "test", 3, seed=2, processes=0))
    plan = [("sound",), ("sound_vision",), ("colour|shape|first_mover", "light", "sound")]
    assert write_samples(tmp_path / "test.jsonl", "test", 3, plan, seed=2) == 9
    rows = [json.loads(line) for line in (tmp_path / "test.jsonl").read_text().splitlines()]
    scenes = read_scenes(tmp_path, "test")
    assert len({row["id"] for row in rows}) == 9 and {row["video"] for row in rows} == set(scenes)
    for row in rows:
        assert (tmp_path / row["video"]).is_file()
        scene = scenes[row["video"]]
        if row["type"] == "sound":
            assert row["answer"] == scene.sounds[0].kind
        elif row["type"] == "sound_vision":
            assert row["answer"] == scene.mover_during(scene.sounds[0]).name
        else:
            assert [m["role"] for m in row["messages"]] == ["user", "assistant"] * 3
            assert row["messages"][3]["content"] == scene.flashes[0].kind in LIGHTS
            assert row["messages"][5]["content"] == scene.sounds[0].kind
    write_samples(tmp_path / "again.jsonl", "test", 3, plan, seed=2)
    assert (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "test.jsonl").read_bytes()


def test_a_silent_clip_has_no_audio_track(tmp_path):
    list(render_clips(tmp_path, "test", 1, silent=True, processes=0))
    assert probe(tmp_path / "clips/test/00000.mp4").audio is None
