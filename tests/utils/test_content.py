"""One notion of the same content: what a stamp notices, what a hash and a digest depend on, and what they refuse."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from pave.utils.content import ContentHashes, Stamp, content_digest, stamp_of, unchanged

MIB = 2**20


def aged(monkeypatch):
    """Every file counts as one that was changed long ago."""
    monkeypatch.setattr("pave.utils.content._SETTLED_SECONDS", -1e9)


def test_a_stamp_notices_what_size_and_time_hide(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"old")
    os.utime(file, ns=(1, 1))
    first = stamp_of(file)
    assert stamp_of(file) == first
    file.write_bytes(b"new")
    os.utime(file, ns=(1, 1))
    written = stamp_of(file)
    assert written[:2] == first[:2] and written != first  # written in place, size and time put back
    (tmp_path / "other").write_bytes(b"xyz")
    os.utime(tmp_path / "other", ns=(1, 1))
    os.replace(tmp_path / "other", file)
    assert stamp_of(file)[:2] == first[:2] and stamp_of(file).inode != written.inode  # another file in its place


def test_unchanged_names_the_file_that_did_not_stay(tmp_path):
    files = [str(tmp_path / name) for name in "ab"]
    for file in files:
        (tmp_path / file).write_bytes(b"1")
    with unchanged(files):
        pass
    with pytest.raises(ValueError, match=r"b: the file was changed during the run; run again"), unchanged(files):
        os.unlink(files[1])
    with pytest.raises(ValueError, match=r"b: the file was changed during the run"), unchanged(files):
        (tmp_path / "b").write_bytes(b"2")
    with pytest.raises(KeyError), unchanged(files):  # an error inside stays what it is
        os.unlink(files[0])
        raise KeyError


def test_hashes_are_remembered_while_the_stamp_stays(tmp_path, monkeypatch):
    file, memory = tmp_path / "file", tmp_path / "hashes.json"
    file.write_bytes(b"old")
    aged(monkeypatch)
    first = ContentHashes(memory).of_all([str(file)])[str(file)]
    assert first == "cba06b5736faf67e54b07b561eae94395e774c517a7d910a54369e1263ccfbd4"  # sha256sum
    ((name, line),) = json.loads(memory.read_text()).items()
    assert name == str(file) and line == [*stamp_of(file), first]
    memory.write_text(json.dumps({name: [*line[:4], "remembered"]}))
    assert ContentHashes(memory).of(str(file)) == "remembered"  # not read again
    before = file.stat()
    file.write_bytes(b"new")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    second = ContentHashes(memory).of_all([str(file)])[str(file)]
    assert second not in (first, "remembered") and ContentHashes(memory).of(str(file)) == second


@pytest.mark.parametrize("text", ["{ damaged", '{"FILE": [3, 1, "size and time alone"]}', '{"FILE": 1}', "[" * 100_000])
def test_a_memory_that_says_nothing_is_forgotten(tmp_path, text):
    file, memory = tmp_path / "file", tmp_path / "hashes.json"
    file.write_bytes(b"old")
    os.utime(file, ns=(1, 1))
    memory.write_text(text.replace("FILE", str(file)))
    assert ContentHashes(memory).of(str(file)).startswith("cba06b57")


def test_the_hash_of_a_file_that_was_just_written_is_not_remembered(tmp_path):
    """It could change again within the resolution of its time stamp."""
    file = tmp_path / "file"
    file.write_bytes(b"old")
    os.utime(file, ns=(1, 1))  # which is a change of its own
    ContentHashes(tmp_path / "hashes.json").of_all([str(file)])
    assert json.loads((tmp_path / "hashes.json").read_text()) == {}
    assert not stamp_of(file).settled and Stamp(1, 1, 1, 1).settled


def test_what_is_no_regular_file_is_never_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    hashes = ContentHashes(tmp_path / "hashes.json")
    for file in (str(tmp_path / "pipe"), "/dev/zero", str(tmp_path)):
        for call in (hashes.of, lambda file: content_digest([file])):
            with pytest.raises(ValueError, match="no regular file"):
                call(file)
    with pytest.raises(ValueError, match=r"gone: the file cannot be read \(No such file"):
        content_digest([str(tmp_path / "gone")])


def test_a_digest_is_of_the_content_and_not_of_the_place(tmp_path):
    (tmp_path / "a").mkdir()
    for name, data in (("x.png", b"1" * 100), ("y.png", b"2")):
        (tmp_path / "a" / name).write_bytes(data)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    names = ("x.png", "y.png")
    first, second = ([str(tmp_path / folder / name) for name in names] for folder in "ab")
    assert content_digest(first) == content_digest(second)
    assert content_digest(first[:1]) == content_digest(second[:1]) != content_digest(first)
    os.rename(second[1], tmp_path / "b" / "z.png")
    assert content_digest([second[0], str(tmp_path / "b" / "z.png")]) != content_digest(first)  # another picture of the folder
    (tmp_path / "b" / "x.png").write_bytes(b"1" * 99 + b"2")
    assert content_digest(second[:1]) != content_digest(first[:1])


def test_a_digest_reads_large_files_in_part(tmp_path):
    file = tmp_path / "large"

    def digest(**changes):
        with open(file, "wb") as opened:
            opened.truncate(40 * MIB)
            for place, byte in changes.values():
                opened.seek(place)
                opened.write(byte)
        return content_digest([str(file)])

    plain = digest()
    assert digest(first=(0, b"x")) != plain and digest(last=(40 * MIB - 1, b"x")) != plain
    assert digest(between=(20 * MIB, b"x" * 3 * 2**16)) != plain
    both = [file, tmp_path / "small"]
    both[1].write_bytes(b"1")
    before = content_digest(list(map(str, both)))
    both[1].write_bytes(b"2")
    assert content_digest(list(map(str, both))) != before
