"""The doctor on real files: every planted defect is found under its code, and clean data of every kind is called clean."""

from __future__ import annotations

import json
from fractions import Fraction

import numpy as np
import pytest

from media_files import VARIABLE, encode, noise, several, squashed, write_header_matrix, write_sound
from pave.data.doctor import DEFECTS, Setup, examine, write_clean
from pave.data.media import write_depth, write_picture, write_video
from pave.data.samples import read_samples
from pave.playground import base_path
from pave.playground.clips import render_clips, write_samples
from pave.playground.further import render_further, write_further_samples
from rendered_scene import intrinsics, look, render

RATE, FPS, SECONDS = 16_000, 8, 2.0
CHANNELS = {
    "audio": {"width": 64},
    "depth": {"kind": "features", "width": 3, "encoder": {"name": "features", "settings": {"width": 3, "rate": 2}}},
    "imu": {
        "kind": "sensor",
        "width": 7,
        "encoder": {"name": "sensor_windows", "settings": {"columns": ["reading"], "window_seconds": 0.5}},
    },
    "scene": {
        "kind": "scene3d",
        "width": 11,
        "encoder": {
            "name": "scene3d",
            "settings": {"frequencies": 0, "encoder": {"name": "frames_pixels", "settings": {"grid": 2, "detail": 1}}},
        },
    },
}


def clip(path, seed, seconds=SECONDS, sound_seconds=SECONDS, start=0.0, times=None, level=0.5):
    """Coloured noise with noise as sound."""
    rng = np.random.default_rng(seed)
    count = int(seconds * FPS) if times is None else len(times)
    frames = rng.integers(0, 256, (count, 48, 48, 3), dtype=np.uint8)
    sound = None if sound_seconds is None else level * noise(sound_seconds, RATE, seed)
    timing = {"fps": FPS} if times is None else {"times": times}
    write_video(path, frames, **timing, audio=sound, sample_rate=RATE, audio_start=start, durable=False)


def scannet(folder, pictures=3, depths=3, poses=3):
    for name in ("color", "depth", "pose", "intrinsic"):
        (folder / name).mkdir(parents=True)
    for i in range(pictures):
        write_picture(folder / "color" / f"{i}.png", np.full((8, 8, 3), 40 * i, dtype=np.uint8))
    for i in range(depths):
        write_depth(folder / "depth" / f"{i}.png", np.full((8, 8), 1.0 + i, dtype=np.float32))
    for i in range(poses):
        np.savetxt(folder / "pose" / f"{i}.txt", np.eye(4))
    for which in ("color", "depth"):
        np.savetxt(folder / "intrinsic" / f"intrinsic_{which}.txt", [[8, 0, 3.5], [0, 8, 3.5], [0, 0, 1]])


def readings(path, start, end):
    rows = [f"{t:.2f},{np.sin(5 * t):.3f}" for t in np.arange(start, end, 0.1)]
    path.write_text("\n".join(["time,reading", *rows]) + "\n")


def shallow(folder, poses, unit):
    """A scene seen from three places; ``poses`` changes the poses, ``unit`` is what a metre is stored as."""
    folder.mkdir()
    K = intrinsics(24, 32, 30.0)
    frames = []
    for i in range(3):
        pose = look(0.1 * i, 0.05 * i, (0.2 * i, -0.1 * i, 0.3 * i))
        depth, _, rgb = render(pose, K, 24, 32)
        write_picture(folder / f"{i}.png", rgb)
        np.save(folder / f"{i}.npy", (np.where(depth < 60, depth, 0) * unit).astype(np.float32))
        frames.append({"rgb": f"{i}.png", "depth": f"{i}.npy", "pose": (pose @ poses).tolist(), "time": 0.5 * i})
    camera = {"fx": 30, "fy": 30, "cx": 15.5, "cy": 11.5, "width": 32, "height": 24}
    (folder / "scene.json").write_text(json.dumps({"intrinsics": camera, "frames": frames}))


