"""The frame around all benchmarks: rows, denominators, intervals, paired tests, versions, samples without a public answer."""

import json
from dataclasses import replace

import pytest

from benchmark_files import answered, converted, touch, write_json
from pave.data.samples import Sample
from pave.evaluation.benchmarks import BENCHMARKS, get_benchmark
from pave.evaluation.benchmarks.base import PROTOCOLS, Benchmark, Measure, Scorer, facts, strictly
from pave.evaluation.benchmarks.files import MediaFolder, read_json
from pave.evaluation.benchmarks.scoring import compare_benchmark, score_benchmark
from pave.evaluation.exposure import compare_changes
from pave.evaluation.metrics import accuracy_interval, compare_paired, mean_interval
from pave.evaluation.predictions import PredictionFile, as_prediction
from pave.evaluation.result import compare_results, paired_predictions, rescore, score_predictions

CHOSEN = {"red": 1.0, "green": 0.25, "blue": 0.0}


def scores(predictions):
    """A made-up caption measure with a value for each sample, and one that is a number of the whole run."""
    values = tuple(CHOSEN.get(p.prediction or "", 0.0) for p in predictions)
    return [Measure(name="score", values=values, yes_or_no=False), Measure(name="corpus", total=0.5)]


TEXTS = Benchmark(
    name="texts",
    title="Texts",
    convert=lambda paths, media, split: iter(()),
    scorers=(
        Scorer(protocol="paper", version="texts-paper-2", measures=scores),
        Scorer(protocol="strict", version="texts-strict-1", measures=strictly(lambda p, text: text in p.references)),
    ),
    totals={"test": {"": 4}},
    mean_over="kind",
)


def sample(number, kind, answer="red", **changes):
    return Sample(
        id=f"t{number}",
        video=f"v{number // 2}.mp4",
        question="?",
        answer=answer,
        meta=facts("texts", "test", {"kind": kind}),
        **changes,
    )


SAMPLES = [sample(0, "a"), sample(1, "a"), sample(2, "a"), sample(3, "b")]


@pytest.fixture(autouse=True)
def _texts(monkeypatch):
    monkeypatch.setitem(BENCHMARKS, "texts", TEXTS)


def test_every_benchmark_has_a_versioned_scorer_for_each_protocol():
    versions = [scorer.version for benchmark in BENCHMARKS.values() for scorer in benchmark.scorers]
    assert len(set(versions)) == len(versions)
    for name, benchmark in BENCHMARKS.items():
        assert benchmark.name == name and tuple(scorer.protocol for scorer in benchmark.scorers) == PROTOCOLS
        assert all(benchmark.scorer(protocol).version.startswith(f"{name}-{protocol}-") for protocol in PROTOCOLS)
    with pytest.raises(ValueError, match="there is no benchmark 'mvbensh'; did you mean 'mvbench'"):
        get_benchmark("mvbensh")


def test_rows_are_means_over_the_samples_of_a_subtype_and_the_mean_over_subtypes_is_unweighted():
    result = score_benchmark(TEXTS, answered(SAMPLES, ["red", "green", None, "blue"]))
    paper, corpus, strict = result.tables
    assert [(t.protocol, t.measure, t.version) for t in result.tables] == [
        ("paper", "score", "texts-paper-2"),
        ("paper", "corpus", "texts-paper-2"),
        ("strict", "accuracy", "texts-strict-1"),
    ]
    assert [(row.kind, row.name) for row in paper.rows] == [
        ("overall", "mean of kinds"),
        ("overall", "overall"),
        ("kind", "a"),
        ("kind", "b"),
    ]
    assert [row.value for row in paper.rows] == pytest.approx([1.25 / 3 / 2, 1.25 / 4, 1.25 / 3, 0])
    assert [(row.n_scored, row.n_expected) for row in paper.rows] == [(3, 4), (3, 4), (2, 3), (1, 1)]
    assert [(row.name, row.value, row.interval) for row in corpus.rows] == [("overall", 0.5, None)]
    values, videos = [1.0, 0.25, 0.0, 0.0], ["v0.mp4", "v0.mp4", "v1.mp4", "v1.mp4"]
    assert paper.row("overall").interval == mean_interval(values, videos)
    assert strict.row("overall").interval == accuracy_interval([True, False, False, False], videos)
    assert result.notes == []
    data = json.loads(json.dumps(result.to_dict()))
    assert data["tables"][2]["rows"][1]["value"] == 0.25 and data["tables"][0]["version"] == "texts-paper-2"


