"""The base's frozen vision features: named by what decides them, kept, rounded, and handed over in place of pixels."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import shutil
import threading

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from cases import shake, side_tokens, small_config
from pave import attach_patch
from pave.data.collator import PatchCollator
from pave.data.items import PatchItem
from pave.data.media import FrameSampling, read_frames
from pave.data.samples import Sample
from pave.data.store import VISION, FeatureStore, StoredVision, collect, plan_features
from pave.data.store.plan import identify
from pave.data.store.vision import vision_of_parts, vision_parts
from pave.data.vision import BaseVision, MemoryVision, VisionEncoder
from pave.video_llms.encode import EncodedVideo, encode, encode_to_keep, encoder_outputs
from store_files import fill
from tiny_models import tiny_llava_onevision, tiny_qwen2_5_vl
from tiny_runs import write_clip

FRAMES = FrameSampling(num_frames=4)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder with a tiny base and two clips."""
    folder = tmp_path_factory.mktemp("base")
    model, processor = tiny_llava_onevision()
    model.save_pretrained(folder / "base")
    processor.save_pretrained(folder / "base")
    for seed in (0, 1):
        write_clip(folder / f"{seed}.mp4", seed=seed, seconds=1.0)
    return folder


@pytest.fixture(scope="module")
def encoder():
    model, processor = tiny_llava_onevision()
    return VisionEncoder(model.requires_grad_(False), processor)


def samples(folder, *names):
    return [Sample(id=name, video=str(folder / name), question="?", answer="a") for name in names]


def key(folder, video, **options):
    vision = BaseVision(folder / "base", options.pop("sampling", FRAMES), **options)
    store = FeatureStore(folder / "keys", create=True)
    (wanted,) = plan_features(samples(video.parent, video.name), {VISION: vision}, store.hashes()).wanted.values()
    return wanted.encoder, wanted.key


def tokens_of(vision):
    return vision.encoded.tensors()["pooler_output"]


def batch_of(model, processor, visions, question="what sound?"):
    items = [PatchItem(f"v{i}", v.shape_of_frames, v.times_F, ((question, None),), vision=v) for i, v in enumerate(visions)]
    batch = PatchCollator(processor, model.config, {}, train=False)(items)
    del batch["side_channels"], batch["frame_times"]
    return batch


def test_the_store_gives_back_what_the_tower_made(base, tmp_path, encoder):
    vision = BaseVision(base / "base", FRAMES)
    wanted = samples(base, "0.mp4", "1.mp4")
    store, _, report = fill(tmp_path / "store", [*wanted, *samples(base, "0.mp4")], {VISION: vision})
    assert (report.wanted, report.extracted, report.failures) == (2, 2, [])
    reader = StoredVision(tmp_path / "store", vision)
    reader.check_complete(wanted, "pave extract")
    for sample in wanted:
        clip = read_frames(sample.video, FRAMES)
        expected, found = encoder.encode(clip.frames_FHWC, clip.times_F), reader.load(sample.video)
        made, kept = expected.encoded, found.encoded
        assert made.tensors().keys() == kept.tensors().keys() == {"pooler_output"}
        assert torch.equal(kept.tensors()["pooler_output"], made.tensors()["pooler_output"])
        assert (kept.layouts, kept.video_key, kept.dtype) == (made.layouts, "video", torch.float32)
        assert np.array_equal(found.times_F, clip.times_F) and found.size == clip.frames_FHWC.shape[1:3]
        assert found.pixels == expected.pixels
        assert found.shape_of_frames.shape == clip.frames_FHWC.shape
    (size,) = store.sizes()
    assert (size.name, size.entries) == ("base_vision", 2)
    facts = store.facts(size.id)
    assert facts["spec"]["settings"]["frames"]["num_frames"] == 4 and "transformers" in facts
    plan = plan_features(samples(base, "1.mp4"), {VISION: vision}, store.hashes())
    collect(store, plan)
    assert np.array_equal(StoredVision(tmp_path / "store", vision).load(wanted[1].video).times_F, clip.times_F)
    with pytest.raises(ValueError, match=r"0.mp4: the feature store .* has no features of the base's vision"):
        StoredVision(tmp_path / "store", vision).load(wanted[0].video)


def test_a_damaged_entry_is_named(base, tmp_path):
    vision = BaseVision(base / "base", FRAMES)
    store, _, _ = fill(tmp_path / "store", samples(base, "0.mp4"), {VISION: vision})
    (shard,) = store.shards(store.encoders()[0])
    content = bytearray(shard.read_bytes())
    content[-20] ^= 0xFF
    shard.write_bytes(content)
    with pytest.raises(ValueError, match=f"{shard.name}: the shard is damaged"):
        StoredVision(tmp_path / "store", vision).load(str(base / "0.mp4"))