def plant(folder):
    """Writes the media; returns the lines of the first file, each with the codes of errors and warnings that it must get."""
    rng = np.random.default_rng(0)
    clip(folder / "good.mp4", 1)
    clip(folder / "good2.mp4", 2)
    (folder / "garbage.mp4").write_bytes(rng.integers(0, 255, 60_000, dtype=np.uint8).tobytes())
    (folder / "empty.mp4").touch()
    whole = encode(folder / "cut.mkv", list(range(60)))
    whole.write_bytes(whole.read_bytes()[: int(whole.stat().st_size * 0.6)])
    write_sound(folder / "sound.wav", noise(2, 8000)[:, None], 8000, "pcm_f32le", "flt", "mono")
    clip(folder / "few.mp4", 3, times=[0, 0.7, 1.4])
    encode(folder / "counted.avi", list(range(20)), codec="mpeg4", b_frames=0)
    clip(folder / "gap.mp4", 4, times=[0, 0.1, 0.2, 0.3, 9.0, 9.1], sound_seconds=9.2)
    clip(folder / "mute.mp4", 5, sound_seconds=None)
    clip(folder / "late.mp4", 6, start=0.6)
    clip(folder / "short.mp4", 7, sound_seconds=0.8)
    clip(folder / "long.mp4", 8, sound_seconds=4.0)
    clip(folder / "dead.mp4", 9, level=0.0)
    np.save(folder / "wide.npy", rng.normal(size=(4, 5)).astype(np.float32))
    np.save(folder / "constant.npy", np.ones((4, 3), dtype=np.float32))
    np.save(folder / "nan.npy", np.where(np.arange(12).reshape(4, 3) == 4, np.nan, rng.normal(size=(4, 3))).astype(np.float32))
    (folder / "broken.npy").write_bytes(b"no array")
    readings(folder / "apart.csv", 100, 103)
    (folder / "broken.csv").write_text("time,reading\n0,one\n")
    readings(folder / "late.csv", 1.2, 4.5)
    readings(folder / "semicolons.csv", 0, 2)
    text = (folder / "semicolons.csv").read_text()
    (folder / "semicolons.csv").write_text(text.replace(",", ";").replace(".", ","))
    shallow(folder / "right", np.eye(4), 1)
    shallow(folder / "opengl", np.diag([1, -1, -1, 1]), 1)
    shallow(folder / "nodepth", np.eye(4), 0)
    shallow(folder / "millimetres", np.eye(4), 1000)
    (folder / "longnumber.csv").write_text("time,reading\n0," + "9" * 400 + "\n")
    scannet(folder / "uneven", depths=2)
    scannet(folder / "lost")
    (folder / "lost" / "intrinsic" / "intrinsic_color.txt").unlink()
    clip(folder / "shared.mp4", 10)
    (folder / "copy.mp4").write_bytes((folder / "shared.mp4").read_bytes())
    clip(folder / "asked.mp4", 11)
    known = {"question": "what sound is heard ?", "answer": "beep"}

    def line(name, *codes, video="good.mp4", **more):
        fields = {"id": name, "video": video, **known, "question": f"what {name} ?", **more}
        return {key: value for key, value in fields.items() if value is not None}, set(codes)

    def side(name, channel, file, *codes):
        return line(name, *codes, side_channels={channel: file})

    return [
        line("clean"),
        line("clean2", video="good2.mp4"),
        line("gone", "media-missing", video="gone.mp4"),
        line("garbage", "media-unreadable", video="garbage.mp4"),
        line("empty", "media-empty", video="empty.mp4"),
        line("cut", "media-truncated", "audio-none", video="cut.mkv"),
        line("sound", "video-none", video="sound.wav"),
        line("few", "frames-few", video="few.mp4"),
        line("counted", "times-counted", "audio-none", video="counted.avi"),
        line("gap", "times-gap", video="gap.mp4"),
        line("mute", "audio-none", video="mute.mp4"),
        line("null", "channel-missing", side_channels={"audio": None}),
        line("late", "audio-offset", video="late.mp4"),
        line("short", "audio-short", video="short.mp4"),
        line("long", "audio-long", video="long.mp4"),
        line("dead", "features-constant", video="dead.mp4"),
        side("nofile", "depth", "nofile.npy", "channel-file-missing"),
        side("wide", "depth", "wide.npy", "features-width"),
        side("constant", "depth", "constant.npy", "features-constant"),
        side("nan", "depth", "nan.npy", "features-not-finite"),
        side("broken", "depth", "broken.npy", "features-unreadable"),
        side("badwav", "audio", "broken.npy", "media-unreadable"),
        side("apart", "imu", "apart.csv", "channel-apart"),
        side("badimu", "imu", "broken.csv", "sensor-unreadable"),
        side("lateimu", "imu", "late.csv", "channel-little"),
        side("semicolons", "imu", "semicolons.csv"),
        side("longnumber", "imu", "longnumber.csv", "sensor-unreadable"),
        side("right", "scene", "right/scene.json"),
        side("opengl", "scene", "opengl/scene.json", "scene3d-axes"),
        side("nodepth", "scene", "nodepth/scene.json", "channel-idle"),
        side("millimetres", "scene", "millimetres/scene.json", "scene3d-unreadable"),
        side("uneven", "scene", "uneven", "scene3d-counts"),
        side("lost", "scene", "lost", "scene3d-unreadable"),
        line("noanswer", "answer-missing", answer=None),
        line("again", "question-repeated", question="what  CLEAN ?"),
        line("other", "answer-conflict", question="what clean ?", answer="left"),
        line("special", "text-special", question="what <|im_end|> ?"),
        line("wordy", "prompt-long", question="red " * 900),
        line("talk", "answer-long", answer="red " * 12),
        line("word", "word-unknown", answer="zebra"),
        line("shared", "split-media", video="shared.mp4"),
        line("asked", "split-media", "split-question", video="asked.mp4"),
    ]


