"""Atomic writes leave the old content or the whole new one."""

import json
import os
import stat

import pytest

from pave.utils.files import (
    DiskError,
    atomic_folder,
    atomic_path,
    atomic_write_bytes,
    atomic_write_json,
    atomic_write_text,
    read_json,
)
from small_disk import on_small_disk


def test_text_bytes_and_json_arrive_unchanged(tmp_path):
    atomic_write_text(tmp_path / "deep" / "er" / "a.txt", "zwei\nZeilen – ü\r\n")
    assert (tmp_path / "deep" / "er" / "a.txt").read_bytes() == "zwei\nZeilen – ü\r\n".encode()
    atomic_write_bytes(tmp_path / "b.bin", b"\x00\xff")
    assert (tmp_path / "b.bin").read_bytes() == b"\x00\xff"
    atomic_write_json(tmp_path / "c.json", {"b": [1, 2.5, None], "a": "ü"})
    assert json.loads((tmp_path / "c.json").read_text(encoding="utf-8")) == {"b": [1, 2.5, None], "a": "ü"}
    assert list((tmp_path / "c.json").read_text(encoding="utf-8"))[-1] == "\n"


def test_an_error_while_writing_keeps_the_old_file_and_leaves_nothing_behind(tmp_path):
    target = tmp_path / "a.txt"
    atomic_write_text(target, "old")
    with pytest.raises(RuntimeError, match="disk"), atomic_path(target) as temporary:
        temporary.write_text("half of the ne")
        raise RuntimeError("disk")
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_the_old_file_is_there_until_the_block_ends(tmp_path):
    target = tmp_path / "a.txt"
    atomic_write_text(target, "old")
    with target.open() as reader:
        with atomic_path(target) as temporary:
            temporary.write_text("new")
            assert temporary.parent == target.parent
            assert temporary.suffix == ".txt"
            assert target.read_text() == "old"
        assert target.read_text() == "new"
        assert reader.read() == "old"  # replaced, not written over
    assert os.listdir(tmp_path) == ["a.txt"]


def test_json_refuses_nan_and_keeps_the_old_file(tmp_path):
    atomic_write_json(tmp_path / "a.json", 1)
    with pytest.raises(ValueError, match="JSON"):
        atomic_write_json(tmp_path / "a.json", float("nan"))
    assert (tmp_path / "a.json").read_text() == "1\n"


def test_new_files_get_ordinary_permissions_and_old_ones_keep_theirs(tmp_path):
    old_mask = os.umask(0o027)
    try:
        atomic_write_text(tmp_path / "a.txt", "x")
        assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o640
        (tmp_path / "a.txt").chmod(0o600)
        atomic_write_text(tmp_path / "a.txt", "y")
        assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o600
    finally:
        os.umask(old_mask)


def test_a_folder_is_replaced_whole(tmp_path):
    for names in (["a", "b"], ["b", "c"]):
        with atomic_folder(tmp_path / "patch") as folder:
            for name in names:
                (folder / name).write_text(name)
            (folder / "sub").mkdir()
            (folder / "sub" / "x").write_text("x")
    assert sorted(os.listdir(tmp_path / "patch")) == ["b", "c", "sub"]
    assert os.listdir(tmp_path) == ["patch"]
    assert stat.S_IMODE((tmp_path / "patch").stat().st_mode) & 0o500 == 0o500


def test_a_link_to_a_folder_stays_a_link(tmp_path):
    (tmp_path / "run1").mkdir()
    (tmp_path / "run1" / "stale").write_text("x")
    for name in ("run1", "run2"):  # the second is not there yet
        link = tmp_path / f"latest-{name}"
        link.symlink_to(tmp_path / name)
        with atomic_folder(link) as work:
            (work / "new").write_text("y")
        assert link.is_symlink() and [f.name for f in (tmp_path / name).iterdir()] == ["new"]


def test_an_error_keeps_the_old_folder(tmp_path):
    with atomic_folder(tmp_path / "patch") as folder:
        (folder / "a").write_text("old")
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "patch") as folder:
        (folder / "a").write_text("new")
        raise RuntimeError
    assert (tmp_path / "patch" / "a").read_text() == "old"
    assert os.listdir(tmp_path) == ["patch"]


def test_a_file_is_not_written_over_a_folder_nor_a_folder_over_a_file(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match=r"folder.*choose another name"):
        atomic_write_text(tmp_path / "folder", "x")
    with pytest.raises(ValueError, match=r"file.*choose another name"), atomic_folder(tmp_path / "file"):
        pass
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_a_file_that_is_no_json_is_named(tmp_path):
    atomic_write_json(tmp_path / "a.json", {"a": "ü"})
    assert read_json(tmp_path / "a.json") == {"a": "ü"}
    for content in (b"{", b"", b"\xff\xfe"):
        (tmp_path / "a.json").write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.json: not JSON: .*; remove it"):
            read_json(tmp_path / "a.json")


# --- disks

WRITERS = """
import numpy, torch, safetensors.torch
from pathlib import Path
from pave.data.media import write_video
from pave.utils.files import DiskError, atomic_folder, atomic_path, atomic_write_bytes
disk = Path({disk!r})
big = torch.zeros(200_000)

def tensors():
    with atomic_path(disk / "a.safetensors") as work:
        safetensors.torch.save_file({{"a": big}}, work)

def pickled():
    with atomic_path(disk / "b.pt") as work:
        torch.save({{"a": big}}, work)

def folder():
    with atomic_folder(disk / "folder") as work:
        (work / "inside").write_bytes(bytes(800_000))

def video():
    write_video(disk / "c.mp4", numpy.random.default_rng(0).integers(0, 255, (40, 160, 160, 3), dtype=numpy.uint8), fps=8)

for write in (lambda: atomic_write_bytes(disk / "d.bin", bytes(800_000)), tensors, pickled, folder, video):
    try:
        write()
        print("written")
    except DiskError as error:
        print(error)
print(sorted(path.name for path in disk.iterdir()))
"""


@pytest.mark.parametrize(("read_only", "fault"), [(False, "is full"), (True, "is read-only")])
def test_a_disk_that_is_to_blame_is_named_whoever_writes(tmp_path, read_only, fault):
    disk = tmp_path / "disk"
    done = on_small_disk(disk, WRITERS.format(disk=str(disk)), read_only=read_only)
    assert done.returncode == 0, done.stderr
    names = ("d.bin", "a.safetensors", "b.pt", "folder", "c.mp4")
    expected = [
        f"{disk / name}: it cannot be written, because the disk at {disk} {fault}; make room there, or write elsewhere"
        for name in names
    ]
    assert done.stdout.splitlines() == [*expected, "[]"]


def test_errors_that_are_no_disk_s_pass(tmp_path):
    for error in (RuntimeError("unexpected pos 1 vs 2"), PermissionError(13, "no"), OSError(5, "read failed"), KeyError("x")):
        with pytest.raises(type(error)) as caught, atomic_path(tmp_path / "a"):
            raise error
        assert caught.value is error
    with (
        pytest.raises(DiskError, match="other: it cannot") as caught,
        atomic_path(tmp_path / "a"),
        atomic_path(tmp_path / "other"),
    ):
        raise OSError(28, "No space left on device")
    assert os.listdir(tmp_path) == []
