"""The further worlds: their files hold the answers, and nothing else does."""

import csv
import hashlib
import json
from itertools import permutations

import numpy as np
import pytest
import torch

from evidence.small_bases.models import vocabulary
from leaks import fitted, learnt_table, limit, visible
from pave.config import EncoderConfig, SideChannelConfig
from pave.data.dataset import PatchDataset
from pave.data.media import FrameSampling, read_frames
from pave.data.samples import read_samples
from pave.data.sources import read_source
from pave.playground.distances import FOCAL, SpacedScene, draw_depth, moments
from pave.playground.flickers import COUNTS, HIGH_FPS, FlickeringScene, draw_clip, write_clip
from pave.playground.further import WORLDS, ask_further, converse_further, render_further, write_further_samples
from pave.playground.questions import REVEALS, SILENT_TYPES
from pave.playground.render import RADIUS, RGB, SIZE, draw_frames, place
from pave.playground.second_camera import draw_behind, view_times
from pave.playground.second_camera import draw_clip as draw_front
from pave.playground.sensors import draw_readings
from pave.playground.world import SEGMENT, draw_scene
from pave.side_channels import build_encoder

N = 4000
KINDS = [(name, kind) for name, world in WORLDS.items() for kind in world.makers]
ENCODERS = {
    "space": EncoderConfig(
        name="scene3d",
        settings={
            "encoder": {"name": "frames_pixels", "settings": {"grid": 6, "detail": 1}},
            "common_frame": "first_camera",
            "frequencies": 2,
        },
    ),
    "camera": EncoderConfig(
        name="multiview",
        settings={"views": ["behind"], "encoder": {"name": "frames_pixels", "settings": {"fps": 4, "grid": 3, "detail": 4}}},
    ),
    "flicker": EncoderConfig(name="frames_pixels", settings={"fps": 8, "grid": 3, "detail": 2}),
}


