"""Files that are missing, damaged or hostile: one clear error, never a hang, or what is left where asked for."""

import http.server
import struct
import threading
from fractions import Fraction

import av
import numpy as np
import pytest

from media_files import CONSTANT, HEIGHT, VARIABLE, WIDTH, bars, encode, indices, noise, write_sound
from pave.data.media import FrameSampling, MediaError, VideoClip, probe, read_audio, read_frames, write_video
from pave.data.media import child as child_module
from pave.data.media import container as container_module
from pave.data.media import frames as frames_module
from pave.data.media import sound as sound_module
from pave.side_channels.base import AudioClip

# --- files that are no good


def cut(path, share):
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    return path


def make_bad(kind, folder):
    path = folder / "a.mp4"
    if kind == "folder":
        path.mkdir()
    elif kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("a line of text\n" * 500)
    elif kind == "garbage":
        path.write_bytes(np.random.default_rng(0).integers(0, 255, 60_000, dtype=np.uint8).tobytes())
    elif kind == "terminal art":
        path = folder / "a.txt"
        path.write_text("a line of text\n" * 500)
    elif kind == "playlist":
        segment = encode(folder / "b.ts", CONSTANT[:10])
        path.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{segment}\n#EXT-X-ENDLIST\n")
    elif kind == "header cut off":
        cut(encode(path, CONSTANT), 0.6)
    elif kind == "sound only":
        path = write_sound(folder / "a.wav", noise(0.1, 8000)[:, None], 8000, "pcm_f32le", "flt", "mono")
    return path


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("missing", "there is no such file"),
        ("folder", "not a regular file"),
        ("empty", "empty"),
        ("text", "cannot be read as video or audio"),
        ("garbage", "cannot be read as video or audio"),
        ("terminal art", "not video or audio"),
        ("playlist", "cannot be read as video or audio|not video or audio"),
        ("header cut off", "cannot be read as video or audio"),
    ],
)
def test_files_that_are_no_media_are_named(tmp_path, kind, words):
    path = make_bad(kind, tmp_path)
    for reader in (read_frames, probe, lambda p: read_audio(p, 16000)):
        with pytest.raises(MediaError, match=words) as caught:
            reader(path)
        assert str(caught.value).startswith(str(path))
        assert "\n" not in str(caught.value)


def test_a_playlist_does_not_reach_the_network(tmp_path):
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/a.ts"
        path = tmp_path / "a.m3u8"
        path.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{url}\n#EXT-X-ENDLIST\n")
        with pytest.raises(MediaError, match=r"a\.m3u8"):
            read_frames(path)
        server.shutdown()
    assert asked == []


def test_a_sound_file_has_no_frames(tmp_path):
    path = make_bad("sound only", tmp_path)
    with pytest.raises(MediaError, match=r"a\.wav: the file has no video stream \(it holds audio\)"):
        read_frames(path)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("a.mp4", {"container_options": {"movflags": "+faststart"}}, r"it states 100 video packets but holds \d+"),
        ("a.mkv", {}, r"it states a length of 5 s but ends after 2\.\d+ s"),
    ],
)
def test_a_file_that_was_cut_off_is_damaged_unless_told_to_keep_it(tmp_path, name, options, words):
    path = encode(tmp_path / name, CONSTANT, **options)
    whole = read_frames(path)
    cut(path, 0.6)
    with pytest.raises(MediaError, match=f"{name}: the video is damaged: {words}.*on_corrupt='keep'"):
        read_frames(path, FrameSampling(num_frames=4))
    assert probe(path).problem
    clip = read_frames(path, on_corrupt="keep")
    assert clip.problem
    count = clip.num_frames_total
    assert 20 < count < 70
    assert set(clip.times_F) < set(whole.times_F)
    np.testing.assert_array_equal(clip.times_F[:-4], whole.times_F[: count - 4])
    assert indices(clip.frames_FHWC[:-4]) == list(range(count - 4))


def test_a_stream_that_begins_unannounced_is_damage(tmp_path):
    path = encode(tmp_path / "a.flv", CONSTANT, unit=Fraction(1))  # longer than FFmpeg looks ahead for streams
    whole = read_frames(path)
    sound = bytes([0x3E]) + bytes(400)  # uncompressed, 44100 Hz, mono
    tag = bytes([8]) + len(sound).to_bytes(3, "big") + bytes(7) + sound
    data = bytearray(path.read_bytes())
    data[4] = 1  # the header announces video alone
    path.write_bytes(data + tag + len(tag).to_bytes(4, "big"))
    with pytest.raises(MediaError, match=r"a\.flv: the video is damaged: reading stops midway \(a stream begins"):
        read_frames(path)
    kept = read_frames(path, on_corrupt="keep")
    assert "a stream begins" in kept.problem and "a stream begins" in probe(path).problem
    np.testing.assert_array_equal(kept.times_F, whole.times_F)
    assert read_audio(path, 16000) is None


