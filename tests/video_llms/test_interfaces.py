"""What the interfaces say of a base, against the base's own code."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cases import CASES, side_tokens
from family_cases import FAMILY_CASES, build_family, make_times, make_video
from pave.patching.rows import Rows
from pave.patching.slot import batch_videos
from pave.video_llms import get_interface
from tiny_models import tiny_llava_onevision, tiny_qwen2_5_vl


def features(model, batch):
    """(features output, input of the projector, bound arguments) of one call of the features method."""
    interface = get_interface(model.config)
    seen = []
    handle = interface.projector(model.base_model).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    names = ("pixel_values_videos", "video_grid_thw")
    arguments = {k: batch[k] for k in names if k in batch}
    if "llava" in model.config.model_type:
        arguments |= {"vision_feature_layer": -1, "vision_feature_select_strategy": "full"}
    with torch.no_grad():
        output = model.base_model.get_video_features(**arguments, return_dict=True)
    handle.remove()
    return output, seen[0], arguments


@pytest.mark.parametrize("name", CASES)
def test_changing_one_frame_changes_exactly_its_step(name):
    case = CASES[name]
    model, processor = case.build()
    interface = get_interface(model.config)
    batch = case.batch(processor)
    before, _, arguments = features(model, batch)
    layouts = interface.layouts(model.config, arguments)
    times = interface.step_times(batch["frame_times"])
    for video, frames in enumerate(case.frames):
        assert layouts[video].steps == -(-frames // interface.frames_per_step)
        for frame in range(0, frames, interface.frames_per_step):
            changed = dict(batch)
            pixels = batch["pixel_values_videos"].clone()
            if "video_grid_thw" in batch:
                _t, h, w = batch["video_grid_thw"][video].tolist()
                start = sum(int(g.prod()) for g in batch["video_grid_thw"][:video]) + frame // 2 * h * w
                pixels[start : start + h * w] += 1
            else:
                pixels[video, frame] += 1
            changed["pixel_values_videos"] = pixels
            after, _, _ = features(model, changed)
            was = interface.split(before.pooler_output, layouts)
            now = interface.split(after.pooler_output, layouts)
            assert [torch.equal(a, b) for a, b in zip(was, now, strict=True)] == [v != video for v in range(len(was))]
            stack_was = batch_videos(was, layouts, None, times).post_projector_BTSE[video]
            stack_now = batch_videos(now, layouts, None, times).post_projector_BTSE[video]
            step = frame // interface.frames_per_step
            moved = (stack_was != stack_now).flatten(1).any(1).tolist()
            assert moved[: layouts[video].steps] == [t == step for t in range(layouts[video].steps)]
            # the step's time is the mean over the frames it was made of
            group = batch["frame_times"][video, frame : frame + interface.frames_per_step]
            torch.testing.assert_close(times[video, step], group.mean())


def test_llava_onevision_queries_are_the_tower_pooled_by_itself():
    model, processor = tiny_llava_onevision()
    interface = get_interface(model.config)
    output, captured, arguments = features(model, CASES["llava_onevision"].batch(processor))
    layouts = interface.layouts(model.config, arguments)
    queries = interface.pre_projector(model.base_model, captured, layouts, arguments)
    assert queries[0].shape == (16, interface.pre_projector_width(model.config))
    # 4 x 4 patches to 2 x 2 tokens: the bilinear resampling without aligned corners is the mean of each 2 x 2 block
    blocks = captured.view(2, 4, 2, 2, 2, 2, -1).mean(dim=(3, 5)).reshape(2, 16, -1)
    torch.testing.assert_close(torch.stack(queries), blocks)
    projected = model.base_model.apply_pooling(model.base_model.multi_modal_projector(captured)).reshape(2, 16, -1)
    torch.testing.assert_close(output.pooler_output[:, :-1], projected)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen2_5_omni_thinker", "exaone4_5"])
def test_queries_are_in_frame_order_although_the_tower_is_not(name):
    model, _ = FAMILY_CASES[name].build()
    interface = get_interface(model.config)
    grid = torch.tensor([[2, 12, 12], [3, 12, 12]])  # several windows per frame
    pixels = torch.randn(int(grid.prod(-1).sum()), 3 * 2 * 8 * 8, generator=torch.Generator().manual_seed(0))
    output, captured, arguments = features(model, {"pixel_values_videos": pixels, "video_grid_thw": grid})
    layouts = interface.layouts(model.config, arguments)
    assert layouts[0].grid == (6, 6)
    tokens = torch.cat(list(output.pooler_output))
    with torch.no_grad():
        merged = model.base_model.visual.merger(captured)
    assert not torch.allclose(merged, tokens, atol=1e-5)  # the merger really works in another order
    # the queries are the mean of each merged group: find each token's group by the merger's output
    order = torch.cdist(tokens, merged).argmin(dim=1)
    torch.testing.assert_close(merged[order], tokens)
    expected = captured.reshape(-1, 4, captured.shape[-1]).mean(1)[order]
    queries = torch.cat(interface.pre_projector(model.base_model, captured, layouts, arguments))
    torch.testing.assert_close(queries, expected)


def test_tokens_that_video_llama_3_drops_are_not_looked_for_in_the_prompt():
    family = build_family("video_llama_3")
    still = make_video(1, 0).repeat(4, axis=0)
    batch = family.batch([still, make_video(6, 1)])
    times = batch.pop("frame_times")
    layouts = family.interface.layouts(family.base.config, batch)
    assert [layout.num_tokens for layout in layouts] == [24, 36]
    assert family.interface.tokens_in_prompt(layouts, batch) == [9, 36]  # the first frame and a token of each other
    given = {"side_channels": {"audio": side_tokens()}, "frame_times": times}
    with torch.no_grad():
        base = family.base(**batch).logits
        acting = family.trained(**batch, **given).logits
        fresh = family.patched(trained=False)(**batch, **given).logits
    assert torch.equal(fresh, base)
    assert all(not torch.allclose(acting[row], base[row], atol=1e-3) for row in range(2))


@pytest.mark.parametrize("name", ["internvl", "minicpmv4_6"])
def test_frame_times_must_cover_every_picture_of_a_pile(name):
    family = build_family(name)
    batch = family.batch([make_video(4, 0), make_video(4, 1)])
    del batch["frame_times"]
    given = {"side_channels": {"audio": side_tokens()}, "frame_times": np.tile(make_times(3), (2, 1))}
    with pytest.raises(
        ValueError, match=r"frame_times describes \[3, 3\] frames, but the call has 8 pictures: .* give a still image"
    ):
        family.trained(**batch, **given)


def test_frames_cut_into_slices_are_refused():
    family = build_family("minicpmv4_6")
    sizes = torch.tensor([[8, 8], [4, 8], [8, 8], [4, 8]])
    with pytest.raises(ValueError, match="different sizes in target_sizes_videos: frames cut into slices are not described"):
        family.interface.layouts(family.base.config, {"target_sizes_videos": sizes}, [4])


def test_the_thinkers_are_told_the_true_seconds_per_step():
    """Their processor writes those of two frames a second, so a batch without the library's help is wrong for other rates."""
    family = build_family("qwen2_5_omni_thinker")
    by_processor = family.prompt([[make_video(4, 0), "what sound?"]])
    assert by_processor["video_second_per_grid"].tolist() == [1.0]
    times = torch.tensor([[0.0, 0.5, 1.0, 1.5], [0.0, 2.0, 4.0, float("nan")], [1.0, *[float("nan")] * 3]], dtype=torch.float64)
    given = family.interface.timing_inputs(family.base.config, {}, times)
    assert given["video_second_per_grid"].tolist() == [1.0, 4.0, 2.0]


