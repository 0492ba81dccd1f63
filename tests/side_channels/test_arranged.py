"""Sound of several channels, clocks that are off, and tracks that are silent, from real files."""

import math

import numpy as np
import pytest
import torch

from media_files import write_sound
from pave.config import EncoderConfig, SideChannelConfig
from pave.data.dataset import PatchDataset
from pave.data.media import FrameSampling, MediaError, read_audio, write_video
from pave.data.samples import Sample
from pave.data.sources import read_source
from pave.side_channels import AudioClip, SideEncoder, build_encoder
from tiny_audio_models import save_tiny

RATE = 16000


def tone(frequency, seconds=2.0, level=0.4):
    return (level * np.sin(2 * np.pi * frequency * np.arange(int(seconds * RATE)) / RATE)).astype(np.float32)


LEFT, RIGHT = tone(300), tone(3000)


@pytest.fixture(scope="module")
def stereo(tmp_path_factory):
    path = tmp_path_factory.mktemp("sound") / "stereo.wav"
    return str(write_sound(path, np.stack([LEFT, RIGHT], axis=1), RATE, "pcm_f32le", "flt", "stereo"))


def log_mel(**settings):
    return build_encoder(EncoderConfig(settings={"n_mels": 16, **settings}))


def features_of(path, **settings):
    encoder = log_mel(**settings)
    return encoder.encode(read_source(encoder, path, None))


