"""Frames and their times: every container and frame rate, against what was encoded and against the full decode."""

import struct
from fractions import Fraction

import av
import numpy as np
import pytest

from media_files import CONSTANT, HEIGHT, VARIABLE, WIDTH, bars, encode, indices, noise
from pave.data.media import FrameSampling, probe, read_frames, write_video
from pave.data.media import frames as frames_module
from pave.data.media.container import index_packets, open_media
from pave.playground.render import draw_frames
from pave.playground.world import draw_scene

FILES = {
    "constant rate": ("a.mp4", {"ticks": CONSTANT}),
    "variable rate": ("a.mp4", {"ticks": VARIABLE}),
    "one keyframe": ("a.mp4", {"ticks": VARIABLE, "gop": 250}),
    "no B-frames": ("a.mp4", {"ticks": VARIABLE, "b_frames": 0}),
    "late start": ("a.mp4", {"ticks": VARIABLE, "first": 33}),
    "mov": ("a.mov", {"ticks": VARIABLE}),
    "fragmented": ("a.mp4", {"ticks": VARIABLE, "container_options": {"movflags": "frag_keyframe+empty_moov"}}),
    "mkv": ("a.mkv", {"ticks": VARIABLE, "first": 7}),
    "webm": ("a.webm", {"ticks": VARIABLE, "codec": "libvpx-vp9"}),
    "mpegts": ("a.ts", {"ticks": VARIABLE}),
    "avi with unordered stamps": ("a.avi", {"ticks": CONSTANT}),
    "avi mpeg4": ("a.avi", {"ticks": CONSTANT, "codec": "mpeg4", "b_frames": 2}),
    "raw stream without stamps": ("a.h264", {"ticks": CONSTANT, "fmt": "h264"}),
}


@pytest.fixture(scope="module", params=FILES, ids=lambda name: name.replace(" ", "-"))
def video(request, tmp_path_factory):
    name, options = FILES[request.param]
    path = encode(tmp_path_factory.mktemp("video") / name, **options)
    return path, np.array(options["ticks"]) * 0.05


def test_every_frame_comes_with_its_time(video):
    path, times = video
    clip = read_frames(path)
    assert indices(clip.frames_FHWC) == list(range(100))
    np.testing.assert_allclose(clip.times_F, times, atol=1e-9)
    assert clip.times_F[0] == 0
    assert clip.num_frames_total == clip.num_frames_requested == 100
    assert clip.times_F[-1] + 0.02 < clip.duration < clip.times_F[-1] + 0.4
    assert clip.size == (HEIGHT, WIDTH)
    assert clip.average_rate == pytest.approx(100 / clip.duration)


def test_any_single_frame_is_the_one_of_the_full_decode(video):
    path, times = video
    whole = read_frames(path)
    for index in [0, 1, 11, 12, 13, 35, 36, 37, 47, 48, 59, 60, 61, 71, 83, 84, 95, 96, 97, 98, 99]:
        end = float(times[index + 1]) if index < 99 else None
        clip = read_frames(path, FrameSampling(num_frames=1, start=float(times[index]), end=end))
        assert clip.indices_F.tolist() == [index]
        assert clip.times_F.tolist() == [whole.times_F[index]]
        np.testing.assert_array_equal(clip.frames_FHWC[0], whole.frames_FHWC[index])


@pytest.mark.parametrize(
    "sampling",
    [
        FrameSampling(num_frames=8),
        FrameSampling(num_frames=5, spacing="endpoints"),
        FrameSampling(fps=3),
        FrameSampling(fps=1.5, start=0.9, end=4.2),
        FrameSampling(num_frames=3, start=1.5),
    ],
    ids=str,
)
def test_sampled_frames_are_those_of_the_full_decode(video, sampling):
    path, _ = video
    whole = read_frames(path)
    clip = read_frames(path, sampling)
    assert len(clip.times_F) == clip.num_frames_requested
    assert (np.diff(clip.indices_F) > 0).all()
    np.testing.assert_array_equal(clip.times_F, whole.times_F[clip.indices_F])
    np.testing.assert_array_equal(clip.frames_FHWC, whole.frames_FHWC[clip.indices_F])
    assert (clip.duration, clip.num_frames_total) == (whole.duration, whole.num_frames_total)


