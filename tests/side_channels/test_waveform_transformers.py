"""wav2vec 2.0, HuBERT, WavLM and PE audio: tokens of the model itself, and windows of any length."""

import logging

import numpy as np
import pytest
import torch
import transformers

from pave.config import EncoderConfig
from pave.side_channels import AudioClip, build_encoder
from tiny_audio_models import RATE, save_tiny


def noise(seconds, seed=0, level=0.1):
    return (np.random.default_rng(seed).normal(size=int(seconds * RATE)) * level).astype(np.float32)


def build(name, folder, **settings):
    return build_encoder(EncoderConfig(name=name, model=str(folder), settings={"window_seconds": 2.0, **settings}))


@pytest.mark.parametrize("kind", ["Wav2Vec2", "Hubert", "WavLM"])
@pytest.mark.parametrize("layer", [None, 0, 1])
@pytest.mark.parametrize("normalise", [True, False])
def test_tokens_of_speech_models_are_those_of_the_model_itself(tmp_path, kind, layer, normalise):
    """In transformers' own words: one window, and the mean of ten positions."""
    folder, model, extractor = save_tiny("speech", tmp_path, whole=False, kind=kind, normalise=normalise)
    encoder = build("speech", folder, layer=layer)
    sound = noise((99 * 320 + 400) / RATE) + 0.3
    with torch.no_grad():
        out = model(**extractor(sound, sampling_rate=RATE, return_tensors="pt"), output_hidden_states=True)
    hidden = out.last_hidden_state if layer is None else out.hidden_states[layer]
    features = encoder.encode(AudioClip(sound, RATE))
    torch.testing.assert_close(features.features_KMC[:, 0], hidden[0].reshape(10, 10, 16).mean(dim=1), rtol=0, atol=1e-6)
    np.testing.assert_allclose(features.times_K, (np.arange(10) * 3200 + 1440 + 199.5) / RATE)


def test_tokens_of_pe_audio_are_those_of_the_model_itself(tmp_path):
    folder, model, extractor = save_tiny("pe_audio", tmp_path)
    sound = noise(2.0)
    with torch.no_grad():
        inputs = extractor([sound], sampling_rate=RATE, return_tensors="pt", padding=True)
        expected = model.audio_encoder(**inputs).last_hidden_state[0]
    features = build("pe_audio", folder, pool=1).encode(AudioClip(sound, RATE))
    torch.testing.assert_close(features.features_KMC[:, 0], expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(features.times_K, (np.arange(50) * 640 + 319.5) / RATE)


def test_positions_of_pe_audio_are_centred_in_their_hop(tmp_path):
    """The convolutions in front of the transformer, each click moved a little further."""
    _, model, _ = save_tiny("pe_audio", tmp_path, whole=False)
    sound = torch.from_numpy(noise(2.0, level=0.01))[None, None]
    misses = []
    with torch.no_grad():
        before = model.embedder.dac_encoder(sound)
        for at in range(16000, 16000 + 640 * 2, 13):
            clicked = sound.clone()
            clicked[0, 0, at] += 0.5
            weight = (model.embedder.dac_encoder(clicked) - before).square().sum(dim=1)[0]
            position = float((weight * torch.arange(len(weight))).sum() / weight.sum())
            misses.append((position * 640 + 319.5 - at) / 640)
    assert abs(np.mean(misses)) < 0.05
    assert np.abs(misses).max() < 1


def test_short_sound_is_not_filled_up_to_a_window(tmp_path):
    """0.5 s alone is what the model makes of 0.5 s, not of 2 s that end in silence."""
    folder, model, extractor = save_tiny("speech", tmp_path, whole=False, kind="Hubert")
    sound = noise((24 * 320 + 400) / RATE)
    with torch.no_grad():
        expected = model(**extractor(sound, sampling_rate=RATE, return_tensors="pt")).last_hidden_state[0]
    features = build("speech", folder, pool=1).encode(AudioClip(sound, RATE))
    torch.testing.assert_close(features.features_KMC[:, 0], expected[: len(features)], rtol=0, atol=1e-6)
    assert len(features) == 25


def test_weights_that_play_no_part_may_be_missing(tmp_path, caplog):
    caplog.set_level(logging.CRITICAL)
    folder, model, _ = save_tiny("speech", tmp_path, whole=True, kind="Wav2Vec2")
    weights = {name: value for name, value in model.state_dict().items() if not name.endswith("masked_spec_embed")}
    assert len(weights) < len(model.state_dict())
    model.save_pretrained(folder, state_dict=dict(weights))
    sound = AudioClip(noise(1.0), RATE)
    first, second = (build("speech", folder).encode(sound).features_KMC for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    weights.pop(next(name for name in weights if name.endswith("k_proj.weight")))
    model.save_pretrained(folder, state_dict=dict(weights))
    with pytest.raises(ValueError, match=r"speech: .* lacks 1 weights of the encoder, among them .*k_proj\.weight"):
        build("speech", folder)


def test_published_sizes_have_the_right_clock():
    from pave.side_channels.waveform_transformers import PeAudioEncoder, SpeechAudioEncoder

    def timing(kind, config, rate):
        encoder = object.__new__(kind)
        encoder._config, encoder._pool, encoder._window_seconds = config, 1, 10.0
        return encoder._timing(rate)

    window, times = timing(SpeechAudioEncoder, transformers.WavLMConfig(), 16000)
    assert (window, len(times)) == (160_080, 500)
    np.testing.assert_allclose(times, 199.5 / 16000 + 0.02 * np.arange(500))
    window, times = timing(PeAudioEncoder, transformers.PeAudioEncoderConfig(), 48000)
    assert (window, len(times)) == (480_000, 250)
    np.testing.assert_allclose(times, 959.5 / 48000 + 0.04 * np.arange(250))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"pool": 0}, "pool must be at least 1, got 0"),
        ({"window_seconds": 0}, "window_seconds must be above 0"),
        ({"layer": 3}, "layer must be from 0 to 2 for .* got 3"),
        ({"stride_seconds": 5.0}, "at most the window of 2"),
    ],
)
def test_settings_are_checked(tmp_path, settings, words):
    folder, _, _ = save_tiny("speech", tmp_path, whole=False)
    with pytest.raises(ValueError, match=f"speech: .*{words}"):
        build("speech", folder, **settings)
