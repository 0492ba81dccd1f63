"""One suite that every family of Video LLMs passes, on a tiny model of its real classes; what differs is data on the case.

``test_identity`` goes deeper on two of them. ``pytest tests/conformance/test_families.py --write-families FILE`` writes down which
checks each family passed; ``pave families`` prints that.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import pickle
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from cases import shake, shake_parameters, side_tokens
from family_cases import FAMILY_CASES, GAP, QUESTIONS, build_family, make_times, make_video
from pave import SideTokens, attach_patch, detach_patch, load_patch, save_patch
from pave.data.collator import PatchCollator
from pave.data.items import PatchItem
from pave.data.vision import VisionEncoder
from pave.patching import patch_parameters
from pave.patching.slot import batch_videos
from pave.training.loss import answer_loss
from pave.video_llms.branches import check_base_shares


@pytest.fixture(params=FAMILY_CASES, scope="module")
def family(request):
    missing = FAMILY_CASES[request.param].missing()
    if missing:
        pytest.skip(f"this base needs {missing}")
    return build_family(request.param)


def logits(model, batch, **more):
    with torch.no_grad():
        return model(**batch, **more).logits


def given(family, videos=2, present=None, seed=1, **more):
    """Side channels and frame times of a call."""
    side = side_tokens(videos, seed=seed)
    if present is not None:
        side = SideTokens(side.embeds_BKMC, side.valid_BK & torch.tensor(present)[:, None], side.times_BK)
    return {"side_channels": {"audio": side}, "frame_times": family.times, **more}


@pytest.fixture
def the_base_fails(family, record_property):
    """``with the_base_fails("beams"):`` around the base alone; where the case names that limit it must raise, and the test ends."""

    @contextlib.contextmanager
    def block(what):
        if what not in family.case.limits:
            yield
            return
        reason, error = family.case.limits[what]
        with pytest.raises(Exception, match=error):
            yield
        record_property("limit", reason)
        pytest.skip(f"the base cannot: {reason}")

    return block


class Capture:
    """What the features method returned and was given, per call, while a model runs."""

    def __init__(self, family, model, method=None):
        self.method = method or family.interface.features_method
        self.inner = model.base_model
        self.interface = family.interface
        self.calls = []
        self.projected = []

    def __enter__(self):
        original = getattr(self.inner, self.method)
        signature = inspect.signature(original)

        def recorded(*args, **kwargs):
            output = original(*args, **kwargs)
            bound = signature.bind(*args, **kwargs).arguments
            self.calls.append((output.pooler_output, {**bound, **bound.pop("kwargs", {})}))
            return output

        setattr(self.inner, self.method, recorded)
        hook = self.interface.projector(self.inner).register_forward_pre_hook
        self.handle = hook(lambda _, args, kwargs: self.projected.append((*args, *kwargs.values())[0]), with_kwargs=True)
        return self

    def __exit__(self, *_):
        delattr(self.inner, self.method)
        self.handle.remove()


@contextlib.contextmanager
def handed_over(model):
    """The encoder outputs by modality that the inner model of a patched one is given, while it runs."""
    given = {}

    def look(_, args, kwargs):
        given.update({key: output.pooler_output for key, output in kwargs["mm_encoder_outputs"].items()})

    handle = model.base_model.register_forward_pre_hook(look, with_kwargs=True)
    yield given
    handle.remove()


def video_tokens(family, batch, model=None, frames=None):
    """(layouts, tokens per video, queries before the projector per video) as the base makes them of a batch."""
    model = model or family.base
    with Capture(family, model) as capture:
        logits(model, {k: v for k, v in batch.items() if k != "frame_times"})
    output, arguments = capture.calls[-1]
    frames = family.case.frames if frames is None else frames
    layouts = family.interface.layouts(model.config, arguments, frames)
    queries = family.interface.pre_projector(model.base_model, capture.projected[-1], layouts, arguments)
    return layouts, family.interface.split(output, layouts), queries


# --- what the interface says of the base


@pytest.mark.shows("steps and tokens of every video, as the processor made them")
def test_steps_and_tokens_are_those_of_the_processor(family, record_property):
    case, interface, batch = family.case, family.interface, family.batch()
    layouts, tokens, queries = video_tokens(family, batch)
    assert interface.frames_per_step == case.merges
    for frames, layout, video, query in zip(case.frames, layouts, tokens, queries, strict=True):
        assert (layout.steps, layout.grid) == (-(-frames // case.merges), case.grid)
        assert (layout.leading, layout.trailing) == (case.leading, case.trailing)
        assert layout.tokens_per_step == case.leading + case.grid[0] * case.grid[1]
        assert video.shape == (layout.num_tokens, interface.llm_width(family.base.config))
        assert query.shape == (layout.steps * layout.tokens_per_step, interface.pre_projector_width(family.base.config))
    placeholders = interface.is_video_token(family.base.config, batch["input_ids"]).sum(dim=1).tolist()
    assert placeholders == interface.tokens_in_prompt(layouts, batch)
    assert batch["input_ids"][0, -1] not in interface.placeholder_ids(family.base.config)
    facts = {
        "class": type(family.base).__name__,
        "features_method": interface.features_method,
        "frames_per_step": case.merges,
        "frame_counts_from_frame_times": interface.needs_frame_counts,
        "linears": list(interface.decoder_linears(family.base.config)),
        "packages": list(case.packages),
        "since": case.since,
        "stacked": len(set(case.frames)) == 1,
    }
    record_property("facts", facts)


@pytest.mark.shows("changing one frame changes exactly its step")
def test_changing_one_frame_changes_exactly_its_step(family):
    case = family.case
    videos = [make_video(n, seed) for seed, n in enumerate(case.frames)]
    layouts, before, queries_before = video_tokens(family, family.batch(videos))

    def steps_of(tokens, video):
        return batch_videos(tokens, layouts, None, None).post_projector_BTSE[video][: layouts[video].steps]

    for video, frame in ((0, 0), (0, case.frames[0] - 1), (1, 1), (1, case.frames[1] - 2)):
        changed = [v.copy() for v in videos]
        changed[video][frame] = 255 - changed[video][frame]
        _, after, queries_after = video_tokens(family, family.batch(changed))
        expected = [t == frame // case.merges for t in range(layouts[video].steps)]
        for was, now in ((before, after), (queries_before, queries_after)):
            moved = (steps_of(was, video) != steps_of(now, video)).flatten(2).any(2)
            assert moved.any(1).tolist() == expected
            assert moved[frame // case.merges].float().mean() > 0.9  # all of the step's tokens
            assert torch.equal(was[1 - video], now[1 - video])


@pytest.mark.shows("times of the steps, also as the processor writes them")
def test_step_times_are_those_of_the_processor(family):
    case, batch = family.case, family.batch()
    times = family.interface.step_times(torch.from_numpy(family.times))
    for row, frames in enumerate(case.frames):
        own = make_times(frames).reshape(-1, case.merges)
        steps = times[row][torch.isfinite(times[row])]
        np.testing.assert_allclose(steps, own.mean(axis=1), atol=1e-9)
        if case.stamp is not None:
            kept = batch["input_ids"][row][batch["attention_mask"][row].bool()]
            written = re.findall(case.stamp, family.processor.tokenizer.decode(kept))
            seconds = [float(x) if isinstance(x, str) else 60 * int(x[0]) + int(x[1]) for x in written]
            truth = own.mean(axis=1) if case.stamped == "mean" else own[:, 0]
            np.testing.assert_allclose(seconds, truth, atol=case.stamp_error)
        if case.seconds_per_step is not None:
            assert float(batch[case.seconds_per_step][row]) == pytest.approx(case.merges * GAP, abs=2e-3)


@pytest.mark.shows("an odd number of frames in merged steps")
def test_an_odd_number_of_frames_is_filled_up(family):
    case = family.case
    if case.merges == 1:
        pytest.skip("no frames are merged")
    layouts, _, _ = video_tokens(family, family.batch([make_video(5, 0), make_video(6, 1)]), frames=(5, 6))
    assert [layout.steps for layout in layouts] == [3, 3]
    batch = family.batch([make_video(5, 0), make_video(6, 1)])
    assert logits(family.trained, batch, side_channels={"audio": side_tokens()}).shape[0] == 2


@pytest.mark.shows("text behind a long video comes after it in position")
def test_text_behind_a_long_video_comes_after_it(family):
    """Every axis of the positions that reach the language model; with the collator's positions where the base's are wrong."""
    frames = 4 if family.case.prepare else 14
    batch = family.batch([make_video(frames, 0), make_video(frames, 1)])
    del batch["frame_times"]
    seen = []
    hook = family.base.get_decoder().register_forward_pre_hook(lambda _, a, given: seen.append(given), with_kwargs=True)
    logits(family.base, batch)
    hook.remove()
    positions = seen[-1].get("position_ids")
    if positions is None:
        positions = torch.arange(batch["input_ids"].shape[1])[None]
    positions = (positions if positions.ndim == 3 else positions[None]).expand(-1, 2, -1)
    for row, (mine, mask) in enumerate(zip(positions.unbind(1), batch["attention_mask"].bool(), strict=True)):
        mine = mine[:, mask]
        is_video = family.interface.is_video_token(family.base.config, batch["input_ids"][row, mask])
        last = int(is_video.nonzero()[-1])
        text = mine[:, last + 1 :]
        assert (text == text[0]).all() and (text.diff() == 1).all()
        assert int(text[0, 0]) == int(mine[:, : last + 1].max()) + 1


# --- several questions in one row


def test_questions_in_one_row_are_computed_as_alone_or_refused(family):
    if not family.interface.shares_videos or has_other_layers(family.base.config):
        with pytest.raises(ValueError, match="cannot share a video's tokens"):
            check_base_shares(family.base.config)
        return
    turns = [(question, answer) for question in QUESTIONS for answer in ("a red bell", "one dog")]
    rows = [[about(family, 0, *turn) for turn in turns[:3]], [about(family, 1, *turns[3])]]
    batch = PatchCollator(family.processor, family.base.config, {}, share_videos=3)([item for row in rows for item in row])
    shared = logits(family.trained, batch)
    for row, items in enumerate(rows):
        for number, item in enumerate(items, start=1):
            alone = PatchCollator(family.processor, family.base.config, {})([item])
            own = batch["branches"][row] == number
            assert torch.equal(batch["input_ids"][row][own], alone["input_ids"][0, -int(own.sum()) :])
            assert torch.equal(batch["labels"][row][own], alone["labels"][0, -int(own.sum()) :])
            expected = logits(family.trained, alone)[0, -int(own.sum()) :]
            torch.testing.assert_close(shared[row][own], expected, atol=family.case.tolerance, rtol=1e-3)


def about(family, row, question, answer="one dog"):
    """An item about one of the two videos."""
    frames = make_video(family.case.frames[row], row)
    return PatchItem(f"{row} {question}", frames, make_times(len(frames)), ((question, answer),), source=str(row))


def has_other_layers(config):
    return bool(set(getattr(config.get_text_config(), "layer_types", None) or ()) - {"full_attention"})


# --- a patch that must not act


@pytest.mark.shows("a fresh patch is the base, a trained one is not")
@pytest.mark.parametrize("source", ["post_projector", "pre_projector"])
def test_a_fresh_patch_is_the_base_and_a_trained_one_is_not(family, source):
    model = family.patched(family.config(query_source=source), trained=False)
    assert torch.equal(logits(model, family.inputs, **given(family)), family.logits)
    shake(model)
    acting = logits(model, family.inputs, **given(family))
    assert not torch.allclose(acting, family.logits, atol=1e-3)
    assert not torch.allclose(acting, logits(model, family.inputs, **given(family, seed=2)), atol=1e-3)


@pytest.mark.shows("disabled, strength 0 and detached are the base")
def test_disabled_strength_zero_and_detached_are_the_base(family):
    model = family.patched()
    with model.patch_disabled():
        assert torch.equal(logits(model, family.inputs, **given(family)), family.logits)
    with model.patch_scaled(0.0):
        assert torch.equal(logits(model, family.inputs, **given(family)), family.logits)
    with model.patch_scaled(0.5):
        half = logits(model, family.inputs, **given(family))
    assert not torch.allclose(half, family.logits, atol=1e-4)
    assert not torch.allclose(half, logits(model, family.inputs, **given(family)), atol=1e-4)
    detach_patch(model)
    assert type(model) is type(family.base) and list(model.state_dict()) == list(family.base.state_dict())
    assert torch.equal(logits(model, family.inputs), family.logits)


@pytest.mark.shows("a video without its side channel is the base, row by row")
def test_a_missing_channel_is_the_base_row_by_row(family):
    model = family.trained
    assert torch.equal(logits(model, family.inputs), family.logits)
    assert torch.equal(logits(model, family.inputs, **given(family, present=[False, False])), family.logits)
    both = logits(model, family.inputs, **given(family))
    for missing in (0, 1):
        present = [row != missing for row in (0, 1)]
        mixed = logits(model, family.inputs, **given(family, present=present))
        assert torch.equal(mixed[missing], family.logits[missing])
        torch.testing.assert_close(mixed[1 - missing], both[1 - missing], atol=family.case.tolerance, rtol=1e-4)


@pytest.mark.shows("a prompt without a video is the base")
def test_a_text_prompt_is_the_base(family, the_base_fails):
    ids = dict(family.processor.tokenizer(["what sound is heard?"], return_tensors="pt"))
    ids.pop("token_type_ids", None)
    with the_base_fails("text"):
        expected = logits(family.base, ids)
    assert torch.equal(logits(family.trained, ids), expected)


# --- a patch that acts


@pytest.mark.shows("only the patch gets gradients; the loss on answers is the plain loss")
def test_only_the_patch_gets_gradients_and_the_loss_on_answers_is_the_plain_loss(family):
    model = family.patched()
    batch = family.batch(answers=True)
    call = given(family)
    call["frame_times"] = batch.pop("frame_times")
    plain = model(**batch, **call).loss
    plain.backward()
    own = {id(p) for p in patch_parameters(model)}
    for name, parameter in model.named_parameters():
        if id(parameter) in own:
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
        else:
            assert parameter.grad is None and not parameter.requires_grad, name
    expected = [p.grad.clone() for p in patch_parameters(model)]
    model.zero_grad()
    loss, output = answer_loss(model, model.get_output_embeddings(), {**batch, **call}, num_items=7)
    labels = int((batch["labels"][:, 1:] != -100).sum())
    torch.testing.assert_close(loss * 7 / labels, plain, rtol=1e-5, atol=1e-6)
    assert output.logits.numel() == labels * family.logits.shape[-1]
    loss.backward()
    for parameter, plain_gradient in zip(patch_parameters(model), expected, strict=True):
        torch.testing.assert_close(parameter.grad * 7 / labels, plain_gradient, rtol=1e-3, atol=1e-6)


@pytest.mark.shows("a batch equals its rows one by one")
def test_a_batch_equals_its_rows_one_by_one(family):
    model, case = family.trained, family.case
    together = logits(model, family.inputs, **given(family))
    for row in (0, 1):
        batch = family.batch(rows=[row])
        times = batch.pop("frame_times")
        if "prompt" in case.limits:  # the processor writes another prompt for one video than for a batch
            kept = family.inputs["attention_mask"][row].bool()
            assert not torch.equal(batch["input_ids"][0], family.inputs["input_ids"][row, kept]) or row == 1
            batch["input_ids"] = family.inputs["input_ids"][row : row + 1, kept]
            batch["attention_mask"] = torch.ones_like(batch["input_ids"])
        side = {"audio": side_tokens().select([row])}
        alone = logits(model, batch, side_channels=side, frame_times=times)[0]
        keep = family.inputs["attention_mask"][row].bool()
        own = batch["attention_mask"][0].bool()
        torch.testing.assert_close(alone[own], together[row][keep], atol=case.tolerance, rtol=1e-3)


@pytest.mark.shows("several videos in a prompt: those with a channel change, the others do not")
def test_of_several_videos_in_a_prompt_only_those_with_a_channel_change(family, the_base_fails):
    frames = (family.case.frames[0],) * 2 + (family.case.frames[1],)
    videos = [make_video(n, seed) for seed, n in enumerate(frames)]
    with the_base_fails("several videos"):
        batch = family.prompt([[videos[0], videos[1], "what sound?"], [videos[2], "which object?"]])
        expected = logits(family.base, batch)
    times = np.full((3, max(frames)), np.nan)
    for row, n in enumerate(frames):
        times[row, :n] = make_times(n)
    call = given(family, videos=3, present=[False, True, False], frame_times=times)
    layouts, before, _ = video_tokens(family, batch, frames=frames)
    with handed_over(family.trained) as outputs:
        got = logits(family.trained, batch, **call)
    after = family.interface.split(outputs[family.interface.video_key], layouts)
    assert [torch.equal(a, b) for a, b in zip(before, after, strict=True)] == [True, False, True]
    assert torch.equal(got[1], expected[1]) and not torch.allclose(got[0], expected[0], atol=1e-3)


@pytest.mark.shows("rows with different patches equal their calls alone; those without one are the base")
def test_a_mixed_batch_over_two_patches_equals_its_rows_alone(family):
    """The base, A, B, both at strengths of their own, and a row that lacks A's channel."""
    plan = [None, "A", "B", {"A": 1.0, "B": 0.5}, "A"]
    own = set(family.interface.decoder_linears(family.base.config))
    first = family.config()
    second = replace(
        first,
        side_channels={"depth": first.side_channels["audio"]},
        lora=replace(first.lora, rank=3, targets=tuple(sorted(own & {"v_proj", "down_proj", "w2"}))),
    )
    model = copy.deepcopy(family.base)
    for seed, (name, config) in enumerate({"A": first, "B": second}.items()):
        attach_patch(model, config, name=name)
        shake_parameters(patch_parameters(model, name), seed)
    frames = family.case.frames[0]
    videos = [make_video(frames, seed) for seed in range(len(plan))]
    batch = family.batch(videos=videos, rows=(0,) * len(plan))
    times = batch.pop("frame_times")
    audio, depth = side_tokens(len(plan), seed=1), side_tokens(len(plan), seed=2)
    there = torch.tensor([True] * 4 + [False])[:, None]
    sides = {"audio": SideTokens(audio.embeds_BKMC, audio.valid_BK & there, audio.times_BK), "depth": depth}
    expected = logits(family.base, batch)
    mixed = logits(model, batch, side_channels=sides, frame_times=times, patches=plan)
    assert torch.equal(mixed[0], expected[0]) and torch.equal(mixed[4], expected[4])
    for row in (1, 2, 3):
        single = family.batch(videos=[videos[row]], rows=(0,))
        call = {"side_channels": {name: side.select([row]) for name, side in sides.items()}}
        alone = logits(
            model,
            {k: v for k, v in single.items() if k != "frame_times"},
            **call,
            frame_times=single["frame_times"],
            patches=plan[row],
        )[0]
        torch.testing.assert_close(mixed[row], alone, atol=family.case.tolerance, rtol=1e-3)
        assert not torch.allclose(mixed[row], expected[row], atol=1e-3)
    assert not torch.allclose(mixed[3], logits(model, batch, side_channels=sides, frame_times=times, patches="A")[3], atol=1e-3)


