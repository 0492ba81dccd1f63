"""A video as the frozen base encodes it: made once of its frames, and put into batches in place of them."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pave.config import EncoderConfig
from pave.data.collator import PatchCollator
from pave.data.items import PatchItem, VideoVision
from pave.data.media import FrameSampling, VideoClip, read_frames
from pave.side_channels import SideEncoder, build_encoder, own_modules
from pave.utils.content import Stamp, stamp_or_none, unchanged
from pave.utils.embedded import model_path
from pave.video_llms.encode import PIXELS, check_vision_stored, encode_to_keep
from pave.video_llms.loading import load_base, load_processor

if TYPE_CHECKING:
    from typing_extensions import Self

logger = logging.getLogger(__name__)

BASE_VISION = "base_vision"
"""``EncoderConfig.name`` of what makes the base's vision features."""
VISION_VERSION = 2
"""Raised when this module begins to give other features of the same frames."""
_CONFIGS = ("config.json", "preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json")
_WEIGHTS = (".safetensors", ".bin", ".index.json")

StorageDtype = Literal["exact", "bfloat16", "float16"]


class VisionSource(Protocol):
    """Where the vision features of a video come from."""

    def load(self, video: str) -> VideoVision:
        """Of a video file. Raises ValueError naming it, if they cannot be had."""
        ...


class BaseVision:
    """Who the vision tower of a base is, and how its videos are sampled: what names its features in a store, and makes them there.

    It takes the place of a side encoder where a store is filled. No weights are loaded before they are needed.

    Args:
        model: folder or hub id of the base, or "playground" for the small one inside the package.
        sampling: which frames of a video are taken.
        revision: of the base on the hub.
        dtype: "auto" holds its weights as they are stored; or float32, bfloat16, float16.
        storage: "exact" keeps the dtype of the features; bfloat16 and float16 round to it.
        pre_projector: keep what enters the projector too, for patches that make their queries of it.

    Raises:
        ValueError: if there is no such base, or its family is not supported.
    """

    source: ClassVar[str] = "base"
    sample_rate: ClassVar[None] = None

    def __init__(
        self,
        model: str | os.PathLike[str],
        sampling: FrameSampling,
        *,
        revision: str | None = None,
        dtype: str = "auto",
        storage: StorageDtype = "exact",
        pre_projector: bool = False,
    ) -> None:
        config, _ = load_processor(model, revision=revision)
        self.model = model_path(model)
        self.sampling = sampling
        self._revision = revision if os.path.exists(self.model) else getattr(config, "_commit_hash", None) or revision
        stored = getattr(config, "dtype", None) or torch.float32
        self._dtype = str(stored).removeprefix("torch.") if dtype == "auto" else dtype
        self.storage: StorageDtype = storage
        """How its features are kept."""
        self._pre_projector = pre_projector
        self._encoder: VisionEncoder | None = None

    @classmethod
    def from_spec(cls, spec: EncoderConfig) -> BaseVision:
        """The inverse of ``spec``."""
        settings = spec.settings
        sampling = FrameSampling.from_dict(settings["frames"], where="frames")
        options = {key: settings[key] for key in ("dtype", "storage", "pre_projector")}
        return cls(str(spec.model), sampling, revision=spec.revision, **options)

    def spec(self) -> EncoderConfig:
        """Everything that decides the features."""
        settings = {
            "frames": self.sampling.to_dict(),
            "dtype": self._dtype,
            "storage": self.storage,
            "pre_projector": self._pre_projector,
            "version": VISION_VERSION,
        }
        return EncoderConfig(name=BASE_VISION, model=self.model, revision=self._revision, settings=settings)

    def files(self) -> list[str]:
        """Of a base in a folder, the files that decide the features: weights, configs and the settings of its processors."""
        names = sorted(os.listdir(self.model)) if os.path.isdir(self.model) else []
        return [os.path.join(self.model, name) for name in names if name in _CONFIGS or name.endswith(_WEIGHTS)]

    def to(self, device: torch.device | str) -> Self:
        """Load the base and move it; of its language model only what stands before the vision tower is kept."""
        model, processor = load_base(self.model, revision=self._revision, dtype=self._dtype)
        decoder = model.get_decoder()
        if isinstance(getattr(decoder, "layers", None), nn.ModuleList):
            decoder.layers = nn.ModuleList()  # most of the weights, and never reached
        frozen = model.requires_grad_(False).to(device)
        self._encoder = VisionEncoder(frozen, processor, self.storage, pre_projector=self._pre_projector)
        return self

    def encode_batch(self, sources: Sequence[VideoClip]) -> list[VideoVision]:
        """The features of several videos. Each goes through the tower alone, so that they never depend on a batch."""
        if self._encoder is None:
            self.to("cpu")
        assert self._encoder is not None
        return [self._encoder.encode(clip.frames_FHWC, clip.times_F) for clip in sources]


Encoder = SideEncoder[Any] | BaseVision
"""What a store is filled by."""