def test_the_generic_scores_are_those_of_the_strict_rule():
    result = score_predictions(answered(SAMPLES, ["red", "green", None, "red"]))
    assert (result.overall.n_correct, result.overall.n_scored, result.overall.n_expected) == (2, 3, 4)
    assert result.failures == [("t2", "broken")]
    assert result.table("run").overall.accuracy == 0.5 and result.benchmark.benchmark == "texts"
    only = score_predictions(answered(SAMPLES, ["red", "green", None, "red"]), protocols=["strict"])
    assert [t.protocol for t in only.benchmark.tables] == ["strict"] and only.overall == result.overall


def test_an_empty_answer_is_never_right_by_a_strict_rule():
    (measure,) = strictly(lambda prediction, text: True)(answered(SAMPLES, ["red", "", " \n", None]))
    assert measure.values == (1.0, 0.0, 0.0, 0.0)


def test_two_runs_are_compared_by_every_measure_and_row():
    first = score_predictions(answered(SAMPLES, ["red", "green", None, "blue"]))
    second = score_predictions(list(reversed(answered(SAMPLES, ["red", "red", "red", "green"]))))
    found = compare_benchmark(TEXTS, paired_predictions(first, second))
    assert list(found["paper"]) == ["score"]
    rows = found["paper"]["score"]
    assert list(rows) == ["mean of kinds", "overall", "a", "b"]
    assert rows["overall"].difference == pytest.approx((0.75 + 1 + 0.25) / 4)
    assert rows["mean of kinds"].difference == pytest.approx((1.75 / 3 + 0.25) / 2)
    assert (rows["a"].only_first, rows["a"].only_second) == (0, 2)
    strict = found["strict"]["accuracy"]["overall"]
    assert (
        strict
        == compare_paired([True, False, False, False], [True, True, True, False], ["v0.mp4"] * 2 + ["v1.mp4"] * 2)
        == compare_results(first, second)["all"]
    )


def test_a_comparison_leaves_out_what_one_of_the_runs_does_not_count(tmp_path):
    row = {"id": 1, "video_name": "x", "question_text": "?", "multi_choice": ["a", "b", "c", "d"], "answer": 0}
    rows = [{**row, "id": n, "question_relation": "Both", "question_type": "Which"} for n in range(3)]
    _, samples = converted("avqa", tmp_path, write_json(tmp_path / "val_qa.json", rows), touch(tmp_path / "media"))
    pairs = list(zip(answered(samples, ["A", None, "B"]), answered(samples, ["A", "A", "A"]), strict=True))
    found = compare_benchmark(get_benchmark("avqa"), pairs)
    assert found["paper"]["accuracy"]["overall"].difference == 0.5
    assert found["strict"]["accuracy"]["overall"].difference == pytest.approx(2 / 3)
    back = compare_benchmark(get_benchmark("avqa"), [(b, a) for a, b in pairs])
    assert back["paper"]["accuracy"]["overall"].difference == -0.5


def test_samples_without_a_public_answer_are_asked_but_not_scored():
    secret = replace(sample(9, "b"), answer=None)
    result = score_predictions(answered([*SAMPLES, secret], ["red", "red", "red", "red", "red"]))
    assert result.benchmark.n_secret == 1 and result.benchmark.table("strict").row("overall").n_expected == 4
    assert result.benchmark.notes[0].startswith("5 samples, but the split test has 4")
    assert score_predictions(answered([secret], ["red"])).benchmark.tables == ()
    plain = Sample(id="x", video="v.mp4", question="?")
    with pytest.raises(ValueError, match="'x': it has no answer"):
        as_prediction(plain)


def test_a_file_of_several_benchmarks_is_refused():
    plain = Sample(id="x", video="v.mp4", question="?", answer="red")
    with pytest.raises(ValueError, match=r"several benchmarks \(texts, none\)"):
        score_predictions(answered([*SAMPLES, plain], ["red"] * 5))
    bare = replace(SAMPLES[0], meta={"benchmark": "texts"})
    with pytest.raises(
        ValueError, match=r"'t0' is of the benchmark texts, but its meta lacks 'subtypes'; make the file of samples"
    ):
        score_predictions(answered([bare], ["red"]))
    odd = replace(SAMPLES[0], meta={**SAMPLES[0].meta, "benchmark": "other"})
    with pytest.raises(ValueError, match="there is no benchmark 'other'"):
        score_predictions(answered([odd], ["red"]))


def test_predictions_on_disk_hold_what_scorers_need(tmp_path):
    file = PredictionFile(tmp_path / "p.jsonl", {"base": "b"})
    predictions = answered(SAMPLES, ["red", "green", None, "blue"])
    file.append(predictions)
    file.finish([p.id for p in predictions])
    assert rescore(tmp_path / "p.jsonl") == score_predictions(predictions, {"base": "b"})


