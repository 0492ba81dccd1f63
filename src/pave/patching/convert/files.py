"""Opening the files of released checkpoints: safetensors and torch files without unpickling, one tensor at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import safetensors
import torch
from torch import Tensor

from pave.utils.json_files import read_json_object


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file or of a dictionary that torch saved, on the CPU.

    Raises:
        ValueError: if the file is missing, damaged, or holds anything but named tensors.
    """
    if not path.is_file():
        raise ValueError(f"{path} is missing")
    try:
        if path.suffix == ".safetensors":
            with safetensors.safe_open(path, framework="pt") as file:
                return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        # without mmap, files of the older format (not zipped) can be read as well
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except Exception as error:  # a damaged file makes these readers raise almost anything
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} is damaged or holds more than tensors, which are never unpickled: {reason}") from None
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"{path} must hold a dictionary of tensors and nothing else")
    return {str(key): value for key, value in content.items()}


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def one_of(folder: Path, *names: str) -> Path:
    """The one file of these names that the folder has.

    Raises:
        ValueError: if there is none or more than one.
    """
    found = [name for name in names if (folder / name).is_file()]
    if not found:
        raise ValueError(f"{folder} has no {' and no '.join(names)}")
    if len(found) > 1:
        raise ValueError(f"{folder} has both {' and '.join(found)}, and they may differ; remove one")
    return folder / found[0]


def weight_files(folder: Path) -> list[Path]:
    """The files of a model's weights, single or sharded.

    Raises:
        ValueError: if there are none, two sets of them, or an index names a file that is missing.
    """
    path = one_of(
        folder, "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"
    )
    if path.suffix != ".json":
        return [path]
    names = sorted(set(read_json_object(path).get("weight_map", {}).values()))
    if not names:
        raise ValueError(f"{path} names no file of weights")
    for name in names:
        if not (folder / name).is_file():
            raise ValueError(f"{path} names {name}, which is missing")
    return [folder / name for name in names]


def tensor_shapes(files: list[Path]) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors, without reading them where the format allows.

    Raises:
        ValueError: if a tensor is in two files.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for path in files:
        for key, shape in _shapes(path):
            if key in shapes:
                raise ValueError(f"{path}: {key} is in another file as well")
            shapes[key] = shape
    return shapes


def _shapes(path: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    if path.suffix != ".safetensors":
        yield from ((key, tuple(value.shape)) for key, value in read_tensors(path).items())
        return
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118
                yield key, tuple(file.get_slice(key).get_shape())
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is not a complete safetensors file ({error}); copy or download it again") from None


def first_names(names: set[str], limit: int = 5) -> str:
    """Names for an error: the first few, and how many more."""
    shown = sorted(names)
    more = f" and {len(shown) - limit} more" if len(shown) > limit else ""
    return ", ".join(shown[:limit]) + more
