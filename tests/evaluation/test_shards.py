"""Parts of an evaluation: together exactly what one process writes; nothing missing, nothing mixed."""

import json
from dataclasses import replace

import pytest

from pave.data.samples import Sample
from pave.evaluation.predictions import Prediction, PredictionFile, as_prediction, read_all_predictions
from pave.evaluation.shards import Shard, merge_shards, parse_shard, take_shard

SETTINGS = {"base": "b", "frames": {"num_frames": 8}}
SAMPLES = [Sample(id=f"s{n}", video=f"v{n // 2}.mp4", question="what?", answer="bell") for n in range(7)]


def answer(sample, **changes):
    return Prediction(**{**as_prediction(sample).to_dict(), "prediction": f"bell {sample.id}", **changes})


def write_shard(folder, index, count, samples=SAMPLES, settings=SETTINGS, leave_out=0):
    shard, part = take_shard(samples, index, count)
    file = PredictionFile(folder / shard.file_name, settings, shard.to_dict())
    file.expect(len(part))
    file.append([answer(sample) for sample in part[: len(part) - leave_out]])
    return file


def test_the_parts_are_all_samples_in_their_order():
    for count in (1, 2, 3, 7):
        parts = [take_shard(SAMPLES, i + 1, count)[1] for i in range(count)]
        assert [s.id for part in parts for s in part] == [s.id for s in SAMPLES]
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert parse_shard("2/4") == (2, 4)
    for text in ("2", "2/", "a/b", "2 of 4"):
        with pytest.raises(ValueError, match="written as NUMBER/COUNT"):
            parse_shard(text)
    for index, count in ((0, 4), (5, 4)):
        with pytest.raises(ValueError, match="numbered from 1 to 4"):
            take_shard(SAMPLES, index, count)
    with pytest.raises(ValueError, match="shard 1/8 of 7 samples is empty"):
        take_shard(SAMPLES, 1, 8)


def test_merged_they_are_the_file_of_one_process(tmp_path):
    whole = PredictionFile(tmp_path / "whole.jsonl", SETTINGS)
    whole.expect(7)
    whole.append([answer(sample) for sample in SAMPLES])
    for index in (3, 1, 2):
        write_shard(tmp_path / "out", index, 3)
    for _ in range(2):  # again, over an earlier merge
        merged = merge_shards(tmp_path / "out")
        assert merged == tmp_path / "out" / "predictions.jsonl" and merged.read_bytes() == whole.path.read_bytes()


def test_a_part_that_is_missing_unfinished_or_of_another_run_is_refused(tmp_path):
    write_shard(tmp_path, 1, 3)
    write_shard(tmp_path, 3, 3)
    with pytest.raises(ValueError, match=r"shard 2 of 3 is missing; run pave eval with --shard 2/3"):
        merge_shards(tmp_path)
    path = write_shard(tmp_path, 2, 3, leave_out=1).path
    with pytest.raises(ValueError, match=r"predictions-2-of-3\.jsonl: the run has answered 1 of 2 samples"):
        merge_shards(tmp_path)
    path.unlink()
    write_shard(tmp_path, 2, 3, settings={**SETTINGS, "base": "c"})
    with pytest.raises(ValueError, match=r"another setting than .*1-of-3\.jsonl: base is 'c', there it is 'b'"):
        merge_shards(tmp_path)
    path.unlink()
    write_shard(tmp_path, 2, 3, samples=SAMPLES[:6])
    with pytest.raises(ValueError, match="is of other samples than"):
        merge_shards(tmp_path)
    path.unlink()
    write_shard(tmp_path, 2, 3, samples=[*SAMPLES[:6], replace(SAMPLES[6], answer="buzz")])  # the same ids
    with pytest.raises(ValueError, match="is of other samples than"):
        merge_shards(tmp_path)
    path.unlink()
    write_shard(tmp_path, 2, 3)
    write_shard(tmp_path, 2, 2)
    with pytest.raises(ValueError, match="evaluations in 2 and 3 parts"):
        merge_shards(tmp_path)
    assert not (tmp_path / "predictions.jsonl").exists()
    with pytest.raises(ValueError, match="neither predictions.jsonl nor shards"):
        merge_shards(tmp_path / "nowhere")