def test_each_channel_is_read_as_it_is(stereo):
    clip = read_audio(stereo, RATE, channels="all")
    np.testing.assert_allclose(clip.samples, np.stack([LEFT, RIGHT], axis=1), atol=1e-6)
    mono = read_audio(stereo, RATE)
    np.testing.assert_allclose(mono.samples, (LEFT + RIGHT) / 2, atol=1e-6)
    np.testing.assert_allclose(clip.mixed().samples, mono.samples, atol=1e-6)
    half = read_audio(stereo, RATE // 2, channels="all")  # resampled one by one
    np.testing.assert_allclose(half.samples[:, 0], read_audio(stereo, RATE // 2, channels="all").channel(0).samples)
    assert half.samples.shape == (RATE, 2)
    assert np.abs(half.samples[200:-200, 0] - LEFT[::2][200:-200]).max() < 0.02
    elsewhere = read_audio(stereo, RATE, channels="all", start=0.5, end=1.0, timeout=60)
    np.testing.assert_array_equal(elsewhere.samples, clip.samples[RATE // 2 : RATE])
    with pytest.raises(ValueError, match="channels must be 'mix' or 'all', got 'left'"):
        read_audio(stereo, RATE, channels="left")


def test_a_gap_is_silent_in_every_channel(tmp_path):
    values = np.stack([LEFT, RIGHT], axis=1)
    path = write_sound(tmp_path / "gap.mkv", values, RATE, "pcm_f32le", "flt", "stereo", starts=(RATE, RATE // 2))
    samples = read_audio(path, RATE, channels="all").samples
    assert samples.shape == (2 * RATE + RATE // 2, 2)
    quiet = np.abs(samples[RATE : RATE + RATE // 2])
    assert quiet.max() == 0 and np.abs(samples[:RATE] - values[:RATE]).max() < 1e-3


def test_a_track_that_changes_its_channels_can_only_be_mixed(tmp_path):
    values = np.stack([LEFT, RIGHT], axis=1)
    mono = write_sound(tmp_path / "mono.mp3", values[:, :1], RATE, "libmp3lame", "fltp", "mono")
    both = write_sound(tmp_path / "both.mp3", values, RATE, "libmp3lame", "fltp", "stereo")
    path = tmp_path / "joined.mp3"
    path.write_bytes(mono.read_bytes() + both.read_bytes())
    assert read_audio(path, RATE, on_corrupt="keep").duration > 4
    with pytest.raises(
        MediaError, match=r"joined\.mp3: the number of channels changes from 1 to 2 within the track; re-encode"
    ):
        read_audio(path, RATE, channels="all", on_corrupt="keep")


def test_what_an_encoder_hears(stereo):
    """One channel alone is that channel's own mono file; each is both, one behind the other; the mix is the default."""
    plain = build_encoder(EncoderConfig(settings={"n_mels": 16}))
    alone = [plain.encode(AudioClip(samples, RATE)).features_KMC for samples in (LEFT, RIGHT)]
    for number in (0, 1):
        torch.testing.assert_close(features_of(stereo, channel=number).features_KMC, alone[number], rtol=0, atol=1e-4)
    each = features_of(stereo, channel="each", num_channels=2)
    torch.testing.assert_close(each.features_KMC, torch.cat(alone, dim=1), rtol=0, atol=1e-4)
    assert log_mel(channel="each", num_channels=2).tokens_per_step == 2
    mix = features_of(stereo)
    torch.testing.assert_close(features_of(stereo, channel="mix").features_KMC, mix.features_KMC, rtol=0, atol=0)
    assert (mix.features_KMC - alone[0]).abs().max() > 0.5
    mono = AudioClip(LEFT, RATE)
    torch.testing.assert_close(log_mel(channel=0).encode(mono).features_KMC, alone[0], rtol=0, atol=0)


def test_channels_that_are_not_there_are_refused(stereo):
    with pytest.raises(ValueError, match="log_mel: channel 2 is not there, the sound has 2; they count from 0"):
        features_of(stereo, channel=2)
    with pytest.raises(ValueError, match="num_channels says 6 channels but the sound has 2; use channel: mix"):
        features_of(stereo, channel="each", num_channels=6)
    plain = build_encoder(EncoderConfig())
    with pytest.raises(ValueError, match=r"hears mono sound but the clip has 2 channels; mix them \(clip\.mixed\(\)\)"):
        plain.encode(read_audio(stereo, RATE, channels="all"))
    for settings, words in [
        ({"channel": "left"}, "channel must be 'mix', 'each' or the number of a channel from 0, got 'left'"),
        ({"channel": -1}, "got -1"),
        ({"channel": True}, "got True"),
        ({"channel": "each"}, "needs num_channels"),
        ({"num_channels": 2}, "only it takes that"),
        ({"channel": "each", "num_channels": 0}, "at least 1"),
        ({"offset_seconds": math.nan}, "offset_seconds must be finite"),
    ]:
        with pytest.raises(ValueError, match=f"log_mel: .*{words}"):
            log_mel(**settings)
    with pytest.raises(ValueError, match="has no setting 'offset'; did you mean 'offset_seconds'"):
        log_mel(offset=1.0)


def test_an_offset_moves_times_only_and_names_the_cache(stereo, tmp_path):
    here, there = features_of(stereo), features_of(stereo, offset_seconds=-0.4)
    torch.testing.assert_close(there.times_K, here.times_K - 0.4, rtol=0, atol=1e-12)
    torch.testing.assert_close(there.features_KMC, here.features_KMC, rtol=0, atol=0)
    encoder = log_mel(offset_seconds=-0.4, channel=1)
    assert isinstance(encoder, SideEncoder)
    spec = encoder.spec()
    assert spec.settings["offset_seconds"] == -0.4 and spec.settings["channel"] == 1 and spec.settings["n_mels"] == 16
    assert build_encoder(EncoderConfig.from_dict(spec.to_dict())).spec() == spec
    assert encoder.to("cpu") is encoder

    video = tmp_path / "a.mp4"
    write_video(video, np.zeros((16, 32, 32, 3), np.uint8), fps=8, audio=LEFT, sample_rate=RATE)
    sample = Sample(id="a", video=str(video), question="q", answer="a")
    firsts = []
    for settings in ({}, {"offset_seconds": 0.5}, {"offset_seconds": 0.5}):
        channels = {"audio": SideChannelConfig(width=16)}
        data = PatchDataset(
            [sample], FrameSampling(num_frames=2), {"audio": log_mel(**settings)}, channels, cache=str(tmp_path / "cache")
        )
        firsts.append((data.cache_report.hits, float(data[0].side["audio"].times_K[0]), data.cache_report.hits))
    assert [round(first, 3) for _, first, _ in firsts] == [0.125, 0.625, 0.625]
    assert [after for _, _, after in firsts] == [0, 0, 1]


@pytest.mark.parametrize("family", ["log_mel", "clap", "ast", "whisper", "speech", "pe_audio"])
def test_a_silent_track_is_there_and_a_missing_one_is_not(tmp_path, family):
    """Silence has features, finite and the same in every moment far from the ends; only a video without a track lacks them."""
    frames = np.zeros((24, 32, 32, 3), np.uint8)
    write_video(tmp_path / "silent.mp4", frames, fps=8, audio=np.zeros(3 * RATE, np.float32), sample_rate=RATE)
    write_video(tmp_path / "mute.mp4", frames, fps=8)
    config = EncoderConfig()
    if family != "log_mel":
        config = EncoderConfig(name=family, model=save_tiny(family, tmp_path / "model")[0])
    encoder = build_encoder(config)
    assert read_source(encoder, str(tmp_path / "mute.mp4"), None) is None
    clip = read_source(encoder, str(tmp_path / "silent.mp4"), None)
    assert clip.duration == pytest.approx(3, abs=0.1) and np.abs(clip.samples).max() < 1e-4
    features = encoder.encode(clip)
    assert len(features) >= 1 and torch.isfinite(features.features_KMC).all()
    assert float(features.times_K[-1]) < 3.1
    if family == "log_mel":
        torch.testing.assert_close(features.features_KMC, torch.full_like(features.features_KMC, -3.0))