def test_seeking_skips_what_need_not_be_decoded(tmp_path):
    path = encode(tmp_path / "a.mp4", VARIABLE)
    with open_media(path) as container:
        index = index_packets(container, container.streams.video[0], "a.mp4")
    keys = [index.order.index(position) for _, _, position in index.keys]
    assert keys[:4] == [0, 12, 24, 36]
    assert [(key and key[2], chosen) for key, chosen in frames_module._plan(index, [1, 5, 50, 51, 99])] == [
        (None, [1, 5]),
        (48, [50, 51]),
        (96, [99]),
    ]
    assert frames_module._plan(index, [3, 20]) == [(None, [3, 20])]


@pytest.mark.parametrize(
    ("name", "options"),
    [("a.mp4", {}), ("a.mp4", FILES["fragmented"][1]), ("a.mkv", {}), ("a.ts", {}), ("a.mov", {})],
)
def test_a_seek_lands_on_the_keyframe_it_aims_at(tmp_path, monkeypatch, name, options):
    """Without this, frames come out right all the same, but only after decoding from an earlier keyframe or the start."""
    path = encode(tmp_path / name, **{"ticks": VARIABLE, **options})
    with open_media(path) as container:
        index = index_packets(container, container.streams.video[0], name)
    decode_packets, begins = frames_module.decode_packets, []

    def noted(*arguments):
        for number, (packet, frames) in enumerate(decode_packets(*arguments)):
            if number == 0:
                begins.append(packet.pts)
            yield packet, frames

    monkeypatch.setattr(frames_module, "decode_packets", noted)
    for frame in range(26, 100, 3):
        begins.clear()
        clip = read_frames(path, FrameSampling(num_frames=1, start=VARIABLE[frame] / 20, end=VARIABLE[frame] / 20 + 0.01))
        assert clip.indices_F.tolist() == [frame]
        ((key, chosen),) = frames_module._plan(index, [frame])
        assert chosen == [frame]
        assert begins == [key[0]]


@pytest.mark.parametrize(
    ("skip", "seconds", "expected"), [(0.0, 2.0, range(40)), (0.5, 2.0, range(10, 50)), (0.6, 9.0, range(12, 100))]
)
def test_edit_lists_cut_frames_out(tmp_path, skip, seconds, expected):
    path = encode(tmp_path / "a.mp4", CONSTANT)
    data = bytearray(path.read_bytes())
    at = data.index(b"elst") + 12
    length, media_time = struct.unpack(">Ii", data[at : at + 8])
    assert length == 5000
    with av.open(str(path)) as container:
        unit = container.streams.video[0].time_base
    data[at : at + 8] = struct.pack(">Ii", int(seconds * 1000), media_time + int(skip / unit))
    path.write_bytes(data)
    clip = read_frames(path)
    assert indices(clip.frames_FHWC) == list(expected)
    np.testing.assert_allclose(clip.times_F, np.arange(len(expected)) / 20, atol=1e-9)
    assert probe(path).video.num_frames == len(expected)
    late = read_frames(path, FrameSampling(num_frames=1, start=1.8, end=1.85))
    assert indices(late.frames_FHWC) == [expected[36]]


def test_sampling_asks_for_more_than_there_is(tmp_path):
    path = encode(tmp_path / "a.mp4", list(range(10)))
    clip = read_frames(path, FrameSampling(num_frames=32))
    assert (indices(clip.frames_FHWC), clip.num_frames_requested) == (list(range(10)), 32)
    clip = read_frames(path, FrameSampling(fps=100))
    assert (indices(clip.frames_FHWC), clip.num_frames_requested) == (list(range(10)), 50)
    clip = read_frames(path, FrameSampling(fps=100, max_frames=4))
    assert (indices(clip.frames_FHWC), clip.num_frames_requested) == ([1, 3, 6, 8], 4)


def test_more_threads_give_the_same_frames(tmp_path):
    path = encode(tmp_path / "a.mp4", VARIABLE)
    one, two = read_frames(path, FrameSampling(num_frames=9)), read_frames(path, FrameSampling(num_frames=9), num_threads=2)
    np.testing.assert_array_equal(one.frames_FHWC, two.frames_FHWC)


