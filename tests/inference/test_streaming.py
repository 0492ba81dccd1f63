"""What is certain of a growing answer, on real tokenizers: whole characters, stops, and the pieces that make the text."""

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from pave.inference import Sampling
from pave.inference.streaming import Row
from tiny_models import tiny_llava_onevision

TEXT = "  naïve 日本 🐕‍🦺 END ok.  \n"


@pytest.fixture(scope="module")
def by_bytes():
    """A tokenizer of single bytes, as every byte-level BPE has them: characters of several bytes come in pieces."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner)


def pieces_of(tokenizer, text, end=None, **sampling):
    row = Row(tokenizer, Sampling(**{"max_new_tokens": 500, **sampling}), {-1})
    pieces = []
    for token in tokenizer(text)["input_ids"]:
        if row.finish_reason is None:
            row.put(token)
            pieces.append(row.new_text())
    if row.finish_reason is None:
        row.finish_reason = "stop"
        pieces.append(row.new_text())
    return pieces, row


def test_pieces_are_whole_characters_and_together_the_text(by_bytes):
    assert len(by_bytes(TEXT)["input_ids"]) == len(TEXT.encode())
    pieces, row = pieces_of(by_bytes, TEXT)
    assert "".join(pieces) == row.text == TEXT.strip()
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)
    told = [piece for piece in pieces if piece]
    assert told[:3] == ["n", "a", "ï"] and " 日" in told, "text is told as soon as it is certain"


@pytest.mark.parametrize(
    ("stop", "text"),
    [
        (("END",), "naïve 日本 🐕‍🦺"),
        (("ok", "END ok"), "naïve 日本 🐕‍🦺"),
        (("本",), "naïve 日"),
        (("EN", "nowhere"), "naïve 日本 🐕‍🦺"),
        (("ENDS",), TEXT.strip()),
        (("\n",), TEXT.strip()),
        ((" ",), "naïve"),
    ],
)
def test_an_answer_ends_before_a_stop_and_nothing_of_it_is_told(by_bytes, stop, text):
    pieces, row = pieces_of(by_bytes, TEXT, stop=stop)
    assert "".join(pieces) == row.text == text
    assert row.finish_reason == "stop"


def test_broken_bytes_at_the_end_are_told_in_the_end(by_bytes):
    row = Row(by_bytes, Sampling(max_new_tokens=2), ())
    for token in by_bytes("a日")["input_ids"][:2]:
        row.put(token)
        last = row.new_text()
    assert row.finish_reason == "length" and row.text == "a\N{REPLACEMENT CHARACTER}" and last == "\N{REPLACEMENT CHARACTER}"


def test_the_end_token_ends_and_counts():
    tokenizer = tiny_llava_onevision()[1].tokenizer
    ids = tokenizer("what sound is heard?")["input_ids"]
    row = Row(tokenizer, Sampling(), {tokenizer.eos_token_id})
    for token in [*ids, tokenizer.eos_token_id]:
        row.put(token)
    assert row.finish_reason == "stop" and len(row.tokens) == len(ids) + 1
    assert row.new_text() == row.text == tokenizer.decode(ids).strip()
