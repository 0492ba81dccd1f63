"""Every audio encoder: tokens at their true times, the same wherever the clip stands, and rebuilt by their own spec."""

import io
import json
import logging
import sys

import numpy as np
import pytest
import torch

from pave.config import EncoderConfig
from pave.side_channels import AudioClip, SideEncoder, build_encoder
from pave.side_channels.windows import plan_windows
from tiny_audio_models import RATE, save_tiny

CASES = {
    "log_mel": (EncoderConfig(), None),
    "log_mel parts": (EncoderConfig(settings={"parts_per_step": 5, "n_mels": 16}), None),
    "clap": (EncoderConfig(name="clap"), True),
    "clap frequency": (EncoderConfig(name="clap", settings={"keep_frequency": True}), False),
    "ast": (EncoderConfig(name="ast"), True),
    "ast frequency": (EncoderConfig(name="ast", settings={"keep_frequency": True}), False),
    "whisper": (EncoderConfig(name="whisper"), True),
    "whisper fine": (EncoderConfig(name="whisper", settings={"pool": 1}), False),
    "speech": (EncoderConfig(name="speech", settings={"window_seconds": 2.0, "pool": 1}), False),
    "speech coarse": (EncoderConfig(name="speech", settings={"window_seconds": 2.0}), True),
    "pe_audio": (EncoderConfig(name="pe_audio", settings={"window_seconds": 2.0}), True),
}
# A norm over all of a window, as in the smaller published models, spreads a click over it: times are tested without one.
BLUR = {"pe_audio": 0.12}  # a position hears 0.16 s either side, so that means of five may be shaken more beside the click
TINY = {"speech": {"kind": "Wav2Vec2", "normalise": False, "group": False}}
SHAPES = {  # (tokens per step, width, seconds per step)
    "log_mel": (1, 64, 0.25),
    "log_mel parts": (1, 80, 0.25),
    "clap": (1, 16, 0.06275),
    "clap frequency": (2, 16, 0.06275),
    "ast": (1, 16, 0.04),
    "ast frequency": (3, 16, 0.04),
    "whisper": (1, 16, 0.2),
    "whisper fine": (1, 16, 0.02),
    "speech": (1, 16, 0.02),
    "speech coarse": (1, 16, 0.2),
    "pe_audio": (1, 16, 0.2),
}


@pytest.fixture(scope="module", params=CASES, ids=lambda name: name.replace(" ", "-"))
def case(request, tmp_path_factory):
    config, whole = CASES[request.param]
    if whole is not None:
        folder, _, _ = save_tiny(config.name, tmp_path_factory.mktemp(config.name), whole=whole, **TINY.get(config.name, {}))
        config = EncoderConfig(name=config.name, model=folder, settings=config.settings)
    return request.param, build_encoder(config)


def noise(seconds, seed=0, level=0.01):
    return (np.random.default_rng(seed).normal(size=int(seconds * RATE)) * level).astype(np.float32)


def clip(samples, start=0.0):
    return AudioClip(samples, RATE, start)


def test_shapes_and_interface(case):
    name, encoder = case
    tokens, width, seconds = SHAPES[name]
    assert isinstance(encoder, SideEncoder)
    assert (encoder.source, encoder.sample_rate, encoder.tokens_per_step, encoder.width) == ("audio", RATE, tokens, width)
    features = encoder.encode(clip(noise(1.9)))
    assert features.features_KMC.shape[1:] == (tokens, width)
    assert features.features_KMC.dtype == torch.float32
    assert not features.features_KMC.requires_grad
    assert not features.features_KMC.is_inference()
    assert features.times_K.dtype == torch.float64
    assert len(features) == pytest.approx(1.9 / seconds, abs=1.1)
    np.testing.assert_allclose(np.diff(features.times_K), seconds, atol=1e-4)


def changes(encoder, samples, at):
    """How much each step's features change when a click is put at ``at`` seconds."""
    clicked = samples.copy()
    first = round(at * RATE) - 8
    clicked[first : first + 16] += 0.5
    before, after = encoder.encode_batch([clip(samples), clip(clicked)])
    return (after.features_KMC - before.features_KMC).abs().mean(dim=(1, 2)).double().numpy(), before.times_K.numpy()


def test_the_step_that_hears_a_click_is_the_one_at_its_time(case):
    name, encoder = case
    seconds = SHAPES[name][2]
    samples = noise(5.0)
    misses = []
    for at in 0.3 + 4.4 * (np.arange(40) * 0.618034 % 1):
        change, times = changes(encoder, samples, at)
        misses.append(times[np.argmax(change)] - at)
    misses = np.array(misses)
    assert np.abs(misses).max() < 0.5 * seconds + BLUR.get(name, 0.02)
    assert abs(misses.mean()) < 0.25 * seconds + 0.002


