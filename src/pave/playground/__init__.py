"""A miniature audio-visual world, its questions, and a tiny base Video LLM trained on the silent part of it."""

from pathlib import Path

from pave.utils.embedded import PLAYGROUND, model_path


def base_path() -> Path:
    """The folder of the trained base model inside the package, for ``AutoModelForImageTextToText.from_pretrained``."""
    return Path(model_path(PLAYGROUND))
