"""Side channels of one's own: a base class that leaves the reading and the encoding to you, and classes found by import path."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pave.side_channels.base import SideFeatures

if TYPE_CHECKING:
    import torch
    from typing_extensions import Self

    from pave.config import EncoderConfig

_MEMBERS = ("source", "width", "tokens_per_step", "encode", "encode_batch", "spec", "to")


class OwnEncoder(ABC):
    """The base of an encoder that is not part of this library; it reads its own files.

    A subclass is named in a recipe by its import path, ``encoder: {name: "my_module:MyEncoder", settings: {...}}``, and built
    with the settings as keyword arguments. It hands every argument on: ``super().__init__(window_seconds=window_seconds)``,
    so that patches and caches record it.
    """

    source: ClassVar[str] = "own"
    sample_rate: int | None = None

    def __init__(self, **settings: Any) -> None:
        """
        Args:
            settings: every argument that the subclass was built with.
        """
        self.settings = settings

    @property
    @abstractmethod
    def width(self) -> int:
        """C, numbers in a feature vector."""

    @property
    def tokens_per_step(self) -> int:
        """M, feature vectors of a step."""
        return 1

    @abstractmethod
    def read(self, video: str, path: str | None) -> Any:
        """What ``encode`` takes, or None if the video lacks the channel.

        Args:
            video: path of the sample's video.
            path: what the sample names under ``side_channels``; None if it names nothing.

        Raises:
            ValueError: if the file is no good: one sentence that names it.
        """

    @abstractmethod
    def encode(self, source: Any) -> SideFeatures:
        """Features of what ``read`` gave, with their times. The same source must always give the same features."""

    def encode_batch(self, sources: Sequence[Any]) -> list[SideFeatures]:
        """Features of several sources, in order."""
        return [self.encode(source) for source in sources]

    def spec(self) -> EncoderConfig:
        """The import path of the class, and the settings."""
        from pave.config import EncoderConfig

        return EncoderConfig(name=f"{type(self).__module__}:{type(self).__qualname__}", settings=dict(self.settings))

    def to(self, device: torch.device | str) -> Self:
        """Move the encoder; override it in one that has weights."""
        return self


def import_encoder(path: str) -> type[Any]:
    """The class behind an import path ``"module:Class"``.

    A path may come with a patch that somebody else made. Nothing is called that is not a class with all members of a
    ``SideEncoder``, and a module has to be on this computer already: patches never bring code.

    Raises:
        ValueError: if the module cannot be imported, has no such class, or that is no encoder.
    """
    module_name, _, class_name = path.partition(":")
    if not all(part.isidentifier() for part in [*module_name.split("."), class_name]):
        raise ValueError(f"the encoder {path!r} is no import path; write it as 'package.module:Class'")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise ValueError(f"the encoder {path!r} cannot be imported: {error}") from error
        raise ValueError(
            f"the encoder {path!r} cannot be imported: there is no module {module_name!r} here; run in the folder of {module_name}.py, or put "
            "that folder on PYTHONPATH"
        ) from None
    except Exception as error:
        raise ValueError(f"the encoder {path!r} cannot be imported: {type(error).__name__}: {error}") from error
    found = getattr(module, class_name, None)
    if not isinstance(found, type):
        raise ValueError(f"the encoder {path!r} is not there: the module {module_name!r} has no class {class_name!r}")
    missing = [member for member in _MEMBERS if not hasattr(found, member)]
    if missing:
        raise ValueError(f"{path!r} is no encoder: it lacks {', '.join(missing)}; derive it from pave.side_channels.OwnEncoder")
    return found