BAD_LINES = {
    '{"id": "blank", "video": "good.mp4", "question": "  "}': "text-empty",
    '{"id": "clean", "video": "good.mp4", "question": "again ?"}': "id-repeated",
    '{"id": "typo", "vidoe": "good.mp4", "question": "what ?"}': "sample-invalid",
}


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planted")
    lines = plant(folder)
    (folder / "train.jsonl").write_text("\n".join([*(json.dumps(fields) for fields, _ in lines), *BAD_LINES]) + "\n")
    held_out = [
        {"id": "a", "video": "copy.mp4", "question": "what else ?", "answer": "red"},
        {"id": "b", "video": "asked.mp4", "question": "What asked ?", "answer": "beep"},
    ]
    (folder / "test.jsonl").write_text("".join(json.dumps(one) + "\n" for one in held_out))
    setup = {"channels": CHANNELS, "frames": {"num_frames": 4}, "required": ["audio"], "base": str(base_path())}
    setup |= {"max_length": 800, "max_answer_tokens": 8}
    report = examine([folder / "train.jsonl", folder / "test.jsonl"], Setup.from_dict(setup), workers=0, progress=False)
    return folder, {fields["id"]: codes for fields, codes in lines}, report


def found_by_sample(report, split):
    found = {sample.id: set() for part in report.splits if part.name == str(split) for sample in part.samples}
    for one in report.findings:
        if one.split == str(split) and one.severity != "note":
            for name in one.samples:
                found[name].add(one.code)
    return found


def test_every_planted_defect_is_found_and_nothing_else(planted):
    folder, expected, report = planted
    assert found_by_sample(report, folder / "train.jsonl") == expected
    assert found_by_sample(report, folder / "test.jsonl") == {"a": set(), "b": set()}
    assert len(set().union(*expected.values())) >= 30
    first = len(expected) + 1
    bad = {one.line: one.code for one in report.findings if one.line is not None}
    assert bad == dict(enumerate(BAD_LINES.values(), first))


