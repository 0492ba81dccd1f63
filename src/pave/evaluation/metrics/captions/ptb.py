"""The tokens that caption metrics count: what Stanford's PTBTokenizer makes of a caption, without Java.

The official caption scores run ``PTBTokenizer -preserveLines -lowerCase`` of CoreNLP 3.4.1 and then drop punctuation. Its
conventions are those of the Penn Treebank, as its documentation says: contractions are split, brackets are named, quotes become
````` and ``''``. The rules of ``ptb_rules`` were written from that and from the program's answers to made-up texts;
``tests/golden/captions`` holds some and says how they were made.

Different on purpose: the official scripts hand all captions to the program in one file, a line each, and a carriage return, form
feed or other line break inside a caption shifts every later caption by one. Here it is a blank.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from pave.evaluation.metrics.captions.ptb_rules import rules

PUNCTUATION = frozenset(
    {"''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";"}
)
"""What the official scripts drop. They look for it after lower-casing, so that brackets stay, as ``-lrb-``."""
# fmt: off
_NAMED = {
    "(": "-LRB-", ")": "-RRB-", "[": "-LSB-", "]": "-RSB-", "{": "-LCB-", "}": "-RCB-", "¢": "cents", "£": "#", "¤": "$", "€": "$",
    "₠": "$", "\x80": "$", "½": "1/2", "¼": "1/4", "¾": "3/4", "⅓": "1/3", "⅔": "2/3",
    "&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": "''", "&apos;": "'", "&nbsp;": "",
}
_QUOTES = {
    '"': "''", "‘": "`", "‛": "`", "‹": "`", "\x91": "`", "’": "'", "›": "'", "\x92": "'", "“": "``", "«": "``", "\x93": "``", "”": "''",
    "»": "''", "\x94": "''",
}
# fmt: on
_LINE_BREAKS = re.compile("[\n\r\x0b\x0c\u2028\u2029]")
_PLAIN = re.compile(r"(?!(?:cannot|gonna|gotta|lemme|gimme|wanna)\b)[a-z]+(?= )")
_BLANKS = re.compile(r"[ \t\xa0\u2000-\u200a\u3000]+")


def caption_tokens(texts: Iterable[str]) -> list[str]:
    """``ptb_tokenize`` of every text."""
    return [ptb_tokenize(text) for text in texts]


def ptb_tokenize(text: str) -> str:
    """The tokens of a caption in lower case, without punctuation, joined by blanks: a line of the official scripts.

    A fraction such as ``3 1/2`` is one token with a no-break space in it, as there.
    """
    return " ".join(token for token in map(str.lower, ptb_tokens(text)) if token not in PUNCTUATION)


def ptb_tokens(text: str) -> list[str]:
    """All tokens, punctuation included, in the case of the text."""
    return list(_tokens(_LINE_BREAKS.sub(" ", text).replace("\xad", "")))


def _tokens(text: str) -> Iterator[str]:
    at = 0
    while at < len(text):
        if match := _BLANKS.match(text, at):
            at = match.end()
        elif match := _PLAIN.match(text, at):  # most words; all rules would agree
            yield match[0]
            at = match.end()
        else:
            kind, token = _longest(text, at)
            at += len(token)
            yield from _written(kind, token)


def _longest(text: str, at: int) -> tuple[str, str]:
    """Kind and text of the token that starts at ``at``."""
    end, found = -1, ("", "")
    for kind, pattern in rules():
        match = pattern.match(text, at)
        if match is not None and match.end() > end:
            end, found = match.end(), (kind, match[1])
    return found


def _written(kind: str, token: str) -> Iterator[str]:
    """How the program prints a token."""
    if kind == "split":
        yield token[:3]
        yield token[3:]
    elif kind == "dashes":
        yield token if len(token) > 4 else "--"
    elif kind == "dots":
        yield "..."
    elif kind == "quotes":
        yield "".join(_QUOTES.get(sign, sign) for sign in token)
    elif kind == "tail":
        yield re.sub("’|\x92|&apos;", "'", token)
    elif kind != "none":
        token = re.sub("[ \t]", "\xa0", token) if kind == "spaced" else token.replace("&amp;", "&") if kind == "word" else token
        token = _NAMED[token] if token in _NAMED else token.replace("(", "-LRB-").replace(")", "-RRB-")
        if token:
            yield token
