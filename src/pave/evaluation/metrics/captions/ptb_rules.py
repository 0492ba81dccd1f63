"""The rules of ``ptb``: what a token can look like. See there for where they come from.

``rules()`` gives pairs of a kind and a pattern; group 1 of the pattern is the token and what follows it is only looked at. At every
place the longest match wins, looked-at text included, and the first rule among equals.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import cache

# fmt: off
_PERIOD = (
    "adj adm adv al ala alex apr ariz assn assoc asst atty attys aug ave bancorp bhd bldg blvd brig bros calif capt cf cie cmdr co "
    "col colo comdr conn corp cos cpl ct dak dec dept det dr drs elec ens esq est etc ext feb fla fri ft ga gen gov govs hon inc ind "
    "insp intl invt jan jos jr jul jun kan kans ky lt ltd maj mar md messrs mich minn mlle mme mo mon mont mr mrs ms msgr mt natl neb "
    "nev nov oct okla penn pfc ph plc pres prof pvt rd rep reps rev rt sen sens sep sept seq sfc sgt spc sq sr st ste supt sys tel "
    "tenn thu thurs treas tue tues univ va vs vt wed wis wisc wm wyo ph.d ed.d"
)
_PERIOD_CAPITALISED = "ark az del ill la mass miss ore pa tex wash"  # in lower case these are ordinary words
_PERIOD_NOT_UPPER = "mfg mtg ppte ppty pte ptes pty ptys"
_PERIOD_BEFORE_NUMBER = "art ca fig figs no nos op pp prop"
_SENTENCE_STARTERS = (
    "A About According Additionally After An As At But He Her Here However If In It Last Many More Now Once One Other Our She Since "
    "So Some Such That The Their Then There These They This We What When While Yet You"
)
# ranges of code points as the program of 2014 knows Unicode
_SYMBOLS = (
    "21-2f 3a-40 5b-60 7b-7e 80 85 91-94 96-97 a1-a9 ab-ac ae-b4 b6-b9 bb-bf d7 f7 37e 387 589 5be 5c0 5c3 5c6 5f3-5f4 600-603 "
    "606-60c 614 61b 61e-61f 66a 66d 6d4 700-70d 7f6-7f8 964-965 e3f e4f 1fbd 2013-2023 2026 2030-203b 203e-2042 2044 2070 "
    "2074-207e 2080-208e 20a0 20a4 20ac 2100-2101 2103-2106 2108-2109 2114 2116-2118 211e-2123 2125 2127 2129 212e 213a-213b "
    "2140-2144 214a-214d 214f 2153-215e 2190-2bff 3001-3002 3012 30fb ff01-ff0f ff1a-ff20 ff3b-ff40 ff5b-ff65 ffe0-ffe1 ffe5-ffe6"
)
_MARKS = (  # count as letters
    "2c2-2c5 2d2-2df 2e5-2eb 2ed 2ef-36f 375 378-379 384-385 3f6 483-487 55a-55f 591-5bd 5bf 5c1-5c2 5c4-5c5 5c7 615-61a 64b-65e "
    "670 6d6-6e4 6e7-6ed 6fd-6fe 70f 711 730-74c 7a6-7b0 7eb-7f3 900-903 93c 93e-94e 951-955 962-963 981-983 9bc 9be-9c4 9c7-9c8 "
    "9cb-9cd 9d7 9e2-9e3 a01-a03 a3c a3e-a4f a81-a83 abc abe-acf b82 bbe-bc2 bc6-bc8 bca-bcd c01-c03 c3e-c56 d3e-d44 d46-d48 e31 "
    "e34-e3a e47-e4e eb1 eb4-ebc ec8-ecd"
)
# fmt: on
_APOSTROPHE = "(?:['’\x92]|&apos;)"
_HYPHEN = "[-\u058a\u2010\u2011]"
_SPACE = r"[ \t\xa0\u2000-\u200a\u3000]"
_WEB = r'[^\s"<>|(){}]'


@cache
def rules() -> tuple[tuple[str, re.Pattern[str]], ...]:
    """Every rule, compiled."""
    letter, digit, symbol = _classes()
    both = f"[{letter[1:-1]}{digit[1:-1]}]"
    made = [*_words(letter, both), *_apostrophes(letter, digit), *_numbers(digit), *_abbreviations(letter, digit)]
    made += [*_web(letter, both), *_signs(both), ("symbol", f"({symbol})"), ("none", "((?s:.))")]
    return tuple((kind, re.compile(pattern)) for kind, pattern in made)


def _words(letter: str, both: str) -> Iterable[tuple[str, str]]:
    part = f"(?:[dDoOlL]{_APOSTROPHE}(?={both}))?{both}+"
    thing = f"{part}(?:_{part})*"
    plain = f"{both}+(?:_{both}+)*"
    joined = f"{thing}(?:{_HYPHEN}{thing})+|[A-Za-z0-9][A-Za-z0-9.,]*(?:{_HYPHEN}[A-Za-z0-9]+)+"
    dotted = f"{letter}{both}*(?:[.!?]{letter}{both}*)+"
    # d'Arc, O'Neill and ma'am are one token
    inner = f"[A-HJ-XZdlno]{_APOSTROPHE}{letter}{{2,}}|{letter}+[aeiouyAEIOUY](?:{_APOSTROPHE}|`)[aeiouA-Z]{letter}*"
    inner += f"|(?i:o'o|n't|e'er|ev'ry|li'l)|[oO]{_APOSTROPHE}{both}{{2,}}"
    yield "word", f"({thing}(?:{_HYPHEN}{thing})*)(?i:{_APOSTROPHE}(?:[sdm]|ll|ve|re))"
    yield "word", f"({letter}*?(?![nN]){letter})[nN](?:{_APOSTROPHE}|`)[tT]"
    yield "split", f"((?i:cannot|gonna|gotta|lemme|gimme|wanna))(?!{letter})"
    yield "word", f"({plain}|{part}(?:_{part})+)"
    yield "word", f"({joined})"
    yield "word", f"((?:{thing}|[A-Za-z0-9][A-Za-z0-9.,]*)(?:{_HYPHEN}{thing})*{_HYPHEN}[A-Za-z](?:\\.[A-Za-z])+\\.)"
    yield "word", f"({dotted})"
    yield "word", f"({inner})"
    yield "word", f"((?:{plain}|{joined}|{dotted}|{inner})\\.)[,;:]"
    yield "word", f"([A-Za-z](?:\\.[A-Za-z])*\\.(?:{_HYPHEN}[A-Za-z0-9]+)*)"
    slashed = f"[A-Za-z0-9]+(?:{_HYPHEN}[A-Za-z]+)?"
    yield "word", f"({slashed}(?:\\\\?/{slashed}){{1,2}})"


def _apostrophes(letter: str, digit: str) -> Iterable[tuple[str, str]]:
    yield "word", f"((?i:[djly]|ol){_APOSTROPHE}){letter}"  # y'all is y' and all
    yield "tail", f"((?i:{_APOSTROPHE}(?:[sdm]|ll|ve|re)))(?!{letter})"
    yield "tail", "((?i:[’\x92](?:[sdm]|ll|ve|re)))"
    yield "tail", f"((?i:n(?:{_APOSTROPHE}|`)t))(?!{letter})"
    yield "tail", f"((?i:{_APOSTROPHE}t))(?i:is|was)"
    yield "word", f"((?i:{_APOSTROPHE}(?:n{_APOSTROPHE}|em|til|cause)))"
    yield "word", f"({_APOSTROPHE}[nN](?={_SPACE})|’[nN])"
    yield "word", f"({_APOSTROPHE}(?:{digit}{{2}}(?={_SPACE})|{digit}0[sS]))"


def _numbers(digit: str) -> Iterable[tuple[str, str]]:
    yield "word", f"([-+]?(?:{digit}*(?:[.,:\u066b\u066c]{digit}+)+|{digit}+))"
    yield "spaced", f"((?:{digit}{{1,4}}[- \xa0])?{digit}{{1,4}}[/⁄]{digit}{{1,4}})"
    area = rf"\({digit}{{2,3}}\)[ \xa0]?|\+{{0,2}}(?:{digit}{{2,4}}[- \xa0])?{digit}{{2,4}}[- \xa0]"
    yield "spaced", rf"((?:{area}){digit}{{3,4}}[- \xa0]?{digit}{{3,5}})"  # telephone numbers


def _abbreviations(letter: str, digit: str) -> Iterable[tuple[str, str]]:
    capitalised = "|".join(form for word in _PERIOD_CAPITALISED.split() for form in (word.capitalize(), word.upper()))
    not_upper = "|".join(form for word in _PERIOD_NOT_UPPER.split() for form in (word, word.capitalize()))
    any_case = "|".join(re.escape(word) for word in sorted(_PERIOD.split(), key=len, reverse=True))
    yield "word", rf"((?:(?i:{any_case})|{capitalised}|{not_upper})\.)"
    yield "word", rf"((?i:{'|'.join(sorted(_PERIOD_BEFORE_NUMBER.split(), key=len, reverse=True))})\.){_SPACE}?{digit}"
    starters = "|".join(form for word in _SENTENCE_STARTERS.split() for form in dict.fromkeys((word, word.upper())))
    yield "word", rf"({letter})\.{_SPACE}+(?:{starters}){_SPACE}"  # plan A. The: no initial


def _web(letter: str, both: str) -> Iterable[tuple[str, str]]:
    name = "[A-Za-z][A-Za-z0-9_:.-]*"
    attribute = rf"{name}(?:\s*=\s*(?:'[^']*'|\"[^\"]*\"))?"
    yield "spaced", rf"(<[!?]?{name}(?:\s+(?:{attribute}|/))*\s*[/?]?>|</{name}\s*>|<!--.*?-->)"
    domain = r'(?:[^\s"<>|(){}.]+\.)*[^\s"<>|(){}.]+'
    yield "word", rf'(https?://{domain}\.{_WEB}*[^\s"<>|(){{}}.!?,-])'
    yield "word", rf"(<?{both}{_WEB}*@{domain}>?)"
    label = r'[^\s"`\'<>|.!?(){},/-]+'
    yield "word", rf'({label}(?:\.{label})*\.(?:com|net|org|edu)/{_WEB}+[^\s"<>|(){{}}.!?,-])'
    yield "word", f"(#{letter}+|@[A-Za-z_][A-Za-z0-9_]*)"


def _signs(both: str) -> Iterable[tuple[str, str]]:
    yield "entity", r"(&(?:amp|lt|gt|quot|apos|nbsp);)"
    yield "word", r"(&#\d+;)"
    yield "word", f"([<>]?[:;=][-'o]?[()DdPpO@\\[\\]{{|\\\\])(?!{both})"  # faces
    yield "word", r"([-'^x=~<>]_[-'^x=~<>]|\([-'^x=~<>][-_.]?[-'^x=~<>]\))"
    yield "word", r"([A-Z]+(?:&(?:amp;)?[A-Z]+)+|[A-Z]+\$|[cC]\+\+|[cCfF]#)"
    yield "quotes", "([\u2018-\u201f‹›«»\x91-\x94]{1,2}|``|''|\")"
    yield "dashes", r"(--+|[\u2013-\u2015\x96\x97])"
    yield "dots", r"(\.{3,5}|\.(?: \.){2,}|[…\x85])"
    yield "word", r"([!?]+|\*+|_+|#+|@+|(?:\\\*)+|\\/|<<|>>)"


def _classes() -> tuple[str, str, str]:
    """Regular expressions of one letter (or mark), digit, and symbol."""
    symbols = {code for first, last in _ranges(_SYMBOLS) for code in range(first, last + 1)}
    letters = {code for first, last in _ranges(_MARKS) for code in range(first, last + 1)}
    digits = set()
    for code in range(0x10000):
        category = unicodedata.category(chr(code))
        if category == "Nd":
            digits.add(code)
        elif category[0] == "L" and code not in symbols:
            letters.add(code)
    return _one_of(letters), _one_of(digits), _one_of(symbols)


def _ranges(text: str) -> list[tuple[int, int]]:
    pairs = [item.partition("-") for item in text.split()]
    return [(int(first, 16), int(last or first, 16)) for first, _, last in pairs]


def _one_of(codes: set[int]) -> str:
    runs: list[list[int]] = []
    for code in sorted(codes):
        if runs and code == runs[-1][1] + 1:
            runs[-1][1] = code
        else:
            runs.append([code, code])
    return "[" + "".join(f"{re.escape(chr(first))}-{re.escape(chr(last))}" for first, last in runs) + "]"
