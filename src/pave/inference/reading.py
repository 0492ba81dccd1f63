"""From a request to frames, or what the base made of them, and side features: all that an answer depends on beside the model."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

from pave.config import PatchConfig, SideChannelConfig
from pave.data.acting import how_much_acts
from pave.data.collator import PatchCollator
from pave.data.dataset import PatchDataset
from pave.data.items import PatchItem, SampleError
from pave.data.media import FrameSampling
from pave.data.samples import Message, Sample
from pave.data.vision import VisionEncoder
from pave.inference.media import MediaReader
from pave.inference.request import Default, Request, SideSummary
from pave.patching import is_patched, patch_slot
from pave.patching.rows import read_selection
from pave.side_channels import SideFeatures
from pave.utils.content import unchanged
from pave.video_llms.encode import check_vision_stored, encoder_state

DEFAULT_FRAMES = 32
Sides = dict[str, dict[str, SideFeatures | None]]
"""Features by patch and channel; None where the channel is missing."""


class VideoKey(NamedTuple):
    """What an encoded video is kept under."""

    content: str
    """Of its file."""
    pre_projector: bool
    """Whether what enters the projector is kept too."""
    facts: str
    """The frames, and how the base computes."""


@dataclass(frozen=True, eq=False, kw_only=True)
class ReadRequest:
    """A request with what was read for it. ``Engine.read`` makes it, ``Engine.generate`` takes it."""

    request: Request
    patches: Mapping[str, tuple[float, float]]
    """Those that act, with the strengths of their residual and their LoRA."""
    configs: Mapping[str, PatchConfig]
    """Of those, as they were when it was read."""
    item: PatchItem | None
    """Frames or encoded video, and side features by PATCH.CHANNEL; None where there is no video."""
    side_channels: dict[str, SideSummary] = field(default_factory=dict)
    """See ``Answer``."""
    video_key: VideoKey | None = None
    """What its encoded video is kept under; None where it is not kept."""
    frames: FrameSampling
    """That were looked at."""
    cached: bool = False
    """Whether the encoded video was there already."""
    seconds: float = 0.0
    """Time it took."""

    @property
    def channels(self) -> dict[str, SideChannelConfig]:
        """By PATCH.CHANNEL, the channels of the patches that act."""
        return {
            flat_name(patch, name): channel
            for patch, config in self.configs.items()
            for name, channel in config.side_channels.items()
        }

    def file_of(self, name: str, otherwise: str | None) -> str | None:
        """The file that the request names for a channel: None where it leaves the channel out, ``otherwise`` where it says nothing.

        Args:
            name: PATCH.CHANNEL.
            otherwise: what to give then.
        """
        patch, channel = name.split(".", 1)
        return _side_paths(self.request.side_channels, patch, self.configs[patch]).get(channel, otherwise)

    @property
    def adding(self) -> tuple[str, ...]:
        """The patches that put tokens of their own into its prompt."""
        return adding_patches(self.configs, self.patches)


class RequestReader:
    """Reads requests for a model as it is at the time of each.

    Args:
        model: a base, patched or not.
        processor: the base's processor.
        media: what reads files.
        sampling: frames to look at where a request does not say.
        dataset: what reads videos and side channels for a model with one patch, in place of ``media``.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        media: MediaReader,
        sampling: FrameSampling | None,
        dataset: PatchDataset | None = None,
    ) -> None:
        self.model = model
        self.processor = processor
        self.media = media
        self.sampling = sampling
        self.dataset = dataset
        self._prompts = PatchCollator(processor, model.config, {}, train=False)

    # --- what the model says

    def patch_configs(self) -> dict[str, PatchConfig]:
        """Of the patches on the model at present, by name."""
        return dict(self.model.patch_configs) if is_patched(self.model) else {}

    def patches_of(self, request: Request) -> dict[str, tuple[float, float]]:
        """The patches that act on a request, with the strengths of their residual and their LoRA.

        Raises:
            ValueError: if the model has no patch of a name; the message lists those it has.
        """
        return self._chosen(request, self.patch_configs())

    def _chosen(self, request: Request, attached: Mapping[str, PatchConfig]) -> dict[str, tuple[float, float]]:
        selection = request.patches
        if isinstance(selection, Default):
            selection = self.model.selected_patches() if attached else None
        uses = read_selection(selection, tuple(attached))
        if attached and not self.model.patch_strength:
            return {}
        return {use.name: (use.strength, use.lora_strength) for use in uses if use.acts}

    def frames_of(self, request: Request) -> FrameSampling:
        """The frames that a request looks at: those it asks for, else those the reader was told, else those its patches were trained
        with (for the base: all patches there are), else what the processor says, else 32.

        Raises:
            ValueError: if its patches were trained with different ones.
        """
        chosen = request.frames or self.sampling
        if chosen is not None:
            return chosen
        acting = list(self.patches_of(request))
        names = acting or list(self.patch_configs())
        trained = {name: trained_sampling(patch_slot(self.model, name).provenance) for name in names}
        known = [(name, frames) for name, frames in trained.items() if frames is not None]
        others = [pair for pair in known if pair[1] != known[0][1]]
        if others and acting:
            (first, one), (second, other) = known[0], others[0]
            raise ValueError(
                f"the patches {first!r} and {second!r} were trained with different frames ({one} and {other}); say which to look at: "
                "frames= of the request, or --frames"
            )
        return default_sampling(self.processor) if others or not known else known[0][1]

    # --- reading

    def read(self, request: Request, *, pictures: bool = False) -> ReadRequest:
        """See ``Engine.read``."""
        start = time.monotonic()
        attached = self.patch_configs()  # once: they may come and go meanwhile
        patches = self._chosen(request, attached)
        self.media.keep_encoders(channel.encoder for config in attached.values() for channel in config.side_channels.values())
        configs = {name: attached[name] for name in patches}
        _check_channels(request, attached)
        if request.counterfactual is not None:
            request.counterfactual.check_channels([name for config in configs.values() for name in config.side_channels])
        self._prompts.prompt(request.name, request.turns, video=request.video is not None)
        read = ReadRequest(request=request, patches=patches, configs=configs, item=None, frames=self.frames_of(request))
        if request.video is not None:
            read = self._with_media(read, pictures)
        return replace(read, seconds=time.monotonic() - start)

    def _with_media(self, read: ReadRequest, pictures: bool) -> ReadRequest:
        samples = {name: _sample(read.request, name, config) for name, config in read.configs.items()}
        try:
            with unchanged(self._files(read, samples)):  # or frames of one file might meet the sound of another
                key = self._video_key(read)
                there, vision = self.media.cache.get(key) if key is not None and not pictures else (False, None)
                item = self._item(read, samples, vision)
                sides = {
                    name: {channel: self._features(channel, config, samples[name], item) for channel in config.side_channels}
                    for name, config in read.configs.items()
                }
                sides = self._changed(read, sides, item)
        except ValueError as error:
            raise SampleError(f"sample {read.request.name!r}: {error}", getattr(error, "code", None)) from error
        flat = {flat_name(name, channel): side for name, own in sides.items() for channel, side in own.items()}
        found = self._summaries(read, sides, item)
        return replace(read, item=replace(item, side=flat), side_channels=found, video_key=key, cached=there)

    def _item(self, read: ReadRequest, samples: Mapping[str, Sample], vision: Any) -> PatchItem:
        """The frames of a request, or what the base made of them earlier."""
        request = read.request
        fixed = self.dataset is not None or self.media.vision is not None
        if fixed and request.frames not in (None, self.sampling):
            where = "read by a dataset" if self.dataset is not None else "taken from a feature store"
            raise ValueError(f"its frames are {where}, which has {self.sampling}, not {request.frames}; leave frames out")
        if self.dataset is not None:
            return self.dataset.read([next(iter(samples.values()), _sample(request, "", None))])[0]
        if vision is None and self.media.vision is not None:
            vision = self.media.vision.load(str(request.video))
        if vision is not None:
            return PatchItem(request.name, vision.shape_of_frames, vision.times_F, request.turns, {}, vision)
        clip = self.media.clip(str(request.video), read.frames)
        return PatchItem(request.name, clip.frames_FHWC, clip.times_F, request.turns)

    def _features(
        self, channel: str, config: PatchConfig, sample: Sample, item: PatchItem | None = None
    ) -> SideFeatures | None:
        """Of a channel for one sample; the dataset has put those of an item into it."""
        if self.dataset is None:
            return self.media.features(channel, config.side_channels[channel], sample, self.model.device)
        return self.dataset.features(channel, sample) if item is None else item.side.get(channel)

    def _files(self, read: ReadRequest, samples: Mapping[str, Sample]) -> list[str]:
        if self.dataset is not None:  # which looks after its own
            return []
        files = [str(read.request.video)]
        for name, config in read.configs.items():
            side = samples[name].side_channels
            for channel, settings in config.side_channels.items():
                if side.get(channel, "") is not None:
                    files += self.media.files(settings.encoder, samples[name].video, side.get(channel))
        return list(dict.fromkeys(files))

    def _changed(self, read: ReadRequest, sides: Sides, item: PatchItem) -> Sides:
        """The side streams under the request's counterfactual."""
        change = read.request.counterfactual
        if change is None:
            return sides
        changed: Sides = {}
        for name, own in sides.items():
            borrowed: dict[str, SideFeatures | None] = {}
            if change.lender is not None:
                given = _side_paths(change.lender.side_channels, name, read.configs[name])
                lender = Sample(id="lender", video=str(change.lender.video), question="?", side_channels=given)
                borrowed = {channel: self._features(channel, read.configs[name], lender) for channel in own}
            touched = change.channel is None or change.channel in own
            changed[name] = change.apply(own, read.request.name, borrowed) if touched else own
        return changed

    def _summaries(self, read: ReadRequest, sides: Sides, item: PatchItem) -> dict[str, SideSummary]:
        found = {}
        for (name, channel), shown in shown_names(read.configs).items():
            settings = read.configs[name].side_channels[channel]
            encoder = self.media.encoder(settings.encoder) if self.dataset is None else self.dataset.encoders[channel]
            found[shown] = _summary(sides[name][channel], settings, item, encoder, read.frames)
        return found

    # --- encoded videos

    def reads_pre_projector(self) -> bool:
        """Whether a patch on the model makes its queries of what enters the projector, so that this has to be kept too."""
        return any(config.reads_pre_projector for config in self.patch_configs().values())

    def _video_key(self, read: ReadRequest) -> VideoKey | None:
        """What the encoded video is kept under: its content, the frames, and how the base computes; None where it is not kept."""
        if not self.media.cache.max_bytes or self.media.vision is not None or self.dataset is not None:
            return None
        try:
            check_vision_stored(self.model)
        except ValueError:  # what this base makes of a video depends on more than the video
            return None
        content = self.media.content(str(read.request.video))
        if content is None:
            return None
        facts = [read.frames.to_dict(), str(self.model.dtype), *encoder_state(self.model), _settings(self.processor)]
        return VideoKey(content, self.reads_pre_projector(), json.dumps(facts, sort_keys=True, default=str))

    def encoded(self, read: ReadRequest) -> ReadRequest:
        """The request with its video encoded by the base, where that is kept. One thread at a time."""
        item, key = read.item, read.video_key
        if key is None or item is None or item.vision is not None:
            return read
        there, vision = self.media.cache.get(key)
        if not there:
            encoder = VisionEncoder(self.model, self.processor, pre_projector=key.pre_projector)
            vision = encoder.encode(item.frames_FHWC, item.times_F)
            self.media.cache.put(key, vision, vision.num_bytes)
            self.media.drop_clip(str(read.request.video), read.frames)
        return replace(read, item=replace(item, vision=vision, frames_FHWC=vision.shape_of_frames), cached=there)