@pytest.mark.shows("an image beside the video stays as it is")
def test_an_image_beside_the_video_stays_as_it_is(family, the_base_fails):
    frames = family.case.frames[0]
    video, image = make_video(frames, 0), make_video(1, 9)[0]
    with the_base_fails("images"):
        batch = family.prompt([[image, video, "what sound?"]])
        expected = logits(family.base, batch)
    with Capture(family, family.base) as capture:
        logits(family.base, batch)
    call, counts = given(family, videos=1, frame_times=make_times(frames)[None]), (frames,)
    if family.interface.needs_frame_counts and family.interface.features_method == "get_image_features":
        # images and frames are one pile: the pieces of the image are a video that has no channel
        pieces = sum(part[..., 0].numel() for part in capture.calls[0][0]) // np.prod(family.case.grid) - frames
        times = np.full((2, max(pieces, frames)), np.nan)
        times[0, :pieces], times[1, :frames] = np.arange(pieces), make_times(frames)
        call, counts = given(family, videos=2, present=[False, True], frame_times=times), (pieces, frames)
    with handed_over(family.trained) as outputs:
        got = logits(family.trained, batch, **call)
    assert not torch.allclose(got, expected, atol=1e-3)
    key = family.interface.video_key
    assert outputs.keys() >= {key} and len(outputs) == 2 - (len(counts) == 2)
    if "image" in outputs.keys() - {key}:
        with Capture(family, family.base, "get_image_features") as images:
            logits(family.base, batch)
        assert all(torch.equal(a, b) for a, b in zip(images.calls[0][0], outputs["image"], strict=True))
    layouts = family.interface.layouts(family.base.config, capture.calls[-1][1], counts)
    parts = [family.interface.split(made, layouts) for made in (capture.calls[-1][0], outputs[key])]
    same = [torch.equal(a, b) for a, b in zip(*parts, strict=True)]
    assert same == [False] if len(counts) == 1 else same == [True, False]


