"""``VideoQA``: a base, its patches and everything between a video file and an answer."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pave.config import SideChannelConfig
from pave.data.acting import LEAST_ACTING
from pave.data.contents import SampleContents
from pave.data.dataset import PatchDataset
from pave.data.items import PatchItem
from pave.data.media import FrameSampling
from pave.data.samples import Sample
from pave.data.store.plan import identify
from pave.data.store.reading import StoredChannels, StoredVision
from pave.data.vision import BaseVision, StorageDtype
from pave.inference.counterfactuals import Counterfactual
from pave.inference.engine import CACHE_BYTES, Engine
from pave.inference.loading import PatchPaths, load_model
from pave.inference.media import MediaReader
from pave.inference.reading import adding_patches, newline_of, shown_names
from pave.inference.request import DEFAULT, SAMPLING_FIELDS, Answer, Default, Request, Sampling, SidePaths
from pave.patching.rows import Selection
from pave.side_channels import SideEncoder
from pave.utils.content import ContentHashes
from pave.video_llms.encode import check_vision_stored

logger = logging.getLogger(__name__)


class VideoQA:
    """Answers questions about video files: the friendly face of ``Engine``.

    It asks the model as it is at the time: a patch that is loaded, selected or taken off later is used or gone.

    Args:
        model: a base, patched or not.
        processor: the base's processor.
        sampling: which frames to look at; default as the patches were trained, else what the processor says, else 32.
        name: what to call the base in messages and records.
        encoders: modules with side encoders of your own that the patch may name; nothing else is imported (``build_encoder``).
        cache_bytes: most that is kept of videos and side files in memory, for the next questions about them; 0 keeps nothing.
        dataset: what reads the samples for the patched model, instead of a reader of its own; the sampling is that of this.

    Example:
        >>> qa = VideoQA.from_pretrained(patch="my-patch")
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
        cache_bytes: int = CACHE_BYTES,
        dataset: PatchDataset | None = None,
    ) -> None:
        self.engine = Engine(
            model,
            processor,
            name=name,
            encoders=encoders,
            cache_bytes=cache_bytes,
            sampling=sampling,
            dataset=dataset,
        )
        self.vision: StoredVision | None = None
        """Where the base's features of videos come from, if ``use_store`` said so."""
        self._contents = SampleContents()
        self._loaded_from: tuple[str | Path, str | None, str] | None = None

    @classmethod
    def from_pretrained(
        cls,
        base: str | Path | None = None,
        patch: PatchPaths = None,
        *,
        device: str = "auto",
        dtype: str = "auto",
        revision: str | None = None,
        patch_revision: str | None = None,
        sampling: FrameSampling | None = None,
        allow_base_mismatch: bool = False,
        name: str | None = None,
        encoders: str | Iterable[str] = (),
        cache_bytes: int = CACHE_BYTES,
    ) -> VideoQA:
        """Load a base and, if given, patches.

        Args:
            base: folder or hub id; default, the one that the patch was trained on, as its own record says.
            patch: folder or hub id, or several by the names they are to have.
            device: "auto" takes an accelerator if there is one; else a torch device.
            dtype: "auto" holds the weights as they are stored; or float32, bfloat16, float16.
            revision: of the base on the hub.
            patch_revision: of the patch on the hub.
            sampling: which frames to look at; default the one the patch was trained with, where it recorded that.
            allow_base_mismatch: load the patch on another base than its own.
            name: what to call the base in messages and records.
            encoders: modules, or .py files, with side encoders of your own that the patch may name. A patch never brings code, and
                none is imported because a patch names it.
            cache_bytes: most that is kept of videos and side files in memory.

        Raises:
            ValueError: if there is no such base or patch, they do not fit, or the device or dtype does not exist.
        """
        model, processor, loaded, of_base = load_model(
            base,
            patch,
            device=device,
            dtype=dtype,
            revision=revision,
            patch_revision=patch_revision,
            allow_base_mismatch=allow_base_mismatch,
        )
        options: dict[str, Any] = {"encoders": encoders, "cache_bytes": cache_bytes}
        qa = cls(model, processor, sampling=sampling, name=name or loaded, **options)
        qa._loaded_from = loaded, of_base, dtype
        _ = qa.sampling, qa.encoders  # what is wrong with them is told now
        return qa

    # --- what there is at present

    @property
    def model(self) -> Any:
        return self.engine.model

    @property
    def processor(self) -> Any:
        return self.engine.processor

    @property
    def name(self) -> str:
        """What the base is called in messages and records."""
        return self.engine.name

    @property
    def sampling(self) -> FrameSampling:
        """The frames that a question looks at where nothing else is said."""
        return self.frames_of()

    def frames_of(self, patches: Selection | Default = DEFAULT) -> FrameSampling:
        """The frames that a question with these patches looks at.

        Raises:
            ValueError: if they were trained with different ones, and nothing says which to take.
        """
        return self.engine.reader.frames_of(replace(_ANY, patches=patches))

    def patches_of(self, patches: Selection | Default = DEFAULT) -> dict[str, tuple[float, float]]:
        """The patches that act, with the strengths of their residual and their LoRA.

        Raises:
            ValueError: if there is no patch of a name.
        """
        return self.engine.reader.patches_of(replace(_ANY, patches=patches))

    def channels_of(self, patches: Selection | Default = DEFAULT) -> dict[str, SideChannelConfig]:
        """The side channels of the patches that act (PATCH.CHANNEL where several have one of a name)."""
        configs = self.engine.reader.patch_configs()
        acting = {name: configs[name] for name in self.patches_of(patches)}
        return {shown: acting[patch].side_channels[name] for (patch, name), shown in shown_names(acting).items()}

    @property
    def channels(self) -> dict[str, SideChannelConfig]:
        """Those of the patches that act where nothing else is said."""
        return self.channels_of()

    @property
    def newline(self) -> Literal["base", "grid"]:
        """Of the prompts of the patches that act where nothing else is said."""
        configs = self.engine.reader.patch_configs()
        return newline_of(configs, adding_patches(configs, self.patches_of()))

    @property
    def encoders(self) -> dict[str, SideEncoder[Any]]:
        """Of ``channels``."""
        return self.encoders_of()

    def encoders_of(self, patches: Selection | Default = DEFAULT) -> dict[str, SideEncoder[Any]]:
        """Of ``channels_of``."""
        reader = self.engine.reader
        if reader.dataset is not None:
            return dict(reader.dataset.encoders)
        channels = self.channels_of(patches).items()
        return {name: reader.media.encoder(channel.encoder, self.model.device) for name, channel in channels}

    def encoder_names(self, patches: Selection | Default = DEFAULT) -> dict[str, str | None]:
        """By channel the name of its encoder as the feature store has it, a hash of settings, weights and code; None for one that
        nothing names."""
        names: dict[str, str | None] = {}
        for channel, encoder in self.encoders_of(patches).items():
            try:
                names[channel] = identify(encoder, ContentHashes()).id
            except ValueError:
                names[channel] = None
        return names

    def check_counterfactual(self, change: Counterfactual, *, patches: Selection | Default = DEFAULT) -> None:
        """Refuse a change to side streams for patches without the channel.

        Raises:
            ValueError: naming the channel.
        """
        configs = self.engine.reader.patch_configs()
        change.check_channels([channel for name in self.patches_of(patches) for channel in configs[name].side_channels])

    def content_of(self, sample: Sample, lender: Sample | None = None) -> dict[str, str]:
        """What is in the files that an answer to a sample depends on at present, those of a lender of streams included."""
        return self._contents.of(sample, lender)

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
        reader = self.engine.reader
        if vision is not None:
            if self._loaded_from is None:
                raise ValueError(
                    "stored vision features are named by the base's files: load the model with VideoQA.from_pretrained"
                )
            check_vision_stored(self.model)
            base, revision, dtype = self._loaded_from
            pre = reader.reads_pre_projector()
            made_by = BaseVision(base, self.sampling, revision=revision, dtype=dtype, storage=vision, pre_projector=pre)
            found = StoredVision(folder, made_by)
            found.check_complete(samples, f"pave extract SAMPLES --base BASE --store STORE --vision {vision}")
        configs = {name: channel.encoder for name, channel in self.channels.items()}
        media = MediaReader(reader.media.cache, encoders=reader.media.modules, stored=(stored, configs), vision=found)
        sampling = reader.sampling if found is None else self.sampling
        self.engine = Engine(self.model, self.processor, name=self.name, sampling=sampling, media=media)
        self.vision = found

    # --- asking

    def ask(
        self,
        video: str | Path | None,
        question: str,
        *,
        patches: Selection | Default = DEFAULT,
        choices: Sequence[str] | None = None,
        side_channels: SidePaths | None = None,
        frames: FrameSampling | None = None,
        counterfactual: Counterfactual | None = None,
        history: Sequence[tuple[str, str]] = (),
        **generation: Any,
    ) -> Answer:
        """Answer one question about one video file.

        Args:
            video: the file. Side channels that come with it (its sound) are read from it, where ``side_channels`` says
                nothing else. None for a question about text alone, where the base takes one.
            question: what to ask.
            patches: which patches act: a name, names with strengths, or None for the base; default, what the model says.
            choices: listed under the question, each behind its letter.
            side_channels: by channel (or by patch and channel), the file or folder that it is read from, or None to leave the channel
                out.
            frames: which frames to look at; default ``sampling``.
            counterfactual: a change to the side streams first.
            history: earlier turns of the conversation, (question, answer).
            generation: fields of ``Sampling`` (max_new_tokens, temperature, top_p, top_k, seed, stop), and further arguments of the
                model's ``generate``; greedy decoding of at most 64 tokens without any.

        Raises:
            ValueError: if the video cannot be read (``MediaError``), the question cannot be asked, or there is no patch or side channel
                of a name.

        A warning says how much of a side channel can act, and what keeps the rest from it, where that is less than
        ``pave.data.acting.LEAST_ACTING``.
        """
        sampling, further = _split(generation)
        request = Request(
            video,
            question,
            choices=tuple(choices or ()),
            patches=patches,
            side_channels=side_channels or {},
            sampling=sampling,
            frames=frames,
            counterfactual=counterfactual,
            history=tuple(history),
        )
        (answer,) = self.engine.answer([request], **further)
        if isinstance(answer, ValueError):
            raise answer
        for name, side in answer.side_channels.items():
            if side.acting is not None and side.acting < LEAST_ACTING:
                logger.warning("%s: side channel %r, %s: %s", video, name, side, ", ".join(side.why))
        return answer

    def answer_samples(
        self,
        samples: Sequence[Sample],
        *,
        patches: Selection | Default = DEFAULT,
        counterfactual: Counterfactual | None = None,
        partners: Mapping[str, Sample] | None = None,
        **generation: Any,
    ) -> list[Answer | ValueError]:
        """Answer several samples, in one batch if their videos are alike; the last answer of a sample's conversation is ignored.

        Args:
            samples: what is asked. Side channels that the model does not know are left aside.
            patches: which patches act.
            counterfactual: a change to the side streams first.
            partners: by sample id, whose streams it borrows (``Counterfactual.partners``).
            generation: see ``ask``.

        Returns:
            Per sample its answer, or the error that kept it from being answered.
        """
        sampling, further = _split(generation)
        common: dict[str, Any] = {"patches": patches, "sampling": sampling, "counterfactual": counterfactual}
        requests = [
            Request.of_sample(self._known(sample), lender=(partners or {}).get(sample.id), **common) for sample in samples
        ]
        return self.engine.answer(requests, batch_size=max(1, len(samples)), **further)

    def items(self, samples: Sequence[Sample], *, patches: Selection | Default = DEFAULT) -> Iterator[PatchItem | ValueError]:
        """Decode samples one by one, pictures included; what cannot be decoded comes out as its error. Streams are named as in
        ``channels``, and without patches none is read."""
        for sample in samples:
            try:
                read = self.engine.read(Request.of_sample(self._known(sample), patches=patches), pictures=True)
            except ValueError as error:
                yield error
                continue
            assert read.item is not None
            flat = read.item.side
            side = {shown: flat[f"{patch}.{name}"] for (patch, name), shown in shown_names(read.configs).items()}
            yield replace(read.item, side=side, turns=sample.turns)

    def _known(self, sample: Sample) -> Sample:
        """The sample without files of channels that no patch has."""
        known = {name for config in self.engine.reader.patch_configs().values() for name in config.side_channels}
        side = {name: path for name, path in sample.side_channels.items() if name in known}
        return replace(sample, side_channels=side)


_ANY = Request(None, "?")
"""Stands for a request that leaves everything to the engine."""


def _split(options: Mapping[str, Any]) -> tuple[Sampling, dict[str, Any]]:
    """The sampling, and what ``generate`` takes beside it."""
    sampling = Sampling(**{name: value for name, value in options.items() if name in SAMPLING_FIELDS})
    return sampling, {name: value for name, value in options.items() if name not in SAMPLING_FIELDS}
