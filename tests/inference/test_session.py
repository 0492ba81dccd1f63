"""A session against the model itself: what is asked in a stream is one call on the same frames and steps."""

from __future__ import annotations

import logging
import math
import random
import re
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

import pave.inference.session as session_module
from cases import CASES, WIDTH, patched, shake_parameters, small_config
from pave import FusionConfig, LoraSettings, PatchConfig, SideChannelConfig, SideTokens, attach_patch
from pave.data.collator import PatchCollator
from pave.data.items import PatchItem
from pave.inference.generation import generate_ids, model_inputs
from pave.inference.session import Session
from pave.inference.session_streams import Lateness
from pave.patching import patch_parameters

QUESTION = "what sound is heard?"
ALIGNMENTS = {
    "skip": {},
    "nearest": {"empty_frames": "nearest"},
    "interpolate": {"neighbourhood_seconds": 0.2, "empty_frames": "interpolate"},
    "neighbours": {"neighbourhood_frames": 1},
    "queries": {"query_source": "pre_projector", "gate": True},
}


@pytest.fixture(scope="module")
def models():
    """Patched bases by family and alignment."""
    made = {}

    def get(family, alignment="skip"):
        if (family, alignment) not in made:
            made[family, alignment] = patched(CASES[family], small_config(**ALIGNMENTS[alignment]))
        return made[family, alignment]

    return get


@pytest.fixture
def calls(monkeypatch):
    """The batch of every question and what came with it."""
    seen = []

    def spy(model, batch, **options):
        seen.append((dict(batch), options))
        return generate_ids(model, batch, **options)

    monkeypatch.setattr(session_module, "generate_ids", spy)
    return seen


