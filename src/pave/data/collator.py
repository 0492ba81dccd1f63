"""From dataset items to the batch a patched model takes. The docstring of ``PatchCollator`` is the data contract."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pave.config import SideChannelConfig
from pave.data.items import PatchItem, SampleError
from pave.data.prompts import Prompt, render_prompt
from pave.data.published_labels import published_targets
from pave.data.sharing import IGNORE, Branch, behind_video, in_rows, share_rows
from pave.data.vision_batch import features_for_pixels, processor_of_stored
from pave.tokens import SideTokens
from pave.utils.errors import CodedError
from pave.video_llms import get_interface
from pave.video_llms.context import over_limit


class PatchCollator:
    """Turn items of a ``PatchDataset`` into one batch for ``model(**batch)`` or ``model.generate(**batch)``.

    The batch is a plain dictionary of

    ==================== ==================================================================================================
    what the processor   ``input_ids``, ``attention_mask``, ``pixel_values_videos`` and whatever else the base's own
    makes                processor returns for the rendered conversations and the decoded frames
    ``side_channels``    dictionary channel -> SideTokens with one row per video; a video that lacks the channel has a row
                         without a valid step
    ``vision_features``  in place of pixels, where the items hold stored vision features: ``EncodedVideo``
    ``frame_times``      (videos, frames) NumPy float64, seconds of every sampled frame on the video's clock, NaN behind the last
    ``position_ids``     only for bases that need explicit ones (Qwen2-VL, Qwen2.5-VL and ERNIE 4.5 VL)
    ``labels``           ``train`` only: (rows, tokens), the token where an answer or its end-of-turn token stands, -100
                         everywhere else (prompt, placeholders, padding, text between turns); more of them with
                         ``published_labels``
    ``branches``         only where questions share a row (``share_videos``): (rows, tokens), 0 up to the last token of the video,
                         then 1, 2, ... for each conversation behind it, -1 at padding; ``position_ids`` are given then
    ``sample_ids``       ``with_ids`` only: list of str; the Trainer takes it out before the model sees the batch
    ==================== ==================================================================================================

    Guarantees: one row and one video per item, in order (with ``share_videos``: per video). The prompt tokens of a training row are those that generation
    sees. Nothing is ever truncated. Every training row has at least one target.

    Args:
        processor: the base's processor; it is handed decoded frames, so it never opens a file itself.
        base_config: the base's ``config``.
        channels: the patch's side channels by name; their width is checked.
        max_length: most tokens in a row (text and video tokens together); longer rows are an error, and so are rows longer than the
            base's context, whatever this says. None: only that.
        train: True makes labels and pads on the right. False ends every conversation with the generation prompt in place of
            its last answer and pads on the left.
        with_ids: add ``sample_ids``.
        broken_features: "stop" makes a NaN or an infinity in the features an error, "missing" leaves it to the patch, which counts
            such steps as missing. Default: "stop" where ``train``.
        share_videos: most items about one video (``PatchItem.source``) that stand in one row, behind one copy of the video's tokens;
            only where ``train``. None: a row each.
        published_labels: learn what the authors' code learns: beside the answers, all of the assistant's turns, and in the others every
            ``<|im_start|>``, ``<|im_end|>`` and newline. Not with ``share_videos``, whose questions share what stands before the video.

    Raises:
        SampleError: from a call, naming the sample: if a text holds a special token of the tokenizer, a row is too long,
            an answer has no target or a word that the vocabulary lacks, features have another width than the patch, the videos of a
            batch cannot be stacked, or questions about one video have other texts before it.
    """

    def __init__(
        self,
        processor: Any,
        base_config: Any,
        channels: Mapping[str, SideChannelConfig],
        *,
        max_length: int | None = None,
        train: bool = True,
        with_ids: bool = False,
        broken_features: Literal["stop", "missing"] | None = None,
        share_videos: int | None = None,
        published_labels: bool = False,
    ) -> None:
        if published_labels and share_videos is not None:
            raise ValueError(
                "published_labels are also of the text before the video, which questions that share it have in common"
            )
        if share_videos is not None and not train:
            raise ValueError(
                "share_videos is for training: generation goes on at the end of a row, so a row holds one question"
            )
        self.processor = processor
        self.base_config = base_config
        self.channels = dict(channels)
        self.max_length = max_length
        self.train = train
        self.with_ids = with_ids
        self.broken_features = broken_features or ("stop" if train else "missing")
        self.share_videos = share_videos
        self.published_labels = published_labels
        self._interface = get_interface(base_config)
        added = processor.tokenizer.added_tokens_decoder
        self._special_ids = {i for i, token in added.items() if token.special} | set(processor.tokenizer.all_special_ids)
        special = sorted({processor.tokenizer.convert_ids_to_tokens(i) for i in self._special_ids})
        self._special = re.compile("|".join(map(re.escape, special)) or r"(?!)")

    def __call__(self, items: Sequence[PatchItem]) -> dict[str, Any]:
        rows = in_rows(items, self.share_videos or 1)
        batch = self._batch([row[0] for row in rows])
        if len(rows) < len(items):
            batch = self._shared(batch, rows)
        if self.with_ids:
            batch["sample_ids"] = [item.id for row in rows for item in row]
        return batch

    def _batch(self, items: Sequence[PatchItem]) -> dict[str, Any]:
        """One row per item."""
        prompts = [self._prompt(item) for item in items]
        batch = self._processed(items, prompts)
        if self.train:
            batch["labels"] = self._labels(items, prompts, batch)
        frames = max(len(item.times_F) for item in items)
        times_BF = np.full((len(items), frames), np.nan)
        for row, item in enumerate(items):
            times_BF[row, : len(item.times_F)] = item.times_F
        batch["frame_times"] = times_BF  # no tensor: what casts the floating tensors of a batch must not see it
        batch |= self._interface.timing_inputs(self.base_config, batch, torch.from_numpy(times_BF))
        batch["side_channels"] = {name: self._side_tokens(name, items) for name in self.channels}
        positions = self._interface.position_ids(self.base_config, batch)
        if positions is not None:
            batch["position_ids"] = positions
        return batch

    def _shared(self, batch: Mapping[str, Any], rows: Sequence[Sequence[PatchItem]]) -> dict[str, Any]:
        """The batch of each row's first item with the other items about the same video put behind it."""
        ends: list[int] = []
        further: list[list[Branch]] = []
        for row, (first, *others) in enumerate(rows):
            ids = batch["input_ids"][row][batch["attention_mask"][row].bool()]
            end = int(self._interface.is_video_token(self.base_config, ids[None])[0].nonzero().max()) + 1
            text = self.processor.tokenizer(self._prompt(first).text)["input_ids"]
            ends.append(end)
            further.append([self._branch(item, text, ids.tolist(), end) for item in others])
        positions = self._interface.positions_of_rows(self.base_config, batch)
        return share_rows(batch, ends, further, positions, self.processor.tokenizer.pad_token_id)

    def _branch(self, item: PatchItem, first_text: list[int], first_row: list[int], end: int) -> Branch:
        prompt = self._prompt(item)
        try:
            ids = behind_video(self.processor.tokenizer(prompt.text)["input_ids"], first_text, first_row, end)
            targets = {place - end for place in self._targets(prompt, first_row[:end] + ids)}
        except ValueError as error:
            raise SampleError(f"sample {item.id!r}: {error}", getattr(error, "code", None)) from None
        self._check_length(item, end + len(ids))
        return Branch(ids, [token if place in targets else IGNORE for place, token in enumerate(ids)])

    def _prompt(self, item: PatchItem) -> Prompt:
        for text in (text for turn in item.turns for text in turn if text):
            found = self._special.search(text)
            if found:
                raise SampleError(
                    f"sample {item.id!r}: the text {text[:80]!r} holds {found.group()!r}, a special token of the base; "
                    "remove it from the question or answer",
                    "text-special",
                )
        turns: list[tuple[str, str | None]] = list(item.turns)
        if not self.train and turns:
            turns[-1] = (turns[-1][0], None)
        try:
            return render_prompt(self.processor, turns)
        except ValueError as error:
            raise SampleError(f"sample {item.id!r}: {error}") from None

    def _processed(self, items: Sequence[PatchItem], prompts: Sequence[Prompt]) -> dict[str, Any]:
        stored = [item.vision for item in items if item.vision is not None]
        if stored and len(stored) != len(items):
            raise ValueError("a batch holds videos as frames and as stored vision features; give all of them alike")
        processor = processor_of_stored(self.processor, stored, self._interface) if stored else self.processor
        try:
            batch = processor(
                text=[prompt.text for prompt in prompts],
                videos=[item.frames_FHWC for item in items],
                video_metadata=[video_metadata(item.times_F, item.frames_FHWC.shape[1:3]) for item in items],
                do_sample_frames=False,
                input_data_format="channels_last",
                padding=True,
                padding_side="right" if self.train else "left",
                return_tensors="pt",
            )
        except ValueError as error:
            counts = {item.id: len(item.frames_FHWC) for item in items}
            if len(set(counts.values())) > 1:
                raise SampleError(
                    f"the videos of one batch have different numbers of frames ({counts}) and the base's processor cannot stack "
                    "them; use a batch size of 1 or sample as many frames as every video has"
                ) from error
            raise SampleError(f"samples {list(counts)}: the base's processor refused them: {error}") from error
        data = features_for_pixels(dict(batch), stored) if stored else dict(batch)
        lengths = data["attention_mask"].sum(dim=1).tolist()
        for item, length in zip(items, lengths, strict=True):
            self._check_length(item, length)
        return data

    def _check_length(self, item: PatchItem, length: int) -> None:
        over = over_limit(length, self.base_config, self.max_length)
        if over is not None:
            raise SampleError(
                f"sample {item.id!r}: {over}, with its {len(item.frames_FHWC)} frames; nothing is truncated, so sample fewer frames, "
                "or raise max_length where that is the limit",
                "prompt-long",
            )

    def _labels(self, items: Sequence[PatchItem], prompts: Sequence[Prompt], batch: Mapping[str, Any]) -> Tensor:
        labels = torch.full_like(batch["input_ids"], IGNORE)
        for row, (item, prompt) in enumerate(zip(items, prompts, strict=True)):
            positions = batch["attention_mask"][row].nonzero().flatten()
            row_ids = batch["input_ids"][row, positions].tolist()
            try:
                targets = self._targets(prompt, row_ids)
                if self.published_labels:
                    targets = published_targets(self.processor.tokenizer, prompt, row_ids)
            except ValueError as error:
                raise SampleError(f"sample {item.id!r}: {error}", getattr(error, "code", None)) from None
            kept = positions[torch.tensor(targets)]
            labels[row, kept] = batch["input_ids"][row, kept]
        return labels

    def _targets(self, prompt: Prompt, row_ids: list[int]) -> list[int]:
        """Places in ``row_ids`` that hold answers and their end-of-turn tokens.

        The processor expands the video's placeholder, so its ids are matched with those of the text as rendered by what
        both have in common at the end: everything behind the video.
        """
        encoded = self.processor.tokenizer(prompt.text, return_offsets_mapping=True)
        text_ids: list[int] = encoded["input_ids"]
        common = 0
        while common < min(len(text_ids), len(row_ids)) and text_ids[-1 - common] == row_ids[-1 - common]:
            common += 1
        targets: list[int] = []
        for start, end in prompt.answers:
            inside = [i for i, (a, b) in enumerate(encoded["offset_mapping"]) if b > a and a < end and b > start]
            if any(a < start or b > end for a, b in (encoded["offset_mapping"][i] for i in inside)):
                raise ValueError(
                    f"the tokenizer joins the answer {prompt.text[start:end]!r} with the text around it in one token"
                )
            if not inside or text_ids[inside[-1]] not in self._special_ids:
                raise ValueError(
                    f"the chat template ends the answer {prompt.text[start:end]!r} with no end-of-turn token, so the model "
                    "would never learn to stop"
                )
            if self.processor.tokenizer.unk_token_id in [text_ids[i] for i in inside]:
                raise CodedError(f"the base's vocabulary lacks a word of the answer {prompt.text[start:end]!r}", "word-unknown")
            targets += inside
        if not targets:
            raise CodedError("it has no answer to learn from", "answer-missing")
        if len(text_ids) - targets[0] > common:
            raise ValueError("the processor changed the text behind the video, so the place of the answers is not known")
        return [i - len(text_ids) + len(row_ids) for i in targets]

    def _side_tokens(self, name: str, items: Sequence[PatchItem]) -> SideTokens:
        width = self.channels[name].width
        embeds: list[Tensor | None] = []
        times: list[Tensor | None] = []
        for item in items:
            features = item.side.get(name)
            if features is not None and features.features_KMC.shape[-1] != width:
                raise SampleError(
                    f"sample {item.id!r}: the features of side channel {name!r} are {features.features_KMC.shape[-1]} wide, "
                    f"but the patch takes {width}",
                    "features-width",
                )
            embeds.append(None if features is None else torch.as_tensor(features.features_KMC).float())
            if self.broken_features == "stop" and embeds[-1] is not None:
                _check_finite(embeds[-1], item.id, name)
            times.append(None if features is None else torch.as_tensor(features.times_K).double())
        return SideTokens.from_videos(embeds, times, width=width)