def test_what_names_the_features(base, tmp_path):
    """Content, sampling, weights, the processor's settings, dtype and storage; neither names of files nor the tokenizer."""
    shutil.copytree(base / "base", tmp_path / "base")
    shutil.copy(base / "0.mp4", tmp_path / "renamed.mp4")
    shutil.copy(base / "1.mp4", tmp_path / "1.mp4")
    video = tmp_path / "renamed.mp4"
    first = key(tmp_path, video)
    assert key(base, base / "0.mp4") == first and key(tmp_path, video, dtype="float32") == first
    found = {
        first,
        key(tmp_path, tmp_path / "1.mp4"),
        key(tmp_path, video, sampling=FrameSampling(num_frames=5)),
        key(tmp_path, video, sampling=FrameSampling(num_frames=4, end=0.5)),
        key(tmp_path, video, dtype="bfloat16"),
        key(tmp_path, video, storage="float16"),
    }
    assert len(found) == 6
    spec = BaseVision(tmp_path / "base", FRAMES, storage="bfloat16").spec()
    hashes = FeatureStore(tmp_path / "keys").hashes()
    assert identify(BaseVision.from_spec(spec), hashes).id == key(tmp_path, video, storage="bfloat16")[0]

    (tmp_path / "base" / "README.md").write_text("a base")
    (tmp_path / "base" / "tokenizer_config.json").write_text((tmp_path / "base" / "tokenizer_config.json").read_text() + "\n")
    assert key(tmp_path, video) == first
    weights = tmp_path / "base" / "model.safetensors"
    tensors = load_file(weights)
    name = next(n for n in tensors if "vision_tower" in n)
    save_file({**tensors, name: tensors[name] + 1}, weights, metadata={"format": "pt"})
    other = key(tmp_path, video)
    assert other not in found
    settings = next(
        p for n in ("processor_config.json", "video_preprocessor_config.json") if (p := tmp_path / "base" / n).is_file()
    )
    changed = json.loads(settings.read_text())
    (changed.get("video_processor") or changed)["rescale_factor"] = 0.5
    settings.write_text(json.dumps(changed))
    assert key(tmp_path, video) not in {*found, other}


@pytest.mark.parametrize(("storage", "tolerance"), [("bfloat16", 2**-8), ("float16", 2**-11)])
def test_sixteen_bits_round_to_half_a_unit_in_the_last_place(base, storage, tolerance, encoder):
    model, processor = tiny_llava_onevision()
    clip = read_frames(base / "0.mp4", FRAMES)
    exact = encoder.encode(clip.frames_FHWC, clip.times_F)
    made = VisionEncoder(model.requires_grad_(False), processor, storage).encode(clip.frames_FHWC, clip.times_F)
    rounded = vision_of_parts(vision_parts(made))
    kept, whole = (x.encoded.tensors()["pooler_output"] for x in (rounded, exact))
    assert kept.dtype == getattr(torch, storage) and rounded.encoded.dtype == torch.float32
    error = (kept.float() - whole).abs()
    assert error.max() > 0 and bool((error <= tolerance * whole.abs() + 1e-7).all())
    assert encoder_outputs(model, rounded.encoded)["video"].pooler_output.dtype == torch.float32


def test_memory_keeps_what_fits(base, encoder, caplog):
    videos = [str(base / "0.mp4"), str(base / "1.mp4")]
    memory = MemoryVision(encoder, FRAMES, 10**9)
    first = memory.load(videos[0])
    assert memory.load(videos[0]) is first and memory.num_bytes == first.num_bytes > tokens_of(first).nbytes
    small = MemoryVision(encoder, FRAMES, first.num_bytes + 1)
    kept, other = small.load(videos[0]), small.load(videos[1])
    assert small.load(videos[0]) is kept and small.load(videos[1]) is not other
    assert torch.equal(tokens_of(small.load(videos[1])), tokens_of(other))
    assert [r.message for r in caplog.records if "memory for vision features is full with 1 videos" in r.message]


def test_memory_notices_a_video_that_was_replaced(base, encoder, tmp_path):
    """Whatever its time says, and lets go of what it had."""
    video = tmp_path / "v.mp4"
    shutil.copy(base / "0.mp4", video)
    memory = MemoryVision(encoder, FRAMES, 10**9)
    first = memory.load(str(video))
    before = video.stat()
    shutil.copy(base / "1.mp4", video)
    os.utime(video, ns=(before.st_atime_ns, before.st_mtime_ns))
    second = memory.load(str(video))
    clip = read_frames(base / "1.mp4", FRAMES)
    assert torch.equal(tokens_of(second), tokens_of(encoder.encode(clip.frames_FHWC, clip.times_F)))
    assert not torch.equal(tokens_of(second), tokens_of(first)) and memory.num_bytes == second.num_bytes


