"""Side channels: raw streams beside the frames, and the frozen encoders that turn them into features with times.

Encoders are built from an ``EncoderConfig`` by ``build_encoder``; a new one is a class with the interface of
``SideEncoder`` and a line in ``ENCODERS``, or a class of one's own, derived from ``OwnEncoder`` and named by its import path. Its module is imported only where the caller
names it (``encoders``), never because a config does.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from pave.side_channels.base import AudioClip, SideEncoder, SideFeatures
from pave.side_channels.own import OwnEncoder, import_encoder, modules_named, one_or_several, own_modules
from pave.side_channels.settings import check_settings, check_size

if TYPE_CHECKING:
    from pave.config import EncoderConfig

__all__ = [
    "ENCODERS",
    "FEATURES_VERSION",
    "AudioClip",
    "OwnEncoder",
    "SideEncoder",
    "SideFeatures",
    "build_encoder",
    "encoder_source",
    "modules_named",
    "one_or_several",
    "own_modules",
]

ENCODERS = {
    "log_mel": "pave.side_channels.log_mel:LogMelEncoder",
    "clap": "pave.side_channels.audio_transformers:ClapAudioEncoder",
    "ast": "pave.side_channels.audio_transformers:AstAudioEncoder",
    "whisper": "pave.side_channels.audio_transformers:WhisperAudioEncoder",
    "features": "pave.side_channels.features:StoredFeatures",
    "speech": "pave.side_channels.waveform_transformers:SpeechAudioEncoder",
    "pe_audio": "pave.side_channels.waveform_transformers:PeAudioEncoder",
    "sensor_windows": "pave.side_channels.sensor:SensorWindows",
    "text_hash": "pave.side_channels.text:HashedText",
    "text_transformers": "pave.side_channels.text:TransformersText",
    "frames_pixels": "pave.side_channels.frames_pixels:FramesPixelsEncoder",
    "vision_transformers": "pave.side_channels.vision_transformers:VisionTransformersEncoder",
    "multiview": "pave.side_channels.multiview:MultiViewEncoder",
    "scene3d": "pave.side_channels.scene3d:Scene3DEncoder",
}
"""Where the class of each encoder lives; it is imported when it is first built."""


FEATURES_VERSION = 2
"""Part of the name of every stored feature. Raise it when an encoder or a reader begins to give other numbers for the same
source and settings, so that what was stored before is never taken for them."""


def build_encoder(config: EncoderConfig, encoders: str | Iterable[str] = ()) -> SideEncoder[Any]:
    """The encoder that a config describes, on the CPU.

    Args:
        config: the description; it may come with a patch that somebody else made.
        encoders: modules with encoders of your own that it may name (see ``modules_named``).

    Raises:
        ValueError: if there is no encoder or setting of that name (the message lists the known ones), a setting is wrong, or
            weights are missing where the encoder needs them; or if it names code whose module ``encoders`` does not.
    """
    with modules_named(encoders):
        return _build(config)


def _build(config: EncoderConfig) -> SideEncoder[Any]:
    from pave.side_channels.arranged import SETTINGS, ArrangedAudioEncoder  # loads torch

    encoder = _find_class(config.name)
    parameters = inspect.signature(encoder).parameters.values()
    known = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    added = set(SETTINGS) - known if encoder.source == "audio" else set()
    _check_settings(config, (known | added) - {"model", "revision"})
    check_settings(config, encoder, own=config.name not in ENCODERS)
    arguments = {name: value for name, value in config.settings.items() if name in known}
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
        arrangement = {name: value for name, value in config.settings.items() if name in added}
        check_size(config.name, built)
        return ArrangedAudioEncoder(built, **arrangement) if arrangement else built
    except TypeError as error:
        raise ValueError(f"the encoder {config.name!r} cannot be built with the settings {config.settings}: {error}") from error


def encoder_source(config: EncoderConfig, encoders: str | Iterable[str] = ()) -> str:
    """What the encoder that a config names takes (``SideEncoder.source``), without building it.

    Raises:
        ValueError: if there is no encoder of that name, or it names code whose module ``encoders`` does not.
    """
    with modules_named(encoders):
        return str(_find_class(config.name).source)


def _find_class(name: str) -> type[Any]:
    if name in ENCODERS:
        module, class_name = ENCODERS[name].split(":")
        found: type[Any] = getattr(importlib.import_module(module), class_name)
        return found
    if ":" in name:
        return import_encoder(name)
    near = difflib.get_close_matches(name, ENCODERS, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known encoders: {', '.join(ENCODERS)}, or module:Class of your own"
    raise ValueError(f"there is no encoder {name!r}; {hint}")


def _check_settings(config: EncoderConfig, known: set[str]) -> None:
    for setting in config.settings:
        if setting not in known:
            near = difflib.get_close_matches(setting, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known settings: {', '.join(sorted(known))}"
            raise ValueError(f"the encoder {config.name!r} has no setting {setting!r}; {hint}")
