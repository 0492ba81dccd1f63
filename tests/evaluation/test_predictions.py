"""Prediction files: nothing lost when a run is killed, nothing mixed up when it goes on, scores from the file alone."""

import json
from dataclasses import replace

import pytest

from pave.data.samples import Sample
from pave.evaluation.predictions import (
    Prediction,
    PredictionFile,
    as_prediction,
    check_same_sample,
    read_all_predictions,
    read_predictions,
)
from pave.evaluation.result import compare_results, rescore, score_predictions

SETTINGS = {"base": "b", "patch": None, "sampling": {"num_frames": 8}}


def make(number, prediction="bell", **changes):
    values = {"id": f"s{number}", "type": "sound", "video": f"v{number // 2}.mp4", "question": "what?", "references": ("bell",)}
    return Prediction(**{**values, "prediction": prediction, **changes})


def test_predictions_survive_and_come_back_in_the_order_of_the_samples(tmp_path):
    path = tmp_path / "p.jsonl"
    file = PredictionFile(path, SETTINGS)
    file.append([make(2), make(0, choices=("bell", "buzz ü"))])
    file.append([make(1, None, error="broken")])
    again = PredictionFile(path, SETTINGS)
    assert set(again.done) == {"s0", "s1", "s2"} and again.done == file.done
    ordered = again.finish(["s0", "s1", "s2"])
    assert [p.id for p in ordered] == ["s0", "s1", "s2"]
    settings, read = read_predictions(path)
    assert settings == SETTINGS and read == ordered
    assert read[0].choices == ("bell", "buzz ü")


def test_a_half_written_last_line_is_dropped(tmp_path):
    path = tmp_path / "p.jsonl"
    PredictionFile(path, SETTINGS).append([make(0), make(1, "ein Glöckchen, 鐘")])
    whole = path.read_bytes()
    for cut in range(1, len(whole) - whole.rindex(b'{"id": "s1"')):
        path.write_bytes(whole[:-cut])
        file = PredictionFile(path, SETTINGS)
        assert list(file.done) == ["s0"]
        file.append([make(1, "ein Glöckchen, 鐘")])
        assert path.read_bytes() == whole


def test_other_settings_and_other_files_are_refused(tmp_path):
    path = tmp_path / "p.jsonl"
    PredictionFile(path, SETTINGS)
    with pytest.raises(ValueError, match=r"p\.jsonl holds predictions of another run: sampling was .*8.*now it is .*4"):
        PredictionFile(path, {**SETTINGS, "sampling": {"num_frames": 4}})
    (tmp_path / "q.jsonl").write_text('{"id": "s0"}\n')
    with pytest.raises(ValueError, match="not a predictions file"):
        PredictionFile(tmp_path / "q.jsonl", SETTINGS)
    for header in ('{"pave_predictions": 1}', '{"pave_predictions": 1, "settings": []}', "[]", "[" * 100_000, "9" * 5000):
        (tmp_path / "q.jsonl").write_text(header + "\n")
        with pytest.raises(
            ValueError, match=r"q\.jsonl(: not a predictions file|, line 1: (not JSON|a number of 5000 digits))"
        ):
            PredictionFile(tmp_path / "q.jsonl", SETTINGS)
    path.write_text(path.read_text() + "{broken\n" + json.dumps(make(0).to_dict()) + "\n")
    with pytest.raises(ValueError, match="line 2: not JSON"):
        read_predictions(path)
    path.write_text(path.read_text().replace("{broken\n", '{"id": "x", "kind": "sound"}\n'))
    with pytest.raises(ValueError, match="line 2"):
        read_predictions(path)


def test_a_changed_sample_is_refused(tmp_path):
    check_same_sample(make(0), make(0, None), tmp_path)
    with pytest.raises(ValueError, match=r"'s0' has changed.*references was \('bell',\), now it is \('buzz',\)"):
        check_same_sample(make(0), make(0, references=("buzz",)), tmp_path)
    with pytest.raises(ValueError, match=r"'s0' has changed.*context was ''"):
        check_same_sample(make(0), make(0, context="x"), tmp_path)


def test_runs_are_paired_only_on_the_same_samples_and_content(tmp_path):
    def score(**changes):
        return score_predictions([make(0, **changes), make(1)])

    content = {"video": "a", "side_channels.audio": "b"}
    plain = score(content=content)
    for same in (score(content=content), score(), score(content={"video": "a"}), score(content={**content, "video": ""})):
        assert compare_results(plain, same)["all"].difference == 0
    for other, message in (
        (score(content={**content, "side_channels.audio": "c"}), "what side_channels.audio named had other content"),
        (score(content={"video": "c"}), r"what video named had other content when the second was asked \(v0.mp4\)"),
        (score(earlier="x"), "earlier is '' in the first"),
        (score(type="colour"), "type is 'sound' in the first"),
        (score(meta={"source": "x"}), "meta is"),
    ):
        with pytest.raises(ValueError, match=f"different samples of the id 's0': {message}"):
            compare_results(plain, other)


