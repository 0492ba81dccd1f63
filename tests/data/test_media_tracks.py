"""Which track is read, how its channels are mixed, and files that FFmpeg finds odd although they are whole."""

import gc
import os
import signal
import struct
import weakref
from fractions import Fraction

import av
import numpy as np
import pytest

from media_files import CONSTANT, bars, encode, indices, noise, several, write_sound
from pave.data.media import FrameSampling, FramesInPieces, MediaError, probe, read_audio, read_frames, remarks, write_video
from pave.data.media import sound as sound_module

# --- several tracks


@pytest.mark.parametrize("name", ["a.mkv", "a.mp4"])
@pytest.mark.parametrize(
    ("audio", "video", "heard", "seen"),
    [
        ((False, True, False), (True,), 2, 1),
        ((True, True), (False, True), 1, 2),
        ((True,), (True, True), 1, 1),
    ],
)
def test_the_track_flagged_default_is_read_and_the_others_are_told(tmp_path, name, audio, video, heard, seen):
    path = several(tmp_path / name, audio, video)
    assert read_audio(path, 8000).samples.mean() == pytest.approx(0.1 * heard, abs=1e-3)
    assert read_frames(path).frames_FHWC.mean() == pytest.approx(60 * seen, abs=3)
    assert next(iter(FramesInPieces(path, FrameSampling()))).frames_FHWC.mean() == pytest.approx(60 * seen, abs=3)
    info = probe(path)
    assert (info.audio.track, info.audio.tracks) == (heard, len(audio))
    assert (info.video.track, info.video.tracks) == (seen, len(video))
    told = [sentence for code, sentence in remarks(info) if code == "tracks-further"]
    expected = [
        f"the file has {len(flags)} {kind} tracks, of which number {number} is read"
        for kind, flags, number in (("video", video, seen), ("audio", audio, heard))
        if len(flags) > 1
    ]
    assert told == expected


def test_without_a_flag_the_first_track_is_read(tmp_path):
    with av.open(str(tmp_path / "a.ts"), "w") as container:
        streams = [container.add_stream("mp2", rate=16000, layout="mono") for _ in range(2)]
        for number, stream in enumerate(streams):
            for start in range(0, 16000, 1152):
                wave = np.sin(np.arange(start, start + 1152) * 0.3) * 8000 * (number + 1)
                frame = av.AudioFrame.from_ndarray(wave[None].astype(np.int16), format="s16", layout="mono")
                frame.sample_rate, frame.pts, frame.time_base = 16000, start, Fraction(1, 16000)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    with av.open(str(tmp_path / "a.ts")) as container:
        assert all(av.stream.Disposition.default not in stream.disposition for stream in container.streams.audio)
    assert np.abs(read_audio(tmp_path / "a.ts", 16000).samples).max() == pytest.approx(8000 / 32768, rel=0.1)
    assert probe(tmp_path / "a.ts").audio.track == 1


# --- channels


