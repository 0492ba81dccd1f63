"""The page about evaluations: its values are those of the scores, hostile answers stay text, files that are gone are said."""

import dataclasses
import json
import re
import shutil

import pytest

from evaluation_page import Page
from pave.cli import main
from pave.data.media import FrameSampling
from pave.data.samples import Sample, write_samples
from pave.evaluation.benchmarks import BENCHMARKS
from pave.evaluation.benchmarks.published import published_numbers, published_rows
from pave.evaluation.counterfactuals import STANDARD, Counterfactual
from pave.evaluation.exposure import file_of
from pave.evaluation.inference import VideoQA
from pave.evaluation.predictions import PredictionFile, as_prediction
from pave.evaluation.result import compare_results, rescore
from pave.evaluation.run_report import differing, read_runs, write_run_report
from pave.evaluation.runner import evaluate
from tiny_runs import save_base_and_patch, write_clip

HOSTILE = "</td><script>alert(1)</script><img src=http://evil/x.png onerror=alert(2)> {{ 7*7 }} " + "x" * 5000


def write_run(folder, samples, answers, **settings):
    file = PredictionFile(
        folder / "predictions.jsonl" if settings.get("name") is None else folder / settings.pop("name"),
        {"base": "b", **settings},
    )
    file.expect(len(samples))
    rows = [
        dataclasses.replace(as_prediction(s), prediction=a, error="no such file" if a is None else None)
        for s, a in zip(samples, answers, strict=True)
    ]
    text = "".join(json.dumps(row.to_dict()) + "\n" for row in rows)  # a surrogate cannot be written as UTF-8
    with file.path.open("a") as opened:
        opened.write(text)
    return folder


def music(count=12, video="gone.mp4"):
    kinds = [("Audio", "Counting"), ("Visual", "Location")]
    return [
        Sample(
            id=f"m{n}",
            video=video,
            question=f"Is number {n} heard?",
            answer="no",
            type=" ".join(kinds[n % 2]),
            meta={
                "benchmark": "music_avqa",
                "split": "test",
                "subtypes": {"modality": kinds[n % 2][0], "type": " ".join(kinds[n % 2])},
                "official": {"question_id": str(n), "video_id": str(n)},
            },
        )
        for n in range(count)
    ]


def report(capsys, *arguments):
    code = main(["report", *map(str, arguments), "--json"])
    out, err = capsys.readouterr()
    return code, json.loads(out), err


def words(path):
    page = Page(path.read_text(encoding="utf-8"))
    assert page.stack == []
    return page, re.sub(r"\s+", " ", " ".join(page.text))


def number(value):
    return f"{100 * value:.1f}"


def test_the_values_of_the_page_are_those_of_the_scores(tmp_path, capsys):
    samples = music()
    base = write_run(tmp_path / "base", samples, ["piano"] * 4 + ["dog"] * 7 + [None])
    patch = write_run(tmp_path / "patch", samples, ["dog"] + ["no"] * 10 + ["piano"])
    for kind in STANDARD:
        change = Counterfactual(kind)
        answers = ["no"] * (3 if kind == "swapped" else 8) + ["dog"] * (9 if kind == "swapped" else 4)
        write_run(patch, samples, answers, name=file_of(change), counterfactual=f"{change}, seed 0")
    code, data, _ = report(capsys, f"as shipped={base}", patch, "--out", tmp_path / "r.html")
    assert code == 0 and list(data["runs"]) == ["as shipped", "patch"]
    page, text = words(tmp_path / "r.html")
    results = {"as shipped": rescore(base / "predictions.jsonl"), "patch": rescore(patch / "predictions.jsonl")}
    for result in results.values():
        for score in (result.overall, *result.by_type.values()):
            low, high = score.interval.low, score.interval.high
            assert f"{number(score.accuracy)} {number(low)} to {number(high)}" in text
    for name, result in results.items():  # both scorers beside each other
        paper, strict = (result.benchmark.table(p).rows[0] for p in ("paper", "strict"))
        cells = [f"{number(row.value)} {number(row.interval.low)} to {number(row.interval.high)}" for row in (paper, strict)]
        assert f"overall {name} {cells[0]} {cells[1]} {strict.n_scored} of {strict.n_expected}" in text
        assert data["runs"][name]["benchmark"]["tables"][0]["rows"][0]["value"] == paper.value
    pair = next(iter(compare_results(*results.values()).values()))
    low, high = pair.interval.low, pair.interval.high
    wanted = f"patch − as shipped overall {100 * pair.difference:+.1f} {100 * low:+.1f} to {100 * high:+.1f} {pair.only_second} / {pair.only_first}"
    assert wanted in text
    notes = [part.count("not comparable with published numbers") for part in text.split(" Both scorers ")]
    assert notes == [1, 1]  # beside the published numbers too
    overall = next(row for row in published_numbers("music_avqa") if row.row == "overall")
    assert {f"{n.system}" for n in overall.numbers} <= set(" ".join(page.text).split("\n")) | {t.strip() for t in page.text}
    assert re.search(r"PAVE 7B, with the side channel 79\.7 93\.0 82\.3 1 ", text)  # no sample here is Audio-Visual
    changes = data["runs"]["patch"]["counterfactuals"]["changes"]
    for name in map(str, map(Counterfactual, STANDARD)):
        first = next(iter(changes[name]["difference"].values()))
        assert f"{name} {number(changes[name]['value'])}" in text and f"{100 * first['difference']:+.1f}" in text
    assert data["runs"]["patch"]["counterfactuals"]["verdict"][0] in text and "m11 no such file" in text
    assert "as shipped : 1, all counted as wrong" in text