def test_times_move_with_the_clip_and_features_do_not(case):
    _, encoder = case
    here, there = encoder.encode(clip(noise(4.3))), encoder.encode(clip(noise(4.3), start=12.5))
    torch.testing.assert_close(here.features_KMC, there.features_KMC, rtol=0, atol=0)
    torch.testing.assert_close(here.times_K + 12.5, there.times_K, rtol=0, atol=1e-9)


def test_long_sound_has_one_grid_of_steps_without_holes_or_repeats(case):
    name, encoder = case
    seconds = SHAPES[name][2]
    features = encoder.encode(clip(noise(9.0)))
    steps = np.diff(features.times_K)
    assert steps.min() > 0.85 * seconds
    assert steps.max() < 1.1 * seconds
    assert features.times_K[0] < seconds + 0.02
    assert 9.0 - 1.5 * seconds - 0.06 < features.times_K[-1] < 9.0


def test_a_batch_is_its_clips_one_by_one(case):
    _, encoder = case
    clips = [
        clip(noise(length, seed), start)
        for seed, (length, start) in enumerate([(0.7, 0.0), (5.1, -1.0), (2.0, 3.0), (0.001, 0.0)])
    ]
    for together, clip_alone in zip(encoder.encode_batch(clips), clips, strict=True):
        alone = encoder.encode(clip_alone)
        torch.testing.assert_close(together.features_KMC, alone.features_KMC, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(together.times_K, alone.times_K, rtol=0, atol=0)
    assert encoder.encode_batch([]) == []


@pytest.mark.parametrize("samples", [1, 100, 3000])
def test_a_clip_shorter_than_a_window_is_padded_with_silence(case, samples):
    _, encoder = case
    sound = noise(1.0)[:samples]
    features = encoder.encode(clip(sound))
    assert len(features) >= 1
    assert torch.isfinite(features.features_KMC).all()
    if encoder.spec().name in ("log_mel", "clap", "whisper"):  # ast pads behind the logarithm, the others do not pad
        silent_tail = encoder.encode(clip(np.pad(sound, (0, 20000))))
        torch.testing.assert_close(features.features_KMC, silent_tail.features_KMC[: len(features)], rtol=1e-4, atol=1e-5)


def test_the_spec_rebuilds_the_encoder(case):
    _, encoder = case
    spec = encoder.spec()
    again = build_encoder(EncoderConfig.from_dict(spec.to_dict()))
    assert again.spec() == spec
    sound = clip(noise(3.0))
    torch.testing.assert_close(again.encode(sound).features_KMC, encoder.encode(sound).features_KMC, rtol=0, atol=0)


def test_another_sample_rate_is_refused(case):
    _, encoder = case
    with pytest.raises(
        ValueError, match=r"needs sound at 16000 Hz but the clip has 8000 Hz; read it with read_audio\(path, 16000\)"
    ):
        encoder.encode(AudioClip(noise(1.0), 8000))


def test_moving_to_a_device(case):
    _, encoder = case
    assert encoder.to("cpu") is encoder
    assert encoder.encode(clip(noise(0.5))).features_KMC.device.type == "cpu"


# --- the families of transformers


@pytest.mark.parametrize("family", ["clap", "ast", "whisper"])
@pytest.mark.parametrize("whole", [True, False])
def test_tokens_are_those_of_the_model_itself(tmp_path, family, whole):
    """One full window by hand, in transformers' own words."""
    folder, model, extractor = save_tiny(family, tmp_path, whole=whole)
    encoder = build_encoder(EncoderConfig(name=family, model=folder, settings={"pool": 1} if family == "whisper" else {}))
    sound = noise(2.0) if family != "ast" else noise(2.055)
    with torch.no_grad():
        if family == "clap":
            inputs = extractor(sound, sampling_rate=RATE, return_tensors="pt", padding="pad")
            expected = (model.audio_model if whole else model)(**inputs).last_hidden_state[0].mean(dim=1).T
        elif family == "ast":
            inputs = extractor(sound, sampling_rate=RATE, return_tensors="pt")
            base = model.audio_spectrogram_transformer if whole else model
            expected = base(**inputs).last_hidden_state[0, 2:].reshape(3, 50, 16).mean(dim=0)
        else:
            inputs = extractor(sound, sampling_rate=RATE, return_tensors="pt")
            expected = (model.model if whole else model).encoder(**inputs).last_hidden_state[0]
    features = encoder.encode(clip(sound)).features_KMC[:, 0]
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("family", "first"), [("clap", 0.0), ("ast", 0.0125), ("whisper", 0.0)])
def test_frames_of_the_feature_extractors_are_centred_where_the_encoders_say(tmp_path, family, first):
    _, _, extractor = save_tiny(family, tmp_path)
    misses = []
    for at in 0.3 + 1.4 * (np.arange(100) * 0.618034 % 1):
        sound = noise(2.055 if family == "ast" else 2.0, level=1e-4)
        sound[round(at * RATE)] += 0.5
        mel = np.asarray(next(iter(extractor(sound, sampling_rate=RATE, return_tensors="np").values()))).squeeze()
        energy = mel.mean(axis=0 if family == "whisper" else 1)
        misses.append(first + 0.01 * np.flatnonzero(energy > np.median(energy) + 0.5 * np.ptp(energy)).mean() - at)
    assert abs(np.mean(misses)) < 0.001
    assert np.abs(misses).max() < 0.011


