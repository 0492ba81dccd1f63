"""Caption scores against those of the official Java and Python tools (tests/golden/captions)."""

import importlib.util
import json
import math
import shutil
import sys
from pathlib import Path

import pytest

from pave.evaluation.metrics.captions import bleu, caption_tokens, check_meteor, cider, meteor, rouge_l
from pave.evaluation.metrics.captions.ptb import ptb_tokens
from pave.utils.optional import MissingExtraError

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "captions" / "captions.json").read_text(encoding="utf-8"))
PAIRS = list(zip(GOLDEN["sentences"], GOLDEN["expected"]["tokens"], strict=True))


def corpus(name):
    items = GOLDEN["corpora"][name]
    return caption_tokens(item["prediction"] for item in items), [caption_tokens(item["references"]) for item in items]


def test_the_stored_set_is_whole():
    assert len(PAIRS) >= 40 and all(len(items) >= 8 for items in GOLDEN["corpora"].values())
    assert "" in GOLDEN["sentences"]


@pytest.mark.parametrize(("text", "expected"), PAIRS)
def test_tokens_are_those_of_the_java_tokenizer(text, expected):
    assert caption_tokens([text]) == [expected]


@pytest.mark.parametrize("name", GOLDEN["corpora"])
def test_scores_are_those_of_the_official_evaluation(name):
    hypotheses, references = corpus(name)
    expected = GOLDEN["expected"]["scores"][name]
    assert bleu(hypotheses, references) == pytest.approx(expected["bleu"], abs=1e-9)
    assert rouge_l(hypotheses, references) == pytest.approx(expected["rouge_l_of_each"], abs=1e-9)
    assert cider(hypotheses, references) == pytest.approx(expected["cider_of_each"], abs=1e-9)
    assert sum(rouge_l(hypotheses, references)) / len(hypotheses) == pytest.approx(expected["rouge_l"], abs=1e-9)
    assert sum(cider(hypotheses, references)) / len(hypotheses) == pytest.approx(expected["cider"], abs=1e-9)


@pytest.mark.skipif(
    importlib.util.find_spec("pycocoevalcap") is None or shutil.which("java") is None, reason="needs pycocoevalcap and Java"
)
@pytest.mark.parametrize("name", GOLDEN["corpora"])
def test_meteor_is_that_of_the_official_evaluation(name):
    expected = GOLDEN["expected"]["scores"][name]
    total, single = meteor(*corpus(name))
    assert total == pytest.approx(expected["meteor"], abs=1e-9)
    assert single == pytest.approx(expected["meteor_of_each"], abs=1e-9)


def test_what_meteor_lacks_is_said_at_once(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pycocoevalcap", None)
    with pytest.raises(MissingExtraError, match=r"METEOR needs the package 'pycocoevalcap'.*'\.\[captions\]'"):
        check_meteor()
    (tmp_path / "pycocoevalcap").mkdir()
    (tmp_path / "pycocoevalcap" / "__init__.py").touch()
    monkeypatch.delitem(sys.modules, "pycocoevalcap")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="no 'java' on the PATH; install a Java runtime"):
        meteor(["a"], [["a"]])
    monkeypatch.undo()
    sys.modules.pop("pycocoevalcap", None)


def test_line_breaks_inside_of_a_text_are_blanks():
    assert caption_tokens(["a\rb\x0cc\u2028d\ne", "f"]) == ["a b c d e", "f"]
    assert ptb_tokens("can't (x)") == ["ca", "n't", "-LRB-", "x", "-RRB-"]


def test_cider_needs_two_samples_and_weighs_by_the_corpus():
    """On a corpus of one every n-gram is everywhere: no information, no score. Two samples: by hand."""
    assert cider(["a red dog"], [["a red dog"]]) == [0.0]
    equal = cider(["a red dog", "one cat"], [["a red dog"], ["one cat"]])
    assert equal == pytest.approx([10 * 3 / 4, 10 * 2 / 4])  # three words have no 4-gram, two no 3-gram
    longer = cider(["a red dog", "x"], [["a red dog dog"], ["y"]])[0]
    log2 = math.log(2)
    ones = (1 + 1 + 2) * log2**2 / (math.sqrt(3) * log2 * math.sqrt(1 + 1 + 4) * log2)  # min(1, 2) * 2 for the dog
    twos = 2 / (math.sqrt(2) * math.sqrt(3))
    threes = 1 / math.sqrt(2)
    assert longer == pytest.approx(10 * (ones + twos + threes) / 4 * math.exp(-1 / 72))


def test_bleu_and_rouge_by_hand():
    # 2 of 3 words, 1 of 2 pairs; the reference is longer by one word
    values = bleu(["the red dog"], [["the red big cat"]])
    penalty = math.exp(1 - 4 / 3)
    assert values[0] == pytest.approx(penalty * 2 / 3) and values[1] == pytest.approx(penalty * math.sqrt(2 / 3 / 2))
    assert bleu(["a a a"], [["a b c"]])[0] == pytest.approx(1 / 3)  # matches are clipped
    assert bleu(["a b"], [["a b c", "a"]])[0] == pytest.approx(1)  # a tie of lengths takes the shorter: no penalty
    assert bleu(["a b c"], [["a b c d", "a"]])[0] == pytest.approx(penalty)  # the closest length, not the shortest
    p, r = 2 / 3, 2 / 4
    assert rouge_l(["the red dog"], [["the big red cat"]]) == pytest.approx([(1 + 1.44) * p * r / (r + 1.44 * p)])
    assert rouge_l(["", "x"], [["a"], ["y"]]) == [0.0, 0.0]


@pytest.mark.parametrize(
    ("hypotheses", "references", "message"),
    [
        ([], [], "no caption"),
        (["a"], [], "1 hypotheses but references for 0"),
        (["a"], ["a"], "list of references"),
        (["a"], [[]], "list"),
    ],
)
def test_what_cannot_be_scored_is_refused(hypotheses, references, message):
    for score in (bleu, rouge_l, cider):
        with pytest.raises(ValueError, match=message):
            score(hypotheses, references)