def pictures(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


def tokens(count, seed=1, per_step=2, width=WIDTH):
    return torch.randn(count, per_step, width, generator=torch.Generator().manual_seed(seed))


def steps_until(seconds, rate=4.0):
    return torch.arange(0.1, seconds, 1 / rate, dtype=torch.float64)


def offline(model, processor, frames, times, sides, patches=None, question=QUESTION):
    """Logits of the whole prompt in one call with pixels, and the answer's ids."""
    batch = PatchCollator(processor, model.config, {}, train=False)(
        [PatchItem("video", np.stack(frames), np.array(times), ((question, None),))]
    )
    batch["side_channels"] = sides
    ids = generate_ids(model, batch, max_new_tokens=3, patches=patches)
    return logits(model, batch, patches), ids


@torch.no_grad()
def logits(model, batch, patches=None):
    return model(**model_inputs(model, batch), patches=patches).logits


def side(times, embeds):
    return SideTokens(embeds[None], times_BK=torch.as_tensor(times, dtype=torch.float64)[None])


# --- streamed equals offline


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("alignment", ALIGNMENTS)
@pytest.mark.parametrize("family", CASES)
def test_answers_in_a_stream_are_those_of_one_call_whatever_comes_when(models, calls, family, alignment, seed):
    """The call gets every step of the recording before the question's time, also those that arrive after the question."""
    model, processor = models(family, alignment)
    chance = random.Random(f"{family} {alignment} {seed}")
    frame_times = sorted(chance.uniform(0, 8) for _ in range(9))
    step_times = sorted(chance.uniform(-1, 9) for _ in range(14))
    frames, embeds = pictures(9, seed), tokens(14, seed)
    delay = 0.8
    events = [(time, "frame", number) for number, time in enumerate(frame_times)]
    events += [(time + chance.uniform(0, delay), "step", number) for number, time in enumerate(step_times)]
    moments = [chance.uniform(2, 9) for _ in range(3)]
    asked = 0
    with Session(model, processor, lateness=Lateness(reorder_seconds=delay)) as session:
        for moment, what, number in sorted([*events, *((m, "ask", 0) for m in moments), (12.0, "end", 0)]):
            if what == "frame":
                session.push_frames(frames[number : number + 1], [frame_times[number]])
            elif what == "step":
                session.push_side("audio", embeds[number : number + 1], [step_times[number]])
            else:
                if what == "end":
                    session.complete()
                at = chance.choice([moment, moment, None])
                try:
                    answer = session.ask(QUESTION, at=at, max_new_tokens=3)
                except ValueError as error:
                    assert "no frame is complete yet" in str(error) and what == "ask"
                    continue
                asked += 1
                places = [frame_times.index(time) for time in answer.frame_times]
                known = [k for k, time in enumerate(step_times) if at is None or time < at]
                expected, ids = offline(
                    model,
                    processor,
                    [frames[place] for place in places],
                    answer.frame_times,
                    {"audio": side([step_times[k] for k in known], embeds[known])},
                )
                batch, _ = calls[-1]
                assert answer.complete and places == list(range(len(places)))
                assert (logits(model, batch) - expected).abs().max() < 1e-5
                text = processor.tokenizer.batch_decode(ids, skip_special_tokens=True)[0].strip()
                assert answer.text == text
        report = session.report()
        assert len(answer.frame_times) == 9 and asked and report.final_until == frame_times[-1]
        assert report.side_channels["audio"].late == 0 and report.frames.late == 0


def test_a_question_about_a_moment_forgets_what_came_after_it(models, calls):
    model, processor = models("llava_onevision")
    frames, times, sound = pictures(6), np.arange(6.0), steps_until(6)
    embeds = tokens(len(sound))
    with Session(model, processor) as session:
        session.push_frames(frames, times)
        session.push_side("audio", embeds, sound)
        answer = session.ask(QUESTION, at=3.4, max_new_tokens=3)
    assert answer.frame_times == (0.0, 1.0, 2.0, 3.0) and answer.staleness == pytest.approx(0.4)
    seen = answer.side_channels["default.audio"]
    kept = sound < 3.4
    assert (seen.steps, seen.start, seen.end) == (int(kept.sum()), 0.1, pytest.approx(3.35))
    expected, _ = offline(model, processor, frames[:4], times[:4], {"audio": side(sound[kept], embeds[kept])})
    assert (logits(model, calls[-1][0]) - expected).abs().max() < 1e-5


def test_the_same_stream_in_another_order_gives_the_same_bits(models, calls):
    model, processor = models("qwen2_5_vl")
    frames, times, sound = pictures(6), np.arange(6.0), steps_until(7)
    embeds = tokens(len(sound))
    for order, pieces in ((list(range(len(sound))), 1), (random.Random(0).sample(range(len(sound)), len(sound)), 3)):
        with Session(model, processor, lateness=Lateness(reorder_seconds=9)) as session:
            for part in np.array_split(np.arange(6), pieces):
                session.push_frames(frames[part], times[part])
            for k in order:
                session.push_side("audio", embeds[[k]], sound[[k]])
            session.complete()
            session.ask(QUESTION, max_new_tokens=1)
    assert torch.equal(logits(model, calls[0][0]), logits(model, calls[1][0]))


# --- what is waited for


def test_frames_are_left_out_until_their_channel_has_passed_them(models):
    model, processor = models("llava_onevision")
    sound = steps_until(6)
    with Session(model, processor) as session:
        session.push_frames(pictures(5), np.arange(5.0))
        with pytest.raises(
            ValueError,
            match=r"no frame is complete yet, the first one is of 0 s; waiting for .*audio \(complete up to -inf s\)",
        ):
            session.ask(QUESTION)
        session.push_side("audio", tokens(10), sound[:10])  # up to 2.35 s
        assert session.ask(QUESTION, max_new_tokens=1).frame_times == (0.0, 1.0)
        answer = session.ask(QUESTION, max_new_tokens=1, incomplete=True)
        assert not answer.complete and answer.frame_times == (0.0, 1.0, 2.0, 3.0, 4.0)
        assert session.report().final_until == 1.0
        session.complete("audio", until=3.5)
        answer = session.ask(QUESTION, max_new_tokens=1)
        assert answer.complete and answer.frame_times == (0.0, 1.0, 2.0, 3.0) and answer.staleness == 1.0
        session.complete("audio")
        assert session.ask(QUESTION, max_new_tokens=1).frame_times == (0.0, 1.0, 2.0, 3.0, 4.0)
        assert session.report().final_until == 3.0  # what the last frame reads depends on the next one


def test_a_silent_channel_is_waited_for_as_long_as_the_policy_says(models):
    model, processor = models("llava_onevision")
    with Session(model, processor, lateness={"audio": Lateness(silence_seconds=2.0)}) as session:
        session.push_frames(pictures(6), np.arange(6.0))
        answer = session.ask(QUESTION, max_new_tokens=1)
        assert answer.frame_times == (0.0, 1.0, 2.0)  # the watermark stands at 3 s
        session.push_side("audio", tokens(2), [2.9, 3.0])
        assert session.report().side_channels["audio"].late == 1


def test_frames_out_of_order_are_taken_as_far_as_they_may_be(models, calls):
    model, processor = models("llava_onevision")
    frames = pictures(5)
    with Session(model, processor, reorder_frames=1.5) as session:
        session.complete("audio")
        for number in (0, 2, 1, 4, 3):
            session.push_frames(frames[[number]], [float(number)])
        assert session.ask(QUESTION, max_new_tokens=1).frame_times == (0.0, 1.0, 2.0)  # one of 3.2 s may still come
        session.push_frames(frames[:1], [2.4])
        report = session.report()
        assert (report.frames.late, report.frames.held) == (1, 5) and report.frames.latest_seconds == pytest.approx(0.1)
        session.complete()
        answer = session.ask(QUESTION, max_new_tokens=1)
    expected, _ = offline(model, processor, frames, np.arange(5.0), {})
    assert answer.frame_times == (0.0, 1.0, 2.0, 3.0, 4.0)
    assert (logits(model, calls[-1][0]) - expected).abs().max() < 1e-5


def test_late_and_broken_steps_are_counted_said_and_never_used(models, calls, caplog):
    model, processor = models("llava_onevision")
    frames, times, sound = pictures(4), np.arange(4.0), steps_until(5)
    embeds = tokens(len(sound))
    with Session(model, processor, lateness=Lateness(reorder_seconds=0.5)) as session:
        session.push_frames(frames, times)
        session.push_side("audio", embeds, sound)
        with caplog.at_level(logging.WARNING):
            session.push_side("audio", tokens(3, seed=9), [1.0, 4.4, 2.0])
        assert "side channel 'audio': 2 came too late and are left out, the worst so far 3.35 s behind" in caplog.text
        broken = tokens(2, seed=8)
        broken[1, 0, 3] = float("nan")
        session.push_side("audio", broken[1:], [4.9])
        session.ask(QUESTION, at=4.0, max_new_tokens=1)
        seen = session.report().side_channels["audio"]
    assert (seen.pushed, seen.late, seen.broken, seen.held) == (len(sound) + 4, 2, 1, len(sound) + 1)
    assert seen.latest_seconds == pytest.approx(3.35) and seen.newest == 4.9 and seen.watermark == pytest.approx(4.4)
    kept = sound < 4.0
    expected, _ = offline(model, processor, frames, times, {"audio": side(sound[kept], embeds[kept])})
    assert (logits(model, calls[-1][0]) - expected).abs().max() < 1e-5


# --- bounded memory


@pytest.mark.parametrize("alignment", ["nearest", "interpolate"])
def test_an_hour_takes_no_more_than_a_minute_and_forgets_nothing_that_is_read(models, calls, alignment):
    """A frame every 6 s and 5 steps a second, with a hole in the sound at the end that reaches back beyond what is held."""
    model, processor = models("llava_onevision", alignment)
    chance = random.Random(0)
    frame_times = [6.0 * n + chance.uniform(0, 2) for n in range(600)]
    sound = steps_until(3480, rate=5)
    embeds, frames = tokens(len(sound), per_step=1), pictures(600)
    most = 0
    with Session(model, processor, keep_seconds=60, encode_ahead=False) as session:
        place = 0
        for number, time in enumerate(frame_times):
            until = int(torch.searchsorted(sound, time + 1.0))
            session.push_side("audio", embeds[place:until], sound[place:until])
            session.push_frames(frames[[number]], [time])
            place = until
            if number % 50 == 10:
                report = session.report()
                most = max(most, report.num_bytes)
                assert report.frames.held <= 12 and report.side_channels["audio"].held <= 5 * 100
        session.complete()
        answer = session.ask(QUESTION, max_new_tokens=1)
        report = session.report()
    kept = [time for time in frame_times if time >= frame_times[-1] - 60]
    assert answer.frame_times == tuple(kept) and report.frames.let_go == 600 - len(kept)
    assert report.side_channels["audio"].let_go + report.side_channels["audio"].held == len(sound)
    assert report.num_bytes <= most
    expected, _ = offline(model, processor, frames[-len(kept) :], kept, {"audio": side(sound, embeds)})
    assert (logits(model, calls[-1][0]) - expected).abs().max() < 1e-5


def test_a_limit_of_bytes_counts_pictures_and_what_was_made_of_them(models):
    model, processor = models("qwen2_5_vl")
    with Session(model, processor) as session:
        session.push_frames(pictures(2), [0.0, 1.0])
        a_step = session.report().num_bytes
    assert a_step > 2 * 32 * 32 * 3
    with Session(model, processor, keep_bytes=3 * a_step + 10) as session:
        for number in range(0, 20, 2):
            session.push_frames(pictures(2), [number, number + 1.0])
        report = session.report()
        assert report.num_bytes == 3 * a_step and (report.frames.held, report.frames.let_go) == (6, 14)
    with Session(model, processor, keep_bytes=10) as session:
        session.push_frames(pictures(5), np.arange(5.0))
        assert session.report().frames.held == 3  # the newest whole step and the frame behind it


def test_no_more_frames_than_asked_for(models):
    model, processor = models("qwen2_5_vl")
    with Session(model, processor, max_frames=4) as session:
        session.complete("audio")
        session.push_frames(pictures(9), np.arange(9.0))
        assert session.ask(QUESTION, max_new_tokens=1).frame_times == (
            6.0,
            7.0,
            8.0,
        )  # a step of two frames begins at an even one


# --- several patches


def test_patches_by_name_and_channels_by_patch(calls):
    model, processor = CASES["llava_onevision"].build()
    fusion = FusionConfig(width=16, embed_width=16, num_heads=2)
    attach_patch(model, small_config(), name="hearing")
    attach_patch(
        model, PatchConfig(side_channels={"audio": SideChannelConfig(width=5, fusion=fusion)}, lora=None), name="speech"
    )
    shake_parameters([p for name in model.patch_names for p in patch_parameters(model, name)])
    frames, times, sound = pictures(4), np.arange(4.0), steps_until(5)
    clap, whisper = tokens(len(sound)), tokens(len(sound), seed=2, per_step=1, width=5)
    with Session(model, processor) as session:
        session.push_frames(frames, times)
        with pytest.raises(ValueError, match="different encoders; name the patch as well"):
            session.push_side("audio", clap, sound)
        session.push_side("audio", clap, sound, patch="hearing")
        with pytest.raises(ValueError, match="it was pushed by patch and channel before"):
            session.complete("audio")
        one = session.ask(QUESTION, at=4.0, patches="hearing", max_new_tokens=1)  # speech is not waited for
        assert list(one.side_channels) == ["hearing.audio"] and one.frame_times == (0.0, 1.0, 2.0, 3.0)
        session.push_side("audio", whisper, sound, patch="speech")
        both = session.ask(QUESTION, at=4.0, patches={"hearing": 1.0, "speech": 0.5}, max_new_tokens=1)
        assert list(both.side_channels) == ["hearing.audio", "speech.audio"]
        base = session.ask(QUESTION, at=4.0, patches=[None], max_new_tokens=1)
        assert base.side_channels == {}
    kept = sound < 4.0
    sides = {"hearing": {"audio": side(sound[kept], clap[kept])}, "speech": {"audio": side(sound[kept], whisper[kept])}}
    for (batch, options), given, patches in (
        (calls[0], {"hearing": sides["hearing"]}, "hearing"),
        (calls[1], sides, {"hearing": 1.0, "speech": 0.5}),
        (calls[2], {}, [None]),
    ):
        expected, _ = offline(model, processor, frames, times, given, patches)
        assert options["patches"] == patches
        assert (logits(model, batch, patches) - expected).abs().max() < 1e-5


def test_a_base_without_a_patch_and_a_conversation():
    model, processor = CASES["llava_onevision"].build()
    frames = pictures(3)
    with Session(model, processor) as session:
        session.push_frames(torch.from_numpy(frames), torch.arange(3.0))
        answer = session.ask("and then?", history=[(QUESTION, "a bell")], max_new_tokens=3)
        with pytest.raises(ValueError, match="carries no patch"):
            session.push_side("audio", tokens(1), [0.0])
    turns = ((QUESTION, "a bell"), ("and then?", None))
    batch = PatchCollator(processor, model.config, {}, train=False)([PatchItem("video", frames, np.arange(3.0), turns)])
    text = processor.tokenizer.batch_decode(generate_ids(model, batch, max_new_tokens=3), skip_special_tokens=True)[0].strip()
    assert answer.text == text and answer.complete and 0 < answer.first_token_seconds < answer.seconds


# --- misuse


def test_what_is_refused_leaves_the_session_as_it_was(models):
    model, processor = models("llava_onevision")
    session = Session(model, processor, keep_seconds=10)
    with pytest.raises(ValueError, match="there is no frame: none is held"):
        session.ask(QUESTION)
    session.push_frames(pictures(2), [1.0, 2.0])
    for push, message in (
        (
            lambda: session.push_frames(pictures(2)[0], [1.0]),
            r"uint8 of shape \(frames, height, width, 3\), got uint8 of shape \(32, 32, 3\)",
        ),
        (lambda: session.push_frames(pictures(2) / 255.0, [3.0, 4.0]), "got float64"),
        (lambda: session.push_frames(pictures(2), [3.0]), r"frames: 2 came with times of shape \(1,\)"),
        (lambda: session.push_frames(pictures(2), [3.0, math.nan]), "frames: a time is not finite"),
        (lambda: session.push_frames(np.zeros((1, 16, 32, 3), np.uint8), [3.0]), "they are 16 x 32, those before are 32 x 32"),
        (
            lambda: session.push_side("audio", tokens(2, width=5), [1.0, 2.0]),
            "features are 5 wide, but the patch was made for width 12",
        ),
        (lambda: session.push_side("depth", tokens(2), [1.0, 2.0]), "there is no side channel 'depth'; the model carries"),
        (lambda: session.push_side("audio", tokens(2), [1.0, 2.0], patch="other"), "there is no side channel 'other.audio'"),
        (lambda: session.push_side("audio", tokens(2), [1.0]), r"side channel 'audio': 2 came with times of shape \(1,\)"),
        (lambda: session.push_side("audio", tokens(2)[0, 0], [1.0]), "tokens must be floating"),
        (
            lambda: session.push_side("audio", tokens(1), [13.0]),
            r"a step at 13 s lies more than keep_seconds \(10\) ahead of the newest frame",
        ),
        (lambda: session.ask(QUESTION, at=0.5), "there is no frame up to 0.5 s: the oldest one held is of 1 s"),
    ):
        with pytest.raises(ValueError, match=message):
            push()
    assert session.report().frames.pushed == 2 and all(s.pushed == 0 for s in session.report().side_channels.values())
    session.push_side("audio", tokens(2), [1.0, 2.0])
    with pytest.raises(ValueError, match="steps of 3 x 12 .* came after steps of 2 x 12"):
        session.push_side("audio", tokens(2, per_step=3), [3.0, 4.0])
    session.close()
    session.close()
    report = session.report()
    assert report.num_bytes == 0 and (report.frames.pushed, report.frames.let_go, report.side_channels["audio"].let_go) == (
        2,
        2,
        2,
    )
    for call in (lambda: session.ask(QUESTION), lambda: session.push_frames(pictures(1), [5.0]), session.complete):
        with pytest.raises(ValueError, match="the session is closed"):
            call()


def test_alignment_by_index_is_refused_where_it_would_act():
    model, processor = patched(CASES["llava_onevision"], small_config(alignment="index"))
    with Session(model, processor) as session:
        session.push_frames(pictures(2), [0.0, 1.0])
        with pytest.raises(ValueError, match=r"alignment 'index' shares all steps .* with alignment 'timestamps'"):
            session.push_side("audio", tokens(1), [0.0])
        with pytest.raises(ValueError, match="alignment 'index'"):
            session.ask(QUESTION)
        assert session.ask(QUESTION, patches=[None], max_new_tokens=1).frame_times == (0.0, 1.0)


@pytest.mark.parametrize("option", [{"keep_seconds": 0}, {"keep_bytes": -1}, {"max_frames": 0}, {"keep_seconds": math.inf}])
def test_limits_are_positive(models, option):
    with pytest.raises(ValueError, match=f"{next(iter(option))} must be a positive number"):
        Session(*models("llava_onevision"), **option)
    with pytest.raises(ValueError, match="max_frames must be a whole number, got 1.5"):
        Session(*models("llava_onevision"), max_frames=1.5)
    with pytest.raises(ValueError, match="reorder_seconds must be"):
        Lateness(reorder_seconds=-1)


def test_pushing_while_questions_are_asked(models):
    """Two threads push, one asks; in the end everything was seen once."""
    model, processor = models("llava_onevision")
    errors = []

    def guarded(work):
        try:
            work()
        except Exception as error:  # whatever it is, the test shall see it
            errors.append(error)

    with Session(model, processor, keep_seconds=5, lateness=Lateness(reorder_seconds=100)) as session:
        session.complete("audio", until=1.5)
        session.push_frames(pictures(2), [0.0, 0.5])

        def frames():
            for number in range(2, 40):
                session.push_frames(pictures(1), [number / 2])

        def sound():
            for number in range(40):
                session.push_side("audio", tokens(1), [2.0 + number / 10])

        threads = [threading.Thread(target=guarded, args=(work,)) for work in (frames, sound)]
        for thread in threads:
            thread.start()
        for _ in range(5):
            assert session.ask(QUESTION, max_new_tokens=1, incomplete=True).frame_times
        for thread in threads:
            thread.join()
        report = session.report()
    assert errors == [] and (report.frames.pushed, report.side_channels["audio"].pushed) == (40, 40)
    assert report.frames.held == 11 and report.frames.late == report.side_channels["audio"].late == 0


def test_the_page_about_streams_runs(capsys):
    page = (Path(__file__).parents[2] / "docs" / "streaming.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    exec(compile(block, "docs/streaming.md", "exec"), {})
    out = capsys.readouterr().out
    assert "(0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.25, 2.5) 0.5" in out and "late=0" in out


# --- what is said once


def test_frames_before_zero_are_refused_for_bases_know_no_such_time(models):
    with Session(*models("llava_onevision")) as session:
        with pytest.raises(ValueError, match=r"frames: a time is -0\.5 s, and bases know no time before 0"):
            session.push_frames(pictures(2), [-0.5, 1.0])
        session.push_frames(pictures(2), [0.0, 1.0])
        assert session.report().frames.pushed == 2


def test_a_base_without_a_patch_refuses_patches_and_any_model_several_answers():
    model, processor = CASES["llava_onevision"].build()
    with Session(model, processor) as session:
        session.push_frames(pictures(2), [0.0, 1.0])
        with pytest.raises(ValueError, match="the model carries no patch 'hearing'; none is attached"):
            session.ask(QUESTION, patches="hearing")
        with pytest.raises(ValueError, match="num_return_sequences: a question gets one answer"):
            session.ask(QUESTION, num_return_sequences=2)
        assert session.ask(QUESTION, patches=[None], num_beams=None, max_new_tokens=1).frame_times == (0.0, 1.0)


def test_completing_everything_leaves_open_how_a_channel_is_pushed(models):
    model, processor = models("llava_onevision")
    (name,) = model.patch_names
    with Session(model, processor) as session:
        session.complete(until=1.0)
        session.push_side("audio", tokens(2), [0.5, 1.5], patch=name)
        report = session.report().side_channels
        assert list(report) == [f"{name}.audio"] and (report[f"{name}.audio"].late, report[f"{name}.audio"].pushed) == (1, 2)
        with pytest.raises(ValueError, match="it was pushed by patch and channel before"):
            session.push_side("audio", tokens(1), [2.0])
    with Session(model, processor) as session:
        session.complete("audio", 1.0, patch=name)
        session.push_side("audio", tokens(2), [0.5, 1.5])
        report = session.report().side_channels
        assert list(report) == ["audio"] and report["audio"].late == 1


def test_a_patch_whose_lora_alone_acts_leaves_the_prompt_as_it_is():
    model, processor = CASES["llava_onevision"].build()
    attach_patch(model, PatchConfig(side_channels={}, newline="grid", lora=LoraSettings(rank=2)), name="g")
    with Session(model, processor) as session:
        session.push_frames(pictures(2), [0.0, 1.0])
        for strengths in ((0.0, 1.0), (1.0, 1.0)):
            assert session.ask(QUESTION, patches={"g": strengths}, max_new_tokens=1).frame_times == (0.0, 1.0)


def test_vision_that_a_question_makes_keeps_to_the_limit(models):
    model, processor = models("llava_onevision")
    with Session(model, processor, keep_bytes=20_000, encode_ahead=False) as session:
        session.push_frames(pictures(6), np.arange(6.0))
        session.complete("audio")
        session.ask(QUESTION, max_new_tokens=1)
        report = session.report()
        assert report.vision_bytes and report.num_bytes <= 20_000


@pytest.mark.parametrize("lateness", [0.5, {"audio": 0.5}])
def test_lateness_is_one_and_of_a_channel_that_there_is(models, lateness, caplog):
    with pytest.raises(ValueError, match="lateness: expected a Lateness, or one by channel, got 0.5"):
        Session(*models("llava_onevision"), lateness=lateness)
    Session(*models("llava_onevision"), lateness={"audoi": Lateness(), "audio": Lateness()})
    assert "no patch on the model has a side channel 'audoi'; there are ['audio']" in caplog.text
    assert len(caplog.records) == 1
