"""``VideoQA``: a base, a patch and everything between a video file and an answer."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from pave.data.acting import LEAST_ACTING, ActingWatch, how_much_acts
from pave.data.collator import PatchCollator
from pave.data.dataset import PatchDataset
from pave.data.items import PatchItem
from pave.data.media import FrameSampling
from pave.data.samples import Sample, question_with_choices
from pave.data.store.plan import identify
from pave.data.store.reading import StoredChannels, StoredVision
from pave.data.vision import BaseVision, MemoryVision, StorageDtype, VisionEncoder
from pave.evaluation.contents import SampleContents
from pave.evaluation.counterfactuals import Counterfactual
from pave.evaluation.generation import generate_texts
from pave.evaluation.metrics import parse_choice
from pave.patching import is_patched, load_patch, read_record, resolve_patch
from pave.side_channels import SideFeatures, build_encoder, modules_named
from pave.utils.content import ContentHashes
from pave.video_llms.encode import check_vision_stored
from pave.video_llms.loading import load_base

logger = logging.getLogger(__name__)

DEFAULT_FRAMES = 32
_DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class SideSummary:
    """What a side channel gave for one video."""

    steps: int
    """Side steps; 0 where the video lacks the channel."""
    start: float | None = None
    """Seconds of the first step."""
    end: float | None = None
    """Seconds of the last step."""
    acting: float | None = None
    """The share of the steps that can act at all (``pave.data.acting``); None where there is no step."""
    why: tuple[str, ...] = ()
    """What keeps the rest from it, in words."""

    def __str__(self) -> str:
        if not self.steps:
            return "not there"
        share = "" if self.acting is None or self.acting == 1 else f", of which {100 * self.acting:.2g} % can act"
        return f"{self.steps} steps from {self.start:.2f} to {self.end:.2f} s{share}"


@dataclass(frozen=True)
class Answer:
    """An answer and what it is based on."""

    text: str
    """As generated, without special tokens."""
    frame_times: tuple[float, ...]
    """Seconds of the frames that were looked at."""
    side_channels: dict[str, SideSummary] = field(default_factory=dict)
    """By channel; empty where the base answered alone."""
    seconds: float = 0.0
    """Time it took, decoding included."""
    choice: str | None = None
    """The choice that the text names; None without choices, or if it names none."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class VideoQA:
    """Answers questions about video files, with a patch or without.

    Args:
        model: a base, patched or not.
        processor: the base's processor.
        sampling: which frames to look at; default what the processor says, else 32.
        name: what to call the base in messages and records.
        encoders: modules with side encoders of your own that the patch may name; nothing else is imported (``build_encoder``).
        dataset: what reads the samples for the patched model, instead of a dataset of its own; the sampling is that of this.

    Example:
        >>> qa = VideoQA.from_pretrained("llava-hf/llava-onevision-qwen2-7b-ov-hf", patch="my-patch")
        >>> qa.ask("video.mp4", "What sound is heard?").text
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        *,
        sampling: FrameSampling | None = None,
        name: str | None = None,
        encoders: str | Iterable[str] = (),
        dataset: PatchDataset | None = None,
    ) -> None:
        self.model = model
        self.processor = processor
        if dataset is not None:
            sampling = dataset.frame_sampling
        self.sampling = sampling or default_sampling(processor)
        self.name = name or getattr(model.config, "_name_or_path", "") or type(model).__name__
        self.channels = dict(model.patch_config.side_channels) if is_patched(model) else {}
        self.stored: StoredChannels | None = None
        self.counterfactual: Counterfactual | None = None
        self._partners: dict[str, Sample] = {}
        self._contents = SampleContents()
        self.vision: StoredVision | None = None
        self._loaded_from: tuple[str | Path, str | None, str] | None = None
        self._kept_bytes = 0
        self._kept: dict[bool, PatchDataset] = {} if dataset is None else {True: dataset}
        self._kept_vision: MemoryVision | None = None
        if dataset is None:
            with modules_named(encoders):
                built = {channel: build_encoder(config.encoder) for channel, config in self.channels.items()}
            self.encoders = {channel: encoder.to(model.device) for channel, encoder in built.items()}
        else:
            self.encoders = dict(dataset.encoders)
        self.acting_watch = ActingWatch(self.channels, self.encoders, self.sampling)
        """What was seen of the side streams of ``answer_samples``; ``evaluate`` says it at the end."""

    @cached_property
    def encoder_names(self) -> dict[str, str | None]:
        """By channel the name of its encoder as the feature store has it, a hash of settings, weights and code; None for one that
        nothing names."""
        names: dict[str, str | None] = {}
        for channel, encoder in self.encoders.items():
            try:
                names[channel] = identify(encoder, ContentHashes()).id
            except ValueError:
                names[channel] = None
        return names

    def content_of(self, sample: Sample) -> dict[str, str]:
        """What is in the files that an answer to a sample depends on at present, those that a counterfactual borrows included."""
        return self._contents.of(sample, self._partners.get(sample.id))

    def use_store(self, folder: str | Path, samples: Sequence[Sample], *, vision: StorageDtype | None = None) -> None:
        """Read side features from a feature store from now on, instead of running encoders.

        Args:
            folder: the store.
            samples: that will be asked about; the store must have their features.
            vision: read the base's frozen vision features as well, kept exact, bfloat16 or float16, instead of running its
                vision tower on frames.

        Raises:
            ValueError: if there is no such store, it lacks something, or ``vision`` is asked of a model whose origin is not
                known because ``from_pretrained`` has not loaded it.
        """
        stored = StoredChannels(folder, self.encoders)
        stored.check_complete(samples, "pave extract SAMPLES --patch PATCH --store STORE")
        found = None
        if vision is not None:
            if self._loaded_from is None:
                raise ValueError(
                    "stored vision features are named by the base's files: load the model with VideoQA.from_pretrained"
                )
            check_vision_stored(self.model)
            base, revision, dtype = self._loaded_from
            pre = self._reads_pre_projector()
            made_by = BaseVision(base, self.sampling, revision=revision, dtype=dtype, storage=vision, pre_projector=pre)
            found = StoredVision(folder, made_by)
            found.check_complete(samples, f"pave extract SAMPLES --base BASE --store STORE --vision {vision}")
        self.stored, self.vision = stored, found
        self._kept = {}

    def keep_videos(self, gigabytes: float = 2.0) -> None:
        """Keep what is read of a video in memory from now on, for the next questions about it: frames or, where the base allows it,
        what its frozen vision tower makes of them, and side features before a counterfactual changes them.

        A video goes through the vision tower alone then, not in a batch with others, which may change last digits. A file that is
        changed or replaced meanwhile is read anew.

        Args:
            gigabytes: most that is kept, of questions with the patch and of those without it apart; what does not fit is read anew each
                time.

        Raises:
            ValueError: if that is no positive number.
        """
        if not gigabytes > 0:
            raise ValueError(f"gigabytes must be positive, got {gigabytes}")
        self._kept_bytes = int(gigabytes * 2**30)
        self._kept = {}
        try:
            encoder = VisionEncoder(self.model, self.processor, pre_projector=self._reads_pre_projector())
        except ValueError:  # this base has none to keep
            return
        self._kept_vision = MemoryVision(encoder, self.sampling, self._kept_bytes)

    def _reads_pre_projector(self) -> bool:
        return is_patched(self.model) and any(config.reads_pre_projector for config in self.model.patch_configs.values())

    def use_counterfactual(self, counterfactual: Counterfactual | None, samples: Sequence[Sample] = ()) -> None:
        """Change the side streams of these samples from now on (see ``pave.evaluation.counterfactuals``); None stops it.

        Args:
            counterfactual: the change.
            samples: that will be asked about; some changes borrow a stream of another one.

        Raises:
            ValueError: if the model has no such channel, or the samples cannot lend each other streams.
        """
        if counterfactual is not None:
            if not self.channels:
                raise ValueError(f"counterfactual {str(counterfactual)!r}: the model has no side channel to change")
            if counterfactual.channel is not None and counterfactual.channel not in self.channels:
                raise ValueError(
                    f"counterfactual {str(counterfactual)!r}: the patch has no side channel {counterfactual.channel!r}, it has "
                    f"{', '.join(self.channels)}"
                )
        self._partners = {} if counterfactual is None else counterfactual.partners(samples)
        self.counterfactual = counterfactual

    @classmethod
    def from_pretrained(
        cls,
        base: str | Path,
        patch: str | Path | None = None,
        *,
        device: str = "auto",
        dtype: str = "auto",
        revision: str | None = None,
        patch_revision: str | None = None,
        sampling: FrameSampling | None = None,
        allow_base_mismatch: bool = False,
        name: str | None = None,
        encoders: str | Iterable[str] = (),
    ) -> VideoQA:
        """Load a base and, if given, a patch.

        Args:
            base: folder or hub id.
            patch: folder or hub id.
            device: "auto" takes an accelerator if there is one; else a torch device.
            dtype: "auto" holds the weights as they are stored; or float32, bfloat16, float16.
            revision: of the base on the hub.
            patch_revision: of the patch on the hub.
            sampling: which frames to look at; default the one the patch was trained with, where it recorded that.
            allow_base_mismatch: load the patch on another base than its own.
            name: what to call the base in messages and records.
            encoders: modules, or .py files, with side encoders of your own that the patch may name. A patch never brings code, and
                none is imported because a patch names it.

        Raises:
            ValueError: if there is no such base or patch, they do not fit, or the device or dtype does not exist.
        """
        if dtype not in _DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(_DTYPES)}, got {dtype!r}")
        target = _device(device)
        folder = None if patch is None else resolve_patch(patch, patch_revision)
        if folder is not None and sampling is None:
            sampling = trained_sampling(read_record(folder).provenance)
        model, processor = load_base(base, revision=revision, dtype=dtype)
        if folder is not None:
            load_patch(model, folder, processor=processor, allow_base_mismatch=allow_base_mismatch)
        qa = cls(model.to(target).eval(), processor, sampling=sampling, name=name or str(base), encoders=encoders)
        qa._loaded_from = base, revision, dtype
        return qa

    def ask(
        self,
        video: str | Path,
        question: str,
        *,
        patch: bool = True,
        choices: Sequence[str] | None = None,
        side_channels: Mapping[str, str | Path | None] | None = None,
        max_new_tokens: int = 64,
        **generation: Any,
    ) -> Answer:
        """Answer one question about one video file.

        Args:
            video: the file. Side channels that come with it (its sound) are read from it, where ``side_channels`` says
                nothing else.
            question: what to ask.
            patch: False answers as the base alone does.
            choices: listed under the question, each behind its letter.
            side_channels: by channel, the file (or folder) that it is read from, or None to leave the channel out.
            max_new_tokens: most tokens of the answer.
            generation: further arguments of ``generate``; greedy decoding without any.

        Raises:
            ValueError: if the video cannot be read (``MediaError``), the question cannot be asked, or there is no side channel
                of a name.

        A warning says how much of a side channel can act, and what keeps the rest from it, where that is less than
        ``pave.data.acting.LEAST_ACTING``.
        """
        unknown = sorted(set(side_channels or {}).difference(self.channels))
        if unknown:
            known = f"has {', '.join(self.channels)}" if self.channels else "has none; attach a patch that takes it"
            raise ValueError(f"there is no side channel {unknown[0]!r}: the model {known}")
        if choices:
            parse_choice("", choices)  # raises for a wrong number of choices, before any work
        asked = question_with_choices(question, choices) if choices else question
        own = {name: None if path is None else str(path) for name, path in (side_channels or {}).items()}
        sample = Sample(id=Path(video).name, video=str(video), question=asked, side_channels=own)
        start = time.monotonic()
        item = next(iter(self.items([sample], patch=patch)))
        if isinstance(item, ValueError):
            raise item
        text = self.answer_items([item], patch=patch, max_new_tokens=max_new_tokens, **generation)[0]
        answer = self._answer(item, text, time.monotonic() - start)
        for name, side in answer.side_channels.items():
            if side.acting is not None and side.acting < LEAST_ACTING:
                logger.warning("%s: side channel %r, %s: %s", video, name, side, ", ".join(side.why))
        found = parse_choice(text, choices) if choices else None
        return answer if found is None or choices is None else replace(answer, choice=choices[found])

    def answer_samples(
        self, samples: Sequence[Sample], *, patch: bool = True, max_new_tokens: int = 64, **generation: Any
    ) -> list[Answer | ValueError]:
        """Answer several samples in one batch; the last answer of a sample's conversation is ignored.

        Returns:
            Per sample its answer, or the error that kept it from being answered.
        """
        start = time.monotonic()
        found = list(self.items(samples, patch=patch))
        items = [item for item in found if isinstance(item, PatchItem)]
        if self.counterfactual is None:  # which would change what is looked at
            for read in items:
                for name, features in read.side.items():
                    self.acting_watch.note(read.id, name, features, read.times_F)
        texts = iter(self._answer_groups(items, patch, max_new_tokens, generation))
        answers: list[Answer | ValueError] = []
        for item in found:
            text = item if isinstance(item, ValueError) else next(texts)
            if isinstance(item, ValueError) or isinstance(text, ValueError):
                assert isinstance(text, ValueError)
                answers.append(text)
            else:
                answers.append(self._answer(item, text, (time.monotonic() - start) / len(samples)))
        return answers

    def items(self, samples: Sequence[Sample], *, patch: bool = True) -> Iterator[PatchItem | ValueError]:
        """Decode samples one by one; what cannot be decoded comes out as its error. Without the patch no side channel is read."""
        dataset = self._dataset(patch)
        change = self.counterfactual if patch else None
        for sample in samples:
            try:
                item = dataset.read([sample])[0]
                yield item if change is None else change.apply(item, sample, self._borrowed(dataset, sample))
            except ValueError as error:
                yield error

    def _dataset(self, patch: bool) -> PatchDataset:
        """What reads samples: one whose videos are kept, or a new one."""
        if patch in self._kept:
            return self._kept[patch]
        channels = self.channels if patch else {}
        dataset = PatchDataset(
            (),
            self.sampling,
            {name: self.encoders[name] for name in channels},
            channels,
            cache="memory",
            stored=self.stored,
            vision=self.vision or self._kept_vision,
            **({"cache_bytes": self._kept_bytes} if self._kept_bytes else {}),
        )
        if self._kept_bytes:
            self._kept[patch] = dataset
        return dataset

    def _borrowed(self, dataset: PatchDataset, sample: Sample) -> dict[str, SideFeatures | None]:
        """The streams that a counterfactual takes from another sample."""
        partner = self._partners.get(sample.id)
        return {} if partner is None else {name: dataset.features(name, partner) for name in dataset.encoders}

    def answer_items(
        self, items: Sequence[PatchItem], *, patch: bool = True, max_new_tokens: int = 64, **generation: Any
    ) -> list[str]:
        """Answer decoded items in one batch; their videos must have the same number of frames."""
        collate = PatchCollator(self.processor, self.model.config, self.channels if patch else {}, train=False)
        return generate_texts(
            self.model, self.processor, collate(items), patch=patch, max_new_tokens=max_new_tokens, **generation
        )

    def _answer_groups(
        self, items: Sequence[PatchItem], patch: bool, max_new_tokens: int, generation: Mapping[str, Any]
    ) -> list[str | ValueError]:
        """Videos of equal length go together. A group that is refused is tried one by one, so that one bad sample fails alone."""
        results: dict[int, str | ValueError] = {}
        for group in _by_length(items):
            members = [items[i] for i in group]
            try:
                texts: Iterable[str | ValueError] = self.answer_items(
                    members, patch=patch, max_new_tokens=max_new_tokens, **generation
                )
            except ValueError as error:
                texts = (
                    [error]
                    if len(group) == 1
                    else [self._answer_groups([item], patch, max_new_tokens, generation)[0] for item in members]
                )
            results |= dict(zip(group, texts, strict=True))
        return [results[i] for i in range(len(items))]

    def _answer(self, item: PatchItem, text: str, seconds: float) -> Answer:
        sides = {}
        for name, features in item.side.items():
            if features is None or not len(features):
                sides[name] = SideSummary(0)
                continue
            acting = how_much_acts(features, item.times_F, self.channels[name].fusion, self.encoders[name], self.sampling)
            times = features.times_K.tolist()
            sides[name] = SideSummary(len(times), min(times), max(times), acting.share, acting.why)
        return Answer(text, tuple(float(t) for t in item.times_F), sides, seconds)


def default_sampling(processor: Any) -> FrameSampling:
    """The frames that a processor asks for (its ``num_frames``), else 32 spread over the video."""
    return FrameSampling(num_frames=getattr(processor.video_processor, "num_frames", None) or DEFAULT_FRAMES)


def trained_sampling(provenance: Mapping[str, Any]) -> FrameSampling | None:
    """How frames were sampled in training, if the patch says so."""
    frames: Any = provenance
    for key in ("recipe", "data", "frames"):
        frames = frames.get(key) if isinstance(frames, Mapping) else None
    return None if frames is None else FrameSampling.from_dict(frames, where="the patch's recipe, data.frames")


def _by_length(items: Sequence[PatchItem]) -> list[list[int]]:
    groups: dict[int, list[int]] = {}
    for number, item in enumerate(items):
        groups.setdefault(len(item.frames_FHWC), []).append(number)
    return list(groups.values())


def _device(name: str) -> torch.device:
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return accelerator or torch.device("cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}") from None