def test_answers_to_another_conversation_are_not_scored_as_answers_to_these_samples(tmp_path):
    def talk(first):
        turns = (("user", "red?"), ("assistant", first), ("user", "bell?"))
        return Sample(id="talk", video="v.mp4", messages=[{"role": r, "content": c} for r, c in turns], answers=("yes",))

    file = PredictionFile(tmp_path / "p.jsonl", SETTINGS)
    file.append([replace(as_prediction(talk("no")), prediction="yes")])
    moved = replace(talk("no"), video="elsewhere/v.mp4", side_channels={"audio": "elsewhere/a.wav"})
    assert len(read_all_predictions(file.path, [moved])[1]) == 1
    with pytest.raises(ValueError, match=r"sample 'talk' has changed since it was answered \(earlier was"):
        read_all_predictions(file.path, [talk("yes")])


def test_correct_uses_choices_where_there_are_any():
    assert make(0, "The bell.").correct
    assert not make(0, "B").correct
    assert make(0, "B", choices=("buzz", "bell")).correct
    assert not make(0, "A", choices=("buzz", "bell")).correct
    assert not make(0, None, error="broken").correct
    assert not make(0, "").correct
    assert make(0, "chime", references=("bell", "chime")).correct
    assert make(0, "(C)", references=("bell", "chime"), choices=("bell", "buzz", "chime")).correct
    assert not make(0, "(B)", references=("bell", "chime"), choices=("bell", "buzz", "chime")).correct
    for bad in (
        make(0, choices=("buzz", "dog")),
        make(0, references=("?",)),
        make(0, None, references=("",)),
        make(0, choices=("bell",)),
        make(0, references=()),
    ):
        with pytest.raises(ValueError, match="sample 's0'"):
            assert bad.correct


def test_scores_by_type_with_failures_counted_wrong(tmp_path):
    predictions = [
        make(0),
        make(1, "buzz"),
        make(2, None, error="no such file"),
        make(3, "red", type="colour", references=("red",)),
    ]
    result = score_predictions(predictions, SETTINGS)
    assert list(result.by_type) == ["sound", "colour"]
    sound = result.by_type["sound"]
    assert (sound.n_correct, sound.n_scored, sound.n_expected) == (1, 2, 3)
    assert result.overall.accuracy == 0.5
    assert result.failures == [("s2", "no such file")]
    data = json.loads(json.dumps(result.to_dict()))
    assert data["by_type"]["sound"]["accuracy"] == pytest.approx(1 / 3)
    assert data["overall"]["n_scored"] == 3 and data["failures"] == [{"id": "s2", "error": "no such file"}]
    file = PredictionFile(tmp_path / "p.jsonl", SETTINGS)
    file.append(predictions)
    file.finish([p.id for p in predictions])
    assert rescore(tmp_path / "p.jsonl") == result
    with pytest.raises(ValueError, match="'s0' comes more than once"):
        score_predictions([make(0), make(0)])


def test_two_runs_are_compared_sample_by_sample_whatever_their_order():
    first = score_predictions([make(i, "bell" if i < 2 else "buzz") for i in range(8)])
    second = score_predictions([make(i, "bell" if i != 0 else "buzz") for i in reversed(range(8))])
    comparison = compare_results(first, second)["all"]
    assert (comparison.only_first, comparison.only_second) == (1, 6)
    assert compare_results(first, second)["sound"] == comparison
    with pytest.raises(ValueError, match=r"1 are in one only, such as 's7'"):
        compare_results(first, score_predictions([make(i) for i in range(7)]))


def test_a_file_that_holds_more_fewer_or_other_samples_than_its_run_is_refused(tmp_path):
    def written(*predictions, expected):
        path = tmp_path / "p.jsonl"
        path.unlink(missing_ok=True)
        file = PredictionFile(path, SETTINGS)
        if expected is not None:
            file.expect(expected)
        file.append(predictions)
        return path

    assert len(rescore(written(make(0, None), make(0), make(1), expected=2)).predictions) == 2  # tried again
    for found, expected, message in (
        ((make(0),), None, "answered 1 of an unknown number of samples"),
        ((), None, "answered 0 of an unknown number"),
        ((make(0),), 2, "answered 1 of 2 samples"),
        ((make(0), make(1)), 1, "holds 2 samples, but its run was asked for 1"),
        ((make(0, "dog"), make(0, references=("dog",)), make(1)), 2, "sample 's0' has changed since it was answered"),
    ):
        with pytest.raises(ValueError, match=message):
            rescore(written(*found, expected=expected))


@pytest.mark.parametrize("change", [{"references": ("buzz",)}, {"question": "why?"}, {"choices": ("bell", "dog")}])
def test_runs_with_other_questions_or_truths_are_not_compared(change):
    first = score_predictions([make(0), make(1)])
    second = score_predictions([make(0), make(1, **change)])
    with pytest.raises(ValueError, match=f"different samples of the id 's1': {next(iter(change))} is .* in the first and"):
        compare_results(first, second)