@pytest.mark.filterwarnings("ignore:At least one mel filter")
def test_published_sizes_give_the_published_rates():
    """Timing for the real configurations, without their weights."""
    import transformers

    from pave.side_channels.audio_transformers import AstAudioEncoder, ClapAudioEncoder, WhisperAudioEncoder

    def timing(kind, config, extractor, **attributes):
        encoder = object.__new__(kind)
        encoder._config, encoder._extractor = config, extractor
        encoder.__dict__.update(attributes)
        return encoder._timing(extractor.sampling_rate)

    window, times = timing(ClapAudioEncoder, transformers.ClapAudioConfig(), transformers.ClapFeatureExtractor())
    assert (window, len(times)) == (480_000, 32)
    np.testing.assert_allclose([times[0], times[-1]], [15.5 * 10 / 1023, 10 - 15.5 * 10 / 1023])
    window, times = timing(AstAudioEncoder, transformers.ASTConfig(), transformers.ASTFeatureExtractor())
    assert (window, len(times)) == (164_080, 101)  # 1024 frames; tokens on every 10th of 16 frames of 25 ms
    np.testing.assert_allclose(times, 0.0875 + 0.1 * np.arange(101))
    whisper = transformers.WhisperConfig(), transformers.WhisperFeatureExtractor()
    window, times = timing(WhisperAudioEncoder, *whisper, _pool=1)
    assert window == 480_000
    np.testing.assert_allclose(times, 0.02 * np.arange(1500))
    _, times = timing(WhisperAudioEncoder, *whisper, _pool=10)
    np.testing.assert_allclose(times, 0.09 + 0.2 * np.arange(150))


def test_fused_clap_is_deterministic(tmp_path):
    """Its feature extractor marks a random clip as longer than it is."""
    folder, _, _ = save_tiny("clap", tmp_path, fusion=True)
    encoder = build_encoder(EncoderConfig(name="clap", model=folder))
    clips = [clip(noise(1.5, seed)) for seed in range(6)]
    first = encoder.encode_batch(clips)
    for _ in range(3):
        for a, b in zip(first, encoder.encode_batch(clips), strict=True):
            torch.testing.assert_close(a.features_KMC, b.features_KMC, rtol=0, atol=0)


