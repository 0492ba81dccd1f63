"""JSON of others: what cannot be meant is refused with its reason, and nothing is read without a bound."""

import os
import re

import pytest

from pave.utils.json_files import parse_json, read_json, read_json_object
from pave.utils.reading import read_bytes


def test_ordinary_json_is_read_as_it_stands(tmp_path):
    text = '{"a": [1, -2.5e3, null, true, "\\u00fc ü"], "b": {"a": 12345678901234567890123}}'
    wanted = {"a": [1, -2500.0, None, True, "ü ü"], "b": {"a": 12345678901234567890123}}
    (tmp_path / "a.json").write_text(text, encoding="utf-8")
    assert parse_json(text) == parse_json(text.encode()) == read_json(tmp_path / "a.json") == wanted
    assert read_json_object(tmp_path / "a.json") == wanted


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": 1, "b": {"c": 1, "c": 1}}', "the key 'c' comes twice in an object"),
        ('{"a": 1, "a": 2}', "the key 'a' comes twice"),
        ("[NaN]", "NaN is no number of JSON"),
        ("[-Infinity]", "-Infinity is no number of JSON"),
        ("[1e999]", "1e999 is too large for a number"),
        ("1" * 400, "a number of 400 digits is too large"),
        ("-" + "9" * 5000, "a number of 5001 digits is too large"),
        ('{"a": ', "not JSON: Expecting value at column 7"),
        ('{\n"a" 1}', "not JSON: .* at line 2, column 5"),
        ("[" * 100_000, "not JSON: lists or objects are nested too deeply"),
        ("", "not JSON: Expecting value"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path, text, words):
    with pytest.raises(ValueError, match=f"^{words}"):
        parse_json(text)
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=re.escape(str(path)) + f": {words}.*; mend it$"):
        read_json(path, remedy="mend it")


def test_no_utf8(tmp_path):
    (tmp_path / "a.json").write_bytes(b'["\xff"]')
    with pytest.raises(ValueError, match=r"a\.json: not JSON: byte 2 is no UTF-8"):
        read_json(tmp_path / "a.json")


def test_another_value_than_an_object(tmp_path):
    (tmp_path / "a.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"a\.json: a JSON object in braces is needed, got a list"):
        read_json_object(tmp_path / "a.json")


def test_what_never_ends_or_is_no_file_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("/dev/zero")
    for name, words in {
        "pipe": "it is a pipe",
        "folder": "it is a folder|Is a directory",
        "link": "it is a device",
        "gone": "there is no such file",
        "a\0b": None,
    }.items():
        with pytest.raises(ValueError, match=words):
            read_json(tmp_path / name)


def test_a_file_is_read_to_its_bound_and_not_beyond(tmp_path):
    (tmp_path / "a.json").write_bytes(b"[1] ")
    assert read_bytes(tmp_path / "a.json", 4) == b"[1] "
    with pytest.raises(ValueError, match=r"a\.json: the file is too large"):
        read_bytes(tmp_path / "a.json", 3)
    with open(tmp_path / "large.json", "wb") as file:
        file.truncate(2**40)
    with pytest.raises(ValueError, match=r"large\.json: the file is too large .*; at most 64 MiB are read"):
        read_json(tmp_path / "large.json")
