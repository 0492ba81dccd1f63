"""A miniature audio-visual world, its questions, and a tiny base Video LLM that was trained on the silent part of it."""

from pathlib import Path


def base_path() -> Path:
    """The folder of the trained base model inside the package, for ``AutoModelForImageTextToText.from_pretrained``."""
    return Path(__file__).parent / "base"