def test_samples_that_one_run_alone_has_right_come_by_type_in_turn(tmp_path):
    samples = music()
    base = write_run(tmp_path / "base", samples, ["no", "no"] + ["dog"] * 10)
    patch = write_run(tmp_path / "patch", samples, ["dog", "no"] + ["no"] * 6 + ["dog"] * 4)
    first, last = read_runs([str(base), str(patch)])
    assert differing(first, last, 4) == ["m2", "m3", "m4", "m0"]
    assert differing(first, last, 0) == [] and differing(first, first, 3) == ["m2", "m3", "m4"]
    assert differing(last, first, 6) == ["m0", "m2", "m3", "m4", "m5", "m6"]


def test_hostile_answers_stay_text_and_nothing_is_loaded(tmp_path, capsys):
    samples = [Sample(id=f"s{n}", video="gone.mp4", question="<b>?", answer="bell", type="<i>") for n in range(4)]
    base = write_run(tmp_path / "base", samples, [HOSTILE] * 4)
    patch = write_run(tmp_path / "patch", samples, ["bell"] * 3 + [None])
    for name, answers in (("swapped", [HOSTILE] * 4),):
        write_run(patch, samples, answers, name=f"counterfactual-{name}.jsonl", counterfactual=f"{name}, seed 0")
    code, data, _ = report(capsys, f"<script>x</script>={base}", patch, "--out", tmp_path / "r.html", "--title", HOSTILE[:60])
    assert code == 0
    page, text = words(tmp_path / "r.html")
    assert {tag for tag, _ in page.tags} & {"script", "img", "link", "iframe", "a", "form", "i"} <= {"i"}
    assert all(not name.startswith("on") and name not in ("src", "href") for _, a in page.tags for name in a)
    assert text.count("<script>alert(1)</script>") >= 4 and "{{ 7*7 }}" in text
    assert "characters in all)" in text and "x" * 1001 not in text
    assert "s0" in data["not_shown"] and "gone.mp4: " in data["not_shown"]["s0"]
    assert "Frames and side channels are not shown: " in text
    half = write_run(tmp_path / "half", samples[:1], ["half a surrogate pair: \ud800"])
    code = main(["report", str(half), "--out", str(tmp_path / "no.html")])
    err = capsys.readouterr().err
    assert code == 2 and "predictions.jsonl, line 2: Invalid JSON" in err and err.count("\n") == 1
    assert not (tmp_path / "no.html").exists()


def test_runs_of_other_samples_are_refused_in_one_sentence(tmp_path, capsys):
    samples = music(4)
    a = write_run(tmp_path / "a", samples, ["no"] * 4)
    b = write_run(tmp_path / "b", samples[:3], ["no"] * 3)
    c = write_run(tmp_path / "c", [dataclasses.replace(s, question="Another?") for s in samples], ["no"] * 4)
    for arguments, message in (
        (
            [a, b],
            "the runs 'a' and 'b' cannot stand in one report: the two runs have different samples; 1 are in one only, such as 'm3'",
        ),
        ([a, c], "the runs 'a' and 'c' cannot stand in one report: "),
        ([a, f"a={b}"], "two runs are called 'a'"),
        ([tmp_path / "nowhere"], "there is no such folder; a run is a folder that pave eval --out wrote"),
        ([a, "--base", "x"], "--base: the model is loaded to see where a patch looks"),
    ):
        assert main(["report", *map(str, arguments), "--out", str(tmp_path / "r.html")]) == 2
        err = capsys.readouterr().err
        assert message in err and err.startswith("pave: ") and err.count("\n") == 1
    assert not (tmp_path / "r.html").exists()


