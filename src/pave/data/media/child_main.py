"""The child process of ``child``: reads files, one after the other, and answers with what was read."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from pave.data.media import container
from pave.data.media.archives import unpack
from pave.data.media.child import ChildLimits
from pave.data.media.container import MediaError
from pave.data.media.frames import VideoClip, read_frames
from pave.data.media.pictures import read_depth, read_picture
from pave.data.media.probing import probe
from pave.data.media.sampling import FrameSampling
from pave.data.media.sound import read_audio
from pave.utils.children import Answers, requests


def _read_frames(path: str, sampling: dict[str, Any], **options: Any) -> VideoClip:
    return read_frames(path, FrameSampling(**sampling), **options)


READERS: dict[str, Callable[..., Any]] = {
    "probe": probe,
    "read_audio": read_audio,
    "read_depth": read_depth,
    "read_frames": _read_frames,
    "read_picture": read_picture,
    "unpack": unpack,
}
"""What a child can be asked for."""


def main() -> None:
    """Answer requests from standard input until it ends."""
    answers, orders = Answers(), requests()
    try:
        settings = next(orders)
        limits = None if settings is None else ChildLimits(**settings)
        if limits is not None:
            _restrict(limits)
        for request in orders:
            answers.send(*_answer(request, limits))
    except (StopIteration, BrokenPipeError, KeyboardInterrupt):
        return


def _answer(request: Any, limits: ChildLimits | None) -> tuple[Any, ...]:
    name = request["path"]
    try:
        result = READERS[request["function"]](name, **request["options"])
    except MemoryError:
        allowed = "" if limits is None else f" than the {limits.memory / 2**20:.0f} MiB allowed"
        return ({"error": f"{name}: reading it takes more memory{allowed}", "code": "media-memory"},)
    except MediaError as error:
        return ({"error": str(error), "code": error.code},)
    except Exception as error:
        said = " ".join(str(error).split())[:200]
        return ({"error": f"{name}: it cannot be read ({type(error).__name__}: {said})", "code": MediaError.code},)
    if isinstance(result, np.ndarray):
        fields: dict[str, Any] = {"array": result}
    else:
        fields = {} if result is None else {f.name: getattr(result, f.name) for f in dataclasses.fields(result)}
    arrays = {key: np.ascontiguousarray(value) for key, value in fields.items() if isinstance(value, np.ndarray)}
    plain = {
        key: dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value
        for key, value in fields.items()
        if key not in arrays
    }
    layout = {key: (array.dtype.str, array.shape) for key, array in arrays.items()}
    return ({"fields": plain, "arrays": layout}, *arrays.values())


def _restrict(limits: ChildLimits) -> None:
    """Hold this process to limits, for good. Where the system knows no limit of memory, the others hold."""
    container.MAX_PIXELS = limits.pixels
    container.MAX_PACKETS = limits.packets
    try:
        import resource

        with open("/proc/self/statm", encoding="ascii") as file:
            empty = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (empty + limits.memory,) * 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (ImportError, OSError, ValueError):
        return
