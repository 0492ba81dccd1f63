"""Text with times as features: the right vector at the right moment, on every computer, with weights and without."""

import logging
import math

import numpy as np
import pytest
import torch

from pave.config import EncoderConfig
from pave.side_channels import SideEncoder, build_encoder
from pave.side_channels.text import HashedText, TextSegment, TimedText, TransformersText
from tiny_audio_models import save_tiny
from tiny_text_models import save_tiny_text

BELL, DOG = TextSegment(1.0, 3.0, "A bell rings."), TextSegment(3.5, 4.0, "the dog barks")


@pytest.fixture(scope="module", params=["text_hash", "text_transformers"])
def encoder_of(request, tmp_path_factory):
    config = EncoderConfig(name=request.param)
    if request.param == "text_transformers":
        config = EncoderConfig(name=request.param, model=save_tiny_text(tmp_path_factory.mktemp("bert"))[0])
    return lambda **settings: build_encoder(EncoderConfig(name=config.name, model=config.model, settings=settings))


def test_one_step_in_the_middle_of_each_segment(encoder_of):
    encoder = encoder_of()
    features = encoder.encode(TimedText((DOG, BELL, TextSegment(9, 10, "  "))))
    assert features.times_K.tolist() == [2.0, 3.75]
    assert features.features_KMC.shape == (2, 1, encoder.width) and features.features_KMC.dtype == torch.float32
    alone = encoder.encode(TimedText((BELL,))).features_KMC
    torch.testing.assert_close(features.features_KMC[:1], alone, rtol=0, atol=1e-6)
    assert (features.features_KMC[0] - features.features_KMC[1]).abs().max() > 0.1


def test_a_long_segment_stands_at_several_times(encoder_of):
    features = encoder_of(step_seconds=0.75).encode(TimedText((BELL, DOG)))
    np.testing.assert_allclose(features.times_K, [1 + 1 / 3, 2, 2 + 2 / 3, 3.75])
    torch.testing.assert_close(features.features_KMC[0], features.features_KMC[2], rtol=0, atol=0)
    exact = encoder_of(step_seconds=0.1).encode(TimedText((TextSegment(0.0, 0.3, "a bell"),)))
    np.testing.assert_allclose(exact.times_K, [0.05, 0.15, 0.25])
    instant = encoder_of(step_seconds=0.1).encode(TimedText((TextSegment(2.0, 2.0, "a bell"),)))
    assert instant.times_K.tolist() == [2.0]


def test_overlapping_segments_are_in_the_order_of_time(encoder_of):
    long, short = TextSegment(0.0, 4.0, "a bell rings"), TextSegment(1.0, 2.0, "the dog barks")
    features = encoder_of(step_seconds=1.0).encode(TimedText((long, short)))
    assert features.times_K.tolist() == [0.5, 1.5, 1.5, 2.5, 3.5]
    torch.testing.assert_close(features.features_KMC[1], features.features_KMC[0], rtol=0, atol=0)
    assert (features.features_KMC[2] - features.features_KMC[0]).abs().max() > 0.1


def test_offset_and_empty_text(encoder_of):
    encoder = encoder_of(offset_seconds=-1.5)
    assert encoder.encode(TimedText((BELL,))).times_K.tolist() == [0.5]
    for nothing in (TimedText(()), TimedText((TextSegment(0, 1, ""),))):
        features = encoder.encode(nothing)
        assert features.features_KMC.shape == (0, 1, encoder.width) and features.times_K.shape == (0,)


def test_a_batch_is_its_texts_one_by_one_and_the_spec_rebuilds(encoder_of):
    encoder = encoder_of(step_seconds=2.0)
    assert isinstance(encoder, SideEncoder)
    assert (encoder.source, encoder.sample_rate, encoder.tokens_per_step) == ("text", None, 1)
    spec = encoder.spec()
    again = build_encoder(EncoderConfig.from_dict(spec.to_dict()))
    assert again.spec() == spec and again.to("cpu") is again
    texts = [TimedText((BELL,)), TimedText((DOG, BELL)), TimedText(())]
    for together, text in zip(encoder.encode_batch(texts), texts, strict=True):
        alone = again.encode(text)
        torch.testing.assert_close(together.features_KMC, alone.features_KMC, rtol=0, atol=1e-6)
        assert together.times_K.tolist() == alone.times_K.tolist()


def test_hashes_are_the_same_on_every_computer():
    """Places and signs by hand: BLAKE2b of b'a', b'bell' and b'a bell', 8 bytes, little endian."""
    vector = HashedText(width=1000, ngram=2).encode(TimedText((TextSegment(0, 1, "a BELL"),))).features_KMC.flatten()
    numbers = [int.from_bytes(bytes.fromhex(digest), "little") for digest in DIGESTS]
    expected = torch.zeros(1000)
    for number in numbers:
        expected[(number >> 1) % 1000] += 1 if number & 1 else -1
    torch.testing.assert_close(vector, expected * math.sqrt(1000 / 3))