def test_a_finding_says_who_where_what_and_what_to_do(planted):
    folder, _, report = planted
    (one,) = [one for one in report.findings if one.code == "audio-offset"]
    assert (one.severity, one.samples, one.channel, one.file) == ("warning", ("late",), "audio", str(folder / "late.mp4"))
    assert one.sentence == (
        f"{folder / 'train.jsonl'}: sample 'late': {folder / 'late.mp4'}: the sound begins 0.536 s after the picture; "
        "check that they are in step"
    )
    (copied, same) = [one for one in report.findings if one.code == "split-media"]
    assert str(folder / "copy.mp4") in copied.message and "as" not in same.message.split()
    for one in report.findings:
        assert one.code in DEFECTS and "\n" not in one.sentence


def test_what_of_a_channel_acts_and_how_a_log_was_read_is_said(planted):
    _, _, report = planted
    said = {one.samples[0]: one for one in report.findings if one.channel in ("imu", "scene") and one.samples}
    assert said["semicolons"].severity == "note" and said["semicolons"].code == "sensor-format"
    assert said["semicolons"].message == "it was read with cells between semicolons, decimal commas"
    assert said["lateimu"].message.startswith("29 % of its 7 steps can act: 5 lie outside of what frames reach")
    assert said["nodepth"].message == "nothing of its 3 steps can act: 100 % is without a valid depth"
    assert "every depth is beyond max_depth 10 m (the middle one is" in said["millimetres"].message
    assert "if the poses are OpenGL's axes (y up, z backward)" in said["opengl"].message


def test_a_required_channel_makes_an_error_of_a_note(planted):
    folder, _, report = planted
    assert {one.severity for one in report.findings if one.code == "audio-none"} == {"error"}
    (folder / "one.jsonl").write_text('{"id": "a", "video": "mute.mp4", "question": "what ?", "answer": "red"}\n')
    relaxed = examine([folder / "one.jsonl"], Setup(quick=True), workers=0, progress=False)
    assert [(one.code, one.severity) for one in relaxed.findings] == [("audio-none", "note")]
    assert relaxed.is_clean(strict=True)
    with pytest.raises(ValueError, match="no channel 'sonar'"):
        examine([folder / "one.jsonl"], Setup.from_dict({"channels": CHANNELS, "required": ["sonar"]}), workers=0)


def test_quick_only_probes(planted):
    folder, expected, _ = planted
    setup = Setup.from_dict({"channels": CHANNELS, "frames": {"num_frames": 4}, "required": ["audio"], "quick": True})
    report = examine([folder / "train.jsonl"], setup, workers=0, progress=False)
    decoded = {"split-media", "split-question", "text-special", "prompt-long", "answer-long", "word-unknown"}
    decoded |= {"channel-apart", "channel-idle", "channel-little"}
    decoded |= {code for code in DEFECTS if code.startswith(("features-", "scene3d-", "sensor-"))}
    assert found_by_sample(report, folder / "train.jsonl") == {name: codes - decoded for name, codes in expected.items()}


