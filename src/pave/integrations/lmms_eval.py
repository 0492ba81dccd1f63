"""The model ``pave`` of lmms-eval (https://github.com/EvolvingLMMs-Lab/lmms-eval): a base with a patch runs its video tasks.

It is a "simple" model in lmms-eval's words (``doc_to_visual`` and ``doc_to_text``), because only those are asked for likelihoods as
well. Prompts, frames and side channels are those of ``VideoQA``, so answers are those of ``pave eval`` about the same questions.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
import torch.nn.functional as F
from lmms_eval.api.instance import GenerationResult, Instance
from lmms_eval.api.model import lmms

from pave.data.collator import PatchCollator
from pave.data.items import PatchItem
from pave.data.media import FrameSampling
from pave.data.samples import Sample, read_samples
from pave.evaluation.generation import model_inputs
from pave.evaluation.inference import VideoQA
from pave.integrations.generation_settings import Settings, read_settings
from pave.training.loss import IGNORE, answer_loss
from pave.utils.console import track
from pave.utils.embedded import PLAYGROUND

logger = logging.getLogger(__name__)

_NOT_VIDEOS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp")
_SOUNDS = (".wav", ".mp3", ".m4a", ".aac", ".flac", ".ogg", ".opus")


class PaveForLmmsEval(lmms):  # type: ignore[misc]
    """A base, with a patch or without, as lmms-eval asks it.

    Args:
        base: folder or hub id; default the small base inside the package.
        patch: folder or hub id; default none.
        num_frames: frames to look at; default as the patch was trained, else what the base's processor says.
        side_channels: a .jsonl file of samples whose ``side_channels`` are used, found by ``key``, for channels that are not in the
            video itself. Every document must be in it. Default: side channels come from the video.
        key: "video" finds a document's line by its video file; any other word is the name of the document's field that holds the
            ``id`` of a line.
        on_error: what a video that cannot be read does: "stop" ends the run, "empty" answers with no text and logs which it was.
        dtype: "auto", float32, bfloat16 or float16.
        device: "auto" or a torch device; the option ``--device`` of lmms-eval.
        batch_size: documents answered at a time; the option ``--batch_size`` of lmms-eval.
        max_batch_size: lmms-eval hands it over; it has no meaning here.
        revision: of the base on the hub.
        patch_revision: of the patch on the hub.
        allow_base_mismatch: load the patch on another base than its own.

    Raises:
        ValueError: if an argument is unknown or wrong, the model cannot be loaded, or lmms-eval runs in several processes.
    """

    is_simple = True

    def __init__(
        self,
        base: str = PLAYGROUND,
        patch: str | None = None,
        *,
        num_frames: int | None = None,
        side_channels: str | None = None,
        key: str = "video",
        on_error: Literal["stop", "empty"] = "stop",
        dtype: str = "auto",
        device: str = "auto",
        batch_size: int = 1,
        max_batch_size: int | None = None,
        revision: str | None = None,
        patch_revision: str | None = None,
        allow_base_mismatch: bool = False,
        encoders: str | None = None,
        **unknown: Any,
    ) -> None:
        super().__init__()
        if unknown:
            raise ValueError(
                f"--model_args: the model pave has no argument {min(unknown)!r}; it has base, patch, num_frames, side_channels, key, "
                "on_error, dtype, revision, patch_revision, allow_base_mismatch, encoders"
            )
        if on_error not in ("stop", "empty"):
            raise ValueError(f"--model_args: on_error must be stop or empty, got {on_error!r}")
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise ValueError(f"--batch_size: the model pave needs a whole number of at least 1, got {batch_size!r}")
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ValueError("the model pave runs in one process; start lmms-eval without accelerate launch or torchrun")
        self.batch_size, self.on_error, self.key = int(batch_size), on_error, key
        self.side_channels = None if side_channels is None else _SideFiles(side_channels, key)
        self.qa = VideoQA.from_pretrained(
            base,
            patch,
            device=device,
            dtype=dtype,
            revision=revision,
            patch_revision=patch_revision,
            sampling=None if num_frames is None else FrameSampling(num_frames=num_frames),
            allow_base_mismatch=allow_base_mismatch,
            name=base,
            encoders=() if encoders is None else encoders.split(";"),
        )
        self.device = self.qa.model.device

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        """Answer documents, greedily or as the task's ``generation_kwargs`` say.

        Raises:
            ValueError: before any work, if a document is not about one video file or a setting is not known; and if a video cannot
                be read, unless ``on_error`` is "empty".
        """
        samples, settings = [], []
        for request in requests:
            question, given, doc_to_visual, doc_id, task, split = request.args
            settings.append(read_settings(given, task))
            samples.append(self._sample(question, None, doc_to_visual, doc_id, task, split))
        texts: dict[int, str] = {}
        for batch in track(_batches(samples, settings, self.batch_size), f"Answering {len(samples)} documents"):
            chosen = settings[batch[0]]
            answers = self.qa.answer_samples([samples[i] for i in batch], **chosen.to_generate())
            for i, answer in zip(batch, answers, strict=True):
                texts[i] = self._failed(answer) if isinstance(answer, ValueError) else chosen.cut(answer.text)
        return [texts[i] for i in range(len(samples))]

    def loglikelihood(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        """How likely answers are: per request the mean loss over the answer's tokens and its end of turn, and whether greedy decoding
        gives them.

        The number is a loss, smaller is likelier, although the interface speaks of a log-likelihood: lmms-eval's multiple choice
        takes the smallest. The pair stands in a ``GenerationResult``, because the evaluator of 0.7.3 turns a bare pair into text.

        Raises:
            ValueError: as ``generate_until``; likelihoods have no "empty", so a video that cannot be read always ends the run.
        """
        samples = []
        for request in requests:
            if len(request.args) != 6:
                raise ValueError(
                    f"{request.task_name}: the metric acc_mutual_info asks for answers without a video, which the model pave cannot give"
                )
            question, target, doc_to_visual, doc_id, task, split = request.args
            answer = target(self.task_dict[task][split][doc_id]) if callable(target) else target
            samples.append(self._sample(question, str(answer), doc_to_visual, doc_id, task, split))
        found: dict[int, tuple[float, bool]] = {}
        same = Settings()
        for batch in track(_batches(samples, [same] * len(samples), self.batch_size), f"Weighing {len(samples)} answers"):
            for group in self._of_equal_length(batch, samples):
                found |= dict(zip(group, self._losses(list(group.values())), strict=True))
        return [GenerationResult(text=found[i]) for i in range(len(samples))]

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> NoReturn:
        """Not there: a patch answers about one video at a time.

        Raises:
            ValueError: always.
        """
        raise ValueError(f"{requests[0].task_name}: the model pave answers tasks of one round, not of several")

    def _sample(
        self, question: str, answer: str | None, doc_to_visual: Callable[[Any], Any], doc_id: int, task: str, split: str
    ) -> Sample:
        doc = self.task_dict[task][split][doc_id]
        name = f"{task}, document {doc_id}"
        video = _video_of(doc_to_visual(doc), name)
        own = {} if self.side_channels is None else self.side_channels.of(doc, video, name)
        return Sample(id=f"{task}-{split}-{doc_id}", video=video, question=question, answer=answer, side_channels=own)

    def _failed(self, error: ValueError) -> str:
        if self.on_error == "stop":
            raise error
        logger.warning("answered with no text: %s", error)
        return ""

    def _of_equal_length(self, batch: Sequence[int], samples: Sequence[Sample]) -> list[dict[int, PatchItem]]:
        """Decoded items of a batch by their place, those with the same number of frames together."""
        groups: dict[int, dict[int, PatchItem]] = {}
        for i, item in zip(batch, self.qa.items([samples[i] for i in batch]), strict=True):
            if isinstance(item, ValueError):
                raise item
            groups.setdefault(len(item.frames_FHWC), {})[i] = item
        return list(groups.values())

    @torch.inference_mode()
    def _losses(self, items: Sequence[PatchItem]) -> list[tuple[float, bool]]:
        model = self.qa.model
        collate = PatchCollator(self.qa.processor, model.config, self.qa.channels, train=True, broken_features="missing")
        batch = collate(items)
        inputs = {**model_inputs(model, batch), "labels": batch["labels"].to(model.device)}
        _, output = answer_loss(model, model.get_output_embeddings(), inputs)
        next_BL = F.pad(batch["labels"], (0, 1), value=IGNORE)[:, 1:]
        targets = next_BL[next_BL != IGNORE]
        scores = output.logits.float().reshape(-1, output.logits.shape[-1]).cpu()
        counts = (next_BL != IGNORE).sum(dim=1).tolist()
        losses = F.cross_entropy(scores, targets, reduction="none").split(counts)
        greedy = (scores.argmax(dim=-1) == targets).split(counts)
        return [(float(loss.mean()), bool(same.all())) for loss, same in zip(losses, greedy, strict=True)]


class _SideFiles:
    """The side channels of a file of samples, by video file or by id."""

    def __init__(self, path: str, key: str) -> None:
        self.path, self.key = path, key
        self._found: dict[str, Mapping[str, str | None]] = {}
        for sample in read_samples(path):
            name = _absolute(sample.video) if key == "video" else sample.id
            if self._found.setdefault(name, sample.side_channels) != sample.side_channels:
                raise ValueError(
                    f"{path}: the lines about {sample.video} name different side channels; find them by id "
                    "(--model_args key=FIELD, the field of a document that holds it)"
                )

    def of(self, doc: Mapping[str, Any], video: str, where: str) -> Mapping[str, str | None]:
        if self.key != "video" and self.key not in doc:
            raise ValueError(f"{where}: it has no field {self.key!r} (--model_args key); its fields: {', '.join(doc)}")
        name = _absolute(video) if self.key == "video" else str(doc[self.key])
        if name not in self._found:
            raise ValueError(f"{where}: {self.path} has no line whose {'video' if self.key == 'video' else 'id'} is {name}")
        return self._found[name]


def _absolute(path: str) -> str:
    return str(Path(path).resolve())


def _video_of(visuals: Any, where: str) -> str:
    """The one video file of a document."""
    needs = f"{where}: the model pave answers about one video file"
    if not visuals:
        raise ValueError(f"{needs}, but the document has none")
    if isinstance(visuals, (str, os.PathLike)) or not isinstance(visuals, Sequence):
        visuals = [visuals]
    if len(visuals) > 1:
        raise ValueError(f"{needs}, but the document has {len(visuals)}")
    visual = visuals[0]
    if isinstance(visual, Mapping):
        raise ValueError(f"{needs}, but the document names a part of one ({', '.join(map(str, visual))}); cut the video first")
    if not isinstance(visual, (str, os.PathLike)):
        raise ValueError(f"{needs}, but the document has an object of type {type(visual).__name__}")
    ending = os.path.splitext(visual)[1].lower()
    if ending in _NOT_VIDEOS or ending in _SOUNDS:
        raise ValueError(f"{needs}, but the document has {'an image' if ending in _NOT_VIDEOS else 'a sound'}, {visual}")
    return os.fspath(visual)


def _batches(samples: Sequence[Sample], settings: Sequence[Settings], size: int) -> list[list[int]]:
    """Places of samples: batches of one setting, those about one video after each other so that it is decoded once."""
    first: dict[Any, int] = {}
    for i, sample in enumerate(samples):
        first.setdefault(sample.video, i)
    groups: dict[Settings, list[int]] = {}
    for i in sorted(range(len(samples)), key=lambda i: (first[samples[i].video], len(str(samples[i].question)), i)):
        groups.setdefault(settings[i], []).append(i)
    return [group[start : start + size] for group in groups.values() for start in range(0, len(group), size)]