# --- writing


@pytest.mark.parametrize("name", ["a.mp4", "a.mov", "a.mkv"])
def test_written_files_hold_what_was_given_and_are_the_same_every_time(tmp_path, name):
    frames = np.random.default_rng(1).integers(0, 255, (6, 4, 6, 3), dtype=np.uint8).repeat(16, axis=1).repeat(16, axis=2)
    times = [0, 0.1, 0.15, 0.5, 0.9, 1.0]
    for folder in ("one", "two"):
        write_video(tmp_path / folder / name, frames, times=times, audio=noise(1, 16000), crf=4)
    one, two = tmp_path / "one" / name, tmp_path / "two" / name
    assert one.read_bytes() == two.read_bytes()
    clip = read_frames(one)
    np.testing.assert_allclose(clip.times_F, times, atol=1e-9)
    inner = clip.frames_FHWC[:, 6:10, 6:10].astype(int) - frames[:, 6:10, 6:10]
    assert np.abs(inner).mean() < 4
    assert clip.duration == pytest.approx(1.1, abs=2e-3)
    assert len(list(one.parent.iterdir())) == 1


def test_small_pictures_too_are_written_the_same_every_time(tmp_path):
    """With x264's defaults 30 writings of these pictures give several different files."""
    frames, rng = draw_frames(draw_scene(2, "test", 0)), np.random.default_rng(0)
    contents = set()
    for _ in range(30):
        rng.bytes(int(rng.integers(1000, 200_000)))  # leaves other garbage behind in memory
        write_video(tmp_path / "a.mp4", frames, fps=4)
        contents.add((tmp_path / "a.mp4").read_bytes())
    assert len(contents) == 1


def test_frame_rates_are_exact(tmp_path):
    write_video(tmp_path / "a.mp4", bars(31), fps=30000 / 1001)
    clip = read_frames(tmp_path / "a.mp4")
    np.testing.assert_array_equal(clip.times_F, np.arange(31) * 1001 / 30000)
    assert clip.average_rate == pytest.approx(30000 / 1001)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"frames_FHWC": bars(2, 47)}, "even.*47x128"),
        ({"frames_FHWC": bars(2).astype(np.float32)}, "uint8.*float32"),
        ({"frames_FHWC": bars(2)[:0]}, "at least one frame"),
        ({"fps": None}, "exactly one of fps and times"),
        ({"times": [0, 1]}, "exactly one of fps and times"),
        ({"fps": -1}, "above 0.*-1"),
        ({"fps": None, "times": [0, 0]}, "ascend"),
        ({"fps": None, "times": [0.5, 1]}, "first 0"),
        ({"fps": None, "times": [0]}, "2 finite seconds"),
        ({"audio": np.array([0, np.nan])}, "not finite"),
        ({"audio": np.zeros((10, 3))}, "1 or 2 channels"),
        ({"audio": np.zeros(10), "sample_rate": 15000}, "no sample rate 15000"),
        ({"path": "a.wmv"}, "must end in"),
    ],
)
def test_writing_refuses_bad_arguments_and_leaves_no_file(tmp_path, change, words):
    arguments = {"path": "a.mp4", "frames_FHWC": bars(2), "fps": 10, **change}
    with pytest.raises(ValueError, match=f"write_video.*{words}"):
        write_video(tmp_path / arguments.pop("path"), **arguments)
    assert not list(tmp_path.iterdir())


# --- what probe says


def test_probe_tells_constant_from_variable_rates(tmp_path):
    steady = probe(encode(tmp_path / "a.mp4", CONSTANT)).video
    assert (steady.codec, steady.width, steady.height, steady.num_frames) == ("h264", WIDTH, HEIGHT, 100)
    assert (steady.duration, steady.average_rate, steady.variable_rate) == (5.0, 20.0, False)
    assert probe(encode(tmp_path / "b.mkv", [3 * i for i in range(30)], unit=Fraction(1, 89))).video.variable_rate is False
    assert probe(encode(tmp_path / "c.mp4", VARIABLE)).video.variable_rate is True
