"""Sound and its place on the video's clock."""

from fractions import Fraction

import av
import numpy as np
import pytest

from media_files import bars, noise, write_sound
from pave.data.media import MediaError, probe, read_audio, write_video

# --- sound


def click_at(seconds, length, rate):
    samples = np.zeros(int(length * rate), dtype=np.float32)
    at = int(seconds * rate)
    samples[at : at + rate // 1000] = 0.8
    return samples


def click_time(clip):
    """Centre of the loudest millisecond."""
    energy = np.convolve(clip.samples.astype(np.float64) ** 2, np.ones(max(1, clip.sample_rate // 1000)), mode="same")
    return clip.start_time + float(np.argmax(energy)) / clip.sample_rate


@pytest.mark.parametrize(("layout", "channels"), [("5.1", 6), ("7.1", 8), ("hexadecagonal", 16)])
def test_many_channels_are_mixed_too(tmp_path, layout, channels):
    """Such tracks (film sound, ambisonics) decode to one array per channel, which PyAV crashes on from 8 on."""
    wave = np.sin(np.arange(9600) * 0.05)
    shares = np.arange(1, channels + 1) / channels
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("libopus", rate=48000, layout=layout, options={"mapping_family": "255"})
        for start in range(0, len(wave), 960):
            piece = (wave[start : start + 960, None] * shares * 0.5).astype(np.float32).reshape(1, -1)
            frame = av.AudioFrame.from_ndarray(piece, format="flt", layout=layout)
            frame.sample_rate, frame.pts, frame.time_base = 48000, start, Fraction(1, 48000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    clip = read_audio(tmp_path / "a.mkv", 48000)
    assert clip.sample_rate == 48000 and len(clip) == len(wave)
    np.testing.assert_allclose(clip.samples[2000:8000], wave[2000:8000] * shares.mean() * 0.5, atol=0.02)


@pytest.mark.parametrize("audio_start", [0.0, 0.5, 0.123, -0.25])
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
@pytest.mark.parametrize(("rate", "read_rate"), [(16000, 16000), (44100, 16000), (48000, 22050)])
def test_a_click_is_heard_when_it_was_made(tmp_path, audio_start, name, rate, read_rate):
    sound = click_at(0.7, 1.2, rate)
    write_video(tmp_path / name, bars(20), fps=10, audio=sound, sample_rate=rate, audio_start=audio_start)
    clip = read_audio(tmp_path / name, read_rate)
    assert click_time(clip) == pytest.approx(audio_start + 0.7005, abs=0.0025)
    assert clip.start_time == pytest.approx(audio_start, abs=0.07)
    info = probe(tmp_path / name)
    assert info.audio.start_time == pytest.approx(clip.start_time, abs=1e-6)
    assert info.audio.duration == pytest.approx(clip.duration, abs=0.03)
    assert (info.audio.sample_rate, info.audio.channels, info.audio.codec) == (rate, 1, "aac")


def test_a_track_is_as_long_as_it_was_written(tmp_path):
    write_video(tmp_path / "a.mp4", bars(20), fps=10, audio=noise(1.5, 16000))
    clip = read_audio(tmp_path / "a.mp4", 16000)
    assert (len(clip), clip.start_time) == (24000, 0.0)


def test_unresampled_lossless_sound_is_bit_exact(tmp_path):
    values = np.random.default_rng(2).integers(-32768, 32767, (5000, 2), dtype=np.int16)
    for name, codec, sample_format in [("a.wav", "pcm_s16le", "s16"), ("a.flac", "flac", "s16"), ("b.mkv", "flac", "s16")]:
        clip = read_audio(write_sound(tmp_path / name, values, 44100, codec, sample_format, "stereo"), 44100)
        np.testing.assert_array_equal(clip.samples, (values.astype(np.float64).mean(axis=1) / 32768).astype(np.float32))
        assert (clip.sample_rate, clip.start_time) == (44100, 0.0)
        assert probe(tmp_path / name).video is None


@pytest.mark.parametrize(
    ("codec", "sample_format", "dtype", "scale"),
    [("pcm_u8", "u8", np.uint8, None), ("pcm_s32le", "s32", np.int32, 2**31), ("pcm_f32le", "flt", np.float32, 1), ("pcm_f64le", "dbl", np.float64, 1)],
)  # fmt: skip
def test_every_sample_format_has_full_scale_one(tmp_path, codec, sample_format, dtype, scale):
    wave = np.sin(np.arange(3000) / 20)
    stored = (wave * 127 + 128).astype(dtype) if scale is None else (wave * (scale - 1 if scale > 1 else 1)).astype(dtype)
    clip = read_audio(write_sound(tmp_path / "a.wav", stored[:, None], 8000, codec, sample_format, "mono"), 8000)
    np.testing.assert_allclose(clip.samples, wave, atol=0.02 if scale is None else 1e-6)


def test_mono_is_the_mean_of_the_channels(tmp_path):
    tone = np.sin(np.arange(4410) * 2 * np.pi * 440 / 44100) * 0.5
    opposite = np.stack([tone, -tone], axis=1).astype(np.float32)
    clip = read_audio(write_sound(tmp_path / "a.wav", opposite, 44100, "pcm_f32le", "flt", "stereo"), 16000)
    assert np.abs(clip.samples).max() < 1e-6
    left = np.stack([tone, 0 * tone], axis=1).astype(np.float32)
    clip = read_audio(write_sound(tmp_path / "b.wav", left, 44100, "pcm_f32le", "flt", "stereo"), 44100)
    np.testing.assert_allclose(clip.samples, tone / 2, atol=1e-6)


@pytest.mark.parametrize(("rate", "new_rate"), [(44100, 16000), (48000, 16000), (16000, 48000), (22050, 16000)])
def test_resampling_keeps_waves_in_place(tmp_path, rate, new_rate):
    seconds = 2.5
    wave = 0.5 * np.sin(2 * np.pi * 500 * np.arange(int(seconds * rate)) / rate)
    write_sound(tmp_path / "a.wav", wave[:, None].astype(np.float32), rate, "pcm_f32le", "flt", "mono")
    clip = read_audio(tmp_path / "a.wav", new_rate)
    assert len(clip) == round(len(wave) * new_rate / rate)
    expected = 0.5 * np.sin(2 * np.pi * 500 * np.arange(len(clip)) / new_rate)
    np.testing.assert_allclose(clip.samples[200:-200], expected[200:-200], atol=2e-3)


def test_a_gap_in_the_track_is_silence(tmp_path):
    sound = noise(2, 16000)
    path = write_sound(tmp_path / "a.mkv", sound[:, None], 16000, "pcm_f32le", "flt", "mono", starts=(16000, 8000))
    clip = read_audio(path, 16000)
    assert len(clip) == 40000
    np.testing.assert_array_equal(clip.samples[:16000], sound[:16000])
    assert not clip.samples[16000:24000].any()
    np.testing.assert_array_equal(clip.samples[24000:], sound[16000:])


def test_time_stamps_that_run_back_are_damage(tmp_path, caplog):
    path = write_sound(tmp_path / "a.ts", noise(1, 16000)[:, None], 16000, "aac", "fltp", "mono")
    once = read_audio(path, 16000)
    path.write_bytes(path.read_bytes() * 2)
    with pytest.raises(MediaError, match=r"a\.ts: the sound is damaged: its time stamps run back by 1\.\d+ s after 1\.\d+ s"):
        read_audio(path, 16000)
    np.testing.assert_array_equal(read_audio(path, 16000, on_corrupt="keep").samples[:16000], once.samples[:16000])
    assert "run back" in caplog.text


def test_a_window_of_sound_is_a_slice_of_the_whole(tmp_path):
    write_video(tmp_path / "a.mp4", bars(40), fps=10, audio=noise(3, 16000), audio_start=0.5)
    whole = read_audio(tmp_path / "a.mp4", 8000)
    part = read_audio(tmp_path / "a.mp4", 8000, start=1.0, end=2.0)
    first = round((part.start_time - whole.start_time) * 8000)
    assert part.start_time == pytest.approx(1.0, abs=1 / 8000)
    assert len(part) == 8000
    np.testing.assert_array_equal(part.samples, whole.samples[first : first + 8000])
    assert read_audio(tmp_path / "a.mp4", 8000, start=-5, end=99).samples.shape == whole.samples.shape
    assert read_audio(tmp_path / "a.mp4", 8000, start=10) is None
    assert read_audio(tmp_path / "a.mp4", 8000, end=0.1) is None
    late = read_audio(tmp_path / "a.mp4", 8000, offset=0.25)
    assert late.start_time == whole.start_time + 0.25
    np.testing.assert_array_equal(late.samples, whole.samples)
    assert read_audio(tmp_path / "a.mp4", 8000, offset=0.25, start=1.0).start_time == pytest.approx(1.0, abs=1 / 8000)


@pytest.mark.parametrize(("codec", "name"), [("mp3", "a.mp3"), ("libopus", "a.ogg"), ("aac", "a.m4a")])
def test_sound_files_start_at_zero(tmp_path, codec, name):
    sound = click_at(0.5, 1.0, 48000)[:, None]
    sample_format = "s16p" if codec == "mp3" else "s16" if codec == "libopus" else "fltp"
    scaled = (sound * 32767).astype(np.int16) if sample_format.startswith("s16") else sound
    clip = read_audio(write_sound(tmp_path / name, scaled, 48000, codec, sample_format, "mono"), 16000)
    assert clip.start_time == 0.0
    assert click_time(clip) == pytest.approx(0.5005, abs=0.003)


def test_no_sound_is_a_normal_case(tmp_path):
    write_video(tmp_path / "a.mp4", bars(3), fps=10)
    assert read_audio(tmp_path / "a.mp4", 16000) is None
    assert read_audio(tmp_path / "a.mp4", 16000, timeout=60) is None
    assert probe(tmp_path / "a.mp4").audio is None
