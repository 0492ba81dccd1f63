"""The official files of benchmarks: JSON with messages that name the place, and media wherever they were unpacked."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property, wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from pave.utils.json_files import parse_json
from pave.utils.optional import require
from pave.utils.reading import read_bytes

P = ParamSpec("P")
T = TypeVar("T")
MAX_ANNOTATION_BYTES = 2 * 2**30
"""Largest file of annotations that is read."""
SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".mov")


class MediaFolder:
    """Finds the videos of a benchmark below a folder, however the archives were unpacked.

    Raises:
        ValueError: if there is no such folder.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise ValueError(f"{self.root}: there is no such folder of media")

    def find(self, *names: str) -> str:
        """The file of the first name that there is, right below the folder or below any folder in it.

        Args:
            names: paths, the likeliest first; a name without a video suffix stands for one with any of them.

        Returns:
            The file; where there is none, where the first name would have been: the sample keeps its place and is reported.

        Raises:
            ValueError: if a name leaves the folder, or files of one name lie in several folders.
        """
        for name in names:
            self.place(name)
        wanted = [variant for name in names for variant in _with_suffixes(name)]
        for name in wanted:
            if os.path.exists(self.root / name):
                return str(self.root / name)
        for name in wanted:
            matching = [path for path in self._by_name.get(Path(name).name, []) if path.endswith(os.sep + name)]
            if len(matching) > 1:
                raise ValueError(
                    f"{self.root}: there are several files for {name!r}: {matching[0]} and {matching[1]}; keep one, or name a folder "
                    "further down"
                )
            if matching:
                return matching[0]
        return str(self.root / wanted[0])

    def place(self, name: str) -> Path:
        """Where a name is, or would be, right below the folder.

        Raises:
            ValueError: if the name leaves the folder.
        """
        if os.path.isabs(name) or os.pardir in Path(name).parts:
            raise ValueError(f"the video {name!r} is outside of the folder of media {self.root}")
        return self.root / name

    @cached_property
    def _by_name(self) -> dict[str, list[str]]:
        """Every video below the folder, by file name."""
        names: dict[str, list[str]] = {}
        for folder, _, files in os.walk(self.root):
            for file in sorted(files):
                if file.lower().endswith(SUFFIXES):
                    names.setdefault(file, []).append(os.path.join(folder, file))
        return names


def is_name(text: str) -> bool:
    """Whether a text can name a file in a folder: no way out of it, and no folder in it."""
    return text not in (os.curdir, os.pardir) and not any(sign in text for sign in "/\\\0")


def _with_suffixes(name: str) -> list[str]:
    return [name] if name.lower().endswith(SUFFIXES) else [name + suffix for suffix in SUFFIXES]


def read_json(path: str | os.PathLike[str]) -> Any:
    """The content of a JSON file; of JSON lines (.jsonl) and Parquet (.parquet, needs pyarrow) the list of rows.

    Args:
        path: of the file.

    Raises:
        ValueError: if there is no such file, or it is not JSON; an object that has a key twice is refused, as one of the two would
            be lost.
    """
    kind = Path(path).suffix.lower()
    if kind == ".parquet":
        return _read_parquet(path)
    content = read_bytes(path, MAX_ANNOTATION_BYTES)
    try:
        text = content.decode("utf-8-sig")
        if kind == ".jsonl":  # not splitlines: JSON texts may hold the line separators of Unicode
            return [parse_json(line, any_number=True) for line in text.split("\n") if line.strip()]
        return parse_json(text, any_number=True)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not JSON: byte {error.start} is no UTF-8") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _read_parquet(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    pyarrow = require("pyarrow", extra="sensor", purpose="A Parquet file")
    parquet = require("pyarrow.parquet", extra="sensor", purpose="A Parquet file")
    try:
        rows: list[dict[str, Any]] = parquet.read_table(os.fspath(path)).to_pylist()
    except FileNotFoundError:
        raise ValueError(f"{path}: there is no such file of annotations") from None
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path}: not Parquet ({error})") from None
    return rows


def items_of(path: str | os.PathLike[str], value: Any, key: str | None = None) -> Iterator[Item]:
    """The objects of a list, each with its place for messages.

    Args:
        path: of the file, for messages.
        value: the file's content.
        key: the list's key, where the file is an object.

    Raises:
        ValueError: if this is no list of objects, or an empty one.
    """
    if key is not None:
        value = Item(f"{path}", value).get(key, list) if isinstance(value, Mapping) else None
    if not isinstance(value, list) or not value:
        where = "" if key is None else f" under {key!r}"
        raise ValueError(f"{path}: a list of objects is needed{where}, got {type(value).__name__} ({value!r:.60})")
    for number, item in enumerate(value):
        yield Item(f"{path}, item {number + 1}", item)


class Item:
    """An object of an official file. What it lacks, or has of another kind, is an error that names its place.

    Args:
        where: file and place, for messages.
        value: the object.
    """

    def __init__(self, where: str, value: Any) -> None:
        if not isinstance(value, Mapping):
            raise ValueError(f"{where}: an object is needed, got {value!r:.60}")
        self.where = where
        self.value = value

    def get(self, key: str, kind: type | tuple[type, ...] = str, *, other: Sequence[str] = ()) -> Any:
        """The value of a key.

        Args:
            key: its name.
            kind: type, or types, that it must have.
            other: further names under which releases have it.
        """
        for name in (key, *other):
            if name in self.value:
                value = self.value[name]
                wrong = not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)
                if wrong or (kind is str and not value.strip()):
                    raise self.error(f"the field {name!r} holds {value!r:.60}, which is not {_names(kind)}")
                return value
        raise self.error(f"the field {key!r} is missing; there are {', '.join(map(repr, self.value))}")

    def error(self, message: str) -> ValueError:
        """An error that names the place."""
        return ValueError(f"{self.where}: {message}")


def located(make: Callable[Concatenate[Item, P], T]) -> Callable[Concatenate[Item, P], T]:
    """A function of an item whose errors name the item's place, also where something further down raises them."""

    @wraps(make)
    def named(item: Item, /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return make(item, *args, **kwargs)
        except ValueError as error:
            raise (error if str(error).startswith(item.where.split(", ")[0]) else item.error(str(error))) from None

    return named


def _names(kind: type | tuple[type, ...]) -> str:
    words = {str: "text", int: "a whole number", list: "a list", dict: "an object", float: "a number"}
    kinds: Iterable[type] = kind if isinstance(kind, tuple) else (kind,)
    return " or ".join(words.get(one, one.__name__) for one in kinds)
