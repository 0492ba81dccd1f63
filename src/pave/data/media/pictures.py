"""Single pictures and depth maps."""

from __future__ import annotations

import os
import zipfile
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from pave.data.media.container import MediaError, check_size
from pave.utils.files import atomic_path

_DAMAGED = (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError)


def read_picture(path: str | os.PathLike[str]) -> NDArray[np.uint8]:
    """(height, width, 3) uint8 RGB of a picture file (JPEG, PNG and others that Pillow reads).

    Raises:
        MediaError: naming the file, if it is missing, damaged or no picture.
    """
    with _opened(path) as image:
        try:
            return np.asarray(image.convert("RGB"))
        except _DAMAGED as error:
            raise _damaged(path, error) from error


def read_depth(path: str | os.PathLike[str], metres_per_unit: float | None = None) -> NDArray[np.float32]:
    """(height, width) float32 metres of a depth map, as stored: invalid values (0, NaN, infinity) are left in.

    Args:
        path: a PNG of 16-bit greys; an .npy array; or an .npz archive with one array, or one called ``depth``.
        metres_per_unit: metres of a stored 1; None is 0.001 (millimetres) for whole numbers, in a PNG or an array, and 1 for arrays of
            floating point.

    Raises:
        MediaError: naming the file, if it is missing, damaged, of another kind, or not one number for each pixel.
    """
    name = os.fspath(path)
    suffix = os.path.splitext(name)[1].lower()
    if suffix == ".png":
        values_HW = _grey(name)
    elif suffix in (".npy", ".npz"):
        values_HW = _array(name)
    else:
        raise MediaError(f"{name}: depth maps are .png, .npy or .npz files, not {suffix or 'without an ending'}")
    if values_HW.ndim != 2 or not values_HW.size or values_HW.dtype.kind not in "uif":
        raise MediaError(f"{name}: a depth map is one number for each pixel, got {values_HW.dtype} of shape {values_HW.shape}")
    scale = metres_per_unit if metres_per_unit is not None else 1.0 if values_HW.dtype.kind == "f" else 0.001
    with np.errstate(over="ignore"):  # what is out of range is infinite, and so invalid
        return (values_HW.astype(np.float64) * scale).astype(np.float32)


def write_picture(path: str | os.PathLike[str], rgb_HWC: NDArray[np.uint8]) -> None:
    """Write a PNG; the same pixels give the same bytes, and the file appears whole or not at all."""
    _save(path, Image.fromarray(np.ascontiguousarray(rgb_HWC)))


def write_depth(path: str | os.PathLike[str], depth_HW: NDArray[np.floating]) -> None:
    """Write depth in metres as a PNG of 16-bit millimetres, 0 where it is not finite or not above 0.

    Raises:
        ValueError: if a depth is above 65.535 m, which 16 bits cannot hold.
    """
    valid_HW = np.isfinite(depth_HW) & (depth_HW > 0)
    millimetres_HW = np.rint(np.where(valid_HW, depth_HW, 0) * 1000)
    if millimetres_HW.max(initial=0) > 65535:
        raise ValueError(f"write_depth: 16 bits hold at most 65.535 m, got {float(depth_HW[valid_HW].max()):.6g} m")
    _save(path, Image.fromarray(millimetres_HW.astype(np.uint16)))


def _save(path: str | os.PathLike[str], image: Image.Image) -> None:
    if not os.fspath(path).lower().endswith(".png"):
        raise ValueError(f"pictures are written as .png, not {os.fspath(path)!r}")
    with atomic_path(path, durable=False) as temporary:
        image.save(temporary, format="PNG")


def _opened(path: str | os.PathLike[str]) -> Image.Image:
    name = os.fspath(path)
    if not os.path.isfile(name):
        raise MediaError(f"{name}: there is no such file")
    try:
        image = Image.open(name)
    except _DAMAGED as error:
        raise _damaged(name, error) from error
    check_size(image.width, image.height, name)
    return image


def _damaged(path: str | os.PathLike[str], error: Exception) -> MediaError:
    reason = " ".join(str(error).split())[:120]
    return MediaError(f"{os.fspath(path)}: the picture is damaged or of a kind that is not known ({reason})")


def _grey(name: str) -> NDArray[Any]:
    with _opened(name) as image:
        if not image.mode.startswith("I"):
            raise MediaError(f"{name}: a depth map is a PNG of 16-bit greys, but this one is of the mode {image.mode!r}")
        try:
            return np.asarray(image)
        except _DAMAGED as error:
            raise _damaged(name, error) from error


def _array(name: str) -> NDArray[Any]:
    if not os.path.isfile(name):
        raise MediaError(f"{name}: there is no such file")
    try:
        with open(name, "rb") as file:
            content = np.load(file, allow_pickle=False)
            if isinstance(content, np.ndarray):
                return content
            key = "depth" if "depth" in content.files else content.files[0] if len(content.files) == 1 else None
            if key is None:
                raise MediaError(f"{name}: an array named 'depth' is expected, got {', '.join(content.files) or 'nothing'}")
            array: NDArray[Any] = content[key]
            return array
    except MediaError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise MediaError(f"{name}: the file is damaged or no array ({' '.join(str(error).split())[:120]})") from error