def test_a_batch_needs_videos_of_one_kind_and_length(encoder):
    model, processor = tiny_llava_onevision()
    frames = np.zeros((4, 32, 32, 3), dtype=np.uint8)
    four, three = (encoder.encode(frames[:n], np.arange(n) * 1.0) for n in (4, 3))
    with pytest.raises(ValueError, match="different numbers of frames"):
        batch_of(model, processor, [four, three])
    items = [
        PatchItem("a", frames, four.times_F, (("?", None),)),
        PatchItem("b", frames, four.times_F, (("?", None),), vision=four),
    ]
    with pytest.raises(ValueError, match="as frames and as stored vision features"):
        PatchCollator(processor, model.config, {}, train=False)(items)


def test_calls_that_cannot_be_are_refused(encoder):
    model, processor = tiny_llava_onevision()
    attach_patch(model, small_config())
    vision = encoder.encode(np.zeros((4, 32, 32, 3), dtype=np.uint8), np.arange(4) * 1.0)
    batch = batch_of(model, processor, [vision])
    pixels = {name: torch.zeros(shape) for name, (shape, _) in vision.pixels.items()}
    with pytest.raises(ValueError, match="in place of pixels, but pixel_values_videos was given as well"):
        model(**batch, **pixels)
    with pytest.raises(ValueError, match="expected EncodedVideo, got Tensor"):
        model(**{**batch, "vision_features": tokens_of(vision)})
    next(model.base_model.vision_tower.parameters()).requires_grad_(True)
    with pytest.raises(ValueError, match="the vision tower is trained .* cannot be stored"):
        model(**batch)
    with torch.no_grad():
        model(**batch)


def test_features_without_what_enters_the_projector_are_refused_where_a_patch_reads_it(encoder):
    model, processor = tiny_llava_onevision()
    attach_patch(model, small_config(query_source="pre_projector"))
    vision = encoder.encode(np.zeros((4, 32, 32, 3), dtype=np.uint8), np.arange(4) * 1.0)
    batch = batch_of(model, processor, [vision])
    with pytest.raises(
        ValueError, match="hold nothing from before the base's projector.*make them anew with pre_projector=True"
    ):
        model(**batch, side_channels={"audio": side_tokens(1)}, frame_times=vision.times_F[None])


def test_a_store_of_an_older_version_is_refused_and_says_how_to_make_it_anew(base, tmp_path, monkeypatch):
    wanted = samples(base, "0.mp4")
    monkeypatch.setattr("pave.data.vision.VISION_VERSION", 1)
    fill(tmp_path / "store", wanted, {VISION: BaseVision(base / "base", FRAMES)})
    monkeypatch.undo()
    reader = StoredVision(tmp_path / "store", BaseVision(base / "base", FRAMES))
    with pytest.raises(ValueError, match="lacks 1 of 1 .*an older version of the library made.*run: pave extract"):
        reader.check_complete(wanted, "pave extract recipe.yaml")


def test_one_encoding_serves_any_number_of_patches_and_strengths():
    model, processor = tiny_llava_onevision()
    shake(attach_patch(model, small_config(query_source="pre_projector"))).eval()
    frames, times = np.random.default_rng(3).integers(0, 256, (2, 4, 32, 32, 3), dtype=np.uint8), np.arange(4) * 0.5
    items = [PatchItem(str(i), frames[i], times, (("what sound?", None),)) for i in range(2)]
    batch = PatchCollator(processor, model.config, {}, train=False)(items)
    del batch["side_channels"]
    call = {"side_channels": {"audio": side_tokens(2)}, "frame_times": batch.pop("frame_times")}
    with torch.no_grad():
        encoded = encode(model, batch, pre_projector=True)
        text = {key: value for key, value in batch.items() if not key.startswith("pixel_values")}
        for patches in (None, {"default": 0.5}, ["default", None], {}):
            expected = model(**batch, **call, patches=patches).logits
            assert torch.equal(model(**text, **call, patches=patches, vision_features=encoded).logits, expected)
        greedy = {"max_new_tokens": 3, "do_sample": False, "num_beams": 2}
        expected = model.generate(**batch, **call, **greedy)
        assert torch.equal(model.generate(**text, **call, **greedy, vision_features=encoded), expected)
    assert isinstance(encoded, EncodedVideo) and len(encoded) == 2


