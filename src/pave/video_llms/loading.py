"""Loading a base with its processor, checked: nothing missing, nothing drawn at random, no code that comes with it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from pave.utils.embedded import model_path
from pave.utils.files import DISK_ERRORS
from pave.video_llms import get_interface


def load_base(base: str | os.PathLike[str], *, revision: str | None = None, dtype: str = "auto") -> tuple[Any, Any]:
    """A base model and its processor, on the CPU.

    Args:
        base: folder or hub id, or "playground" for the small one inside the package.
        revision: on the hub.
        dtype: "auto" holds the weights as they are stored; or float32, bfloat16, float16.

    Raises:
        ValueError: if there is no such base, its family is not supported, or its files are damaged or incomplete. Code that
            comes with a model is never run.
    """
    import transformers

    name = os.fspath(base)
    _, processor = load_processor(name, revision=revision)  # raises before gigabytes are read
    with _errors_named(name):
        loaded: Any = transformers.AutoModelForImageTextToText.from_pretrained(
            model_path(name), revision=revision, dtype=dtype, trust_remote_code=False, output_loading_info=True
        )
    model, info = loaded
    # weights that are not in a checkpoint are drawn at random, with a warning only
    missing = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
    if missing:
        raise ValueError(f"base {name!r} lacks {len(missing)} of its weights, among them {missing[0]}; download it again")
    return model, processor


def load_processor(base: str | os.PathLike[str], *, revision: str | None = None) -> tuple[Any, Any]:
    """The config of a base and its processor, without any weights.

    Raises:
        ValueError: as ``load_base`` does.
    """
    import transformers

    name = os.fspath(base)
    with _errors_named(name):
        # transformers would ask on the terminal whether to run a repository's own code
        config = transformers.AutoConfig.from_pretrained(model_path(name), revision=revision, trust_remote_code=False)
        get_interface(config)
        return config, transformers.AutoProcessor.from_pretrained(model_path(name), revision=revision, trust_remote_code=False)


@contextlib.contextmanager
def _errors_named(name: str) -> Iterator[None]:
    from safetensors import SafetensorError

    try:
        yield
    except OSError as error:
        if error.errno in DISK_ERRORS:  # a library that keeps something on the disk: no fault of the base
            raise
        raise ValueError(f"base {name!r} is no folder with a model, and the hub did not give it: {_line(error)}") from error
    except (ValueError, SafetensorError) as error:
        raise ValueError(f"base {name!r} cannot be loaded: {_line(error)}") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