@pytest.mark.shows("generation fuses once; greedy, sampled, with a row that lacks the channel")
def test_generation_fuses_once(family):
    model, inputs = family.patched(), family.inputs
    prompt = inputs["input_ids"].shape[1]
    greedy = {"max_new_tokens": 5, "do_sample": False}
    calls = []
    model.pave_patches["default"].fusions["audio"].register_forward_hook(lambda *_: calls.append(1))
    cached = model.generate(**inputs, **given(family), **greedy)
    assert len(calls) == 1
    first = logits(model, inputs, **given(family))[:, -1].argmax(-1)
    assert torch.equal(cached[:, prompt], first)
    torch.manual_seed(0)
    sampled = model.generate(**inputs, **given(family), max_new_tokens=4, do_sample=True)
    torch.manual_seed(0)
    assert torch.equal(sampled, model.generate(**inputs, **given(family), max_new_tokens=4, do_sample=True))
    expected = family.base.generate(**inputs, **greedy)
    with model.patch_disabled():
        assert torch.equal(model.generate(**inputs, **given(family), **greedy), expected)
    half = model.generate(**inputs, **given(family, present=[True, False]), **greedy)
    assert torch.equal(half[1], expected[1]) and torch.equal(half[0], cached[0])


@pytest.mark.shows("generation with and without cache agrees")
def test_generation_agrees_with_and_without_cache(family, the_base_fails):
    greedy = {"max_new_tokens": 5, "do_sample": False}
    with the_base_fails("no cache"):
        family.base.generate(**family.inputs, **greedy, use_cache=False)
    cached = family.trained.generate(**family.inputs, **given(family), **greedy)
    assert torch.equal(family.trained.generate(**family.inputs, **given(family), **greedy, use_cache=False), cached)