def test_frames_sound_and_side_steps_without_the_model_and_attention_with_it(tmp_path, capsys):
    base, patch = save_base_and_patch(tmp_path)
    samples = [
        Sample(id=f"s{n}", video=str(write_clip(tmp_path / f"{n}.mp4", n)), question="what sound is heard?", answer="bell")
        for n in range(2)
    ]
    write_samples(tmp_path / "test.jsonl", samples)
    qa = VideoQA.from_pretrained(base, patch, device="cpu", sampling=FrameSampling(num_frames=4))
    settings = {"base": str(base), "patch": str(patch)}
    evaluate(
        qa, samples, predictions=tmp_path / "run" / "predictions.jsonl", settings=settings, max_new_tokens=2, progress=False
    )
    code, data, _ = report(capsys, tmp_path / "run", "--out", tmp_path / "plain.html")
    assert code == 0 and data["not_shown"] == {} and data["examples"] == ["s0", "s1"]
    assert data["runs"]["run"]["cost"]["samples"] == 2

    def pictures(name):
        return [a["alt"] for tag, a in words(tmp_path / name)[0].tags if tag == "img"]

    plain = pictures("plain.html")
    assert sum(alt.startswith("frame at") for alt in plain) == 8 and sum(alt.startswith("features of") for alt in plain) == 2
    assert not any(alt.startswith("attention") for alt in plain)
    more = ("--patch", patch, "--samples", tmp_path / "test.jsonl", "--device", "cpu")
    code, _, _ = report(capsys, tmp_path / "run", "--out", tmp_path / "looked.html", *more)
    assert code == 0
    looked = pictures("looked.html")
    assert [alt for alt in looked if not alt.startswith("attention")] == plain
    assert sum(alt == "attention of 4 frames over the steps of audio" for alt in looked) == 2


def test_what_is_not_what_was_asked_about_is_not_shown_beside_the_answers(tmp_path, capsys):
    """Another patch in the place of the one that answered, a video that was replaced, an encoder of other settings."""
    base, patch = save_base_and_patch(tmp_path)
    samples = [
        Sample(id=f"s{n}", video=str(write_clip(tmp_path / f"{n}.mp4", n)), question="what sound is heard?", answer="bell")
        for n in range(2)
    ]
    qa = VideoQA.from_pretrained(base, patch, device="cpu", sampling=FrameSampling(num_frames=4))
    settings = {"base": str(base), "patch": str(patch)}
    run = tmp_path / "run"
    evaluate(qa, samples, predictions=run / "predictions.jsonl", settings=settings, max_new_tokens=2, progress=False)
    shutil.copy(tmp_path / "1.mp4", tmp_path / "0.mp4")
    code, data, _ = report(capsys, run, "--out", tmp_path / "r.html")
    assert code == 0 and list(data["not_shown"]) == ["s0"]
    assert "the video of" in data["not_shown"]["s0"] and "0.mp4 has other content than when it" in data["not_shown"]["s0"]
    path = patch / "patch_config.json"
    config = json.loads(path.read_text())
    config["patch"]["side_channels"]["audio"]["encoder"]["settings"]["offset_seconds"] = 3.0
    path.write_text(json.dumps(config))
    assert main(["sign", str(patch)]) == 0 and capsys.readouterr()
    code, _, _ = report(capsys, run, "--out", tmp_path / "r.html")
    shown = [a["alt"] for tag, a in words(tmp_path / "r.html")[0].tags if tag == "img"]
    assert code == 0 and any(alt.startswith("frame at") for alt in shown) and not any("features of" in alt for alt in shown)
    qa.model.patch_strength = 0.5  # as another patch is
    with pytest.raises(ValueError, match=r"no run was answered by it \(the weights of their patches: 'run' [0-9a-f]{16}\)"):
        write_run_report(tmp_path / "no.html", read_runs([str(run)]), qa=qa)
    assert not (tmp_path / "no.html").exists()


def test_published_numbers_fit_the_benchmarks():
    assert {row.benchmark for row in published_rows()} >= set(BENCHMARKS)
    assert len({(row.benchmark, row.measure, row.row) for row in published_rows()}) == len(published_rows())
    for row in published_rows():
        assert row.numbers and all(0 <= n.value < 200 and n.source for n in row.numbers)
        assert len({n.system for n in row.numbers}) == len(row.numbers)
    (mlvu,) = published_numbers("mlvu")
    assert (mlvu.row, [n.value for n in mlvu.numbers]) == ("mean of tasks", [50.3, 51.6, 64.7, 67.0, 68.4])
    assert published_numbers("none") == []