DIGESTS = ("40f89e395b66422f", "4ba63d613a8ecf8a", "71f34bb70036e5fa")


def test_hashed_words_ignore_case_and_punctuation_and_know_order():
    def vector(text, **settings):
        return HashedText(**settings).encode(TimedText((TextSegment(0, 1, text),))).features_KMC.flatten()

    torch.testing.assert_close(vector("A bell, rings!"), vector("a BELL rings"), rtol=0, atol=0)
    assert not torch.equal(vector("dog bites man"), vector("man bites dog"))
    torch.testing.assert_close(vector("dog bites man", ngram=1), vector("man bites dog", ngram=1), rtol=0, atol=0)
    assert float(vector("one two three four").square().mean()) == pytest.approx(1)
    assert not vector("!!! ...").any()
    assert not torch.equal(vector("Straße 東京"), vector("x"))


# --- through a model


def test_vectors_are_the_mean_of_the_model_itself(tmp_path):
    folder, model, tokenizer = save_tiny_text(tmp_path)
    encoder = build_encoder(EncoderConfig(name="text_transformers", model=folder))
    with torch.no_grad():
        expected = model(**tokenizer("the dog barks", return_tensors="pt")).last_hidden_state[0].mean(dim=0)
    features = encoder.encode(TimedText((DOG, TextSegment(5, 6, "a bell rings then the dog barks"))))  # the short one is padded
    torch.testing.assert_close(features.features_KMC[0, 0], expected, rtol=0, atol=1e-6)


def test_of_a_model_with_a_decoder_the_encoder_is_taken(tmp_path):
    folder, model, tokenizer = save_tiny_text(tmp_path, "t5", whole=True)
    encoder = build_encoder(EncoderConfig(name="text_transformers", model=folder))
    with torch.no_grad():
        expected = model.get_encoder()(**tokenizer("the dog barks", return_tensors="pt")).last_hidden_state[0].mean(dim=0)
    torch.testing.assert_close(encoder.encode(TimedText((DOG,))).features_KMC[0, 0], expected, rtol=0, atol=1e-6)


def test_many_texts_go_through_in_batches(tmp_path):
    folder, _, _ = save_tiny_text(tmp_path)
    encoder = TransformersText(folder)
    texts = TimedText(tuple(TextSegment(i, i + 1, " ".join(["bell", "dog", "a"][: 1 + i % 3])) for i in range(7)))
    expected = encoder.encode(texts).features_KMC
    encoder.batch_size = 2
    torch.testing.assert_close(encoder.encode(texts).features_KMC, expected, rtol=0, atol=1e-6)


def test_models_that_do_not_suit_are_refused(tmp_path, caplog):
    caplog.set_level(logging.CRITICAL)
    save_tiny_text(tmp_path / "lm", whole=True)  # no pooler, which plays no part
    folder, model, _ = save_tiny_text(tmp_path / "bert")
    assert TransformersText(str(tmp_path / "lm")).width == 16
    with pytest.raises(ValueError, match="a segment has 13 tokens but .* reads 12; cut the segments"):
        TransformersText(folder).encode(TimedText((TextSegment(0, 1, "bell " * 11),)))
    weights = {name: value for name, value in model.state_dict().items() if "layer.1.output.dense" not in name}
    model.save_pretrained(folder, state_dict=weights)
    with pytest.raises(ValueError, match=r"lacks 2 weights, among them 'encoder\.layer\.1\.output\.dense\.bias'"):
        TransformersText(folder)
    with pytest.raises(ValueError, match="text_transformers: the encoder '/no/such/folder' cannot be loaded"):
        TransformersText("/no/such/folder")
    folder, _, _ = save_tiny("whisper", tmp_path / "whisper")
    with pytest.raises(ValueError, match="text_transformers: "):
        TransformersText(folder)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"width": 0}, "width must be at least 1"),
        ({"ngram": 9}, "ngram from 1 to 8"),
        ({"step_seconds": 0}, "step_seconds must be at least 0.01, got 0"),
        ({"offset_seconds": math.inf}, "offset_seconds must be finite"),
        ({"encoding": "latin-99"}, "encoding 'latin-99' is unknown"),
    ],
)
def test_settings_are_checked(settings, words):
    with pytest.raises(ValueError, match=f"text_hash: .*{words}"):
        HashedText(**settings)


def test_segments_check_their_times():
    for start, end in [(2.0, 1.0), (math.nan, 1.0), (0.0, math.inf)]:
        with pytest.raises(ValueError, match="a segment cannot last from"):
            TextSegment(start, end, "x")


def test_a_text_of_too_many_steps_is_refused_before_memory_is_taken():
    year = TimedText((TextSegment(0, 4, "a bell"), TextSegment(4, 9999 * 3600.0, "a tap")))
    with pytest.raises(
        ValueError, match=r"with step_seconds 0\.01, the segments up to 3\.59964e\+07 s make more than 1000000 steps"
    ):
        HashedText(step_seconds=0.01).encode(year)
    assert len(HashedText().encode(year)) == 2