@pytest.mark.shows("beam search fuses once")
def test_beam_search(family, the_base_fails):
    model, inputs = family.patched(), family.inputs
    search = {"max_new_tokens": 4, "num_beams": 3, "num_return_sequences": 2, "do_sample": False}
    with the_base_fails("beams"):
        expected = family.base.generate(**inputs, **search)
    calls = []
    model.pave_patches["default"].fusions["audio"].register_forward_hook(lambda *_: calls.append(1))
    beams = model.generate(**inputs, **given(family), **search)
    assert len(calls) == 1 and beams.shape[0] == 4
    with model.patch_disabled():
        assert torch.equal(model.generate(**inputs, **given(family), **search), expected)
    half = model.generate(**inputs, **given(family, present=[True, False]), **search)
    width = min(half.shape[1], expected.shape[1])
    assert torch.equal(half[2:, :width], expected[2:, :width])


@pytest.mark.shows("stored vision features give what pixels give, without the vision tower")
def test_stored_vision_features_give_what_pixels_give(family, record_property):
    """With everything before the language model full of NaN, so that nothing of it can have run."""
    reason = family.interface.vision_not_stored
    if reason:
        with pytest.raises(ValueError, match=f"cannot be stored: {re.escape(reason)}; run its vision tower"):
            VisionEncoder(family.base, family.processor)
        record_property("limit", reason)
        pytest.skip(f"not stored: {reason}")
    encoder = VisionEncoder(family.base, family.processor, pre_projector=True)
    videos = [encoder.encode(make_video(n, row), make_times(n)) for row, n in enumerate(family.case.frames)]
    model = family.patched(family.config(query_source="pre_projector"))
    decoder = {id(p) for p in model.get_decoder().parameters()}
    for parameter in model.base_model.parameters():
        if id(parameter) not in decoder:
            parameter.data.fill_(float("nan"))
    sighted, greedy = family.patched(family.config(query_source="pre_projector")), {"max_new_tokens": 3, "do_sample": False}
    for rows in ((0,), (1,), (0, 1)):
        call = {"side_channels": {"audio": side_tokens().select(rows)}}
        expected = family.batch(rows=rows)
        turns = [((QUESTIONS[row], None),) for row in rows]
        items = [
            PatchItem("", videos[r].shape_of_frames, make_times(len(videos[r].times_F)), t, vision=videos[r])
            for r, t in zip(rows, turns, strict=True)
        ]
        batch = PatchCollator(family.processor, family.base.config, {}, train=False)(items)
        del batch["side_channels"]
        features = batch.pop("vision_features")
        times = batch.pop("frame_times")
        assert batch.keys() == {k for k in expected if k != "frame_times" and not k.startswith("pixel_values")}
        for key, value in batch.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(expected[key])), key
        call["frame_times"] = times
        del expected["frame_times"]
        got = logits(model, batch, vision_features=features, **call)
        # a batch of several goes through the tower together, a stored video never does
        same = {"atol": 0, "rtol": 0} if len(rows) == 1 else {"atol": family.case.tolerance, "rtol": 1e-3}
        torch.testing.assert_close(got, logits(sighted, expected, **call), **same)
        assert torch.isfinite(got).all()
        generated = model.generate(**batch, vision_features=features, **call, **greedy)
        assert torch.equal(generated, sighted.generate(**expected, **call, **greedy))
        with model.patch_disabled():
            base_alone = logits(model, batch, vision_features=features, **call)
        torch.testing.assert_close(base_alone, logits(family.base, expected), **same)
    assert torch.isnan(logits(model, expected, **call)).any()  # with pixels the tower runs again