def _settings(processor: Any) -> list[Any]:
    """What a processor does to pictures."""
    parts = [getattr(processor, name, None) for name in ("video_processor", "image_processor")]
    return [None if part is None else part.to_dict() for part in parts]


def shown_names(configs: Mapping[str, PatchConfig]) -> dict[tuple[str, str], str]:
    """By patch and channel, what a channel is called where patches are read together: its name, or PATCH.CHANNEL if several have it."""
    pairs = [(patch, channel) for patch, config in configs.items() for channel in config.side_channels]
    channels = [channel for _, channel in pairs]
    return {(patch, name): name if channels.count(name) == 1 else flat_name(patch, name) for patch, name in pairs}


def adding_patches(configs: Mapping[str, PatchConfig], strengths: Mapping[str, tuple[float, float]]) -> tuple[str, ...]:
    """The patches that put tokens of their own into the prompt: those that can and whose residual acts.

    Args:
        configs: by patch.
        strengths: of the residual and the LoRA of the patches that act.
    """
    return tuple(name for name, (residual, _) in strengths.items() if residual and configs[name].adds_prompt_tokens)


def newline_of(configs: Mapping[str, PatchConfig], adding: Iterable[str]) -> Literal["base", "grid"]:
    """The newline of a prompt to which these patches add tokens."""
    return "grid" if any(configs[name].newline == "grid" for name in adding) else "base"