def test_how_pictures_are_shown_and_which_tracks_are_read_is_told(tmp_path):
    matrices = {"mirrored": (-1, 0, 0, 1), "turned": (0, 1, -1, 0)}
    for number, name in enumerate(["mirrored", "turned", "mute codec", "no codec"]):
        clip(tmp_path / f"{name}.mp4", number)
    for name, matrix in matrices.items():
        write_header_matrix(tmp_path / f"{name}.mp4", matrix)
    for name, old in {"mute codec": (b"mp4a", b"esds"), "no codec": (b"avc1", b"avcC")}.items():
        path = tmp_path / f"{name}.mp4"
        path.write_bytes(path.read_bytes().replace(old[0], b"zzz1").replace(old[1], b"zzz2"))
    squashed(tmp_path / "wide.mp4", Fraction(16, 9))
    squashed(tmp_path / "woven.mp4", Fraction(1), **{"x264-params": "interlaced=1"})
    several(tmp_path / "dubbed.mkv")
    expected = {
        "mirrored.mp4": {"picture-mirrored"},
        "turned.mp4": set(),
        "mute codec.mp4": {"codec-unknown"},
        "no codec.mp4": {"codec-unknown"},
        "wide.mp4": {"pixels-not-square", "audio-none"},
        "woven.mp4": {"picture-interlaced", "audio-none"},
        "dubbed.mkv": {"tracks-further"},
    }
    lines = [{"id": name, "video": name, "question": f"{name} ?", "answer": "red"} for name in expected]
    lines.append(
        {"id": "seen twice", "video": "turned.mp4", "question": "?", "answer": "red", "side_channels": {"dense": "wide.mp4"}}
    )
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    channels = {
        "dense": {"kind": "video", "width": 7, "encoder": {"name": "frames_pixels", "settings": {"grid": 2, "detail": 1}}}
    }
    setup = {"channels": {"audio": {"width": 64}, **channels}, "frames": {"num_frames": 2}}
    for quick in (True, False):
        report = examine([tmp_path / "a.jsonl"], Setup.from_dict({**setup, "quick": quick}), workers=0, progress=False)
        found = {name: set() for name in [*expected, "seen twice"]}
        for one in report.findings:
            for name in one.samples:
                found[name].add(one.code)
        found = {name: codes - {"features-constant"} for name, codes in found.items()}  # still pictures
        assert found == {**expected, "seen twice": {"pixels-not-square"}}
    (wide, *_) = [one for one in report.findings if one.code == "pixels-not-square"]
    assert wide.severity == "note" and "its pictures are read as 256x144" in wide.sentence
    (dubbed,) = [one for one in report.findings if one.code == "tracks-further"]
    assert dubbed.channel == "audio" and "3 audio tracks, of which number 2 is read" in dubbed.sentence


def test_what_is_written_is_clean_and_what_is_left_out_is_listed(planted, tmp_path):
    folder, expected, report = planted
    before = (folder / "train.jsonl").read_bytes()
    cleaned = write_clean(report, tmp_path / "clean.jsonl", strict=True)
    kept = [name for name, codes in expected.items() if not codes]
    assert (
        [sample.id for sample in read_samples(tmp_path / "clean.jsonl")] == kept == ["clean", "clean2", "semicolons", "right"]
    )
    left_out = json.loads((tmp_path / "clean.left_out.json").read_text())
    assert (left_out["kept"], cleaned.dropped) == (4, len(left_out["left_out"])) == (4, len(expected) - 4 + len(BAD_LINES))
    why = {one["id"]: {reason["code"] for reason in one["why"]} for one in left_out["left_out"] if one["id"]}
    assert why == {name: codes for name, codes in expected.items() if codes}
    again = examine([tmp_path / "clean.jsonl"], Setup.from_dict({"channels": CHANNELS, "quick": True}), workers=0)
    assert again.is_clean(strict=True)
    lenient = write_clean(report, tmp_path / "lenient.jsonl")
    assert lenient.kept > cleaned.kept
    assert (folder / "train.jsonl").read_bytes() == before
    with pytest.raises(ValueError, match="one of the files that are examined"):
        write_clean(report, folder / "train.jsonl")