def _check_finite(features_KMC: Tensor, sample_id: str, name: str) -> None:
    bad_K = ~torch.isfinite(features_KMC).flatten(1).all(dim=1)
    if bool(bad_K.any()):
        raise SampleError(
            f"sample {sample_id!r}: the features of side channel {name!r} hold NaN or infinity in {int(bad_K.sum())} of "
            f"{len(bad_K)} steps, the first is step {int(bad_K.int().argmax())}; extract them anew, or set data.broken_features to "
            "missing to leave such steps out",
            "features-not-finite",
        )


def video_metadata(times_F: NDArray[np.float64], size: tuple[int, int]) -> dict[str, Any]:
    """What a processor wants to know of frames that are already sampled, in milliseconds as its frame indices.

    ``frames_indices / fps`` then gives the true times, and ``len(frames_indices) / total_num_frames * fps`` the mean rate of
    the sampled frames, from which Qwen2.5-VL makes its temporal positions. A single frame counts as one per second.
    """
    count = len(times_F)
    gap = float(times_F[-1] - times_F[0]) / (count - 1) if count > 1 else 1.0
    milliseconds = [max(0, round(1000 * float(t))) for t in times_F]
    return {
        "total_num_frames": max(1, round(1000 * gap * count)),
        "fps": 1000.0,
        "height": size[0],
        "width": size[1],
        "duration": gap * count,
        "video_backend": "pyav",
        "frames_indices": milliseconds,
    }
