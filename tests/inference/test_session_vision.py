"""The vision tower sees a frame of a stream once where that is exactly what it makes of the whole clip."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from peft import LoraConfig

from cases import WIDTH
from family_cases import FAMILY_CASES, build_family, make_times, make_video
from pave.data.collator import PatchCollator
from pave.data.items import PatchItem
from pave.data.vision import VisionEncoder
from pave.inference import session
from pave.inference.generation import generate_ids, model_inputs
from pave.inference.session_streams import Frame
from pave.inference.session_vision import StreamVision
from pave.tokens import SideTokens
from pave.video_llms import get_interface
from pave.video_llms.encode import encoder_outputs

NAMES = [name for name, case in FAMILY_CASES.items() if case.prepare is None]


def stream(count, first=0):
    video, times = make_video(count, 3), make_times(count)
    return [Frame(first + n, float(times[n]), video[n]) for n in range(count)]


def whole(model, processor, frames):
    pixels = np.stack([frame.pixels_HWC for frame in frames])
    return VisionEncoder(model, processor, pre_projector=True).encode(pixels, np.array([frame.time for frame in frames]))


def flat(encoded):
    """The tokens one after the other, in whatever nesting they are; the further features layer by layer."""
    parts = {}
    for name, tensor in encoded.tensors().items():
        field, _, number = name.partition(".")
        name = f"{field}.{number.split('.')[0]}" if field == "deepstack_features" else field
        parts.setdefault(name, []).append(tensor.reshape(-1, tensor.shape[-1]))
    return {name: torch.cat(tensors) for name, tensors in parts.items()}


@torch.no_grad()
def logits(made, vision):
    item = PatchItem("v", vision.shape_of_frames, vision.times_F, (("what sound?", None),), vision=vision)
    batch = PatchCollator(made.processor, made.base.config, {}, train=False)([item])
    features = encoder_outputs(made.base, batch.pop("vision_features"))
    del batch["side_channels"], batch["frame_times"]
    return made.base(**batch, mm_encoder_outputs=features).logits


@pytest.mark.parametrize("family", NAMES)
def test_every_family_says_whether_its_steps_are_encoded_apart(family):
    """Where it says so the steps alone are those of the clip, in 5 frames (an odd number) and in 6 after one more has come."""
    case = FAMILY_CASES[family]
    if case.missing():
        pytest.skip(case.missing())
    made = build_family(family)
    interface = get_interface(made.base.config)
    vision = StreamVision(made.base, made.processor)
    frames = stream(6)
    if interface.vision_not_stored:
        assert vision.of(frames, pre_projector=True) is None
        return
    for count in (5, 6):
        found, expected = vision.of(frames[:count], pre_projector=True), whole(made.base, made.processor, frames[:count])
        tokens, wanted = flat(found.encoded), flat(expected.encoded)
        assert tokens.keys() == wanted.keys()
        for name, tensor in wanted.items():
            assert (tokens[name] - tensor).abs().max() <= 2e-6 * tensor.abs().max(), name
        assert found.encoded.layouts == expected.encoded.layouts and found.pixels == expected.pixels
        assert all(torch.equal(found.outputs[name], value) for name, value in expected.outputs.items())
        assert (logits(made, found) - logits(made, expected)).abs().max() < made.case.tolerance
    steps = [-(-count // case.merges) for count in (5, 6)]
    reused = 5 // case.merges if interface.encodes_steps_apart else 0
    assert (vision.encoded, vision.reused) == (sum(steps) - reused, reused)


@pytest.mark.parametrize("family", NAMES)
def test_a_stream_on_every_family_is_one_call_on_its_pixels(family, monkeypatch):
    """Five frames pushed one by one, a question in between and one at the end."""
    case = FAMILY_CASES[family]
    if case.missing():
        pytest.skip(case.missing())
    made = build_family(family)
    model, frames = made.trained, stream(5)
    embeds, times = torch.randn(8, 2, WIDTH, generator=torch.Generator().manual_seed(0)), torch.arange(8).double() * 0.5
    batches = []

    def spy(model, batch, **options):
        batches.append(dict(batch))
        return generate_ids(model, batch, **options)

    monkeypatch.setattr(session, "generate_ids", spy)
    with session.Session(model, made.processor) as running:
        running.push_side("audio", embeds, times)
        for frame in frames:
            running.push_frames(frame.pixels_HWC[None], [frame.time])
            if frame.serial == 3:
                running.ask("what sound?", at=frame.time, max_new_tokens=1)
        answer = running.ask("what sound?", at=3.3, max_new_tokens=1)
    assert len(answer.frame_times) == 5
    for batch, count, at in ((batches[0], 4, frames[3].time), (batches[1], 5, 3.3)):
        pixels = np.stack([frame.pixels_HWC for frame in frames[:count]])
        item = PatchItem("v", pixels, np.array([frame.time for frame in frames[:count]]), (("what sound?", None),))
        whole = PatchCollator(made.processor, model.config, {}, train=False)([item])
        whole["side_channels"] = {"audio": SideTokens(embeds[times < at][None], times_BK=times[times < at][None])}
        with torch.no_grad():
            found, expected = (model(**model_inputs(model, b)).logits for b in (batch, whole))
        assert (found - expected).abs().max() < case.tolerance


def test_frames_that_the_processor_makes_smaller_in_a_longer_clip_are_encoded_anew():
    """Qwen's processors have a budget of pixels for the whole video."""
    made = build_family("qwen3_vl")
    processor = copy.deepcopy(made.processor)
    processor.video_processor.size = {"shortest_edge": 512, "longest_edge": 4 * 32 * 48}
    vision = StreamVision(made.base, processor)
    frames = stream(8)
    vision.encode(frames, pre_projector=False)
    assert vision.encoded == 4
    for count, again in ((4, 0), (8, 4), (8, 0), (4, 0)):
        before = vision.encoded
        found, expected = vision.of(frames[:count], pre_projector=False), whole(made.base, processor, frames[:count])
        assert vision.encoded - before == again
        difference = found.encoded.tensors()["pooler_output.0"] - expected.encoded.tensors()["pooler_output.0"]
        assert difference.abs().max() < 1e-6
    small = whole(made.base, processor, frames).encoded.layouts[0]
    assert small.tokens_per_step < whole(made.base, processor, frames[:4]).encoded.layouts[0].tokens_per_step


