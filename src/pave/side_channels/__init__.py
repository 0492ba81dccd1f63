"""Side channels: raw streams beside the frames, and the frozen encoders that turn them into features with times.

Encoders are built from an ``EncoderConfig`` by ``build_encoder``; a new one is a class with the interface of
``SideEncoder`` and a line in ``ENCODERS``.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
from typing import TYPE_CHECKING, Any

from pave.side_channels.base import AudioClip, SideEncoder, SideFeatures

if TYPE_CHECKING:
    from pave.config import EncoderConfig

__all__ = ["ENCODERS", "AudioClip", "SideEncoder", "SideFeatures", "build_encoder"]

ENCODERS = {
    "log_mel": "pave.side_channels.log_mel:LogMelEncoder",
    "clap": "pave.side_channels.audio_transformers:ClapAudioEncoder",
    "ast": "pave.side_channels.audio_transformers:AstAudioEncoder",
    "whisper": "pave.side_channels.audio_transformers:WhisperAudioEncoder",
    "features": "pave.side_channels.features:StoredFeatures",
    "frames_pixels": "pave.side_channels.frames_pixels:FramesPixelsEncoder",
    "vision_transformers": "pave.side_channels.vision_transformers:VisionTransformersEncoder",
    "multiview": "pave.side_channels.multiview:MultiViewEncoder",
    "scene3d": "pave.side_channels.scene3d:Scene3DEncoder",
}
"""Where the class of each encoder lives; it is imported when it is first built."""


def build_encoder(config: EncoderConfig) -> SideEncoder[Any]:
    """The encoder that a config describes, on the CPU.

    Raises:
        ValueError: if there is no encoder or setting of that name (the message lists the known ones), a setting is wrong, or
            weights are missing where the encoder needs them.
    """
    if config.name not in ENCODERS:
        near = difflib.get_close_matches(config.name, ENCODERS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known encoders: {', '.join(ENCODERS)}"
        raise ValueError(f"there is no encoder {config.name!r}; {hint}")
    module, name = ENCODERS[config.name].split(":")
    encoder = getattr(importlib.import_module(module), name)
    known = set(inspect.signature(encoder).parameters)
    arguments = dict(config.settings)
    for setting in arguments:
        if setting not in known - {"model", "revision"}:
            near = difflib.get_close_matches(setting, known, n=1)
            hint = (
                f"did you mean {near[0]!r}?" if near else f"known settings: {', '.join(sorted(known - {'model', 'revision'}))}"
            )
            raise ValueError(f"the encoder {config.name!r} has no setting {setting!r}; {hint}")
    if "model" in known:
        if config.model is None:
            raise ValueError(f"the encoder {config.name!r} needs model: the hub id or local path of its weights")
        arguments.update(model=config.model, revision=config.revision)
    elif config.model is not None or config.revision is not None:
        raise ValueError(
            f"the encoder {config.name!r} has no weights, so it takes no model and no revision, got {config.model!r}"
        )
    try:
        built: SideEncoder[Any] = encoder(**arguments)
    except TypeError as error:
        raise ValueError(f"the encoder {config.name!r} cannot be built with the settings {config.settings}: {error}") from error
    return built