LAYOUTS = ["2.1", "3.0", "4.0", "quad", "quad(side)", "5.0", "5.0(side)", "5.1", "5.1(side)", "6.1", "7.1", "7.1(wide)"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_more_than_two_channels_are_mixed_as_ffmpegs_resampler_mixes_them(tmp_path, layout):
    channels = av.AudioLayout(layout).nb_channels
    samples_nC = np.random.default_rng(0).uniform(-0.4, 0.4, (8000, channels)).astype(np.float32)
    path = write_sound(tmp_path / "a.wav", samples_nC, 48000, "pcm_f32le", "flt", layout)
    frame = av.AudioFrame.from_ndarray(samples_nC.reshape(1, -1), format="flt", layout=layout)
    frame.sample_rate = 48000
    resampler = av.AudioResampler(format="flt", layout="mono", rate=48000)
    expected = np.concatenate([out.to_ndarray()[0] for out in [*resampler.resample(frame), *resampler.resample(None)]])
    np.testing.assert_allclose(read_audio(path, 48000).samples, expected, atol=1e-6)
    np.testing.assert_array_equal(read_audio(path, 48000, channels="all").samples, samples_nC)


def test_dialogue_in_the_centre_keeps_its_level(tmp_path):
    samples_nC = np.zeros((4800, 6), dtype=np.float32)
    samples_nC[:, 2] = 0.5
    path = write_sound(tmp_path / "a.wav", samples_nC, 48000, "pcm_f32le", "flt", "5.1")
    np.testing.assert_allclose(read_audio(path, 48000).samples, 0.5, atol=1e-6)
    samples_nC[:] = [0, 0, 0, 0.5, 0, 0]  # the channel of low frequencies
    path = write_sound(tmp_path / "b.wav", samples_nC, 48000, "pcm_f32le", "flt", "5.1")
    assert not read_audio(path, 48000).samples.any()


def test_channels_of_unknown_places_are_averaged_and_none_is_lost(tmp_path):
    samples_nC = np.random.default_rng(0).uniform(-0.4, 0.4, (800, 12)).astype(np.float32)
    path = write_sound(tmp_path / "a.wav", samples_nC[:, :6], 48000, "pcm_f32le", "flt", "5.1")
    data = bytearray(path.read_bytes())
    mask = data.index(b"fmt ") + 8 + 20
    assert struct.unpack("<I", data[mask : mask + 4]) == (0x3F,)
    data[mask : mask + 4] = bytes(4)
    path.write_bytes(data)
    np.testing.assert_allclose(read_audio(path, 48000).samples, samples_nC[:, :6].mean(axis=1), atol=1e-6)
    high = write_sound(tmp_path / "b.wav", samples_nC, 48000, "pcm_f32le", "flt", "7.1.4")
    weights = np.array([0.5**0.5, 0.5**0.5, 1, 0, 0.5, 0.5, 0.5, 0.5, 0.5**0.5, 0.5**0.5, 0.5, 0.5])
    np.testing.assert_allclose(read_audio(high, 48000).samples, samples_nC @ weights, atol=1e-6)


# --- whole, though FFmpeg marks packets


def wav(path, samples=32000):
    values = np.random.default_rng(1).integers(-9000, 9000, (samples, 1), dtype=np.int16)
    return write_sound(path, values, 16000, "pcm_s16le", "s16", "mono"), values[:, 0] / np.float32(32768)


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF])
def test_a_wav_that_was_written_to_a_pipe_is_whole(tmp_path, size):
    path, expected = wav(tmp_path / "a.wav")
    data = bytearray(path.read_bytes())
    for at in (4, data.index(b"data") + 4):
        data[at : at + 4] = struct.pack("<I", size)
    path.write_bytes(data)
    np.testing.assert_array_equal(read_audio(path, 16000).samples, expected)
    assert probe(path).problem is None