def test_overlapping_windows(tmp_path):
    folder, _, _ = save_tiny("whisper", tmp_path)
    apart = build_encoder(EncoderConfig(name="whisper", model=folder, settings={"pool": 2}))
    lapped = build_encoder(EncoderConfig(name="whisper", model=folder, settings={"pool": 2, "stride_seconds": 1.0}))
    sound = clip(noise(5.0))
    a, b = apart.encode(sound), lapped.encode(sound)
    torch.testing.assert_close(a.times_K, b.times_K, rtol=0, atol=1e-9)
    early = a.times_K < 1.5  # both heard this in the window that begins at 0
    torch.testing.assert_close(a.features_KMC[early], b.features_KMC[early], rtol=1e-4, atol=1e-5)
    seam = (a.times_K > 1.6) & (a.times_K < 2.0)
    assert (a.features_KMC[seam] - b.features_KMC[seam]).abs().max() > 1e-4
    middle = lapped.encode(clip(sound.samples[RATE : 3 * RATE]))  # the window from 1 s to 3 s alone
    kept = (b.times_K > 1.5) & (b.times_K < 2.49)
    torch.testing.assert_close(
        b.features_KMC[kept], middle.features_KMC[25 // 2 + 1 : 25 // 2 + 1 + int(kept.sum())], rtol=1e-4, atol=1e-5
    )


def test_windows_hear_every_moment_once():
    times = np.array([0.25, 0.75, 1.25, 1.75])

    def kept(samples, stride):
        windows = plan_windows(samples, 10, 20, stride, times)
        return [w.first for w in windows], np.concatenate([w.first / 10 + times[w.keep_W] for w in windows]).tolist()

    assert kept(20, 20) == ([0], [0.25, 0.75, 1.25, 1.75])
    assert kept(21, 20) == ([0, 20], [0.25, 0.75, 1.25, 1.75])
    assert kept(23, 20) == ([0, 20], [0.25, 0.75, 1.25, 1.75, 2.25])
    assert kept(40, 10) == ([0, 10, 20], [0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.25, 3.75])
    assert kept(1, 20) == ([0], [0.25])
    assert kept(9, 20) == ([0], [0.25, 0.75])


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (EncoderConfig(name="logmel"), "there is no encoder 'logmel'; did you mean 'log_mel'"),
        (EncoderConfig(name="zzz"), "known encoders: log_mel, clap, ast, whisper, features, "),
        (EncoderConfig(settings={"n_mel": 3}), "'log_mel' has no setting 'n_mel'; did you mean 'n_mels'"),
        (EncoderConfig(settings={"zzz": 3}), "known settings: channel, hop_seconds, n_mels, num_channels, offset_seconds"),
        (EncoderConfig(model="x"), "takes no model"),
        (EncoderConfig(name="clap"), "'clap' needs model"),
        (EncoderConfig(name="clap", model="x", settings={"model": "y"}), "no setting 'model'"),
        (EncoderConfig(name="clap", model="/no/such/folder"), "clap: the encoder '/no/such/folder' cannot be loaded"),
        (EncoderConfig(name="features"), "'features' cannot be built .*'width'"),
        (EncoderConfig(settings={"n_mels": "many"}), "log_mel.* cannot be built"),
        (EncoderConfig(settings={"hop_seconds": 0.0101}), "hop_seconds .* whole number of samples"),
        (EncoderConfig(settings={"step_seconds": 0.255}), "step_seconds .* whole number of hops"),
        (EncoderConfig(settings={"parts_per_step": 4}), "25 hops of a step do not divide into 4 parts"),
        (EncoderConfig(settings={"n_mels": 400}), "use fewer"),
        (EncoderConfig(settings={"window_seconds": 0.001}), "at least hop_seconds"),
    ],
)
def test_bad_configs_are_named(config, words):
    with pytest.raises(ValueError, match=words):
        build_encoder(config)


def test_weights_that_do_not_fit_are_refused(tmp_path, caplog):
    caplog.set_level(logging.CRITICAL)
    folder, _, _ = save_tiny("ast", tmp_path / "ast")
    with pytest.raises(ValueError, match="'audio-spectrogram-transformer', not 'clap' or 'clap_audio_model'"):
        build_encoder(EncoderConfig(name="clap", model=folder))
    folder, model, _ = save_tiny("whisper", tmp_path / "whisper", whole=False)
    weights = {name: value for name, value in model.state_dict().items() if "encoder.layers.0.fc1" not in name}
    model.save_pretrained(folder, state_dict=weights)
    with pytest.raises(
        ValueError, match=r"whisper: .* lacks 2 weights of the encoder, among them 'encoder\.layers\.0\.fc1\.bias'"
    ):
        build_encoder(EncoderConfig(name="whisper", model=folder))
    (tmp_path / "whisper" / "model.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(ValueError, match=r"whisper: the encoder .* cannot be loaded"):
        build_encoder(EncoderConfig(name="whisper", model=folder))
    folder, _, _ = save_tiny("whisper", tmp_path / "whisper2")
    for settings, words in [
        ({"pool": 7}, "pool must divide the 100 positions"),
        ({"stride_seconds": 3}, "stride_seconds must be above 0 and at most the window of 2 s"),
        ({"dtype": "int8"}, "dtype must be one of float32"),
    ]:
        with pytest.raises(ValueError, match=words):
            build_encoder(EncoderConfig(name="whisper", model=folder, settings=settings))


def test_code_that_comes_with_an_encoder_is_neither_run_nor_asked_about(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}))
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'was-run')!r}, 'w')\nclass Own: pass\n")
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 9))
    with pytest.raises(ValueError, match="custom code"):
        build_encoder(EncoderConfig(name="clap", model=str(tmp_path)))
    assert not (tmp_path / "was-run").exists()
