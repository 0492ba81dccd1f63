"""Counterfactual runs beside a run: what they say of a patch, where they lie, and what is not mixed."""

import dataclasses

import pytest

from pave.data.samples import Sample
from pave.evaluation.counterfactuals import STANDARD, Counterfactual
from pave.evaluation.exposure import check_changes, compare_changes, evaluate_changes, file_of, headline, read_changes
from pave.evaluation.inference import VideoQA
from pave.evaluation.predictions import PredictionFile, as_prediction
from pave.evaluation.result import rescore, score_predictions
from pave.evaluation.runner import evaluate
from pave.evaluation.shards import merge_shards, take_shard
from tiny_runs import save_base_and_patch, write_clip

SAMPLES = [Sample(id=f"s{n}", video=f"v{n}.mp4", question="what?", answer="bell", type="ab"[n % 2]) for n in range(12)]
OPTIONS = {"max_new_tokens": 4, "progress": False}


def answered(right, failed=()):
    """Predictions with these numbers right and these without an answer."""
    return [
        dataclasses.replace(
            as_prediction(sample),
            prediction=None if n in failed else "bell" if n in right else "dog",
            error="x" if n in failed else None,
        )
        for n, sample in enumerate(SAMPLES)
    ]


def exposure_of(plain, **changed):
    return compare_changes(score_predictions(plain), {name: score_predictions(value) for name, value in changed.items()})


def test_a_patch_that_listens_falls_with_other_streams_and_one_that_does_not_is_exposed():
    deaf = exposure_of(answered(range(6)), swapped=answered(range(6)), shifted=answered(range(3)))
    assert deaf.exposed is True and deaf.changes[0].pair.difference == 0 and deaf.changes[1].pair.difference == -0.25
    (sentence,) = deaf.sentences
    assert sentence.startswith("Exposed: with the side channel of another video the accuracy does not fall (+0.0 points")
    hears = exposure_of(answered(range(11)), swapped=answered([0]))
    assert hears.exposed is False and hears.sentences[0].endswith("the patch uses it.")
    assert hears.changes[0].pair.difference == pytest.approx(-10 / 12)
    assert list(hears.changes[0].pairs) == ["all", "a", "b"]
    unsure = exposure_of(answered([0, 1]), swapped=answered([1]))  # a fall that the interval does not rule out to be chance
    assert unsure.exposed is True and unsure.changes[0].pair.difference < 0
    better = exposure_of(answered([0]), swapped=answered(range(11)))
    assert better.exposed is True


def test_without_swapped_streams_removed_ones_tell_and_others_do_not():
    assert exposure_of(answered(range(6)), removed=answered([]), noised=answered(range(6))).exposed is False
    assert exposure_of(answered(range(6)), noised=answered(range(6))).exposed is None
    both = exposure_of(answered(range(11)), **{"audio:swapped": answered([0]), "depth:swapped": answered(range(11))})
    assert both.exposed is True and [s.startswith("Exposed") for s in both.sentences] == [False, True]
    assert "'depth' of another video" in both.sentences[1]


def test_samples_that_fail_under_a_change_do_not_count_as_a_fall():
    exposure = exposure_of(answered(range(6)), swapped=answered(range(6), failed=range(4)))
    assert exposure.changes[0].n_compared == 8 and exposure.changes[0].pair.difference == 0 and exposure.exposed is True
    assert headline(exposure.changes[0].result).value == 2 / 12  # but as a score they are wrong
    assert "on 8 of 12 samples" in exposure.sentences[0]
    nothing = exposure_of(answered(range(6)), swapped=answered([], failed=range(12)))
    assert nothing.exposed is None and "cannot be told" in nothing.sentences[0]
    meta = {
        "benchmark": "music_avqa",
        "split": "test",
        "subtypes": {"modality": "Audio", "type": "Audio Counting"},
        "official": {"question_id": "1", "video_id": "1"},
    }
    plain, failed = (
        [dataclasses.replace(p, meta=meta) for p in answers] for answers in (answered(range(6)), answered([], failed=range(12)))
    )
    assert exposure_of(plain, swapped=failed).exposed is None


