"""Settings of evaluation harnesses become arguments of ``generate``, or a sentence."""

import pytest

from pave.integrations.generation_settings import read_settings


@pytest.mark.parametrize(
    "given, expected",
    [
        ({}, {"max_new_tokens": 64, "num_beams": 1}),
        ({"max_new_tokens": 16, "temperature": 0, "top_p": 1.0, "num_beams": 1, "do_sample": False}, {"max_new_tokens": 16, "num_beams": 1}),
        ({"temperature": 0.7, "do_sample": False}, {"max_new_tokens": 64, "num_beams": 1}),
        ({"temperature": 0, "do_sample": True}, {"max_new_tokens": 64, "num_beams": 1}),
        ({"temperature": 0.2}, {"max_new_tokens": 64, "num_beams": 1, "do_sample": True, "temperature": 0.2}),
        (
            {"do_sample": True, "top_p": 0.9, "top_k": 5, "num_beams": 2, "repetition_penalty": 1.2},
            {"max_new_tokens": 64, "num_beams": 2, "do_sample": True, "temperature": 1.0, "top_p": 0.9, "top_k": 5, "repetition_penalty": 1.2},
        ),
        ({"do_sample": True, "temperature": 1, "top_p": 0}, {"max_new_tokens": 64, "num_beams": 1, "do_sample": True, "temperature": 1.0}),
        ({"image_aspect_ratio": "pad", "max_new_tokens": None, "until": None}, {"max_new_tokens": 64, "num_beams": 1}),
    ],
)  # fmt: skip
def test_what_generate_gets(given, expected):
    assert read_settings(given, "t").to_generate() == expected


@pytest.mark.parametrize(
    "until, text, cut",
    [
        (["\n\n", "B"], "A and B or C", "A and"),
        ("C", "A and B or C", "A and B or"),
        (["C", "and"], "A and B or C", "A"),
        (["", "x"], "A and B", "A and B"),
        ([], "A", "A"),
    ],
)
def test_an_answer_ends_before_the_first_stop(until, text, cut):
    assert read_settings({"until": until}, "t").cut(text) == cut


@pytest.mark.parametrize(
    "given, message",
    [
        (
            {"max_tokens": 3},
            "t: generation_kwargs has 'max_tokens', which the model pave does not know; it knows max_new_tokens, ",
        ),
        ({"max_new_tokens": 0}, "t: generation_kwargs, max_new_tokens must be at least 1, got 0"),
        ({"num_beams": 1.5}, "t: generation_kwargs, num_beams must be a whole number of at least 0, got 1.5"),
        ({"temperature": "hot"}, "t: generation_kwargs, temperature must be a number of at least 0, got 'hot'"),
        ({"top_p": True}, "t: generation_kwargs, top_p must be a number of at least 0, got True"),
        ({"do_sample": "yes"}, "t: generation_kwargs, do_sample must be true or false, got 'yes'"),
        ({"until": [1]}, r"t: generation_kwargs, until must be a text or a list of texts, got \[1\]"),
    ],
)
def test_wrong_settings_are_named(given, message):
    with pytest.raises(ValueError, match=message):
        read_settings(given, "t")
