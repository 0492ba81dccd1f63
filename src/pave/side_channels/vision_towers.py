"""Vision models of transformers as towers: from a window of frames to a grid of patch features for each step."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pave.utils.embedded import model_path

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Tower(ABC):
    """A frozen model with its processor.

    Args:
        name: of the model, for messages.
        model: takes pixels, gives ``last_hidden_state`` (and ``hidden_states``).
        processor: of images or videos.
        layer: whose output is taken: -1 is the model's own last output, -2 that of the layer before the last.
        whole_picture: the picture is resized to the model's input as it is, without cropping.
    """

    frames_per_step: int
    window: int
    """Frames that are handed over at a time; a multiple of ``frames_per_step``."""

    def __init__(self, name: str, model: Any, processor: Any, layer: int, whole_picture: bool) -> None:
        self.name, self.model, self.processor, self.layer = name, model, processor, layer
        self._options: dict[str, Any] = {}
        if whole_picture:
            height, width = self._input_size()
            self._options = {"size": {"height": height, "width": width}, "do_center_crop": False}

    @property
    def config(self) -> Any:
        """Of the model."""
        return self.model.config

    def _input_size(self) -> tuple[int, int]:
        """(height, width) of what the processor makes of any picture."""
        size = getattr(self.processor, "crop_size", None) if getattr(self.processor, "do_center_crop", False) else None
        size = dict(size or self.processor.size or {})
        side = getattr(self.config, "image_size", None)
        if {"height", "width"} <= size.keys() and size["height"] and size["width"]:
            return int(size["height"]), int(size["width"])
        if isinstance(side, int):
            return side, side
        raise ValueError(
            f"vision_transformers: {self.name!r} does not say how large its pictures are; set whole_picture: false"
        )

    def _hidden(self, output: Any) -> Tensor:
        hidden: Tensor
        if self.layer == -1:
            hidden = output.last_hidden_state
        elif -len(output.hidden_states) <= self.layer < 0:
            hidden = output.hidden_states[self.layer]
        else:
            raise ValueError(
                f"vision_transformers: layer must be from -{len(output.hidden_states)} to -1 for {self.name!r}, got {self.layer}"
            )
        return hidden

    def _patches(self, pixels: Tensor) -> tuple[int, int]:
        """Rows and columns of patches of an input."""
        patch = self.config.patch_size
        down, across = (patch, patch) if isinstance(patch, int) else patch
        return pixels.shape[-2] // down, pixels.shape[-1] // across

    def _process(self, **inputs: Any) -> Any:
        try:
            return self.processor(return_tensors="pt", **inputs, **self._options)
        except (ValueError, TypeError, AttributeError) as error:
            reason = " ".join(str(error).split())[:120]
            hint = "; try whole_picture: false" if self._options else ""
            raise ValueError(
                f"vision_transformers: the processor of {self.name!r} refuses the pictures ({reason}){hint}"
            ) from error

    def _call(self, pixels: Tensor, **options: Any) -> Tensor:
        parameter = next(self.model.parameters())
        moved = pixels.to(parameter.device, parameter.dtype)
        with torch.no_grad():
            return self._hidden(self.model(moved, output_hidden_states=self.layer != -1, **options))

    @abstractmethod
    def maps(self, frames_FHWC: NDArray[np.uint8]) -> Tensor:
        """(steps, C, rows, columns) float32 patch features of up to ``window`` frames."""


class ImageTower(Tower):
    """A model of single pictures. Class and register tokens, which stand in front, are dropped."""

    frames_per_step = 1
    window = 16

    def maps(self, frames_FHWC: NDArray[np.uint8]) -> Tensor:
        """(F, C, rows, columns)."""
        pixels = self._process(images=list(frames_FHWC), input_data_format="channels_last")["pixel_values"]
        if pixels.ndim != 4:
            raise ValueError(
                f"vision_transformers: {self.name!r} takes pixels of shape {tuple(pixels.shape)}, not pictures of one size"
            )
        hidden = self._call(pixels).float()
        if hidden.ndim == 4:  # a convolutional model gives maps as they are
            return hidden
        rows, columns = self._patches(pixels)
        extra = hidden.shape[1] - rows * columns
        if extra not in {0, 1, 2, 1 + int(getattr(self.config, "num_register_tokens", 0) or 0)}:
            raise ValueError(
                f"vision_transformers: {self.name!r} gives {hidden.shape[1]} tokens for {rows} x {columns} patches; only class "
                "and register tokens may come on top"
            )
        return hidden[:, extra:].transpose(1, 2).unflatten(2, (rows, columns))


class LanguageModelTower(ImageTower):
    """The vision tower of a Video LLM: a model of single pictures, whose pictures are made by the processor of videos."""

    def _process(self, **inputs: Any) -> Any:
        frames = inputs["images"]
        video = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)
        return {"pixel_values": super()._process(videos=[video], do_sample_frames=False)["pixel_values_videos"][0]}


class VideoTower(Tower):
    """V-JEPA 2: a step for each tubelet of frames. A clip that does not fill its last tubelet repeats its last frame."""

    def __init__(self, name: str, model: Any, processor: Any, layer: int, whole_picture: bool, clip_frames: int | None) -> None:
        super().__init__(name, model, processor, layer, whole_picture)
        self.frames_per_step = int(self.config.tubelet_size)
        self.window = clip_frames or int(self.config.frames_per_clip)
        if self.window % self.frames_per_step or self.window < 1:
            raise ValueError(
                f"vision_transformers: clip_frames must be a multiple of the {self.frames_per_step} frames of a tubelet, got {self.window}"
            )

    def _input_size(self) -> tuple[int, int]:
        return int(self.config.crop_size), int(self.config.crop_size)

    def maps(self, frames_FHWC: NDArray[np.uint8]) -> Tensor:
        """(tubelets, C, rows, columns)."""
        missing = -len(frames_FHWC) % self.frames_per_step
        filled = np.concatenate([frames_FHWC, np.repeat(frames_FHWC[-1:], missing, axis=0)])
        video = torch.from_numpy(filled).permute(0, 3, 1, 2)
        pixels = self._process(videos=[video], do_sample_frames=False)["pixel_values_videos"]
        hidden = self._call(pixels, skip_predictor=True).float()
        rows, columns = self._patches(pixels)
        return hidden[0].unflatten(0, (-1, rows, columns)).permute(0, 3, 1, 2)


def load_tower(
    model: str, revision: str | None, *, layer: int, whole_picture: bool, clip_frames: int | None, dtype: str
) -> tuple[Tower, str | None]:
    """The tower of a checkpoint, and the commit that was loaded (None for a folder).

    Raises:
        ValueError: if weights cannot be loaded, are incomplete, or belong to a model of another kind.
    """
    import transformers

    where = model_path(model)
    try:
        config = transformers.AutoConfig.from_pretrained(where, revision=revision, trust_remote_code=False)
        commit = getattr(config, "_commit_hash", None)
        is_video, of_video_llm = config.model_type == "vjepa2", _is_video_llm(config)
        options: dict[str, Any] = {}
        if of_video_llm:
            config = _tower_config(model, config)
            options = {"config": config, "key_mapping": {r"^(?:model\.)?vision_tower\.(?:vision_model\.)?": ""}}
        _check_kind(model, config, is_video, clip_frames)
        with _quiet() if of_video_llm else contextlib.nullcontext():  # it would report every weight of the language model
            loaded, info = transformers.AutoModel.from_pretrained(
                where, revision=revision, dtype=DTYPES[dtype], output_loading_info=True, trust_remote_code=False, **options
            )
        auto = transformers.AutoVideoProcessor if is_video or of_video_llm else transformers.AutoImageProcessor
        processor = auto.from_pretrained(where, revision=revision, trust_remote_code=False)
    except OSError as error:
        raise ValueError(f"vision_transformers: the encoder {model!r} cannot be loaded: {error}") from error
    # Weights that are not in a checkpoint are drawn at random, with a warning only. A pooler is not used.
    found = [*sorted(info["missing_keys"]), *sorted(map(str, info["mismatched_keys"]))]
    missing = [key for key in found if not key.startswith(("pooler.", "predictor.", "text_model.", "text_projection."))]
    if missing:
        raise ValueError(
            f"vision_transformers: {model!r} lacks {len(missing)} weights of the encoder, among them {missing[0]!r}"
        )
    tower = getattr(loaded, "vision_model", loaded).eval().requires_grad_(False)
    if is_video:
        return VideoTower(model, tower, processor, layer, whole_picture, clip_frames), commit
    kind = LanguageModelTower if of_video_llm else ImageTower
    return kind(model, tower, processor, layer, whole_picture), commit


def _is_video_llm(config: Any) -> bool:
    """Whether a config is that of a language model that sees."""
    tokens = ("image_token_index", "image_token_id", "video_token_index", "video_token_id")
    return hasattr(config, "vision_config") and any(hasattr(config, name) for name in tokens)


def _tower_config(model: str, config: Any) -> Any:
    found = config.vision_config.model_type
    if found not in ("siglip_vision_model", "clip_vision_model"):
        raise ValueError(
            f"vision_transformers: of Video LLMs only the SigLIP and CLIP vision towers can be used alone; that of {model!r} is {found!r}"
        )
    return config.vision_config


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _check_kind(model: str, config: Any, is_video: bool, clip_frames: int | None) -> None:
    if not is_video and clip_frames is not None:
        raise ValueError(
            f"vision_transformers: clip_frames is for video models; {model!r} sees single pictures ({config.model_type})"
        )
    if not is_video and hasattr(getattr(config, "vision_config", config), "num_frames"):
        raise ValueError(
            f"vision_transformers: {model!r} is a video model of the type {config.model_type!r}; of those only 'vjepa2' is supported"
        )
