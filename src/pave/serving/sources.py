"""From what a request says of a file (a data URL, an upload, a path, a URL) to a file on this disk that may be read."""

from __future__ import annotations

import base64
import binascii
import os
import re
import stat
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pave.data.descriptors import files_named
from pave.data.media import MediaError, probe, unpack
from pave.data.views import VIDEO_ENDINGS
from pave.serving.errors import bad_request
from pave.serving.fetching import Fetcher
from pave.serving.files import FILE_ID, Uploads, suffix_of
from pave.serving.limits import Limits

_DATA_URL = re.compile(r"data:(?P<kind>[\w.+-]+/[\w.+-]+)?(?:;[\w-]+=[\w.+-]+)*;base64,")
_SUFFIXES = {
    "application/json": ".json",
    "application/x-subrip": ".srt",
    "application/zip": ".zip",
    "text/csv": ".csv",
    "text/tab-separated-values": ".tsv",
    "text/vtt": ".vtt",
}
"""Of the kinds of files that are told apart by their endings; sound and video are told apart by what is in them."""
MEDIA = "media"
ENDINGS: dict[str, tuple[str, ...]] = {
    "audio": (MEDIA,),
    "video": (MEDIA,),
    "views": (MEDIA, ".zip"),
    "scene3d": (".zip",),
    "sensor": (".csv", ".tsv"),
    "text": (".srt", ".vtt", ".json"),
    "features": (".safetensors",),
}
"""By the source of a side encoder, the files that clients may send; what the administrator put under an allowed root may be more."""
_TEXT_MEGABYTES, _JSON_MEGABYTES = 32, 4
"""Largest text file of a side channel, and largest of JSON, which takes many times as much memory when it is read."""