def test_clean_data_of_every_kind_is_clean(tmp_path):
    """Clips with sound, silent clips, a variable frame rate, depth with poses, and sensors: notes at most."""
    types = [["sound"], ["first_mover"]]
    for split in ("train", "test"):
        list(render_clips(tmp_path / "loud", split, 2, processes=0))
        write_samples(tmp_path / "loud" / f"{split}.jsonl", split, 2, types)
    list(render_clips(tmp_path / "silent", "train", 1, silent=True, processes=0))
    write_samples(tmp_path / "silent" / "train.jsonl", "train", 1, [["first_mover"]], silent=True)
    for seed, (world, channel, kind) in enumerate((("space", "scene", "nearer"), ("sensor", "imu", "sensor"))):
        render_further(tmp_path / world, world, "train", 1, seed=seed)
        write_further_samples(tmp_path / world / "train.jsonl", world, "train", 1, [[kind]], channel=channel, seed=seed)
    encode(tmp_path / "variable.mp4", VARIABLE)
    (tmp_path / "variable.jsonl").write_text('{"id": "v", "video": "variable.mp4", "question": "what ?", "answer": "red"}\n')
    files = [tmp_path / f"{name}.jsonl" for name in ("loud/train", "loud/test", "space/train", "sensor/train", "variable")]
    setup = Setup.from_dict({"channels": CHANNELS, "base": str(base_path())})
    report = examine(files, setup, workers=0, progress=False)
    assert [one.sentence for one in report.findings if one.severity != "note"] == []
    notes = {(one.split, one.code) for one in report.findings}
    assert (str(tmp_path / "variable.jsonl"), "rate-variable") in notes
    silent = examine([tmp_path / "silent" / "train.jsonl"], setup, workers=0, progress=False)
    assert silent.is_clean(strict=True) and silent.codes["audio-none"] == 1


@pytest.mark.slow
def test_a_file_that_hangs_or_crashes_its_reader_costs_only_itself(tmp_path, monkeypatch):
    clip(tmp_path / "a.mp4", 1)
    rows = []
    for name in ("hang", "crash", "fine"):
        (tmp_path / name).touch()
        row = {"id": name, "video": "a.mp4", "question": f"what {name} ?", "answer": "red", "side_channels": {"trap": name}}
        rows.append(json.dumps(row))
    (tmp_path / "train.jsonl").write_text("\n".join(rows))
    source = [
        "import os, time, torch",
        "from pave.side_channels import OwnEncoder, SideFeatures",
        "class Trap(OwnEncoder):",
        "    width = 1",
        "    def read(self, video, path):",
        "        if path.endswith('hang'): time.sleep(600)",
        "        if path.endswith('crash'): os._exit(7)",
        "        return path",
        "    def encode(self, source):",
        "        return SideFeatures(torch.rand(2, 1), torch.tensor([0.5, 1.0]))",
    ]
    (tmp_path / "trap_encoder.py").write_text("\n".join(source))
    monkeypatch.syspath_prepend(str(tmp_path))
    channel = {"kind": "own", "width": 1, "encoder": {"name": "trap_encoder:Trap"}}
    with pytest.raises(ValueError, match="'trap_encoder:Trap' is code"):
        examine([tmp_path / "train.jsonl"], Setup.from_dict({"channels": {"trap": channel}}), workers=1, progress=False)
    setup = Setup.from_dict({"channels": {"trap": channel}, "encoders": ["trap_encoder"], "timeout": 4})
    report = examine([tmp_path / "train.jsonl"], setup, workers=1, progress=False)
    found = {one.code: (one.samples, one.file, one.message) for one in report.findings}
    assert found == {
        "media-timeout": (("hang",), str(tmp_path / "hang"), "reading took longer than the 4 s allowed"),
        "media-crash": (("crash",), str(tmp_path / "crash"), "the process that read it ended with status 7"),
    }


def test_an_encoder_that_cannot_be_had_stops_it_before_anything_is_read(tmp_path):
    clip(tmp_path / "a.mp4", 1)
    (tmp_path / "train.jsonl").write_text('{"id": "a", "video": "a.mp4", "question": "what ?", "answer": "red"}\n')
    setup = Setup.from_dict({"channels": {"audio": {"width": 65}}})
    with pytest.raises(ValueError, match="features of width 64, but the patch says width 65"):
        examine([tmp_path / "train.jsonl"], setup, workers=1, progress=False)
