"""What must not matter to training: caches, padding, grouping, accumulation, recomputation, the order in which things are listed."""

from __future__ import annotations

import dataclasses
import random

import numpy as np
import pytest
import torch

from pave.data.collator import PatchCollator
from pave.data.dataset import PatchDataset
from pave.data.media import FrameSampling
from pave.data.samples import read_samples
from pave.data.store import FeatureStore, extract, plan_features
from pave.patching import attach_patch, patch_parameters
from pave.side_channels import build_encoder
from pave.training import run_recipe
from pave.training.lengths import token_lengths
from pave.training.sampler import LengthGrouping, Stage, StagedSampler
from tiny_models import tiny_llava_onevision, tiny_qwen2_5_vl
from tiny_runs import write_clip
from tiny_trainers import Items, base, build, patch_config, weights
from tiny_training import assert_same, make_world, plan

FAMILIES = [tiny_llava_onevision, tiny_qwen2_5_vl]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"))


def test_features_decoded_cached_or_stored_train_the_same_patch(world, tmp_path):
    """Exactly: memory, a folder when it is filled and when it is read, a feature store, a store behind a folder."""
    changes = ["data.stages=[{steps: 3}]", "data.eval=null", "training.save_every=null"]
    recipe = plan(world, tmp_path, *changes)
    encoders = {name: build_encoder(channel.encoder) for name, channel in recipe.patch.side_channels.items()}
    store = FeatureStore(tmp_path / "store", create=True)
    samples = read_samples(world / "train.jsonl")
    report = extract(plan_features(samples, encoders, store.hashes()), store, processes=0, progress=False)
    assert report.extracted == 6 and not report.failures
    folder, stored = f"data.cache={tmp_path / 'cache'}", f"data.store={tmp_path / 'store'}"
    ways = {
        "decoded": ["data.cache=null"],
        "memory": ["data.cache=memory"],
        "folder": [folder],
        "folder again": [folder],
        "store": ["data.cache=null", stored],
        "store behind a folder": [f"data.cache={tmp_path / 'other'}", stored],
    }
    for name, way in ways.items():
        run_recipe(plan(world, tmp_path / name, *changes, *way), folder=world, progress=False)
        assert_same(tmp_path / "decoded" / "patch", tmp_path / name / "patch")
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 6


class Noisy:
    """An encoder that draws random numbers, as one does whose dropout was left on."""

    width, max_batch = 3, 1

    def __init__(self, encoder):
        self.encoder = encoder

    def __getattr__(self, name):
        return getattr(self.encoder, name)

    def encode(self, source):
        features = self.encoder.encode(source)
        features.features_KMC.add_(torch.randn(()) + random.random() + np.random.rand())
        return features


def test_random_numbers_of_an_encoder_are_its_own(world):
    """Whenever it is asked it draws the same, and the program around it draws what it would have drawn."""
    recipe = plan(world, world / "unused")
    channels = recipe.patch.side_channels
    encoders = {name: Noisy(build_encoder(channel.encoder)) for name, channel in channels.items()}
    encoders["audio"].width = channels["audio"].width
    data = PatchDataset(read_samples(world / "train.jsonl"), FrameSampling(num_frames=4), encoders, channels)

    def seeded():
        torch.manual_seed(3), random.seed(3), np.random.seed(3)

    def drawn():
        return float(torch.rand(())), random.random(), float(np.random.rand())

    seeded()
    expected = drawn()
    seeded()
    first = data[0].side["audio"].features_KMC
    assert drawn() == expected
    assert torch.equal(data[0].side["audio"].features_KMC, first)
    encoders["audio"].encoder, plain = build_encoder(channels["audio"].encoder), encoders["audio"].encoder
    assert not torch.equal(plain.encode(_source(data)).features_KMC, first)


def _source(data):
    from pave.data.sources import read_source

    return read_source(data.encoders["audio"].encoder, data.samples[0].video, None)


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in patch_parameters(model)]


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_does_not_reach_the_gradients(family):
    """The gradient of a ragged batch is the sum of those of its rows alone, to 1e-5 of the largest element and 1e-7."""
    model, processor = base(family)
    attach_patch(model, patch_config())
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in patch_parameters(model):
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    collator = PatchCollator(processor, model.config, model.patch_config.side_channels)
    items = Items(6).items
    batch = collator(items)
    assert not batch["attention_mask"].all()
    together = gradients(model.train(), model(**batch, num_items_in_batch=10).loss)
    alone = [gradients(model, model(**collator([item]), num_items_in_batch=10).loss) for item in items]
    for number, gradient in enumerate(together):
        summed = torch.stack([one[number] for one in alone]).sum(dim=0)
        scale = float(gradient.abs().max())
        torch.testing.assert_close(gradient, summed, rtol=0, atol=1e-5 * scale + 1e-7)