def flat_name(patch: str, channel: str) -> str:
    """PATCH.CHANNEL."""
    return f"{patch}.{channel}"


def _sample(request: Request, patch: str, config: PatchConfig | None) -> Sample:
    """A request as a patch sees it."""
    messages = [
        Message(role=role, content=text)
        for turn in request.turns
        for role, text in zip(("user", "assistant"), turn, strict=True)
        if text is not None
    ]
    side = _side_paths(request.side_channels, patch, config)
    return Sample(id=request.name, video=str(request.video), messages=tuple(messages), side_channels=side)


def _side_paths(given: Mapping[str, Any], patch: str, config: PatchConfig | None) -> dict[str, str | None]:
    """What is named for the channels of a patch."""
    own = given.get(patch)
    named = {**given, **own} if isinstance(own, Mapping) else given
    channels = () if config is None else config.side_channels
    found = {name: named[name] for name in channels if name in named and not isinstance(named[name], Mapping)}
    return {name: None if path is None else str(path) for name, path in found.items()}


def _check_channels(request: Request, configs: Mapping[str, PatchConfig]) -> None:
    known = list(dict.fromkeys(name for config in configs.values() for name in config.side_channels))
    for name, value in request.side_channels.items():
        names, there = [name], known
        if isinstance(value, Mapping):
            if name not in configs:
                raise ValueError(
                    f"side_channels: the model carries no patch {name!r}; attached: {', '.join(configs) or 'none'}"
                )
            names, there = list(value), list(configs[name].side_channels)
        unknown = [channel for channel in names if channel not in there]
        if unknown:
            has = f"has {', '.join(there)}" if there else "has none; attach a patch that takes it"
            raise ValueError(f"there is no side channel {unknown[0]!r}: the model {has}")


def _summary(
    features: SideFeatures | None, channel: SideChannelConfig, item: PatchItem, encoder: Any, frames: FrameSampling
) -> SideSummary:
    """What a stream gave, in short."""
    if features is None or not len(features):
        return SideSummary(0)
    acting = how_much_acts(features, item.times_F, channel.fusion, encoder, frames)
    times = features.times_K.tolist()
    return SideSummary(len(times), min(times), max(times), acting.share, acting.why)


def default_sampling(processor: Any) -> FrameSampling:
    """The frames that a processor asks for (its ``num_frames``), else 32 spread over the video."""
    return FrameSampling(num_frames=getattr(processor.video_processor, "num_frames", None) or DEFAULT_FRAMES)


def trained_sampling(provenance: Mapping[str, Any]) -> FrameSampling | None:
    """How frames were sampled in training, if the patch says so."""
    frames: Any = provenance
    for key in ("recipe", "data", "frames"):
        frames = frames.get(key) if isinstance(frames, Mapping) else None
    return None if frames is None else FrameSampling.from_dict(frames, where="the patch's recipe, data.frames")