# --- files


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exposure")
    base, patch = save_base_and_patch(folder)
    samples = [
        Sample(id=f"s{i}", video=str(write_clip(folder / f"{i}.mp4", seed=i)), question="what sound is heard?", answer="bell")
        for i in range(4)
    ]
    return VideoQA.from_pretrained(base, patch, device="cpu"), VideoQA.from_pretrained(base, device="cpu"), samples


CHANGES = [Counterfactual.parse(text) for text in ("swapped", "audio:shifted=0.5")]


def test_parts_borrow_from_all_samples_and_together_are_the_files_of_one_process(world, tmp_path):
    qa, _, samples = world
    evaluate(qa, samples, predictions=tmp_path / "one" / "predictions.jsonl", **OPTIONS)
    whole = evaluate_changes(qa, samples, CHANGES, folder=tmp_path / "one", **OPTIONS)
    assert list(whole) == ["swapped", "audio:shifted=0.5"] and qa.counterfactual is None
    for number in (2, 1):
        shard, part = take_shard(samples, number, 2)
        evaluate(qa, part, predictions=tmp_path / "two" / shard.file_name, shard=shard, **OPTIONS)
        evaluate_changes(qa, part, CHANGES, folder=tmp_path / "two", shard=shard, lenders=samples, **OPTIONS)
    plain = rescore(merge_shards(tmp_path / "two"))
    exposure = read_changes(tmp_path / "two", plain)
    assert [change.name for change in exposure.changes] == ["swapped", "audio:shifted=0.5"]
    for change in CHANGES:
        name = file_of(change)
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert [c.result.predictions for c in exposure.changes] == [r.predictions for r in whole.values()]
    assert read_changes(tmp_path / "two", plain).to_dict() == exposure.to_dict()  # merged files beside their parts


def test_a_change_that_cannot_be_made_is_refused_before_any_work(world):
    qa, base, samples = world
    with pytest.raises(ValueError, match="'removed': the model has no side channel to change"):
        check_changes(base, [Counterfactual("removed")], samples)
    with pytest.raises(ValueError, match="needs samples of at least 2 videos"):
        check_changes(qa, [Counterfactual(kind) for kind in STANDARD], samples[:1])


def test_files_of_another_run_are_refused_by_name(tmp_path):
    def write(name, predictions, **settings):
        file = PredictionFile(tmp_path / name, {"base": "b", **settings})
        file.expect(len(predictions))
        file.append(predictions)
        return file.path

    plain = rescore(write("predictions.jsonl", answered(range(3))))
    assert read_changes(tmp_path, plain) is None
    path = write("counterfactual-swapped.jsonl", answered([0]), counterfactual="swapped, seed 0", patch_weights="1")
    with pytest.raises(
        ValueError, match=r"counterfactual-swapped\.jsonl belongs to another run than .*: patch_weights is '1', there"
    ):
        read_changes(tmp_path, plain)
    path.unlink()
    path = write("counterfactual-swapped.jsonl", answered([0])[:5], counterfactual="swapped, seed 0")
    with pytest.raises(ValueError, match=r"counterfactual-swapped\.jsonl answers other samples than"):
        read_changes(tmp_path, plain)
    path.unlink()
    path = write("counterfactual-swapped.jsonl", answered([0]))
    with pytest.raises(ValueError, match="does not say which counterfactual it is of"):
        read_changes(tmp_path, plain)
    path.unlink()
    write("counterfactual-shifted=-1.jsonl", answered([0, 1]), counterfactual="shifted=-1, seed 0")
    write("counterfactual-removed.jsonl", answered([0]), counterfactual="removed, seed 0")
    assert [change.name for change in read_changes(tmp_path, plain).changes] == ["removed", "shifted=-1"]