@pytest.mark.shows("saved and loaded, copied and pickled, it computes the same")
def test_saved_loaded_copied_and_pickled_it_computes_the_same(family, tmp_path):
    model = family.patched(family.config(query_source="pre_projector"))
    expected = logits(model, family.inputs, **given(family))
    save_patch(model, tmp_path / "patch")
    loaded = load_patch(copy.deepcopy(family.base), tmp_path / "patch")
    fresh = load_patch(family.case.build()[0], tmp_path / "patch")  # after a run some bases hold hooks that do not pickle
    for twin in (loaded, copy.deepcopy(model), pickle.loads(pickle.dumps(fresh))):
        assert torch.equal(logits(twin, family.inputs, **given(family)), expected)


@pytest.mark.shows("LoRA finds the language model's linear layers and no others")
def test_lora_is_on_the_language_model_alone(family):
    linears = family.interface.decoder_linears(family.base.config)
    decoder = family.base.get_decoder()
    found = {path.rsplit(".", 1)[-1] for path, m in decoder.named_modules() if isinstance(m, torch.nn.Linear)}
    assert set(linears) == found and len(linears) == len(found)
    model = family.patched(family.config(targets=linears))
    inside = {id(m) for m in model.get_decoder().modules()}
    count = sum(isinstance(m, torch.nn.Linear) for m in decoder.modules())
    layers = [m for m in model.modules() if hasattr(m, "lora_A")]
    assert len(layers) == count and all(id(m) in inside for m in layers)
    assert not torch.allclose(logits(model, family.inputs, **given(family)), family.logits, atol=1e-3)


@pytest.mark.shows("a bfloat16 base with a float32 patch")
def test_a_bfloat16_base_with_a_float32_patch(family, the_base_fails):
    base = copy.deepcopy(family.base).to(torch.bfloat16)
    inputs = {
        k: v.bfloat16() if isinstance(v, torch.Tensor) and v.is_floating_point() and k.startswith("pixel") else v
        for k, v in family.inputs.items()
    }
    with the_base_fails("bfloat16"):
        expected = logits(base, inputs)
    model = attach_patch(base, family.config())
    assert {p.dtype for p in patch_parameters(model)} == {torch.float32}
    assert torch.equal(logits(model, inputs, **given(family)), expected)
    shake(model)
    acting = logits(model, inputs, **given(family))
    assert acting.dtype == expected.dtype and not torch.allclose(acting, expected, atol=1e-2)
