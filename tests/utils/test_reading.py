"""Only ordinary files are read, and never more than is meant to be."""

from __future__ import annotations

import os
import socket
import tracemalloc

import pytest

from pave.utils.reading import opened, read_lines, read_text


@pytest.fixture
def odd(tmp_path):
    """Names of what is no ordinary file, each with what it is called."""
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as made:
        here = os.getcwd()
        os.chdir(tmp_path)  # the path of a socket is short
        made.bind("socket")
        os.chdir(here)
        yield {"/dev/zero": "a device", str(tmp_path / "pipe"): "a pipe", str(tmp_path): "folder|directory"}


def test_what_is_no_ordinary_file_is_refused_at_once(odd, tmp_path):
    for name, kind in odd.items():
        for read in (lambda path: read_text(path, 10), lambda path: list(read_lines(path))):
            with pytest.raises(ValueError, match=rf"{name}: cannot be read \((it is |Is a )?({kind})"):
                read(name)
    for name, words in (("socket", "cannot be read"), ("gone", "there is no such file")):
        with pytest.raises(ValueError, match=f"{tmp_path / name}: {words}"):
            read_text(tmp_path / name, 10)


def test_a_large_file_is_refused_before_it_is_read(tmp_path):
    file = tmp_path / "large"
    with open(file, "wb") as made:
        made.truncate(2**36)  # holes take no room
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"large: the file is too large \(6.55e\+04 MiB; at most 1 MiB are read\)"):
        read_text(file, 2**20)
    with pytest.raises(ValueError, match=r"large, line 1: longer than 1 MiB"):
        list(read_lines(file, 2**20))
    assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    tracemalloc.stop()


def test_text_is_utf8_with_or_without_a_mark(tmp_path):
    file = tmp_path / "text"
    for data in ("Glöckchen 鐘".encode(), "Glöckchen 鐘".encode("utf-8-sig")):
        file.write_bytes(data)
        assert read_text(file, len(data)) == "Glöckchen 鐘"
        with pytest.raises(ValueError, match="too large"):
            read_text(file, len(data) - 1)
    file.write_bytes(b"ab\xff")
    with pytest.raises(ValueError, match=r"text: not UTF-8 \(byte 2\)"):
        read_text(file, 10)


def test_a_line_that_was_not_finished_is_left_out(tmp_path):
    file = tmp_path / "lines"
    file.write_bytes(b"one\n\nthree \r\nfo")
    assert list(read_lines(file)) == [(1, b"one"), (2, b""), (3, b"three \r")]
    with opened(file) as read:
        assert read.read() == file.read_bytes()