@pytest.mark.parametrize(("frames", "side", "agrees"), [((12, 14), 32, False), ((4, 6), 160, True)])
def test_qwen_positions_agree_with_transformers_unless_a_video_is_longer_than_wide(frames, side, agrees):
    model, processor = tiny_qwen2_5_vl()
    interface = get_interface(model.config)
    batch = type(CASES["qwen2_5_vl"])(tiny_qwen2_5_vl, frames, side=side).batch(processor)
    batch.pop("frame_times")
    batch["second_per_grid_ts"] = torch.tensor([0.9, 0.7])
    ours = interface.position_ids(model.config, batch)
    names = ("input_ids", "mm_token_type_ids", "video_grid_thw", "second_per_grid_ts", "attention_mask")
    theirs, _ = model.model.get_rope_index(**{k: batch[k] for k in names})
    if agrees:
        assert torch.equal(ours, theirs)
        return
    assert not torch.equal(ours, theirs)
    for row in range(2):  # text after the video starts one past the largest position of any axis
        video = (batch["mm_token_type_ids"][row] == 2).nonzero().flatten()
        after = int(video[-1]) + 1
        assert torch.equal(ours[:, row, :after], theirs[:, row, :after])
        assert ours[:, row, after].tolist() == [int(ours[:, row, video].max()) + 1] * 3
        assert int(theirs[0, row, after]) <= int(theirs[:, row, video].max())  # what transformers 5.23 does