def test_a_part_is_not_gone_on_with_as_another(tmp_path):
    shard = write_shard(tmp_path, 1, 3).shard
    with pytest.raises(ValueError, match="another run: shard was"):
        PredictionFile(tmp_path / "predictions-1-of-3.jsonl", SETTINGS)
    with pytest.raises(ValueError, match="another run: shard was"):
        PredictionFile(tmp_path / "predictions-1-of-3.jsonl", SETTINGS, Shard(index=1, count=3, samples="x").to_dict())
    assert len(PredictionFile(tmp_path / "predictions-1-of-3.jsonl", SETTINGS, shard).done) == 2


def test_a_run_that_did_not_end_needs_its_samples(tmp_path):
    file = PredictionFile(tmp_path / "p.jsonl", SETTINGS)
    file.expect(7)
    file.append([answer(sample) for sample in SAMPLES[:3]])
    file.append([answer(SAMPLES[0])])  # tried again
    with pytest.raises(ValueError, match=r"answered 3 of 7 samples; let it end .*or give its samples"):
        read_all_predictions(file.path)
    settings, predictions = read_all_predictions(file.path, SAMPLES)
    assert settings == SETTINGS and [p.id for p in predictions] == [s.id for s in SAMPLES]
    assert [p.prediction is None for p in predictions] == [False] * 3 + [True] * 4
    assert predictions[5].error == "the run has no answer to it"
    with pytest.raises(ValueError, match=r"answers to 1 samples that are not in the file of samples, such as 's2'"):
        read_all_predictions(file.path, SAMPLES[:2])
    assert json.loads(file.path.read_text().splitlines()[0])["expected"] == 7


def test_a_part_under_the_name_of_another_is_refused(tmp_path):
    path = write_shard(tmp_path, 1, 2).path
    (tmp_path / "predictions-2-of-2.jsonl").write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match=r"predictions-2-of-2\.jsonl: the file is shard 1 of 2 by its first line"):
        merge_shards(tmp_path)
    header, *lines = path.read_text().splitlines(keepends=True)
    plain = {key: value for key, value in json.loads(header).items() if key != "shard"}
    (tmp_path / "predictions-2-of-2.jsonl").write_text(json.dumps(plain) + "\n" + "".join(lines))
    with pytest.raises(ValueError, match=r"predictions-2-of-2\.jsonl, line 1, 'shard'"):
        merge_shards(tmp_path)


def test_shards_of_an_earlier_run_do_not_replace_a_whole_one(tmp_path):
    for index in (1, 2):
        write_shard(tmp_path, index, 2)
    for settings, samples in (
        ({**SETTINGS, "base": "c"}, SAMPLES),
        (SETTINGS, [Sample(id="t", video="v", question="?", answer="a")]),
    ):
        file = PredictionFile(tmp_path / "predictions.jsonl", settings)
        file.expect(len(samples))
        file.append([answer(sample) for sample in samples])
        before = file.path.read_bytes()
        with pytest.raises(ValueError, match=r"predictions\.jsonl is of another run than the shards beside it"):
            merge_shards(tmp_path)
        assert file.path.read_bytes() == before
        file.path.unlink()
    assert len(read_all_predictions(merge_shards(tmp_path))[1]) == 7


def test_a_whole_file_of_other_samples_is_not_replaced(tmp_path):
    """It has the ids and settings of the parts, but answers another question."""
    whole = PredictionFile(tmp_path / "predictions.jsonl", SETTINGS)
    whole.append([answer(sample, question="which?") for sample in SAMPLES])
    before = whole.path.read_bytes()
    for index in (1, 2):
        write_shard(tmp_path, index, 2)
    with pytest.raises(ValueError, match=r"predictions\.jsonl is of another run than the shards beside it"):
        merge_shards(tmp_path)
    assert whole.path.read_bytes() == before


def test_parts_about_a_video_that_was_replaced_in_between_are_refused(tmp_path):
    for index, digest in ((1, "a"), (2, "b")):
        shard, part = take_shard(SAMPLES, index, 2)  # v1.mp4 is in both
        file = PredictionFile(tmp_path / shard.file_name, SETTINGS, shard.to_dict())
        file.expect(len(part))
        file.append([answer(s, content={"video": digest if s.video == "v1.mp4" else s.video}) for s in part])
    with pytest.raises(ValueError, match=r"v1\.mp4 had other content when sample 's3' was answered than for 's2'"):
        merge_shards(tmp_path)
