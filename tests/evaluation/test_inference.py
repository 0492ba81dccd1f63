"""From a video file to an answer, with a base and a patch loaded from disk."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from pave.data import dataset, vision
from pave.data.collator import PatchCollator
from pave.data.items import PatchItem
from pave.data.media import FrameSampling, read_audio, read_frames
from pave.data.samples import Sample
from pave.evaluation.counterfactuals import Counterfactual
from pave.evaluation.generation import generate_texts
from pave.evaluation.inference import VideoQA, default_sampling
from pave.side_channels import build_encoder
from tiny_runs import save_base_and_patch, write_clip

QUESTION = "what sound is heard?"


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qa")
    frames = FrameSampling(num_frames=6).to_dict()
    base, patch = save_base_and_patch(folder, provenance={"recipe": {"data": {"frames": frames}}})
    for seed in range(3):
        write_clip(folder / f"{seed}.mp4", seed)
    write_clip(folder / "silent.mp4", 1, sound=False)
    write_clip(folder / "long.mp4", 4, seconds=3.0)
    (folder / "broken.mp4").write_bytes((folder / "0.mp4").read_bytes()[:3000])
    return folder, base, patch


@pytest.fixture(scope="module")
def qa(places):
    _, base, patch = places
    return VideoQA.from_pretrained(base, patch, device="cpu")


def by_hand(qa, video, question, patch):
    """The same answer out of the parts."""
    clip = read_frames(video, FrameSampling(num_frames=6))
    encoder = build_encoder(qa.model.patch_config.side_channels["audio"].encoder)
    sound = read_audio(video, encoder.sample_rate)
    side = {"audio": None if sound is None else encoder.encode(sound)}
    item = PatchItem("x", clip.frames_FHWC, clip.times_F, ((question, None),), side)
    batch = PatchCollator(qa.processor, qa.model.config, qa.model.patch_config.side_channels, train=False)([item])
    return generate_texts(qa.model, qa.processor, batch, patch=patch, max_new_tokens=8)[0], clip.times_F, side["audio"]


def test_an_answer_is_what_the_parts_give(places, qa):
    video = places[0] / "0.mp4"
    for patch in (True, False):
        answer = qa.ask(video, QUESTION, patch=patch, max_new_tokens=8)
        text, times, features = by_hand(qa, video, QUESTION, patch)
        assert answer.text == text
        assert answer.frame_times == tuple(times)
        if patch:
            side = answer.side_channels["audio"]
            assert (side.steps, side.start, side.end) == (len(features), features.times_K[0], features.times_K[-1])
        else:
            assert answer.side_channels == {}
    assert qa.ask(video, QUESTION, max_new_tokens=8).text != qa.ask(video, QUESTION, patch=False, max_new_tokens=8).text


def test_a_silent_video_gets_the_answer_of_the_base(places, qa):
    video = places[0] / "silent.mp4"
    answer = qa.ask(video, QUESTION, max_new_tokens=8)
    assert answer.text == qa.ask(video, QUESTION, patch=False, max_new_tokens=8).text
    assert answer.side_channels["audio"].steps == 0 and str(answer.side_channels["audio"]) == "not there"


def test_side_channels_come_from_the_files_that_are_named(places, qa):
    folder = places[0]
    silent, other = folder / "silent.mp4", folder / "0.mp4"  # silent.mp4 shows what 1.mp4 shows
    from_file = qa.ask(silent, QUESTION, side_channels={"audio": folder / "1.mp4"}, max_new_tokens=8)
    inside = qa.ask(folder / "1.mp4", QUESTION, max_new_tokens=8)
    assert (from_file.text, from_file.side_channels) == (inside.text, inside.side_channels)
    assert from_file.text != qa.ask(silent, QUESTION, max_new_tokens=8).text
    muted = qa.ask(other, QUESTION, side_channels={"audio": None}, max_new_tokens=8)
    assert muted.side_channels["audio"].steps == 0
    assert muted.text == qa.ask(other, QUESTION, patch=False, side_channels={"audio": None}, max_new_tokens=8).text
    with pytest.raises(ValueError, match=r"there is no side channel 'depth': the model has audio"):
        qa.ask(other, QUESTION, side_channels={"depth": "x"})
    with pytest.raises(ValueError, match=r"gone\.wav: there is no such file"):
        qa.ask(other, QUESTION, side_channels={"audio": folder / "gone.wav"})
    alone = VideoQA.from_pretrained(places[1], device="cpu", sampling=FrameSampling(num_frames=2))
    with pytest.raises(ValueError, match=r"no side channel 'audio': the model has none; attach a patch"):
        alone.ask(other, QUESTION, side_channels={"audio": other})


def test_the_base_alone_answers_like_the_patched_base_without_its_patch(places, qa):
    folder, base, _ = places
    alone = VideoQA.from_pretrained(base, device="cpu", sampling=FrameSampling(num_frames=6))
    for number in range(3):
        video = folder / f"{number}.mp4"
        assert alone.ask(video, QUESTION, max_new_tokens=8).text == qa.ask(video, QUESTION, patch=False, max_new_tokens=8).text


def test_frames_come_from_the_option_then_the_patch_then_the_processor(places, qa):
    _, base, patch = places
    assert qa.sampling == FrameSampling(num_frames=6)
    given = VideoQA.from_pretrained(base, patch, device="cpu", sampling=FrameSampling(fps=2))
    assert given.sampling == FrameSampling(fps=2)
    alone = VideoQA.from_pretrained(base, device="cpu")
    assert alone.sampling == FrameSampling(num_frames=32)
    alone.processor.video_processor.num_frames = 8
    assert default_sampling(alone.processor) == FrameSampling(num_frames=8)


@pytest.mark.parametrize("recorded", [{}, {"recipe": None}, {"recipe": {"data": [1]}}, {"recipe": {"data": {"frames": None}}}])
def test_a_patch_that_does_not_say_how_frames_were_sampled_is_loaded_all_the_same(tmp_path, recorded):
    base, patch = save_base_and_patch(tmp_path, provenance=recorded)
    assert VideoQA.from_pretrained(base, patch, device="cpu").sampling == FrameSampling(num_frames=32)


def test_choices_are_listed_and_the_answer_is_read_as_one(places, qa):
    video = places[0] / "1.mp4"
    choices = ["bell", "buzz"]
    answer = qa.ask(video, QUESTION, choices=choices, max_new_tokens=4)
    assert answer.text == qa.ask(video, f"{QUESTION}\nA. bell\nB. buzz", max_new_tokens=4).text
    assert answer.choice is None
    text = qa.ask(video, QUESTION, max_new_tokens=4).text
    assert text not in choices
    forced = torch.tensor(qa.processor.tokenizer("(B)")["input_ids"])
    prompt_length = len(
        PatchCollator(qa.processor, qa.model.config, qa.channels, train=False)(
            list(qa.items([Sample(id="x", video=str(video), question=f"{QUESTION}\nA. bell\nB. buzz")]))
        )["input_ids"][0]
    )

    def only(_, ids):
        place = len(ids) - prompt_length
        return [int(forced[place])] if place < len(forced) else [qa.processor.tokenizer.eos_token_id]

    assert qa.ask(video, QUESTION, choices=choices, prefix_allowed_tokens_fn=only).choice == "buzz"


def test_samples_are_answered_together_as_they_are_alone(places, qa):
    folder = places[0]
    names = ["0.mp4", "broken.mp4", "long.mp4", "silent.mp4", "nowhere.mp4", "1.mp4"]
    samples = [Sample(id=name, video=str(folder / name), question=QUESTION) for name in names]
    samples.append(Sample(id="special", video=str(folder / "0.mp4"), question="what <video> is this?"))
    answers = qa.answer_samples(samples, max_new_tokens=8)
    for sample, answer in zip(samples, answers):
        if sample.id in ("broken.mp4", "nowhere.mp4"):
            assert isinstance(answer, ValueError) and sample.id in str(answer)
        elif sample.id == "special":
            assert isinstance(answer, ValueError) and "special token" in str(answer)
        else:
            assert answer.text == qa.ask(sample.video, QUESTION, max_new_tokens=8).text


def test_kept_videos_are_read_once_and_answered_as_ever(places, monkeypatch):
    folder, base, patch = places
    samples = [
        Sample(id=f"{name} {n}", video=str(folder / name), question=f"{QUESTION} {n}")
        for name in ("0.mp4", "long.mp4", "silent.mp4", "1.mp4")
        for n in range(2)
    ]
    reads = []

    def spied(module, name, place):
        read = getattr(module, name)

        def spying(*arguments):
            reads.append((name, Path(str(arguments[place])).name))
            return read(*arguments)

        monkeypatch.setattr(module, name, spying)

    spied(dataset, "read_frames", 0)
    spied(vision, "read_frames", 0)
    spied(dataset, "read_source", 1)

    def asked(qa):
        changed = Counterfactual("noised", 3.0)
        texts = []
        for change, with_patch in ((None, True), (changed, True), (None, True), (None, False)):
            qa.use_counterfactual(change, samples)
            half = len(samples) // 2
            for part in (samples[half:], samples[:half]):
                texts.append([answer.text for answer in qa.answer_samples(part, patch=with_patch, max_new_tokens=8)])
        return texts

    plain = asked(VideoQA.from_pretrained(base, patch, device="cpu"))
    assert len(reads) > 16
    for gigabytes, once in ((1.0, True), (1e-6, False)):
        qa = VideoQA.from_pretrained(base, patch, device="cpu")
        qa.keep_videos(gigabytes)
        reads.clear()
        assert asked(qa) == plain
        read_twice = {read for read in reads if reads.count(read) > 1}
        assert len(set(reads)) == 8 and (read_twice == set()) == once
    with pytest.raises(ValueError, match="gigabytes must be positive, got 0"):
        qa.keep_videos(0)


def test_videos_of_different_length_can_share_a_batch(places, monkeypatch):
    folder, base, patch = places
    qa = VideoQA.from_pretrained(base, patch, device="cpu", sampling=FrameSampling(fps=2))
    samples = [Sample(id=name, video=str(folder / name), question=QUESTION) for name in ("0.mp4", "long.mp4", "1.mp4")]
    answer, groups = qa.answer_items, []

    def counting(items, **options):
        groups.append([item.id for item in items])
        return answer(items, **options)

    monkeypatch.setattr(qa, "answer_items", counting)
    answers = qa.answer_samples(samples, max_new_tokens=8)
    assert groups == [["0.mp4", "1.mp4"], ["long.mp4"]]
    assert [len(a.frame_times) for a in answers] == [4, 6, 4]
    assert [a.text for a in answers] == [qa.ask(s.video, QUESTION, max_new_tokens=8).text for s in samples]


def test_the_last_answer_of_a_conversation_is_not_shown_to_the_model(places, qa):
    video = str(places[0] / "0.mp4")
    asked = Sample(id="a", video=video, question=QUESTION)
    told = Sample(id="a", video=video, question=QUESTION, answer="a bell")
    texts = [answer.text for s in (asked, told) for answer in qa.answer_samples([s], max_new_tokens=8)]
    assert texts[0] == texts[1]


def test_errors_are_one_clear_sentence(places, tmp_path):
    folder, base, patch = places
    with pytest.raises(ValueError, match=r"base '.*nowhere' is no folder with a model"):
        VideoQA.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no patch at"):
        VideoQA.from_pretrained(base, tmp_path / "nowhere")
    with pytest.raises(ValueError, match="dtype must be one of"):
        VideoQA.from_pretrained(base, dtype="float8")
    with pytest.raises(ValueError, match="device 'cuda:77' cannot be used|device 'nonsense' cannot be used"):
        VideoQA.from_pretrained(base, device="nonsense")
    with pytest.raises(ValueError, match=r"broken\.mp4"):
        VideoQA.from_pretrained(base, patch, device="cpu").ask(folder / "broken.mp4", QUESTION)


def test_a_patch_for_another_base_is_refused_unless_allowed(places, tmp_path, caplog):
    folder, base, patch = places
    other, _ = save_base_and_patch(tmp_path)
    model = VideoQA.from_pretrained(other, device="cpu").model
    with torch.no_grad():
        model.lm_head.weight.add_(0.1)
    model.save_pretrained(other)
    with pytest.raises(ValueError, match="trained on another base"):
        VideoQA.from_pretrained(other, patch, device="cpu")
    with caplog.at_level(logging.WARNING):
        VideoQA.from_pretrained(other, patch, device="cpu", allow_base_mismatch=True)
    assert "another base" in caplog.text


def test_dtype(places):
    _, base, patch = places
    qa = VideoQA.from_pretrained(base, patch, device="cpu", dtype="bfloat16")
    assert qa.model.dtype == torch.bfloat16
    answer = qa.ask(places[0] / "0.mp4", QUESTION, max_new_tokens=3)
    assert isinstance(answer.text, str) and np.isfinite(answer.seconds) and answer.to_dict()["text"] == answer.text