def test_another_number_of_samples_than_official_needs_a_word(tmp_path):
    row = {
        "id": 1,
        "video_name": "x",
        "question_text": "?",
        "multi_choice": ["a", "b"],
        "answer": 0,
        "question_relation": "Both",
    }
    path = write_json(tmp_path / "val_qa.json", [{**row, "question_type": "Why"}])
    media = touch(tmp_path / "media", "x.mp4")
    with pytest.raises(ValueError, match=r"val_qa\.json: 1 samples, but AVQA has 16,910 in its split val; .*--subset"):
        converted("avqa", tmp_path, path, media, subset=False)
    assert not (tmp_path / "samples.jsonl").exists()
    assert converted("avqa", tmp_path, path, media)[0].n_samples == 1
    other = write_json(tmp_path / "questions.json", [{**row, "question_type": "Why"}])
    with pytest.raises(ValueError, match="does not say which split"):
        converted("avqa", tmp_path, other, media)
    assert converted("avqa", tmp_path, other, media, split="train")[1][0].id == "avqa-train-1"
    (media / "x.mp4").unlink()
    with pytest.raises(ValueError, match="none of the 1 samples has its video"):
        converted("avqa", tmp_path, path, media, drop_missing=True)


def test_media_are_found_wherever_they_lie_but_never_confused(tmp_path):
    media = MediaFolder(touch(tmp_path / "m", "x/a.webm", "y/b.mp4", "z/b.mp4", "c.mp4"))
    assert media.find("a").endswith("x/a.webm") and media.find("c.mp4") == str(tmp_path / "m" / "c.mp4")
    assert media.find("z/b.mp4").endswith("z/b.mp4") and media.find("w/b.mp4").endswith("m/w/b.mp4")
    assert media.find("gone", "c").endswith("m/c.mp4")
    with pytest.raises(ValueError, match=r"several files for 'b\.mp4'"):
        media.find("b")
    with pytest.raises(ValueError, match="no such folder of media"):
        MediaFolder(tmp_path / "nowhere")


def test_files_that_are_not_json(tmp_path):
    with pytest.raises(ValueError, match=r"gone\.json: there is no such file"):
        read_json(tmp_path / "gone.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ValueError, match=r"bad\.json: not JSON"):
        read_json(tmp_path / "bad.json")
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n\n{"a": 2}\n')
    assert read_json(tmp_path / "rows.jsonl") == [{"a": 1}, {"a": 2}]


def test_facts_that_a_scorer_needs_are_asked_for_by_name():
    good = Sample(id="x", video="v.mp4", question="?", answer="A", meta=facts("mlvu", "dev", {"task": "count"}))
    official = {"question_id": "1", "question_type": "count", "options": ["a", "b"]}
    for subtypes, known, lacking in (
        ({"task": "count"}, {}, "official.question_id"),
        ({"task": "count"}, {**official, "options": "ab"}, "official.options"),
        ({"task": "count"}, {**official, "options": ["a", 2]}, "official.options"),
        ({}, official, "subtypes.task"),
        ({"task": ["count"]}, official, "subtypes"),
    ):
        bad = replace(good, meta={**good.meta, "subtypes": subtypes, "official": known})
        with pytest.raises(ValueError, match=f"its meta lacks '{lacking}'"):
            score_predictions(answered([bad], ["A"]))
    assert score_predictions(answered([replace(good, meta={**good.meta, "official": official})], ["A"])).overall.accuracy == 1


def test_a_subtype_called_overall_does_not_replace_the_row_of_all():
    samples = [sample(0, "overall"), sample(1, "b", answer="green")]
    first, second = (score_predictions(answered(samples, texts)) for texts in (["red", "red"], ["red", "green"]))
    rows = compare_benchmark(TEXTS, paired_predictions(first, second))["strict"]["accuracy"]
    assert rows["overall"].difference == 0.5 and rows["kind: overall"].difference == 0


def test_a_change_under_which_nothing_could_be_answered_tells_nothing():
    plain, failed = (score_predictions(answered(SAMPLES, texts)) for texts in (["red"] * 4, [None] * 4))
    exposure = compare_changes(plain, {"swapped": failed})
    assert exposure.exposed is None and exposure.changes[0].n_compared == 0 and "cannot be told" in exposure.sentences[0]


def test_a_subtype_of_which_the_rule_counts_nothing_is_no_part_of_the_mean(monkeypatch):
    def some(predictions):
        return [Measure(name="accuracy", values=tuple(None if p.prediction is None else 1.0 for p in predictions))]

    paper = Scorer(protocol="paper", version="texts-paper-3", measures=some)
    table = score_benchmark(replace(TEXTS, scorers=(paper, TEXTS.scorers[1])), answered(SAMPLES, ["red", "red", "red", None]))
    mean, missing = table.table("paper").row("mean of kinds"), table.table("paper").row("b", "kind")
    assert mean.value == 1 and (missing.n_counted, missing.n_expected) == (0, 1)