def test_lora_inside_the_tower_is_refused(encoder):
    import peft

    model, processor = tiny_llava_onevision()
    model.requires_grad_(False)
    peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=r".*vision_tower.*q_proj"), model)
    with pytest.raises(ValueError, match="'.*lora_A.*'.*take LoRA off it"):
        VisionEncoder(model, processor)


@pytest.mark.parametrize("build", [tiny_llava_onevision, tiny_qwen2_5_vl])
def test_a_thread_with_pixels_never_meets_a_thread_with_stored_features(build):
    model, processor = build()
    attach_patch(model, small_config()).eval()
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8) for _ in range(2)]
    times = np.arange(4) * 0.5
    plain = PatchCollator(processor, model.config, {}, train=False)([PatchItem("p", frames[0], times, (("?", None),))])
    del plain["side_channels"], plain["frame_times"]
    stored = batch_of(model, processor, [VisionEncoder(model, processor).encode(frames[1], times)], "?")
    batches = [plain, stored]
    with torch.no_grad():
        expected = [model(**batch).logits for batch in batches]
    assert not torch.allclose(*expected, atol=1e-4)
    wrong = []

    def work(number):
        with torch.no_grad():
            for _ in range(8):
                if not torch.equal(model(**batches[number]).logits, expected[number]):
                    wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in (0, 1, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_features_are_taken_in_evaluation_mode_and_leave_the_model_as_it_was(encoder):
    model, processor = tiny_llava_onevision()
    attach_patch(model, small_config()).train()
    model.model.vision_tower.eval()
    modes = [module.training for module in model.modules()]
    tower = copy.deepcopy(model.model.vision_tower)
    frames = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    batch = PatchCollator(processor, model.config, {}, train=False)(
        [PatchItem("p", frames, np.arange(4) * 1.0, (("?", None),))]
    )
    del batch["side_channels"], batch["frame_times"]
    made = encode_to_keep(model, batch, pre_projector=True)
    taken = made.tensors()
    assert [module.training for module in model.modules()] == modes
    assert not any(tensor.requires_grad for tensor in taken.values())
    with torch.no_grad():
        states = tower(batch["pixel_values_videos"][0], output_hidden_states=True).hidden_states
        entered = model.model.apply_pooling(states[model.config.vision_feature_layer])
        assert torch.equal(taken["pre_projector.0"], entered.flatten(0, 1))
        model.eval()
        assert torch.equal(taken["pooler_output"], model.model.get_video_features(batch["pixel_values_videos"]).pooler_output)
    assert not any(module._forward_pre_hooks for module in model.model.modules())


@pytest.mark.parametrize("settings", [{"kind": "concat"}, {"kind": "interleave"}, {"gate": True}, {"newline": "grid"}], ids=str)
def test_patches_that_lengthen_the_prompt_or_read_the_question_compute_the_same(encoder, settings):
    model, processor = tiny_llava_onevision()
    settings = dict(settings)
    newline = settings.pop("newline", "base")
    shake(attach_patch(model, dataclasses.replace(small_config(missing_channel="lora_only", **settings), newline=newline)))
    frames, times = np.random.default_rng(2).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8), np.arange(4) * 0.5
    batch = batch_of(model, processor, [encoder.encode(frames, times)], "what sound?")
    plain = PatchCollator(processor, model.config, {}, train=False)([PatchItem("p", frames, times, (("what sound?", None),))])
    del plain["side_channels"], plain["frame_times"]
    call = {"side_channels": {"audio": side_tokens(1)}, "frame_times": times[None]}
    with torch.no_grad():
        assert torch.equal(model(**batch, **call).logits, model(**plain, **call).logits)
    options = {"max_new_tokens": 3, "do_sample": False, "num_beams": 2}
    assert torch.equal(model.generate(**batch, **call, **options), model.generate(**plain, **call, **options))


def test_side_channels_reach_the_stored_tokens():
    """Gradients flow into the patch, from stored features as from pixels."""
    model, processor = tiny_llava_onevision()
    attach_patch(model, small_config(query_source="pre_projector"))
    encoder = VisionEncoder(model, processor, pre_projector=True)
    vision = encoder.encode(np.random.default_rng(1).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8), np.arange(4) * 1.0)
    batch = batch_of(model, processor, [vision])
    output = model(**batch, side_channels={"audio": side_tokens(1)}, frame_times=vision.times_F[None])
    output.logits.sum().backward()
    fusion = model.pave_patches["default"].fusions["audio"]
    assert any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in fusion.parameters())
