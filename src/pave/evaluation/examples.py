"""From a sample and a patched model to an ``ExampleView`` for the report: frames, sound, side features and attention."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pave.config import EncoderConfig, SideChannelConfig
from pave.data.collator import PatchCollator
from pave.data.dataset import PatchDataset
from pave.data.items import PatchItem
from pave.data.media import FrameSampling, read_audio
from pave.data.samples import Sample
from pave.evaluation.generation import generate_ids
from pave.evaluation.inference import VideoQA
from pave.evaluation.predictions import Prediction
from pave.evaluation.report import AnswerView, ExampleView, FrameView, SideView, SoundView
from pave.fusion import TemporalAlignedCrossAttention
from pave.patching import is_patched, patch_slot
from pave.side_channels import SideEncoder, build_encoder

_SOUND_RATE = 16_000


def example_view(
    qa: VideoQA, sample: Sample, answers: Mapping[str, Prediction], right: Mapping[str, bool] | None = None
) -> ExampleView:
    """Everything the report shows of one sample.

    Args:
        qa: the patched model; its attention is shown.
        sample: a sample about a video file.
        answers: what each run answered, by the run's name.
        right: whether that is right, by the run's name; default by the rule without a benchmark.

    Raises:
        ValueError: if the video cannot be read, or ``answers`` is empty.
    """
    if not answers:
        raise ValueError(f"example_view: no run has answered sample {sample.id!r}")
    item = next(iter(qa.items([sample])))
    if isinstance(item, ValueError):
        raise item
    return media_view(item, _sound_file(qa.encoders, sample), answers, right, attention_of(qa, item) if qa.channels else {})


def media_view(
    item: PatchItem,
    sound_file: str | None,
    answers: Mapping[str, Prediction],
    right: Mapping[str, bool] | None = None,
    attention: Mapping[str, NDArray[np.float64]] | None = None,
) -> ExampleView:
    """What the report shows of a decoded sample, with the attention of a patch or without.

    Args:
        item: the decoded sample.
        sound_file: the file whose sound is drawn.
        answers: what each run answered, by the run's name.
        right: see ``example_view``.
        attention: by side channel, as ``attention_of`` gives it.

    Raises:
        ValueError: if the sound cannot be read.
    """
    clip = None if sound_file is None else read_audio(sound_file, _SOUND_RATE)
    sides = [
        SideView(
            name=name,
            times_K=features.times_K.cpu().numpy(),
            features_KC=features.features_KMC.float().mean(dim=1).cpu().numpy(),
            attention_TK=(attention or {}).get(name),
        )
        for name, features in item.side.items()
        if features is not None
    ]
    return replace(
        text_view(answers, right),
        frames=[FrameView(time=float(t), pixels_HWC=pixels) for t, pixels in zip(item.times_F, item.frames_FHWC, strict=True)],
        sound=None if clip is None else SoundView(samples=clip.samples, sample_rate=clip.sample_rate, start=clip.start_time),
        sides=sides,
    )


def text_view(answers: Mapping[str, Prediction], right: Mapping[str, bool] | None = None) -> ExampleView:
    """Question, truth and answers alone, where the files are not at hand."""
    asked = next(iter(answers.values()))

    def verdict(run: str, prediction: Prediction) -> bool | None:
        if not prediction.references:
            return None
        return prediction.correct if right is None else right[run]

    return ExampleView(
        id=asked.id,
        question=asked.question,
        question_type=asked.type,
        choices=asked.choices,
        truth=" or ".join(asked.references),
        answers=[
            AnswerView(
                run=run,
                text=p.prediction if p.prediction is not None else f"failed: {p.error}",
                correct=verdict(run, p),
            )
            for run, p in answers.items()
        ],
    )


def unpatched_view(
    sample: Sample,
    sampling: FrameSampling,
    channels: Mapping[str, SideChannelConfig],
    answers: Mapping[str, Prediction],
    right: Mapping[str, bool] | None = None,
) -> ExampleView:
    """What the report shows of a sample without a model: frames, sound, and what side channels hold whose encoders have no weights.

    Args:
        sample: a sample about a video file.
        sampling: which frames.
        channels: of a patch, by name; those whose encoders have weights or are not part of this library are left out.
        answers: what each run answered, by the run's name.
        right: see ``example_view``.

    Raises:
        ValueError: if a file cannot be read.
    """
    plain = {name: channel for name, channel in channels.items() if without_weights(channel.encoder)}
    encoders = {name: build_encoder(channel.encoder) for name, channel in plain.items()}
    item = PatchDataset([sample], sampling, encoders, plain)[0]
    return media_view(item, _sound_file(encoders, sample), answers, right)


def without_weights(encoder: EncoderConfig) -> bool:
    """Whether an encoder is part of this library and has no weights."""
    return encoder.model is None and encoder.name.isidentifier()


def attention_of(qa: VideoQA, item: PatchItem) -> dict[str, NDArray[np.float64]]:
    """How much each sampled frame attends to each side step, by channel: arrays (frames, steps).

    The weights of the last cross-attention layer, averaged over heads and over the frame's tokens and summed over the tokens
    of a step: a row sums to 1, or to 0 where the frame reads nothing. Where the base merges frames, merged frames share a
    row. Channels that are missing or not fused by cross-attention are left out.
    """
    maps: dict[str, NDArray[np.float64]] = {}
    for name, weight_LTNSKM in attention_maps(qa, item).items():
        weight_TK = weight_LTNSKM[-1].sum(axis=-1).mean(axis=(1, 2))
        frames = len(item.times_F)
        maps[name] = weight_TK[np.arange(frames) * len(weight_TK) // frames]
    return maps


def attention_maps(qa: VideoQA, item: PatchItem) -> dict[str, NDArray[np.float64]]:
    """What every video token attends to in every layer, by channel: softmax(q k / sqrt(H)), arrays (layers, T, N, S, K, M).

    T are the time steps of the base, in which it may have merged frames. The weights of a token on all side tokens sum to 1, or
    to 0 where its frame reads nothing. Channels that are missing or not fused by cross-attention are left out.

    Raises:
        ValueError: if the model carries no patch.
    """
    model = qa.model
    if not is_patched(model):
        raise ValueError("attention_maps: the model carries no patch")
    batch = PatchCollator(qa.processor, model.config, qa.channels, train=False)([item])
    maps: dict[str, NDArray[np.float64]] = {}
    with _watched(patch_slot(model).fusions) as calls:
        generate_ids(model, batch, max_new_tokens=1)
    for name, (fusion, arguments) in calls.items():
        features = item.side.get(name)
        if features is None:
            continue
        layers = [fusion.attention_map(*arguments[:2], layer=number) for number in range(len(fusion.layers))]
        steps = int(arguments[0].valid_BT[0].sum())
        maps[name] = torch.stack(layers)[:, 0, :steps, ..., : len(features), :].double().cpu().numpy()
    return maps


def _sound_file(encoders: Mapping[str, SideEncoder[Any]], sample: Sample) -> str | None:
    """The file that the patch hears: the one the sample names for the channel (it may say there is none), else the video."""
    for name, encoder in encoders.items():
        if encoder.source == "audio":
            return sample.side_channels.get(name, sample.video)
    return sample.video


@contextlib.contextmanager
def _watched(fusions: nn.ModuleDict) -> Iterator[dict[str, tuple[Any, Sequence[Any]]]]:
    """Collect what every cross-attention module is called with."""
    calls: dict[str, tuple[Any, Sequence[Any]]] = {}
    handles = []
    for name, fusion in fusions.items():
        if isinstance(fusion, TemporalAlignedCrossAttention):

            def keep(module: nn.Module, arguments: tuple[Any, ...], name: str = name) -> None:
                calls[name] = (module, arguments)

            handles.append(fusion.register_forward_pre_hook(keep))
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()
