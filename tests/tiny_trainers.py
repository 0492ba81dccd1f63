"""A PatchTrainer on a tiny base and made-up items, whose answers the side features alone decide."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import torch
from torch.utils.data import Dataset

from pave.config import FusionConfig, LoraSettings, PatchConfig, SideChannelConfig
from pave.data.collator import PatchCollator
from pave.data.items import PatchItem
from pave.patching import attach_patch, patch_parameters
from pave.training.arguments import TrainingConfig
from pave.training.parts import train_only
from pave.training.sampler import Stage, StagedSampler, TaskMix
from pave.training.sharing import VideoGrouping
from pave.training.trainer import PatchTrainer
from tiny_models import SIDE, tiny_llava_onevision

WIDTH = 6


class Items(Dataset):
    """Samples with one video and one question, whose answer is decided by the side features alone."""

    def __init__(self, count=16, swapped=False, missing=(5,)):
        rng = np.random.default_rng(0)
        frames = rng.integers(0, 256, (4, SIDE, SIDE, 3), dtype=np.uint8)
        self.items = []
        for i in range(count):
            loud = i % 2
            values = (rng.standard_normal((6, 1, WIDTH)) * 0.1 + loud).astype(np.float32)
            side = None if i in missing else SimpleNamespace(features_KMC=values, times_K=0.1 + 0.3 * np.arange(6))
            answer = "a bell" if loud != swapped else "a dog barks"  # of different lengths, so that batches are ragged
            turns = (("what sound is heard?", answer),)
            self.items.append(PatchItem(f"sample-{i}", frames, 0.5 * np.arange(4), turns, {"audio": side}))

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]

    @property
    def types(self):
        return ["loud" if i % 2 else "quiet" for i in range(len(self))]


class SharedItems(Items):
    """Twenty questions about eight videos, with one to four questions each; one video lacks its side channel."""

    def __init__(self, missing=(2,)):
        super().__init__(8, missing=missing)
        asked = [(video, number) for video in range(8) for number in range(1 + video % 4)]
        questions = ("what sound is heard?", "which object was moving when the bell rang?", "yes or no?", "is it loud?")
        self.videos = [str(video) for video, _ in asked]
        self.items = [
            dataclasses.replace(
                self.items[video],
                id=f"{video}-{number}",
                turns=((questions[number], ("a bell", "a dog barks")[(video + number) % 2]),),
                source=str(video),
            )
            for video, number in asked
        ]

    @property
    def types(self):
        return ["odd" if int(item.id[-1]) % 2 else "even" for item in self.items]


def shared_videos(**changes):
    """Arguments of ``build``: questions about one video share its row, two at most, in forward passes of four or of a multiple."""
    dataset = SharedItems()
    return {
        "dataset": dataset,
        "stages": [Stage(steps=4), Stage(steps=2, weights={"odd": 1, "even": 1})],
        "grouping": VideoGrouping(dataset.videos, 2, 4),
        "share_videos": 2,
        "eval_dataset": Items(6),
        **changes,
    }


def patch_config(dropout=0.0, gate=False, kind="cross_attention", missing_channel="base", **lora):
    fusion = FusionConfig(kind=kind, width=16, embed_width=16, num_heads=2, num_layers=1, dropout=dropout, gate=gate)
    return PatchConfig(
        side_channels={"audio": SideChannelConfig(width=WIDTH, fusion=fusion)},
        lora=LoraSettings(rank=2, dropout=dropout, **lora),
        missing_channel=missing_channel,
    )


def base(family=tiny_llava_onevision):
    model, processor = family()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(20)  # fresh weights give nearly equal logits whatever the patch does
    return model, processor


def build(
    tmp_path,
    family=tiny_llava_onevision,
    config=None,
    dataset=None,
    steps=6,
    stages=None,
    eval_dataset=None,
    mix=None,
    held_out_tasks=None,
    grouping=None,
    share_videos=None,
    **training,
):
    model, processor = base(family)
    attach_patch(model, config or patch_config())
    settings = TrainingConfig(**{"batch_size": 4, "learning_rate": 1e-2, "log_every": 1, "warmup": 0.2, **training})
    args = settings.arguments(str(tmp_path), steps)
    args.disable_tqdm = True
    train_only(model, settings.train)
    dataset = dataset or Items()
    sampler = None
    if stages:
        per_step = args.world_size * settings.batch_size * settings.accumulation
        sampler = StagedSampler(dataset.types, stages, per_step, settings.seed, grouping, mix)
    return PatchTrainer(
        model,
        args,
        data_collator=PatchCollator(processor, model.config, model.patch_config.side_channels, share_videos=share_videos),
        train_dataset=dataset,
        eval_dataset=eval_dataset,
        train_sampler=sampler,
        held_out_tasks=held_out_tasks,
        channel_dropout=settings.channel_dropout,
    )


def two_tasks(**changes):
    """Arguments of ``build``: forward passes of 4 samples of one task, and channels taken away."""
    dataset, held_out = Items(16, missing=(2, 3)), Items(6)
    return {
        "config": patch_config(missing_channel="lora_only"),
        "dataset": dataset,
        "stages": [Stage(steps=4)],
        "steps": 4,
        "mix": TaskMix(dataset.types, {"loud": 1, "quiet": 1}, run=4),
        "channel_dropout": 0.6,
        "eval_dataset": held_out,
        "held_out_tasks": {item.id: kind for item, kind in zip(held_out.items, held_out.types, strict=True)},
        **changes,
    }


def weights(model):
    return [p.detach().clone() for p in patch_parameters(model)]