def build(spec: EncoderConfig) -> Encoder:
    """What ``spec`` describes: the vision tower of a base, or a side encoder.

    For processes that do what another one planned, which has built the same encoder: its module was named there.

    Raises:
        ValueError: if there is no such encoder or base.
    """
    return BaseVision.from_spec(spec) if spec.name == BASE_VISION else build_encoder(spec, own_modules(spec))


class VisionEncoder:
    """Runs the frozen vision tower of a loaded base, one video at a time: the features never depend on a batch.

    Args:
        model: the base, patched or not, wherever it is at the time of each call.
        processor: its processor.
        storage: "exact" keeps the dtype of the features; bfloat16 and float16 round to it.
        pre_projector: keep what enters the projector too.

    Raises:
        ValueError: if vision features of this base cannot be stored.
    """

    def __init__(self, model: Any, processor: Any, storage: StorageDtype = "exact", *, pre_projector: bool = False) -> None:
        check_vision_stored(model)
        self._pre_projector = pre_projector
        self._model = model
        self._storage = None if storage == "exact" else getattr(torch, storage)
        processor = copy.copy(processor)
        self._recorder = _Recorder(processor.video_processor)
        processor.video_processor = self._recorder
        self._collate = PatchCollator(processor, model.config, {}, train=False)

    def encode(self, frames_FHWC: NDArray[np.uint8], times_F: NDArray[np.float64]) -> VideoVision:
        """The features of one video.

        Args:
            frames_FHWC: the sampled frames, RGB.
            times_F: seconds of each.

        Raises:
            ValueError: if the base's processor refuses them.
        """
        batch = self._collate([PatchItem("the video", frames_FHWC, times_F, (("?", None),))])
        del batch["side_channels"], batch["frame_times"]
        device = self._model.get_input_embeddings().weight.device
        moved = {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}
        for key, value in moved.items():
            if isinstance(value, Tensor) and value.is_floating_point() and key.startswith(PIXELS):
                moved[key] = value.to(self._model.dtype)
        encoded = encode_to_keep(self._model, moved, frame_counts=[len(frames_FHWC)], pre_projector=self._pre_projector)
        outputs, pixels = self._recorder.last()
        return VideoVision(
            encoded=encoded.to("cpu", self._storage),
            outputs=outputs,
            pixels=pixels,
            times_F=times_F,
            size=(frames_FHWC.shape[1], frames_FHWC.shape[2]),
        )


class _Recorder:
    """A video processor that remembers what it made last, beside pixels."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self._made: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        if name == "_inner":  # while it is unpickled
            raise AttributeError(name)
        return getattr(self._inner, name)

    def __call__(self, videos: Any, **kwargs: Any) -> Any:
        made = self._inner(videos, **kwargs)
        self._made = dict(made)
        return made

    def last(self) -> tuple[dict[str, Tensor], dict[str, tuple[tuple[int, ...], torch.dtype]]]:
        outputs, pixels = {}, {}
        for key, value in self._made.items():
            if key == "video_metadata":  # made anew of the frames' times
                continue
            value = value if isinstance(value, Tensor) else torch.as_tensor(value)
            if key.startswith(PIXELS):
                pixels[key] = (tuple(value.shape), value.dtype)
            else:
                outputs[key] = value
        return outputs, pixels


class MemoryVision:
    """Vision features that are made when a video is first asked for and kept in memory, until that is full.

    Args:
        encoder: that makes them, in this process.
        sampling: which frames of a video are taken.
        max_bytes: most that is kept; what does not fit is made anew each time.
    """

    def __init__(self, encoder: VisionEncoder, sampling: FrameSampling, max_bytes: int) -> None:
        self._encoder = encoder
        self._sampling = sampling
        self._max_bytes = max_bytes
        self._kept: dict[str, tuple[Stamp | None, VideoVision]] = {}
        self.num_bytes = 0
        """Held at present."""

    def load(self, video: str) -> VideoVision:
        """The features of a video file. Raises ValueError naming it, if it cannot be read."""
        stamp = stamp_or_none(video)
        if video in self._kept:
            before, kept = self._kept[video]
            if before == stamp:
                return kept
            del self._kept[video]  # another file is there by now
            self.num_bytes -= kept.num_bytes
        with unchanged([video]):
            clip = read_frames(video, self._sampling)
        made = self._encoder.encode(clip.frames_FHWC, clip.times_F)
        if self.num_bytes + made.num_bytes <= self._max_bytes:
            self._kept[video] = stamp, made
            self.num_bytes += made.num_bytes
        elif self._max_bytes:
            logger.warning(
                "the memory for vision features is full with %d videos in %.2f GB; the others go through the vision tower each time "
                "(a recipe's cache_gigabytes, or gigabytes of keep_videos)",
                len(self._kept),
                self.num_bytes / 2**30,
            )
            self._max_bytes = 0  # it stays as it is, and says so once
        return made