def test_grouping_inside_a_step_trains_as_without_grouping(tmp_path):
    """Window 1: the same samples in every step, so that weights agree as closely as with another batch size."""
    items = Items(16)
    lengths = [len(item.turns[0][1]) for item in items.items]
    grouping = LengthGrouping(lengths, window=1, passes=4)
    plain, grouped = (StagedSampler(items.types, [Stage(steps=4)], 8, 0, way) for way in (None, grouping))
    a, b = list(plain), list(grouped)
    assert a != b and all(sorted(a[i : i + 8]) == sorted(b[i : i + 8]) for i in range(0, 32, 8))
    trained = []
    for name, sampler in (("plain", plain), ("grouped", grouped)):
        trainer = build(tmp_path / name, dataset=items, steps=4, batch_size=2, accumulation=4)
        trainer._train_sampler = sampler
        trainer.train()
        trained.append(trainer)
    for one, other in zip(weights(trained[0].model), weights(trained[1].model), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=2e-5)


def test_a_grouped_run_resumes_bit_for_bit_and_pads_less(world, tmp_path):
    changes = ["training.length_grouping=2", "training.save_every=1", "data.eval=null", "data.stages=[{steps: 6}]"]
    whole = run_recipe(plan(world, tmp_path / "whole", *changes), folder=world, progress=False)
    (tmp_path / "again").mkdir()
    (tmp_path / "whole" / "checkpoint-3").rename(tmp_path / "again" / "checkpoint-3")  # inside a window
    run_recipe(plan(world, tmp_path / "again", *changes), folder=world, resume=True, progress=False)
    assert_same(whole.patch, tmp_path / "again" / "patch")
    longer = write_clip(tmp_path / "longer.mp4", seed=3)  # 2 s, the others 1 s
    samples = read_samples(world / "train.jsonl")
    samples.append(dataclasses.replace(samples[0], id="longer", video=str(longer)))
    channels = plan(world, tmp_path).patch.side_channels
    encoders = {name: build_encoder(channel.encoder) for name, channel in channels.items()}
    collator = PatchCollator(whole.processor, whole.model.config, channels)
    true = []
    for sampling in (FrameSampling(num_frames=4), FrameSampling(fps=4)):
        data = PatchDataset(samples, sampling, encoders, channels)
        lengths = token_lengths(data, collator)
        true = [int(collator([data[i]])["attention_mask"].sum()) for i in range(len(data))]
        assert len(set(true)) > 1
        assert len({a - b for a, b in zip(true, lengths, strict=True)}) == 1  # what they leave out is the same for all

    def padded(order):
        return sum(2 * max(true[i], true[j]) - true[i] - true[j] for i, j in zip(order[::2], order[1::2], strict=True))

    grouping = LengthGrouping(lengths, window=2, passes=2)
    without, grouped = (list(StagedSampler(["x"] * 12, [Stage(steps=30)], 4, 0, way)) for way in (None, grouping))
    assert padded(grouped) < 0.5 * padded(without)
    assert all(sorted(without[i : i + 8]) == sorted(grouped[i : i + 8]) for i in range(0, 120, 8))


@pytest.mark.parametrize("family", FAMILIES)
def test_recomputed_activations_give_the_same_weights_bit_for_bit(tmp_path, family):
    """Dropout included: what is recomputed draws the same random numbers."""
    common = {"family": family, "config": patch_config(dropout=0.2), "steps": 3}
    plain = build(tmp_path / "plain", **common)
    plain.train()
    recomputed = build(tmp_path / "recomputed", **common, activation_checkpointing=True)  # seeds the random numbers again
    recomputed.train()
    assert all(torch.equal(a, b) for a, b in zip(weights(plain.model), weights(recomputed.model), strict=True))


def test_a_batch_of_one_and_accumulation_equal_the_larger_batch_in_gradients(tmp_path):
    """Element by element, to 1e-5 of the largest and 1e-7; the answers are of different lengths."""
    found = []
    for size, passes in ((8, 1), (2, 4), (1, 8)):
        trainer = build(
            tmp_path / str(size), batch_size=size, accumulation=passes, steps=1, max_grad_norm=0.0,
            trainer={"train_sampling_strategy": "sequential"},
        )  # fmt: skip
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in patch_parameters(trainer.model):
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
        seen = []
        trainer.create_optimizer().register_step_pre_hook(
            lambda *_, model=trainer.model, seen=seen: seen.extend(p.grad.clone() for p in patch_parameters(model))
        )
        trainer.train()
        found.append(seen)
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            torch.testing.assert_close(two, one, rtol=0, atol=1e-5 * float(one.abs().max()) + 1e-7)
