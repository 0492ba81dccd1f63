"""Side channels of one's own: a base class that leaves the reading and the encoding to you, and classes found by import path."""

from __future__ import annotations

import importlib
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import ModuleType
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
    with the settings as keyword arguments. Whoever runs the recipe or the patch names the module besides (``encoders``). It hands every argument on: ``super().__init__(window_seconds=window_seconds)``,
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


# --- which code may be imported -----------------------------------------------------------------------------------------

_named: ContextVar[Mapping[str, Path | None] | None] = ContextVar("pave_named_modules", default=None)
"""Modules that whoever runs this program named, each with its file where a file was named."""


def one_or_several(names: str | Iterable[str]) -> tuple[str, ...]:
    """A single name is one name, not its letters."""
    return (names,) if isinstance(names, str) else tuple(names)


@contextmanager
def modules_named(encoders: str | Iterable[str]) -> Iterator[None]:
    """Inside the block, encoders of one's own may be imported from these modules, and from those of blocks around it.

    Args:
        encoders: modules (``"my_package.my_module"``; a package stands for its modules too) or files (``"folder/my_module.py"``). The
            folder of a file joins ``sys.path``, at its end, so that the file may import what lies beside it.

    Raises:
        ValueError: if a name is neither, or there is no such file.
    """
    found: dict[str, Path | None] = dict(_named.get() or {})
    for entry in one_or_several(encoders):
        file = Path(entry).resolve() if entry.endswith(".py") else None
        name = entry if file is None else file.stem
        if not all(part.isidentifier() for part in name.split(".")):
            raise ValueError(f"encoders: {entry!r} is no module; write it as package.module, or as the path of a .py file")
        if file is not None and not file.is_file():
            raise ValueError(f"encoders: there is no file {entry}")
        if file is not None and str(file.parent) not in sys.path:
            sys.path.append(str(file.parent))
        found[name] = file
    token = _named.set(found)
    try:
        yield
    finally:
        _named.reset(token)


def own_modules(config: EncoderConfig) -> tuple[str, ...]:
    """The modules that an encoder's description names: its own, and that of an encoder inside its settings."""
    inner = config.settings.get("encoder")
    names = [config.name, inner.get("name") if isinstance(inner, dict) else None]
    return tuple(name.partition(":")[0] for name in names if isinstance(name, str) and ":" in name)


def import_encoder(path: str) -> type[Any]:
    """The class behind an import path ``"module:Class"``.

    A path may come with a patch that somebody else made, so the module is imported only inside ``modules_named`` of it. Nothing is
    called that is not a class with all members of a ``SideEncoder``.

    Raises:
        ValueError: if nobody named the module, or it cannot be imported, has no such class, or that is no encoder.
    """
    module_name, _, class_name = path.partition(":")
    if not all(part.isidentifier() for part in [*module_name.split("."), class_name]):
        raise ValueError(f"the encoder {path!r} is no import path; write it as 'package.module:Class'")
    module = _import(path, module_name)
    found = getattr(module, class_name, None)
    if not isinstance(found, type):
        raise ValueError(f"the encoder {path!r} is not there: the module {module_name!r} has no class {class_name!r}")
    missing = [member for member in _MEMBERS if not hasattr(found, member)]
    if missing:
        raise ValueError(f"{path!r} is no encoder: it lacks {', '.join(missing)}; derive it from pave.side_channels.OwnEncoder")
    return found


def _import(path: str, module_name: str) -> ModuleType:
    parts = module_name.split(".")
    named = _named.get() or {}
    allowed = [name for name in (".".join(parts[:count]) for count in range(1, len(parts) + 1)) if name in named]
    if not allowed:
        file = f"FOLDER/{parts[-1]}.py"
        raise ValueError(
            f"the encoder {path!r} is code that is no part of this library, and code is never run because a patch or a recipe's channel "
            f"names it; if you trust the module, name it yourself: --encoders {module_name} (or --encoders {file}), in a recipe encoders: "
            f"[{module_name}], in Python encoders=[{module_name!r}]"
        )
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise ValueError(f"the encoder {path!r} cannot be imported: {error}") from error
        raise ValueError(
            f"the encoder {path!r} cannot be imported: there is no installed module {module_name!r}; name its file instead, such as "
            f"FOLDER/{parts[-1]}.py, or put its folder on PYTHONPATH"
        ) from None
    except Exception as error:
        raise ValueError(f"the encoder {path!r} cannot be imported: {type(error).__name__}: {error}") from error
    file_named = named[allowed[-1]]
    if file_named is not None and Path(module.__file__ or "").resolve() != file_named:
        raise ValueError(
            f"the encoder {path!r}: {file_named} was named, but Python has another module {module_name!r}, {module.__file__}; rename the file"
        )
    return module