@pytest.fixture(scope="module")
def drawn():
    return {name: [world.draw(11, "train", i) for i in range(N)] for name, world in WORLDS.items()}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Eight scenes of every world as files, with a sample for every type of question."""
    made = {}
    for name, world in WORLDS.items():
        made[name] = tmp_path_factory.mktemp(name)
        render_further(made[name], name, "test", 8, seed=2)
        kinds = [(kind,) for kind in world.makers]
        assert write_further_samples(made[name] / "test.jsonl", name, "test", 8, kinds, channel="extra", seed=2) == 8 * len(
            kinds
        )
    return made


def samples_of(folder, kind):
    return [sample for sample in read_samples(folder / "test.jsonl") if sample.type == kind]


# --- no leaks


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_text_and_everything_visible_leave_the_answer_at_chance(name, kind, drawn):
    world = WORLDS[name]
    asked = [ask_further(world, extended, kind, np.random.default_rng(i)) for i, extended in enumerate(drawn[name])]
    classes = len(asked[0].choices)
    chance = 1 / classes
    labels = np.array([question.choices.index(question.answer) for question in asked])
    told = [(question.text + "|".join(question.choices), str(label)) for question, label in zip(asked, labels)]
    assert learnt_table(told) < limit(chance, N // 2)
    features = np.stack([visible(extended.scene) for extended in drawn[name]])
    assert fitted(features, labels, classes) < limit(chance, N // 2)
    counts = np.bincount(labels, minlength=classes)
    assert (np.abs(counts / N - chance) < 4 * np.sqrt(chance / N)).all()


def test_what_is_seen_is_the_silent_scene_of_the_same_number():
    for world in WORLDS.values():
        for i in range(5):
            assert world.draw(3, "test", i).scene == draw_scene(3, "test", i, silent=True)


def test_scenes_that_existed_before_are_still_the_same():
    text = json.dumps([draw_scene(0, split, i).to_dict() for split in ("train", "test") for i in range(50)])
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "805241bedeed367b"


@pytest.mark.parametrize("name", WORLDS)
def test_an_earlier_turn_is_no_help(name, drawn):
    world = WORLDS[name]
    types = (*world.makers, *SILENT_TYPES)
    given = {**REVEALS, **world.reveals}
    for first, second in permutations(types, 2):
        if second not in world.makers:
            continue
        if given[first] & given[second]:
            with pytest.raises(ValueError, match="cannot share a conversation"):
                converse_further(world, drawn[name][0], (first, second), np.random.default_rng(0))
            continue
        talks = [
            converse_further(world, x, (first, second), np.random.default_rng(i)) for i, x in enumerate(drawn[name][:2000])
        ]
        alone = learnt_table([(b.text, b.answer) for _, b in talks])
        told = learnt_table([((a.text, a.answer), b.answer) for a, b in talks])
        chance = 1 / len({b.answer for _, b in talks})
        assert told < limit(max(alone, chance), 1000), (first, second)


def test_the_base_knows_every_word():
    words = set(vocabulary())
    for name, kind in KINDS:
        for i in range(100):
            question = ask_further(WORLDS[name], WORLDS[name].draw(1, "train", i), kind, np.random.default_rng(i))
            assert set(" ".join((question.text, question.answer, *question.choices)).split()) <= words


# --- depth and pose


def test_size_and_distance_are_confounded_in_the_frames():
    scene = draw_scene(3, "test", 1, silent=True)
    pose = tuple(map(tuple, np.eye(4).tolist()))
    one, other = SpacedScene(scene, (1.0, 2.0), pose), SpacedScene(scene, (2.0, 1.0), pose)
    assert (one.nearer, other.nearer) == (scene.things[0].name, scene.things[1].name)
    masks = [draw_depth(spaced, moments()) for spaced in (one, other)]
    for near, far in ((1.0, 2.0), (2.0, 1.0)):
        assert np.array_equal(masks[0] == near, masks[1] == far)  # the same pixels, whatever the distance
    first = (masks[0] == 1.0).sum(axis=(1, 2))
    assert (np.sqrt(first / np.pi) * 1.0 / FOCAL < (RADIUS + 1) / FOCAL).all()  # metric size grows with distance alone


def test_the_files_of_space_show_who_is_nearer(folders):
    encoder = build_encoder(ENCODERS["space"])
    for i, sample in enumerate(samples_of(folders["space"], "nearer")):
        spaced = WORLDS["space"].draw(2, "test", i)
        recording = read_source(encoder, sample.video, sample.side_channels["extra"])
        pictures = list(recording)
        assert np.array_equal(np.stack([picture.rgb_HWC for picture in pictures]), draw_frames(spaced.scene, moments()))
        found = []
        for index, thing in enumerate(spaced.scene.things):
            x_F, y_F, _ = place(spaced.scene, index, moments())
            at = [picture.depth_HW[int(y), int(x)] for picture, x, y in zip(pictures, x_F, y_F)]
            assert at == pytest.approx([spaced.distances[index]] * 8, abs=1e-3)
            found.append((at[0], thing.name))
        assert sample.answer == min(found)[1]
        features = encoder.encode(recording).features_KMC
        assert features[..., 7].eq(1).all()  # every cell has depth
        depths = features[..., 10]  # z in the first camera, which stands still
        assert depths.min() < max(spaced.distances) and depths.max() == pytest.approx(6.0, abs=1e-3)


# --- the second camera


def test_the_first_camera_never_sees_the_hidden_object_and_the_second_does(drawn):
    for occluded in drawn["camera"][:20]:
        changed = type(occluded)(occluded.scene, "red", "circle", occluded.shown, occluded.offset)
        assert np.array_equal(draw_front(occluded), draw_front(changed))
        times = view_times() + occluded.offset
        middle = draw_behind(occluded)[:, SIZE // 2, SIZE // 2].astype(int)
        shows = (occluded.shown.start <= times) & (times < occluded.shown.end)
        assert shows.sum() in (4, 5) or shows.sum() == 3
        assert (np.abs(middle[shows] - RGB[occluded.hidden_colour]).max(axis=1) <= 1).all()
        assert (np.abs(middle[~shows] - 128).max(axis=1) <= 1).all()  # the grey cube
        assert times[0] < 0.3 and times[-1] > 8.0  # whatever happens is filmed
        segments = (times[shows] // SEGMENT).astype(int)
        assert {occluded.scene.movers[s] for s in segments} == {occluded.scene.movers[occluded.shown.segment]}


def test_the_files_of_the_second_camera_hold_the_answers_at_the_right_time(folders):
    encoder = build_encoder(ENCODERS["camera"])
    by_type = {kind: samples_of(folders["camera"], kind) for kind in WORLDS["camera"].makers}
    for i in range(8):
        occluded = WORLDS["camera"].draw(2, "test", i)
        sample = by_type["hidden_colour"][i]
        features = encoder.encode(read_source(encoder, sample.video, sample.side_channels["extra"]))
        middle = features.features_KMC[:, 4, :112].reshape(-1, 4, 4, 7)[:, 1:3, 1:3, :3]  # where the cube stands
        cells = middle.mean(dim=(1, 2))
        colours = ((cells + 1) * 127.5).numpy()
        shows = np.abs(colours - colours[0]).max(axis=1) > 20
        mean = colours[shows].mean(axis=0) - colours[~shows].mean(axis=0)
        directions = {name: np.array(RGB[name]) - 128 for name in ("red", "green", "blue", "yellow")}
        cosine = {name: mean @ d / np.linalg.norm(d) / np.linalg.norm(mean) for name, d in directions.items()}
        assert sample.answer == max(cosine, key=cosine.get)
        times = features.times_K.numpy()[shows]
        assert occluded.shown.start <= times.min() and times.max() < occluded.shown.end
        assert by_type["hidden_vision"][i].answer == occluded.scene.mover_at(times.mean()).name
        assert by_type["behind"][i].answer == f"{sample.answer} {by_type['hidden_shape'][i].answer}"


# --- flickers

SAMPLINGS = {
    "centres": np.arange(8) + 0.5,
    "floor": np.arange(8.0),
    "endpoints": np.linspace(0, 63, 8).astype(int) / HIGH_FPS,
}


@pytest.mark.parametrize("how", SAMPLINGS)
def test_no_even_sampling_shows_a_flicker_and_each_falls_on_the_right_object(how, drawn):
    times = SAMPLINGS[how]
    borders = np.concatenate([[-np.inf], (times[1:] + times[:-1]) / 2, [np.inf]])
    for flickering in drawn["flicker"]:
        movers = {flickering.scene.mover_during(flicker).name for flicker in flickering.flickers}
        owners = set()
        for flicker in flickering.flickers:
            assert not any(flicker.start <= t < flicker.end for t in times)
            owners |= {
                flickering.scene.mover_at(t).name
                for t, low, high in zip(times, borders, borders[1:])
                if low < flicker.end and flicker.start < high
            }
        assert owners == movers and len(movers) == 1
        starts = [round(flicker.start * HIGH_FPS) for flicker in flickering.flickers]
        assert (np.diff(starts) > 1).all() and len({flicker.kind for flicker in flickering.flickers}) == 1


def test_the_sampled_frames_of_the_file_do_not_depend_on_the_flickers(tmp_path):
    flickering = WORLDS["flicker"].draw(2, "test", 0)
    write_clip(tmp_path / "with.mp4", flickering)
    write_clip(tmp_path / "without.mp4", FlickeringScene(flickering.scene, ()))
    for sampling in (FrameSampling(num_frames=8), FrameSampling(fps=1), FrameSampling(num_frames=8, spacing="endpoints")):
        clips = [read_frames(tmp_path / name, sampling) for name in ("with.mp4", "without.mp4")]
        assert np.array_equal(clips[0].frames_FHWC, clips[1].frames_FHWC) and len(clips[0].times_F) == 8
    dense = [read_frames(tmp_path / name).frames_FHWC for name in ("with.mp4", "without.mp4")]
    differ = [i for i in range(64) if not np.array_equal(dense[0][i], dense[1][i])]
    assert differ == [round(flicker.start * HIGH_FPS) for flicker in flickering.flickers]


def test_the_dense_frames_hold_the_answers(folders):
    encoder = build_encoder(ENCODERS["flicker"])
    by_type = {kind: samples_of(folders["flicker"], kind) for kind in WORLDS["flicker"].makers}
    for i in range(8):
        flickering = WORLDS["flicker"].draw(2, "test", i)
        sample = by_type["flicker"][i]
        assert sample.side_channels == {}
        features = encoder.encode(read_source(encoder, sample.video, None))
        assert len(features) == 64
        cells = features.features_KMC[:, 4].reshape(-1, 4, 7)[..., :3].mean(dim=1)
        colours = ((cells + 1) * 127.5).numpy()
        lit = np.linalg.norm(colours - np.median(colours, axis=0), axis=1) > 30
        mean = colours[lit].mean(axis=0) - colours[~lit].mean(axis=0)
        background = np.array(flickering.scene.background)
        nearest = {
            kind: mean @ (np.array(RGB[kind]) - background) / np.linalg.norm(np.array(RGB[kind]) - background)
            for kind in ("white", "orange", "purple", "cyan")
        }
        assert sample.answer == max(nearest, key=nearest.get)
        assert by_type["flicker_count"][i].answer == COUNTS[lit.sum() - 1]
        movers = {flickering.scene.mover_at(t).name for t in features.times_K.numpy()[lit]}
        assert movers == {by_type["flicker_vision"][i].answer}
    assert draw_clip(flickering).shape == (64, SIZE, SIZE, 3)


# --- the sensor


def test_the_table_of_the_sensor_holds_the_answers(folders):
    for kind in ("sensor", "sensor_vision"):
        for i, sample in enumerate(samples_of(folders["sensor"], kind)):
            sensed = WORLDS["sensor"].draw(2, "test", i)
            with open(sample.side_channels["extra"], newline="") as file:
                rows = list(csv.DictReader(file))
            assert list(rows[0]) == ["time", "reading", "shake"]
            time, reading, shake = np.array([[float(value) for value in row.values()] for row in rows]).T
            assert np.array_equal(np.stack([time, reading, shake], axis=1), draw_readings(sensed))
            assert (np.diff(time) > 0).all() and np.ptp(np.diff(time)) > 0.02 and time[0] < 0 and time[-1] > 8
            slope = np.polyfit(time, reading, 1)[0]
            burst = time[np.abs(shake) > 1]
            assert len(burst) >= 5 and np.abs(slope) > 0.05
            if kind == "sensor":
                assert sample.answer == ("yes" if slope > 0 else "no")
            else:
                assert sample.answer == sensed.scene.mover_at(burst.mean()).name


# --- files


@pytest.mark.parametrize("name", ENCODERS)
def test_samples_become_items(name, folders):
    encoder = build_encoder(ENCODERS[name])
    channels = {"extra": SideChannelConfig(kind=name, width=encoder.width, encoder=ENCODERS[name])}
    samples = read_samples(folders[name] / "test.jsonl")
    dataset = PatchDataset(samples, FrameSampling(num_frames=8), {"extra": encoder}, channels)
    item = dataset[0]
    assert item.frames_FHWC.shape == (8, SIZE, SIZE, 3)
    assert item.side["extra"].features_KMC.shape[1:] == (encoder.tokens_per_step, encoder.width)
    assert item.side["extra"].features_KMC.isfinite().all() and torch.isfinite(item.side["extra"].times_K).all()


@pytest.mark.parametrize("name", WORLDS)
def test_writing_is_deterministic_and_resumes(name, folders, tmp_path):
    def digest(folder, files):
        return {file: hashlib.sha256((folder / file).read_bytes()).hexdigest() for file in files}

    render_further(tmp_path, name, "test", 2, seed=2)
    files = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.suffix in (".mp4", ".png", ".json", ".csv"))
    before = digest(tmp_path, files)
    assert before == digest(folders[name], files) and len(files) >= 3
    (tmp_path / "clips/test/00001.mp4").unlink()
    render_further(tmp_path, name, "test", 2, seed=2)
    assert digest(tmp_path, files) == before
    with pytest.raises(ValueError, match="choose another folder"):
        render_further(tmp_path, name, "test", 2, seed=3)
    lines = [json.loads(line) for line in (tmp_path / "scenes-test.jsonl").read_text().splitlines()]
    assert [line["scene"]["scene"]["seed"] for line in lines] == [draw_scene(2, "test", i).seed for i in range(2)]


def test_silent_questions_can_be_mixed_in(tmp_path):
    plan = [("nearer", "light"), ("colour|shape",)]
    assert write_further_samples(tmp_path / "a.jsonl", "space", "train", 4, plan, channel="depth") == 8
    samples = read_samples(tmp_path / "a.jsonl")
    assert {sample.type for sample in samples[::2]} == {"nearer+light"}
    assert {sample.type for sample in samples[1::2]} <= {"colour", "shape"}
    assert samples[0].side_channels["depth"].endswith("space/train/00000/scene.json")


def test_bad_names_are_listed(tmp_path):
    with pytest.raises(ValueError, match="no further world 'smell'; known: space, camera, flicker, sensor"):
        render_further(tmp_path, "smell", "test", 1)
    with pytest.raises(ValueError, match="split must be one of train, validation, test, got 'tset'"):
        render_further(tmp_path, "space", "tset", 1)
    with pytest.raises(ValueError, match="unknown type of question 'sound' in the world 'space'; known: nearer, colour"):
        write_further_samples(tmp_path / "a.jsonl", "space", "test", 1, [("sound",)], channel="depth")