@dataclass(frozen=True)
class Sources:
    """Where files of requests may come from.

    Args:
        uploads: by id.
        fetcher: by http and https.
        roots: folders whose files may be named by path; links are followed before that is checked.
        limits: of what is in them.
    """

    uploads: Uploads
    fetcher: Fetcher
    limits: Limits
    roots: Sequence[Path] = field(default=())

    def obtain(self, url: str, kind: str, *, param: str, owner: str, folder: Path, stack: ExitStack) -> Path:
        """The file behind a URL.

        Args:
            url: data:..., file-ID, file:///path, /path, http:// or https://.
            kind: "video" or the source of a side encoder.
            param: names the URL in errors.
            owner: whose uploads may be read.
            folder: for files that have to be written; the caller removes it.
            stack: what has to be let go when the request ends.

        Raises:
            ApiError: if it may not be read, is of another kind, or larger or longer than allowed.
        """
        if url.startswith("data:"):
            path, trusted = self._decoded(url, folder, param), False
        elif FILE_ID.fullmatch(url):
            path, trusted = stack.enter_context(self.uploads.reading(url, owner, param)), False
        elif url.startswith(("http://", "https://")):
            path, trusted = folder / f"{len(os.listdir(folder))}{suffix_of(urlsplit(url).path)}", False
            self.fetcher.fetch(url, path, param)
        else:
            path, trusted = self.allowed(url, param), True
        if not trusted:
            self._check_ending(path, kind, param)
        if path.suffix == ".zip":
            path = self._unpacked(path, folder / f"{len(os.listdir(folder))}.files", param)
            trusted = False
        self._check_size(path, kind, param)
        roots = self.roots if trusted else [path if path.is_dir() else path.parent]
        behind = [Path(named) for named in files_named(str(path))]
        for named in behind:
            self._check_inside(named, roots, param)
        if kind == "views":
            for named in behind:
                if named.suffix.lower() in VIDEO_ENDINGS:
                    self._check_length(named, param)
        elif MEDIA in ENDINGS.get(kind, ()):
            self._check_length(path, param)
        return path

    def _decoded(self, url: str, folder: Path, param: str) -> Path:
        head = _DATA_URL.match(url[:200])
        if head is None:
            raise bad_request(f"{param}: a data URL begins with data:KIND;base64,", param)
        path = folder / f"{len(os.listdir(folder))}{_SUFFIXES.get(head['kind'] or '', '')}"
        _write_base64(url[head.end() :], path, param)
        return path

    def sound(self, data: str, folder: Path, param: str) -> Path:
        """The sound of an ``input_audio`` part as a file."""
        path = folder / f"{len(os.listdir(folder))}"
        _write_base64(data, path, param)
        self._check_length(path, param)
        return path

    def allowed(self, url: str, param: str) -> Path:
        """A path under one of the roots, without links.

        Raises:
            ApiError: 400, if there is none; whether it lies elsewhere or nowhere is not told.
        """
        text = unquote(url.removeprefix("file://")) if url.startswith("file://") else url
        hint = "a file is named by a data URL, the id of an upload, an https URL of an allowed host, or a path that --allow-path allows"
        if not text.startswith("/") or "\0" in text:
            raise bad_request(f"{param}: {hint}", param, "url_not_allowed")
        refused = bad_request(
            f"{param}: there is no such file under a folder that --allow-path allows", param, "url_not_allowed"
        )
        try:
            path = Path(text).resolve(strict=True)
            mode = path.stat().st_mode
        except (OSError, RuntimeError):  # what is outside must not be told apart from what is not there
            raise refused from None
        if not any(path.is_relative_to(root) for root in self.roots) or not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise refused
        return path

    @staticmethod
    def _check_size(path: Path, kind: str, param: str) -> None:
        """Of files that are read in this process, before one is."""
        is_json = path.suffix.lower() == ".json"
        if not path.is_file() or (not is_json and (kind == "features" or MEDIA in ENDINGS.get(kind, ()))):
            return
        most = _JSON_MEGABYTES if is_json else _TEXT_MEGABYTES
        if path.stat().st_size > most * 2**20:
            raise bad_request(f"{param}: the file is larger than {most} MiB", param, "media_refused")

    @staticmethod
    def _check_inside(path: Path, roots: Sequence[Path], param: str) -> None:
        """Of every file that stands behind a path, links resolved."""
        real = path.resolve()
        if not any(real.is_relative_to(root.resolve()) for root in roots):
            raise bad_request(f"{param}: it names a file outside of its own folder", param, "url_not_allowed")

    @staticmethod
    def _check_ending(path: Path, kind: str, param: str) -> None:
        endings = ENDINGS.get(kind)
        if endings is None or (MEDIA in endings and path.suffix not in (".zip", ".json")) or path.suffix in endings:
            return
        wanted = " or ".join("a video or sound file" if ending == MEDIA else ending for ending in endings)
        found = f"a file {path.suffix}" if path.suffix else "a file without an ending that is known"
        raise bad_request(f"{param}: this side channel takes {wanted}, got {found}", param)

    def _unpacked(self, path: Path, folder: Path, param: str) -> Path:
        limit = self.limits.file_megabytes * 2**20
        try:
            unpack(path, folder, max_files=self.limits.archive_files, max_bytes=limit)
        except MediaError as error:
            raise bad_request(_without_path(error, path, param), param, "media_refused") from error
        inside = sorted(folder.iterdir())
        if len(inside) == 1 and inside[0].is_dir():
            folder = inside[0]
            inside = sorted(folder.iterdir())
        descriptors = [file for file in inside if file.suffix.lower() == ".json"]
        return descriptors[0] if len(descriptors) == 1 else folder

    def _check_length(self, path: Path, param: str) -> None:
        """Refuse video and sound that is too long, from what its container says, before it is decoded."""
        limits = self.limits
        try:
            info = probe(path)
        except MediaError as error:
            raise bad_request(_without_path(error, path, param), param, "media_refused") from error
        what = None
        for name, stream in (("video", info.video), ("sound", info.audio)):
            if stream is not None and stream.duration > limits.media_seconds:
                what = f"its {name} is {stream.duration:.0f} s long, of at most {limits.media_seconds:g} s"
            if stream is not None and stream.tracks > limits.media_tracks:
                what = f"it has {stream.tracks} {name} tracks, of at most {limits.media_tracks}"
        if info.video is not None and info.video.num_frames > limits.media_frames:
            what = f"its video has {info.video.num_frames} frames, of at most {limits.media_frames}"
        if what is not None:
            raise bad_request(f"{param}: {what}", param, "media_refused")


def _write_base64(data: str, path: Path, param: str) -> None:
    try:
        content = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise bad_request(f"{param}: the base64 is damaged", param) from None
    if not content:
        raise bad_request(f"{param}: the file is empty (0 bytes)", param)
    path.write_bytes(content)


def _without_path(error: Exception, path: Path, param: str) -> str:
    """The sentence of an error, about what the client calls the file."""
    return str(error).replace(str(path), param)