def test_placeholders_and_grids_that_disagree_are_refused():
    model, processor = tiny_qwen2_5_vl()
    interface = get_interface(model.config)
    batch = CASES["qwen2_5_vl"].batch(processor)
    with pytest.raises(ValueError, match="prompt 1: more vision placeholders than the grids describe"):
        interface.position_ids(model.config, {**batch, "video_grid_thw": batch["video_grid_thw"][:1]})
    with pytest.raises(ValueError, match="prompt 0: 8 vision placeholders, but the grids describe 12 tokens"):
        interface.position_ids(model.config, {**batch, "video_grid_thw": batch["video_grid_thw"].flip(0)})


def test_explicit_positions_are_followed_through_generation():
    """With ``position_ids`` in the batch, decoding with and without a cache agree, and differ from the base's own rule."""
    model, processor = tiny_qwen2_5_vl()
    batch = type(CASES["qwen2_5_vl"])(tiny_qwen2_5_vl, (12, 12)).batch(processor)
    batch.pop("frame_times")
    own = model(**batch).logits
    batch["position_ids"] = get_interface(model.config).position_ids(model.config, batch)
    explicit = model(**batch).logits
    assert not torch.allclose(own[:, -1], explicit[:, -1], atol=1e-4)
    tokens = model.generate(**batch, max_new_tokens=5, do_sample=False)
    ids = batch["input_ids"]
    for _ in range(5):  # by hand: every new token takes the next position
        positions = batch["position_ids"]
        extra = positions[..., -1:] + torch.arange(1, ids.shape[1] - positions.shape[-1] + 1)
        step = dict(batch, input_ids=ids, position_ids=torch.cat([positions, extra], -1))
        grown = ids.shape[1] - batch["attention_mask"].shape[1]
        step["attention_mask"] = torch.cat([batch["attention_mask"], torch.ones(2, grown, dtype=torch.long)], 1)
        step["mm_token_type_ids"] = torch.cat([batch["mm_token_type_ids"], torch.zeros(2, grown, dtype=torch.long)], 1)
        ids = torch.cat([ids, model(**step).logits[:, -1].argmax(-1)[:, None]], 1)
    assert torch.equal(tokens, ids)


def test_step_times_merge_frames_as_the_model_does():
    interface = get_interface(tiny_qwen2_5_vl()[0].config)
    nan = float("nan")
    times = torch.tensor([[0.0, 1.0, 4.0, 6.0, nan], [0.0, 2.0, 3.0, nan, nan]], dtype=torch.float64)
    got = interface.step_times(times)
    torch.testing.assert_close(got, torch.tensor([[0.5, 5.0, nan], [1.0, 3.0, nan]], dtype=torch.float64), equal_nan=True)


def test_an_unknown_family_is_named_with_the_known_ones():
    with pytest.raises(ValueError, match=r"'gpt2' are not supported; supported: .*llava_onevision.*qwen2_5_vl"):
        get_interface(type("Config", (), {"model_type": "gpt2"})())


def test_a_mixed_batch_with_lora_inside_shared_experts_keeps_its_rows_apart():
    """Their input is flat: the tokens of a row follow each other in it. A call of many rows packed into one is refused."""
    family = build_family("qwen3_5_moe")
    model = family.patched(family.config(targets=("q_proj", "up_proj")))
    side = side_tokens()
    given = {"side_channels": {"audio": side}, "frame_times": family.times}
    with torch.no_grad():
        both = model(**family.inputs, **given).logits
        side.valid_BK[0] = False
        mixed = model(**family.inputs, **given).logits
    assert torch.equal(mixed[0], family.logits[0])
    torch.testing.assert_close(mixed[1], both[1], atol=family.case.tolerance, rtol=1e-4)
    assert not torch.allclose(both, family.logits, atol=1e-3)
    packed = Rows(model, {"default": [1.0, 0.0]})
    with pytest.raises(ValueError, match="for 2 prompts, so this base packs several into a row"):
        packed.of("default", torch.zeros(1, 5, 4))