def test_what_is_kept_goes_with_its_frames():
    made = build_family("llava_onevision")
    vision = StreamVision(made.base, made.processor)
    frames = stream(5)
    vision.encode(frames, pre_projector=False)
    held = vision.num_bytes
    vision.keep_only(frames[2:])
    assert vision.num_bytes == held * 3 // 5 > 0
    vision.of(frames[1:], pre_projector=False)
    assert (vision.encoded, vision.reused) == (6, 3)
    vision.of(frames[1:], pre_projector=True)  # a patch that reads before the projector has come
    assert vision.encoded == 10 and "pre_projector.0" in vision.of(frames[1:], pre_projector=False).encoded.tensors()


def test_a_tower_that_is_not_the_base_s_own_gets_pixels_every_time():
    made = build_family("llava_onevision")
    base = copy.deepcopy(made.base)
    base.add_adapter(LoraConfig(target_modules=r".*vision_tower.*(q|v)_proj"))
    vision = StreamVision(base, made.processor)
    vision.encode(stream(3), pre_projector=False)
    assert vision.of(stream(3), pre_projector=False) is None and vision.encoded == 0


def test_a_step_that_lacks_a_frame_is_not_kept():
    made = build_family("qwen2_vl")
    vision = StreamVision(made.base, made.processor)
    frames = stream(5)
    vision.encode(frames, pre_projector=False)
    held = vision.num_bytes
    vision.of(frames, pre_projector=False)
    assert vision.num_bytes == held > 0 and (vision.encoded, vision.reused) == (3, 2)
