"""A whole evaluation on real files: counted right, resumable, the same however it is cut into batches."""

import json
import os
import shutil
from dataclasses import replace

import pytest

from pave.data.media import FrameSampling
from pave.data.samples import Message, Sample
from pave.evaluation.costs import costs_in, read_cost
from pave.evaluation.counterfactuals import Counterfactual
from pave.evaluation.inference import VideoQA
from pave.evaluation.predictions import Prediction, read_predictions
from pave.evaluation.result import rescore
from pave.evaluation.runner import evaluate, model_facts, patch_hash, plan_batches
from pave.evaluation.shards import take_shard
from pave.patching import attach_patch, patch_parameters
from tiny_models import tiny_llava_onevision
from tiny_runs import hearing_config, save_base_and_patch, write_clip

QUESTIONS = {"sound": "what sound is heard?", "colour": "red?", "order": "which object was moving when the bell rang?"}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(folder, model, samples)."""
    folder = tmp_path_factory.mktemp("runner")
    base, patch = save_base_and_patch(folder)
    qa = VideoQA.from_pretrained(base, patch, device="cpu", sampling=FrameSampling(num_frames=4))
    samples = []
    for number in range(5):
        video = str(write_clip(folder / f"{number}.mp4", number))
        for kind, question in QUESTIONS.items():
            samples.append(Sample(id=f"{number}-{kind}", video=video, question=question, answer="bell", type=kind))
    return folder, qa, samples


def test_accuracy_is_counted_from_the_answers(world):
    _, qa, samples = world
    answers = {s.id: qa.ask(s.video, s.question, max_new_tokens=4).text for s in samples}
    result = evaluate(qa, samples, max_new_tokens=4, batch_size=4, progress=False)
    assert [p.id for p in result.predictions] == [s.id for s in samples]
    assert {p.id: p.prediction for p in result.predictions} == answers
    assert list(result.by_type) == list(QUESTIONS)
    known = [i for i, s in enumerate(samples) if answers[s.id].isprintable() and any(c.isalnum() for c in answers[s.id])]
    assert len(known) >= 4, "the tiny model says too little that can be compared"
    truths = [replace(samples[i], answer=answers[samples[i].id] if i % 2 else "something else") for i in known]
    again = evaluate(qa, truths, max_new_tokens=4, batch_size=3, progress=False)
    assert [p.correct for p in again.predictions] == [bool(i % 2) for i in known]
    assert again.overall.n_correct == sum(i % 2 for i in known) and again.overall.n_expected == len(known)


def test_batches_do_not_change_answers_nor_files(world, tmp_path):
    _, qa, samples = world
    for size in (1, 4, 15):
        evaluate(qa, samples, predictions=tmp_path / f"{size}.jsonl", batch_size=size, max_new_tokens=4, progress=False)
    texts = [(tmp_path / f"{size}.jsonl").read_bytes() for size in (1, 4, 15)]
    assert texts[0] == texts[1] == texts[2]
    assert [p.id for p in read_predictions(tmp_path / "4.jsonl")[1]] == [s.id for s in samples]
    assert rescore(tmp_path / "4.jsonl") == evaluate(
        qa, samples, predictions=tmp_path / "4.jsonl", max_new_tokens=4, progress=False
    )


class Killed(Exception):
    pass


def test_a_killed_run_goes_on_and_ends_like_an_uninterrupted_one(world, tmp_path, monkeypatch):
    _, qa, samples = world
    options = {"batch_size": 4, "max_new_tokens": 4, "progress": False}
    whole = evaluate(qa, samples, predictions=tmp_path / "whole.jsonl", **options)
    answer, calls = qa.answer_samples, []

    def counting(some, **more):
        calls.append([s.id for s in some])
        if len(calls) == 3:
            raise Killed
        return answer(some, **more)

    monkeypatch.setattr(qa, "answer_samples", counting)
    with pytest.raises(Killed):
        evaluate(qa, samples, predictions=tmp_path / "killed.jsonl", **options)
    _, saved = read_predictions(tmp_path / "killed.jsonl")
    assert [p.id for p in saved] == calls[0] + calls[1]
    resumed = evaluate(qa, samples, predictions=tmp_path / "killed.jsonl", **options)
    assert calls[3] == calls[2] and len(calls) == 2 + 1 + 2
    assert resumed == whole
    assert (tmp_path / "killed.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_failures_are_listed_count_as_wrong_and_are_tried_again(world, tmp_path):
    folder, qa, samples = world
    late = folder / "late.mp4"
    late.unlink(missing_ok=True)
    some = [*samples[:2], Sample(id="late", video=str(late), question="red?", answer="red", type="colour")]
    path = tmp_path / "p.jsonl"
    result = evaluate(qa, some, predictions=path, max_new_tokens=4, progress=False)
    assert [f[0] for f in result.failures] == ["late"] and "late.mp4" in result.failures[0][1]
    assert (result.overall.n_scored, result.overall.n_expected) == (2, 3)
    assert "\n" not in result.failures[0][1]
    write_clip(late, 1)
    again = evaluate(qa, some, predictions=path, max_new_tokens=4, progress=False)
    assert again.failures == [] and again.overall.n_scored == 3


def test_the_patch_can_be_left_out(world):
    _, qa, samples = world
    patched = evaluate(qa, samples, max_new_tokens=4, progress=False)
    base = evaluate(qa, samples, patch=False, max_new_tokens=4, progress=False)
    assert [p.prediction for p in base.predictions] == [
        qa.ask(s.video, s.question, patch=False, max_new_tokens=4).text for s in samples
    ]
    assert [p.prediction for p in base.predictions] != [p.prediction for p in patched.predictions]


def test_a_file_of_another_run_is_not_gone_on_with(world, tmp_path, monkeypatch):
    _, qa, samples = world
    path = tmp_path / "p.jsonl"
    evaluate(qa, samples[:2], predictions=path, max_new_tokens=4, settings={"patch": "a"}, progress=False)
    before = path.read_bytes()
    for options, field in (
        ({"max_new_tokens": 5, "settings": {"patch": "a"}}, "max_new_tokens"),
        ({"max_new_tokens": 4, "settings": {"patch": "b"}}, "patch"),
        ({"max_new_tokens": 4, "settings": {"patch": "a"}, "patch": False}, "patch_weights"),
    ):
        with pytest.raises(ValueError, match=f"another run: {field} was"):
            evaluate(qa, samples[:2], predictions=path, progress=False, **options)
    with monkeypatch.context() as patched:
        patched.setitem(qa.__dict__, "encoder_names", {"audio": "trained further"})
        with pytest.raises(ValueError, match="another run: encoders was"):
            evaluate(qa, samples[:2], predictions=path, max_new_tokens=4, settings={"patch": "a"}, progress=False)
    changed = replace(samples[0], answer="other")
    with pytest.raises(ValueError, match="has changed since it was answered"):
        evaluate(qa, [changed, samples[1]], predictions=path, max_new_tokens=4, settings={"patch": "a"}, progress=False)
    with pytest.raises(ValueError, match=rf"answers to 1 samples that are not asked for now, such as '{samples[1].id}'"):
        evaluate(qa, samples[:1], predictions=path, max_new_tokens=4, settings={"patch": "a"}, progress=False)
    assert path.read_bytes() == before


def test_answers_to_another_conversation_or_side_channel_are_not_gone_on_with(world, tmp_path):
    _, qa, samples = world
    video, other = samples[0].video, samples[-1].video

    def turns(first):
        return tuple(Message(role=r, content=c) for r, c in (("user", "red?"), ("assistant", first), ("user", "bell?")))

    some = [
        replace(samples[0], id="own", side_channels={"audio": other}),
        Sample(id="talk", video=video, messages=turns("yes"), answers=("bell",)),
        samples[0],
    ]
    path = tmp_path / "p.jsonl"
    evaluate(qa, some, predictions=path, max_new_tokens=4, progress=False)
    evaluate(qa, some, predictions=path, max_new_tokens=4, progress=False)
    assert [p.context != "" for p in read_predictions(path)[1]] == [True, True, False]
    for number, changed in (
        (0, replace(some[0], side_channels={"audio": None})),
        (0, replace(some[0], side_channels={})),
        (1, replace(some[1], messages=turns("no"))),
    ):
        with pytest.raises(ValueError, match=rf"sample '{changed.id}' has changed since it was answered \(context"):
            evaluate(qa, [*some[:number], changed, *some[number + 1 :]], predictions=path, max_new_tokens=4, progress=False)


def test_a_resumed_run_asks_again_about_files_that_were_replaced(world, tmp_path, monkeypatch, caplog):
    """Under the old size and time too; a copy, another time or a file that is gone changes nothing."""
    folder, qa, samples = world
    video, sound = tmp_path / "v.mp4", tmp_path / "s.mp4"
    shutil.copy(folder / "0.mp4", video)
    shutil.copy(folder / "1.mp4", sound)
    some = [
        replace(samples[0], id="own", video=str(video)),
        replace(samples[0], id="side", side_channels={"audio": str(sound)}),
        replace(samples[0], id="null", video=str(video), side_channels={"audio": None}),
        samples[3],
    ]
    path, asked = tmp_path / "p.jsonl", []
    answer = qa.answer_samples
    monkeypatch.setattr(qa, "answer_samples", lambda some, **more: asked.extend(s.id for s in some) or answer(some, **more))

    def run():
        asked.clear()
        caplog.clear()
        with caplog.at_level("WARNING"):
            evaluate(qa, some, predictions=path, max_new_tokens=4, batch_size=1, progress=False)
        return sorted(asked), caplog.text

    assert run() == (sorted(s.id for s in some), "")
    assert run() == ([], "")
    before = path.read_bytes()
    os.utime(video, ns=(1, 1))
    shutil.copy(sound, tmp_path / "copy")
    os.replace(tmp_path / "copy", sound)
    assert run() == ([], "") and path.read_bytes() == before
    contents = {p.id: p.content for p in read_predictions(path)[1]}
    assert contents["own"]["video"] == contents["null"]["video"] and contents["null"]["side_channels.audio"] == "none"
    write_clip(tmp_path / "other.mp4", 4)
    data = bytearray(video.read_bytes())
    data[-1] ^= 1
    video.write_bytes(data)  # the last byte of one of the same size
    os.utime(video, ns=(1, 1))
    os.replace(tmp_path / "other.mp4", sound)
    again, text = run()
    assert again == ["null", "own", "side"]
    assert "the files of 3 of 4 answered samples are not known to be those that were asked about, such as the video of" in text
    changed = {p.id: p.content for p in read_predictions(path)[1]}
    assert changed["own"]["video"] != contents["own"]["video"] and changed[samples[3].id] == contents[samples[3].id]
    sound.unlink()
    assert run() == ([], "")  # nothing says that it was another one


def test_a_file_that_is_replaced_while_it_is_asked_about_fails_by_name(world, tmp_path, monkeypatch):
    folder, qa, samples = world
    video = tmp_path / "v.mp4"
    shutil.copy(folder / "0.mp4", video)
    answer = qa.answer_samples

    def replacing(some, **more):
        found = answer(some, **more)
        shutil.copy(folder / "1.mp4", video)
        return found

    monkeypatch.setattr(qa, "answer_samples", replacing)
    some = [replace(samples[0], id="own", video=str(video)), samples[3]]
    result = evaluate(qa, some, predictions=tmp_path / "p.jsonl", max_new_tokens=4, batch_size=2, progress=False)
    ((name, why),) = result.failures
    assert name == "own" and why == f"{video}: the file was changed during the run; run again when it is complete"


def test_a_borrowed_stream_of_another_content_or_lender_is_asked_about_again(world, tmp_path, monkeypatch):
    folder, qa, samples = world
    for number in (0, 1):
        shutil.copy(folder / f"{number}.mp4", tmp_path / f"{number}.mp4")
    some = [replace(samples[3 * n], id=str(n), video=str(tmp_path / f"{n}.mp4")) for n in (0, 1)]
    asked, answer = [], qa.answer_samples
    monkeypatch.setattr(qa, "answer_samples", lambda some, **more: asked.extend(s.id for s in some) or answer(some, **more))

    def run(more=()):
        asked.clear()
        options = {"counterfactual": Counterfactual("swapped"), "max_new_tokens": 2, "batch_size": 1, "progress": False}
        evaluate(qa, [*some, *more], predictions=tmp_path / "p.jsonl", **options)
        return sorted(asked)

    assert run() == ["0", "1"] and run() == []
    shutil.copy(folder / "2.mp4", tmp_path / "1.mp4")
    assert run() == ["0", "1"]  # one is about it, the other hears it
    further = replace(samples[9], id="2")
    before = {s.id: qa._partners[s.id].id for s in some}
    again = run([further])
    others = [name for name, lender in before.items() if qa._partners[name].id != lender]
    assert again == [*others, "2"] and others
    qa.use_counterfactual(None)


def test_what_cannot_be_scored_is_refused_before_any_work(world, tmp_path):
    _, qa, samples = world
    unanswered = Sample(id="u", video=samples[0].video, question="red?")
    for bad, message in (
        ([samples[0], unanswered], "'u': it has no answer"),
        ([samples[0], samples[0]], "comes more than once"),
        ([Sample(id="p", video=samples[0].video, question="red?", answer="?!")], "'p'.*letter or a digit"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate(qa, bad, predictions=tmp_path / "p.jsonl", progress=False)
    assert not (tmp_path / "p.jsonl").exists()
    with pytest.raises(ValueError, match="batch_size"):
        evaluate(qa, samples, batch_size=0)


def test_batches_keep_a_video_together_with_short_prompts_first():
    def want(i, video, question):
        return Prediction(id=str(i), video=video, question=question, references=("x",))

    wanted = [want(0, "b", "long question"), want(1, "a", "q"), want(2, "b", "q"), want(3, "a", "qq"), want(4, "b", "q")]
    assert plan_batches(wanted, 2) == [[2, 4], [0, 1], [3]]


def test_facts_tell_models_apart(world, tmp_path):
    _, qa, _ = world
    facts = model_facts(qa)
    assert json.loads(json.dumps(facts)) == facts and facts["frames"]["num_frames"] == 4
    assert model_facts(qa, patch=False)["patch_weights"] is None
    before = patch_hash(qa.model)
    parameter = next(p for n, p in qa.model.named_parameters() if "lora_B" in n)
    value = parameter.data.view(-1)[0].item()
    parameter.data.view(-1)[0] += 1e-3
    assert patch_hash(qa.model) != before
    parameter.data.view(-1)[0] = value
    assert patch_hash(qa.model) == before
    qa.model.patch_strength = 0.5
    assert patch_hash(qa.model) != before
    qa.model.patch_strength = 1.0
    assert facts["dtype"] == "float32"
    assert facts["encoders"].keys() == {"audio"} and len(facts["encoders"]["audio"]) == 20
    assert "encoders" not in model_facts(qa, patch=False) and "vision" not in facts


def test_a_patch_of_another_config_with_the_same_tensors_is_another_patch():
    hashes = []
    for missing in ("base", "lora_only"):
        model, _ = tiny_llava_onevision()
        hashes.append(patch_hash(attach_patch(model, hearing_config(missing_channel=missing))))
    assert hashes[0] != hashes[1]


def test_what_answering_took_lies_beside_the_predictions(world, tmp_path):
    _, qa, samples = world
    options = {"max_new_tokens": 2, "progress": False, "batch_size": 1}
    evaluate(qa, samples[:2], predictions=tmp_path / "p.jsonl", **options)
    first = read_cost(tmp_path / "p.cost.json")
    own = sum(p.numel() for p in patch_parameters(qa.model))
    assert own > 0 and first.seconds > 0 and (first.samples, first.device, first.patch_parameters) == (2, "cpu", own)
    assert first.base_parameters + own == sum(p.numel() for p in qa.model.parameters())
    lines = (tmp_path / "p.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "p.jsonl").write_text("".join(lines[:2]))  # killed after one sample
    evaluate(qa, samples[:2], predictions=tmp_path / "p.jsonl", **options)
    second = read_cost(tmp_path / "p.cost.json")
    assert second.samples == 3 and second.seconds > first.seconds
    evaluate(qa, samples[:2], predictions=tmp_path / "p.jsonl", **options)  # nothing left to do
    assert costs_in(tmp_path, "p.jsonl") == second
    for number in (1, 2):
        shard, part = take_shard(samples[:2], number, 2)
        evaluate(qa, part, predictions=tmp_path / "s" / shard.part_of("p.jsonl"), patch=False, shard=shard, **options)
    both = costs_in(tmp_path / "s", "p.jsonl")
    assert (both.samples, both.patch_parameters, both.base_parameters) == (2, 0, first.base_parameters)
    assert costs_in(tmp_path, "other.jsonl") is None