def rf64(path, values):
    """The 64-bit form, whose sizes stand in a chunk of their own; 0 where they were not known."""
    fmt = b"fmt " + struct.pack("<IHHIIHH", 16, 1, 1, 16000, 32000, 2, 16)

    def write(size):
        sizes = b"ds64" + struct.pack("<IQQQI", 28, size and size + 72, size, size // 2, 0)
        body = (values * 32768).astype("<i2").tobytes()
        path.write_bytes(b"RF64\xff\xff\xff\xffWAVE" + sizes + fmt + b"data\xff\xff\xff\xff" + body)

    return write


def test_a_wav_that_was_cut_off_is_damaged(tmp_path):
    path, expected = wav(tmp_path / "a.wav")
    whole = path.read_bytes()
    path.write_bytes(whole[:-20000])
    with pytest.raises(MediaError, match=r"a\.wav: the sound is damaged: it states 64000 bytes of sound but holds 44000"):
        read_audio(path, 16000)
    np.testing.assert_array_equal(read_audio(path, 16000, on_corrupt="keep").samples, expected[:22000])
    header = whole.index(b"data") + 4
    data = bytearray(whole)
    data[header : header + 4] = struct.pack("<I", len(whole))  # a writer that counts its own header
    path.write_bytes(data)
    np.testing.assert_array_equal(read_audio(path, 16000).samples, expected)
    write = rf64(tmp_path / "b.wav", expected)
    write(64000)
    np.testing.assert_array_equal(read_audio(tmp_path / "b.wav", 16000).samples, expected)
    write(90000)
    with pytest.raises(MediaError, match=r"it states 90000 bytes of sound but holds 64000"):
        read_audio(tmp_path / "b.wav", 16000)
    write(0)
    with pytest.raises(MediaError, match="does not say how long it is, and FFmpeg reads none of its 64000 bytes"):
        read_audio(tmp_path / "b.wav", 16000)


@pytest.mark.parametrize(("name", "codec", "form"), [("a.aiff", "pcm_s16be", None), ("a.au", "pcm_s16be", None), ("a.w64", "pcm_s16le", None), ("a.caf", "pcm_s16le", None)])  # fmt: skip
def test_other_uncompressed_sound_that_was_cut_off_is_damaged(tmp_path, name, codec, form):
    values = np.random.default_rng(1).integers(-9000, 9000, (32000, 1), dtype=np.int16)
    path = write_sound(tmp_path / name, values, 16000, codec, "s16", "mono", container_format=form)
    assert len(read_audio(path, 16000)) == 32000
    path.write_bytes(path.read_bytes()[:-20000])
    with pytest.raises(
        MediaError, match=rf"{name}: the sound is damaged: it states (32000 samples|64000 bytes of sound) but holds"
    ):
        read_audio(path, 16000)


def restarted(path):
    """Continuity counters that begin anew in the middle, as where segments are joined."""
    data, base = bytearray(path.read_bytes()), {}
    for at in range(len(data) // 376 * 188, len(data), 188):
        pid = (data[at + 1] & 31) << 8 | data[at + 2]
        base.setdefault(pid, data[at + 3] & 15)
        data[at + 3] = data[at + 3] & 0xF0 | (data[at + 3] - base[pid]) % 16
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("codec", "options"), [("libx264", {}), ("libx264", {"x264-params": "open-gop=1:keyint=30"}), ("mpeg2video", {})]
)
def test_a_transport_stream_whose_counters_restart_is_whole(tmp_path, codec, options):
    path = tmp_path / "a.ts"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 128, 48, "yuv420p"
        stream.codec_context.gop_size, stream.codec_context.max_b_frames = 30, 2
        sound = container.add_stream("mp2", rate=16000, layout="mono")
        pictures = bars(200)
        for tick, pixels in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = tick, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        for start in range(0, 128000, 1152):
            frame = av.AudioFrame.from_ndarray((np.sin(np.arange(start, start + 1152) * 0.3) * 9000).astype(np.int16)[None], format="s16", layout="mono")  # fmt: skip
            frame.sample_rate, frame.pts, frame.time_base = 16000, start, Fraction(1, 16000)
            container.mux(sound.encode(frame))
        container.mux(sound.encode(None))
    whole, heard = read_frames(path), read_audio(path, 16000)
    assert probe(path).video.flagged == 0
    restarted(path)
    info = probe(path)
    assert info.problem is None and info.video.flagged > 0
    assert [code for code, _ in remarks(info)] == ["packets-marked"]
    np.testing.assert_array_equal(read_frames(path).frames_FHWC, whole.frames_FHWC)
    few = read_frames(path, FrameSampling(num_frames=8))
    np.testing.assert_array_equal(few.frames_FHWC, whole.frames_FHWC[few.indices_F])
    pieces = np.concatenate([clip.frames_FHWC for clip in FramesInPieces(path, FrameSampling(num_frames=8), piece=3)])
    np.testing.assert_array_equal(pieces, few.frames_FHWC)
    np.testing.assert_array_equal(read_audio(path, 16000).samples, heard.samples)


def test_a_transport_stream_that_lost_packets_is_damaged_where_it_does_not_decode(tmp_path):
    frames = np.random.default_rng(0).integers(0, 255, (60, 6, 8, 3), dtype=np.uint8).repeat(8, axis=1).repeat(8, axis=2)
    with av.open(str(tmp_path / "a.ts"), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "18"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.gop_size = 10
        for tick, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = tick, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    path = tmp_path / "a.ts"
    whole = read_frames(path)
    data = path.read_bytes()
    lost = len(data) // 188 // 2 * 188
    path.write_bytes(data[:lost] + data[lost + 3 * 188 :])
    with pytest.raises(MediaError, match=r"a\.ts: the video is damaged: the packet at \d\.\d+ s does not decode"):
        read_frames(path)
    kept = read_frames(path, on_corrupt="keep")
    assert "does not decode" in kept.problem and 40 < kept.num_frames_total < 60
    early = read_frames(path, FrameSampling(num_frames=4, end=0.5))
    np.testing.assert_array_equal(early.frames_FHWC, whole.frames_FHWC[early.indices_F])


@pytest.mark.parametrize("options", [{}, {"x264-params": "scenecut=0:open-gop=1:keyint=30"}], ids=["closed", "open"])
def test_a_recording_that_begins_between_keyframes_loses_only_what_cannot_be_shown(tmp_path, options):
    path = encode(tmp_path / "a.ts", CONSTANT, gop=30, options=options)
    data = path.read_bytes()
    path.write_bytes(data[len(data) // 188 // 5 * 188 :])
    for change in (lambda path: None, restarted):
        change(path)
        clip = read_frames(path)
        assert clip.problem is None and indices(clip.frames_FHWC) == list(range(30, 100))
        np.testing.assert_allclose(clip.times_F, np.arange(70) / 20, atol=1e-9)


# --- codecs without a decoder


def test_an_unknown_codec_is_no_damage(tmp_path):
    write_video(tmp_path / "a.mp4", bars(5), fps=10, audio=noise(0.5, 16000))
    whole = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "v.mp4").write_bytes(whole.replace(b"avc1", b"zzz1").replace(b"avcC", b"zzzC"))
    for read in (read_frames, probe):
        with pytest.raises(MediaError, match=r"v\.mp4: the FFmpeg inside PyAV has no decoder for .* its video track") as caught:
            read(tmp_path / "v.mp4")
        assert caught.value.code == "codec-unknown" and "damaged" not in str(caught.value)
    (tmp_path / "s.mp4").write_bytes(whole.replace(b"mp4a", b"zzza").replace(b"esds", b"zzzs"))
    assert len(read_frames(tmp_path / "s.mp4").times_F) == 5
    with pytest.raises(MediaError, match=r"s\.mp4: .* no decoder for the codec of its audio track") as caught:
        read_audio(tmp_path / "s.mp4", 16000)
    assert caught.value.code == "codec-unknown"
    info = probe(tmp_path / "s.mp4")
    assert info.audio is None and info.problem is None and "no decoder" in info.audio_error
    assert [code for code, _ in remarks(info)] == ["codec-unknown"]
    assert probe(tmp_path / "s.mp4", timeout=60) == info


# --- numbers that cannot be right


@pytest.mark.parametrize("rate", [1, 99, 768_001, 2_000_000_000])
def test_sample_rates_that_cannot_be_right_are_refused(tmp_path, monkeypatch, rate):
    path, _ = wav(tmp_path / "a.wav", 43_200)
    data = bytearray(path.read_bytes())
    at = data.index(b"fmt ") + 12
    data[at : at + 8] = struct.pack("<II", rate, (2 * rate) % 2**32)
    path.write_bytes(data)
    monkeypatch.setattr(sound_module, "_resample", None)  # it would lay out twelve hours of sound
    with pytest.raises(MediaError, match=rf"a\.wav: the file states a sample rate of {rate} Hz, which cannot be right"):
        read_audio(path, 16000)


def test_sound_that_needs_too_much_memory_is_refused_before_it_is_resampled(tmp_path, monkeypatch):
    path, _ = wav(tmp_path / "a.wav")
    monkeypatch.setattr(sound_module, "MAX_BYTES", 4 * 40_000)
    assert len(read_audio(path, 20_000)) == 40_000
    with pytest.raises(MediaError, match=r"a\.wav: the sound needs .* GiB of memory .* cut it"):
        read_audio(path, 20_001)
    gap = write_sound(tmp_path / "b.mkv", noise(1, 8000)[:, None], 8000, "pcm_f32le", "flt", "mono", starts=(4000, 40_000))
    monkeypatch.setattr(sound_module.np, "zeros", None)  # nor is silence laid out
    with pytest.raises(MediaError, match=r"b\.mkv: the sound needs"):
        read_audio(gap, 8000)


# --- processes that fork


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_process_does_not_collect_the_frames_of_its_parent(tmp_path):
    """FFmpeg would wait there for threads of the parent, and a DataLoader's worker hang."""
    path = encode(tmp_path / "a.mp4", CONSTANT[:5])

    class Holder:
        pass

    gc.disable()
    try:
        holder = Holder()
        container = av.open(str(path))
        holder.itself, holder.container, holder.frame = holder, container, next(container.decode(video=0))
        alive = weakref.ref(holder)
        del holder, container
        child = os.fork()
        if child == 0:
            signal.alarm(20)  # where it does hang, it ends here
            gc.collect()
            os._exit(0 if alive() is not None else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert alive() is not None
        gc.collect()
        assert alive() is None
    finally:
        gc.enable()