def test_damage_in_the_middle_counts_only_on_the_way_to_a_sampled_frame(tmp_path):
    path = encode(tmp_path / "a.mp4", CONSTANT, b_frames=0)
    whole = read_frames(path)
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    data = bytearray(path.read_bytes())
    for packet in packets[50:53]:
        data[packet.pos : packet.pos + packet.size] = b"\xff" * packet.size
    path.write_bytes(data)
    with pytest.raises(MediaError, match=r"a\.mp4: the video is damaged: the packet at .* does not decode"):
        read_frames(path)
    early = read_frames(path, FrameSampling(num_frames=4, end=1.0))
    np.testing.assert_array_equal(early.frames_FHWC, whole.frames_FHWC[early.indices_F])
    late = read_frames(path, FrameSampling(num_frames=2, start=4.81))
    np.testing.assert_array_equal(late.frames_FHWC, whole.frames_FHWC[late.indices_F])
    kept = read_frames(path, on_corrupt="keep")
    assert "does not decode" in kept.problem
    assert 80 < kept.num_frames_total < 100
    assert set(kept.times_F) < set(whole.times_F)
    assert indices(kept.frames_FHWC[:20]) == list(range(20))


def test_damaged_sound_is_an_error_or_silence(tmp_path, caplog):
    path = tmp_path / "a.mp4"
    sound = np.sin(np.arange(48000) * 0.3).astype(np.float32) * 0.5
    write_video(path, bars(3), times=[0, 0.1, 2.9], audio=sound, audio_bit_rate=32000)
    whole = read_audio(path, 16000)
    with av.open(str(path)) as container:
        packets = [p for p in container.demux(container.streams.audio[0]) if p.size]
    data = bytearray(path.read_bytes())
    victim = packets[len(packets) // 2]
    data[victim.pos : victim.pos + victim.size] = b"\xff" * victim.size
    path.write_bytes(data)
    with pytest.raises(MediaError, match=r"a\.mp4: the sound is damaged: the packet at 1\.4"):
        read_audio(path, 16000)
    kept = read_audio(path, 16000, on_corrupt="keep")
    assert "damaged" in caplog.text
    assert len(kept) == len(whole)
    np.testing.assert_array_equal(kept.samples[:20000], whole.samples[:20000])
    np.testing.assert_allclose(kept.samples[30000:], whole.samples[30000:], atol=0.02)


def test_truncated_sound_is_damaged(tmp_path):
    path = tmp_path / "b.m4a"
    with av.open(str(path), "w", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        for start in range(0, 48000, 1024):
            frame = av.AudioFrame.from_ndarray(noise(3, 16000)[None, start : start + 1024], format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 16000, start, Fraction(1, 16000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with av.open(str(path)) as container:
        end = [packet.pos for packet in container.demux(audio=0) if packet.size][24]
    path.write_bytes(path.read_bytes()[:end])
    with pytest.raises(MediaError, match=r"b\.m4a: the sound is damaged: it states \d+ audio packets but holds 24"):
        read_audio(path, 16000)
    assert 1 < read_audio(path, 16000, on_corrupt="keep").duration < 2


@pytest.mark.parametrize("codec", ["pcm_s16le", "pcm_alaw"])
def test_uncompressed_sound_in_a_mov_is_whole_or_damaged(tmp_path, codec):
    """Its header counts samples where that of a compressed track counts packets."""
    sound = (noise(2, 8000)[:, None] * 32767).astype(np.int16)
    path = write_sound(tmp_path / "a.mov", sound, 8000, codec, "s16", "mono")
    clip = read_audio(path, 8000)
    assert len(clip) == 16000
    if codec == "pcm_s16le":
        np.testing.assert_array_equal(clip.samples, sound[:, 0].astype(np.float32) / 32768)
    front = write_sound(tmp_path / "b.mov", sound, 8000, codec, "s16", "mono", options={"movflags": "+faststart"})
    assert len(read_audio(front, 8000)) == 16000
    front.write_bytes(front.read_bytes()[:-6000])
    with pytest.raises(MediaError, match=r"b\.mov: the sound is damaged"):
        read_audio(front, 8000)


def test_a_picture_size_that_changes_is_an_error(tmp_path):
    encode(tmp_path / "a.h264", CONSTANT[:5], fmt="h264")
    write_video(tmp_path / "b.mp4", bars(5, 64, 64), fps=10)
    with av.open(str(tmp_path / "b.h264"), "w", format="h264") as out, av.open(str(tmp_path / "b.mp4")) as source:
        stream = out.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                out.mux(packet)
    (tmp_path / "c.h264").write_bytes((tmp_path / "a.h264").read_bytes() + (tmp_path / "b.h264").read_bytes())
    with pytest.raises(MediaError, match="size changes from 128x48 to 64x64"):
        read_frames(tmp_path / "c.h264")


def test_absurd_sizes_are_refused_before_decoding(tmp_path, monkeypatch):
    with av.open(str(tmp_path / "a.avi"), "w") as container:
        stream = container.add_stream("rawvideo", rate=10)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="rgb24")
        frame.pts, frame.time_base = 0, Fraction(1, 10)
        container.mux(stream.encode(frame))
    data = bytearray((tmp_path / "a.avi").read_bytes())
    at = data.index(b"strf") + 8 + 4
    data[at : at + 8] = struct.pack("<ii", 15_000, 15_000)
    (tmp_path / "a.avi").write_bytes(data)
    with pytest.raises(MediaError, match="15000x15000"):
        read_frames(tmp_path / "a.avi")
    encode(tmp_path / "b.mp4", CONSTANT[:20])
    monkeypatch.setattr(frames_module, "MAX_BYTES", 10 * HEIGHT * WIDTH * 3)
    assert len(read_frames(tmp_path / "b.mp4", FrameSampling(num_frames=10)).times_F) == 10
    with pytest.raises(MediaError, match=r"11 frames of 128x48 need .* sample fewer frames"):
        read_frames(tmp_path / "b.mp4", FrameSampling(num_frames=11))


def test_absurd_lengths_are_refused(tmp_path, monkeypatch):
    encode(tmp_path / "a.mp4", CONSTANT[:20])
    monkeypatch.setattr(container_module, "MAX_PACKETS", 20)
    assert len(read_frames(tmp_path / "a.mp4").times_F) == 20
    monkeypatch.setattr(container_module, "MAX_PACKETS", 19)
    with pytest.raises(MediaError, match=r"a\.mp4: the video has more than 19 frames; cut it"):
        read_frames(tmp_path / "a.mp4")
    plain = write_sound(tmp_path / "a.wav", noise(2, 8000)[:, None], 8000, "pcm_f32le", "flt", "mono")
    gap = write_sound(
        tmp_path / "b.mkv", noise(1, 8000)[:, None], 8000, "pcm_f32le", "flt", "mono", starts=(4000, 8000 * 3600 * 50)
    )
    with pytest.raises(MediaError, match=r"b\.mkv: the sound is longer than 12 hours"):
        read_audio(gap, 8000)
    monkeypatch.setattr(sound_module, "MAX_SECONDS", 1.8)
    with pytest.raises(MediaError, match=r"a\.wav: the sound is longer than 0\.0005 hours; cut it"):
        read_audio(plain, 8000)


def test_a_window_after_the_end_is_named(tmp_path):
    encode(tmp_path / "a.mp4", CONSTANT[:20])
    with pytest.raises(MediaError, match=r"a\.mp4: the window starts at 1\.0 s but the video lasts 1 s"):
        read_frames(tmp_path / "a.mp4", FrameSampling(num_frames=1, start=1.0))


@pytest.mark.parametrize(
    "call", [lambda p: read_frames(p, on_corrupt="skip"), lambda p: read_audio(p, 8000, on_corrupt="skip")]
)
def test_options_are_checked(tmp_path, call):
    with pytest.raises(ValueError, match="'error' or 'keep', got 'skip'"):
        call(tmp_path / "a.mp4")
    with pytest.raises(ValueError, match="sample_rate must be at least 1"):
        read_audio(tmp_path / "a.mp4", 0)
    with pytest.raises(ValueError, match="timeout must be a positive"):
        read_frames(tmp_path / "a.mp4", timeout=-1)


# --- in a child process


def test_a_child_process_reads_the_same(tmp_path):
    path = encode(tmp_path / "a b.mp4", VARIABLE[:20])
    sampling = FrameSampling(fps=5, start=0.2)
    here, there = read_frames(path, sampling), read_frames(path, sampling, timeout=60)
    assert isinstance(there, VideoClip)
    for name in ("frames_FHWC", "times_F", "indices_F"):
        assert getattr(there, name).dtype == getattr(here, name).dtype
        np.testing.assert_array_equal(getattr(there, name), getattr(here, name))
    assert (there.duration, there.num_frames_total, there.problem) == (here.duration, here.num_frames_total, None)
    there.frames_FHWC[0] = 0  # writable, as from the parent
    write_video(path, bars(5), fps=10, audio=noise(0.5, 16000))
    sound, sound_there = read_audio(path, 8000), read_audio(path, 8000, timeout=60)
    assert isinstance(sound_there, AudioClip)
    np.testing.assert_array_equal(sound.samples, sound_there.samples)
    assert probe(path) == probe(path, timeout=60)


def test_a_child_process_reports_errors_and_is_ended_in_time(tmp_path, monkeypatch):
    path = make_bad("garbage", tmp_path)
    with pytest.raises(MediaError) as here:
        read_frames(path)
    with pytest.raises(MediaError) as there:
        read_frames(path, timeout=60)
    assert str(here.value) == str(there.value)
    with pytest.raises(MediaError, match=r"a\.mp4: reading took longer than the 0\.01 s allowed"):
        probe(path, timeout=0.01)
    monkeypatch.setattr(child_module.sys, "executable", "/bin/false")
    with pytest.raises(MediaError, match=r"a\.mp4: the process that read it ended with status 1"):
        read_frames(path, timeout=60)
