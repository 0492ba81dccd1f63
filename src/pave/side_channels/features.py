"""Features that were extracted before, read from files."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pave.config import EncoderConfig
from pave.side_channels.base import SideFeatures
from pave.utils.errors import CodedError
from pave.utils.files import atomic_path

if TYPE_CHECKING:
    from typing_extensions import Self

MAX_BYTES = 8 * 2**30
"""Most memory that the features of one file may take."""
_ARRAYS = ("features", "times")


@dataclass(frozen=True)
class TimedFile:
    """A file of features whose steps are spread over a video."""

    path: str
    duration: float
    """Seconds of the video."""


class StoredFeatures:
    """Reads features from a file per video instead of computing them.

    A file is .safetensors or .npz with the arrays ``features`` and, optionally, ``times``; .npy with the features alone; or
    .pt with a tensor or a dictionary of tensors of those names (read without unpickling objects). Features are (K, C) or
    (K, M, C) floating point; times are K seconds on the video's clock, the centre of each step. A file without times needs
    ``rate``, ``window_seconds``, or ``times`` "spread".

    Args:
        width: C.
        tokens_per_step: M.
        rate: steps a second, for files without times. Step k is centred at ``start + (k + 0.5) / rate``.
        start: seconds on the video's clock at which the first step begins, for files without times.
        window_seconds: what the encoder that made a file without times heard or saw at a time, instead of ``rate``. Step k is
            centred at ``start + k * stride_seconds + window_seconds / 2``.
        stride_seconds: distance of those windows; None for windows side by side.
        times: "file" is all of the above. "spread" spreads the K steps of a file evenly over the video: step k is centred at
            ``(k + 0.5) * duration / K``; a file with times of its own is then refused.
        steps: K of a file that holds all tokens of all steps in one row, step after step: (1, K * M, C) or (K * M, C).
        drop_class_token: files hold one token more, in front of the M of each step, which is left out.
        flatten_tokens: a file of (K, M, C), of whatever M, is read as K * M steps of one token, row after row, each at the time of its
            own of the K steps. So the authors' code reads audio features (it flattens a three-dimensional tensor to (K * M, C)
            before anything else), which under index alignment gives frames other tokens than K steps of M do, unless K is the
            number of frames. A file of (K, C) is read as always.
        offset_seconds: added to every time.

    Raises:
        ValueError: if a setting is out of range.
    """

    source: ClassVar[str] = "features"
    sample_rate: int | None = None

    def __init__(
        self,
        *,
        width: int,
        tokens_per_step: int = 1,
        rate: float | None = None,
        start: float = 0.0,
        window_seconds: float | None = None,
        stride_seconds: float | None = None,
        times: str = "file",
        steps: int | None = None,
        drop_class_token: bool = False,
        flatten_tokens: bool = False,
        offset_seconds: float = 0.0,
    ) -> None:
        if width < 1 or tokens_per_step < 1:
            raise ValueError(f"features: width and tokens_per_step must be at least 1, got {width} and {tokens_per_step}")
        if rate is not None and not 0 < rate < float("inf"):
            raise ValueError(f"features: rate must be a positive number of steps a second, got {rate}")
        if times not in ("file", "spread"):
            raise ValueError(f"features: times must be 'file' or 'spread', got {times!r}")
        if window_seconds is None and stride_seconds is not None:
            raise ValueError("features: stride_seconds needs window_seconds")
        if sum([rate is not None, window_seconds is not None, times == "spread"]) > 1 or (times == "spread" and start):
            raise ValueError(
                "features: rate, window_seconds and times 'spread' exclude each other; start goes with the first two"
            )
        for name, value in (("window_seconds", window_seconds), ("stride_seconds", stride_seconds)):
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"features: {name} must be a positive number, got {value}")
        if steps is not None and steps < 1:
            raise ValueError(f"features: steps must be at least 1, got {steps}")
        if flatten_tokens and (tokens_per_step > 1 or drop_class_token or steps is not None):
            raise ValueError(
                "features: flatten_tokens makes steps of one token of whatever a file holds; take tokens_per_step, drop_class_token and "
                "steps away"
            )
        if not isfinite(start) or not isfinite(offset_seconds):
            raise ValueError(f"features: start and offset_seconds must be finite, got {start} and {offset_seconds}")
        self._width, self._tokens_per_step, self._rate, self._start = width, tokens_per_step, rate, start
        self._window, self._stride = window_seconds, window_seconds if stride_seconds is None else stride_seconds
        self._steps, self._drop_class_token, self._offset = steps, drop_class_token, offset_seconds
        self._flatten_tokens = flatten_tokens
        self.times = times
        self._device = torch.device("cpu")

    @property
    def width(self) -> int:
        """C."""
        return self._width

    @property
    def tokens_per_step(self) -> int:
        """M."""
        return self._tokens_per_step

    def encode(self, source: str | os.PathLike[str] | TimedFile) -> SideFeatures:
        """Read a file: (K, M, C) in its own floating type (float64 becomes float32).

        Raises:
            ValueError: naming the file, if it is missing, damaged, of an unknown kind, of another shape, or has no times and
                no setting says them.
        """
        name = source.path if isinstance(source, TimedFile) else os.fspath(source)
        features, times = _read(name)
        tokens = features.shape[1] if self._flatten_tokens and features.ndim == 3 else 1
        features = self._arrange(features.flatten(0, 1) if tokens != 1 else features, name)
        if times is None:
            steps = len(features) // tokens if tokens else 0
            times = self._times(steps, name, source.duration if isinstance(source, TimedFile) else None)
        elif self.times == "spread":
            raise ValueError(f"{name}: the file holds times of its own; take the setting times: spread away")
        if features.dtype == torch.float64:
            features = features.float()
        if tokens != 1:
            if times.shape != (len(features) // max(1, tokens),):
                raise ValueError(f"{name}: {len(features) // max(1, tokens)} steps but times of shape {tuple(times.shape)}")
            times = times.repeat_interleave(tokens)
        try:
            return SideFeatures(features.to(self._device), times.double() + self._offset)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None

    def _arrange(self, features: Tensor, name: str) -> Tensor:
        """(K, M, C) of whatever layout the settings say the file has."""
        M, C = self._tokens_per_step + self._drop_class_token, self._width
        found = tuple(features.shape)
        if self._steps is not None:
            if found not in {(1, self._steps * M, C), (self._steps * M, C)}:
                raise ValueError(
                    f"{name}: with steps {self._steps}, features of shape (1, {self._steps} * {M}, {C}) are expected, got {found}"
                )
            features = features.reshape(self._steps, M, C)
        elif features.ndim == 2:
            features = features[:, None]
        if features.ndim != 3 or tuple(features.shape[1:]) != (M, C):
            raise CodedError(
                f"{name}: features of shape (steps, {M}, {C}) are expected, got {tuple(features.shape)}", "features-width"
            )
        if not features.is_floating_point():
            raise ValueError(f"{name}: features must be floating point, got {features.dtype}")
        return features[:, 1:] if self._drop_class_token else features

    def _times(self, steps: int, name: str, duration: float | None) -> Tensor:
        """Centres of the steps of a file that does not say them."""
        number_K = torch.arange(steps, dtype=torch.float64)
        if self.times == "spread":
            if duration is None:
                raise ValueError(f"{name}: to spread its steps over the video its duration is needed; encode a TimedFile")
            return (number_K + 0.5) * duration / steps
        if self._window is not None and self._stride is not None:
            return self._start + number_K * self._stride + self._window / 2
        if self._rate is None:
            raise ValueError(
                f"{name}: the file holds no times; set the encoder's rate (steps a second), window_seconds, or times: spread"
            )
        return self._start + (number_K + 0.5) / self._rate

    def encode_batch(self, sources: Sequence[str | os.PathLike[str] | TimedFile]) -> list[SideFeatures]:
        """Read several files, in order."""
        return [self.encode(source) for source in sources]

    def spec(self) -> EncoderConfig:
        """Every setting, also those left at their default."""
        settings: dict[str, Any] = {
            "width": self._width,
            "tokens_per_step": self._tokens_per_step,
            "rate": self._rate,
            "start": self._start,
            "window_seconds": self._window,
            "stride_seconds": self._stride,
            "times": self.times,
            "steps": self._steps,
            "drop_class_token": self._drop_class_token,
            "flatten_tokens": self._flatten_tokens,
            "offset_seconds": self._offset,
        }
        return EncoderConfig(name="features", settings=settings)

    def to(self, device: torch.device | str) -> Self:
        """Put what is read on this device."""
        self._device = torch.device(device)
        return self


def save_features(path: str | os.PathLike[str], features: SideFeatures) -> None:
    """Write a file that ``StoredFeatures`` reads; it appears whole or not at all.

    Args:
        path: ends in .safetensors.
        features: as an encoder gave them.

    Raises:
        ValueError: if the path ends otherwise.
    """
    if not os.fspath(path).endswith(".safetensors"):
        raise ValueError(f"save_features: the path must end in .safetensors, got {os.fspath(path)!r}")
    tensors = {"features": features.features_KMC.cpu().contiguous(), "times": features.times_K.cpu().contiguous()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary)


def _read(name: str) -> tuple[Tensor, Tensor | None]:
    suffix = os.path.splitext(name)[1]
    if suffix not in _READERS:
        raise ValueError(f"{name}: stored features are {', '.join(_READERS)} files, not {suffix or 'without an ending'}")
    if not os.path.isfile(name):
        raise ValueError(f"{name}: there is no such file of features")
    try:
        content = _READERS[suffix](name)
    except Exception as error:  # a damaged file makes these readers raise almost anything
        reason = " ".join(str(error).split())[:150]
        raise ValueError(f"{name}: the file is damaged or holds something other than arrays ({reason})") from error
    if not isinstance(content, Mapping):
        content = {"features": content}
    known = {key: value for key, value in content.items() if key in _ARRAYS}
    if "features" not in known or not all(isinstance(value, Tensor) for value in known.values()):
        raise ValueError(f"{name}: an array named 'features' is expected, got {', '.join(map(repr, content)) or 'nothing'}")
    for key, value in known.items():
        if value.layout != torch.strided or value.device.type != "cpu" or value.is_complex():
            raise ValueError(f"{name}: {key} must be an ordinary array of real numbers")
        if value.numel() * value.element_size() > MAX_BYTES:  # a few bytes can say that they are to be repeated
            raise ValueError(f"{name}: {key} of shape {tuple(value.shape)} is larger than {MAX_BYTES / 2**30:g} GiB")
    return known["features"].detach(), known["times"].detach() if "times" in known else None


def _numpy(name: str) -> Any:
    _check_unpacked_size(name)
    # mapped, so that a header that promises more than the file holds is an error before memory is taken
    content = np.load(name, allow_pickle=False, mmap_mode="r")
    if isinstance(content, np.ndarray):
        return torch.from_numpy(np.array(content))
    with content:
        return {key: torch.from_numpy(content[key]) if key in _ARRAYS else None for key in content.files}


def _torch(name: str) -> Any:
    _check_unpacked_size(name)
    return torch.load(name, map_location="cpu", weights_only=True)


def _check_unpacked_size(name: str) -> None:
    """Refuse an archive that unpacks to more than MAX_BYTES, whatever its own size is."""
    if zipfile.is_zipfile(name):
        with zipfile.ZipFile(name) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > MAX_BYTES:
            raise ValueError(f"it unpacks to {size / 2**30:.1f} GiB, the limit is {MAX_BYTES / 2**30:g}")


_READERS: dict[str, Callable[[str], Any]] = {
    ".safetensors": load_file,
    ".npz": _numpy,
    ".npy": _numpy,
    ".pt": _torch,
    ".pth": _torch,
}
