"""lmms-eval's own programs run a task of local files on a patched model, and say what ``pave eval`` says."""

import json
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("lmms_eval", reason="lmms-eval is not installed: pip install '.[lmms-eval]'")

from PIL import Image

from cases import shake
from pave import attach_patch, save_patch
from pave.cli import main
from pave.data.collator import PatchCollator
from pave.data.samples import Sample, read_samples, write_samples
from pave.evaluation.inference import VideoQA
from pave.integrations import lmms_eval_manifest
from pave.integrations.lmms_eval import PaveForLmmsEval
from pave.playground import base_path
from pave.playground.clips import render_clip
from pave.playground.questions import ask
from pave.playground.world import SOUNDS, draw_scene
from pave.video_llms.loading import load_base
from tiny_runs import hearing_config

CLIPS = 4
TASK = """
task: miniature_sounds
dataset_path: json
dataset_kwargs: {{data_files: {{test: {samples}}}}}
test_split: test
output_type: generate_until
doc_to_visual: !function own.video
doc_to_text: "{{{{question}}}}"
doc_to_target: answer
process_results: !function own.judge
generation_kwargs: {{max_new_tokens: 8, do_sample: false, temperature: 0, top_p: 1.0, num_beams: 1}}
metric_list:
  - {{metric: right, aggregation: mean, higher_is_better: true}}
"""
CHOICE_TASK = """
task: miniature_choices
dataset_path: json
dataset_kwargs: {{data_files: {{test: {samples}}}}}
test_split: test
output_type: multiple_choice
doc_to_visual: !function own.video
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{{sounds}.index(answer) if answer in {sounds} else 0}}}}"
doc_to_choice: {sounds}
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
"""
OWN = """
import os
from pave.evaluation.metrics import exact_match
FOLDER = {folder!r}
def video(doc):
    return [os.path.join(FOLDER, doc["video"])]
def judge(doc, results):
    return {{"right": float(exact_match(results[0], doc["answer"]))}}
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Clips with sound, questions in a file of samples, a patch on the base inside the package, and the tasks of lmms-eval."""
    folder = tmp_path_factory.mktemp("lmms")
    rng, samples = np.random.default_rng(3), []
    for i in range(CLIPS):
        scene = draw_scene(5, "test", i)
        render_clip(folder / f"{i}.mp4", scene)
        for kind in ("sound", "colour"):
            asked = ask(scene, kind, rng)
            video = str(folder / f"{i}.mp4")
            samples.append(Sample(id=f"{kind}-{i}", video=video, question=asked.text, answer=asked.answer, type=kind))
    write_samples(folder / "samples.jsonl", samples)
    model, processor = load_base(base_path())
    attach_patch(model, hearing_config())
    save_patch(shake(model, scale=0.1), folder / "patch", processor=processor)
    tasks = folder / "tasks"
    tasks.mkdir()
    (tasks / "own.py").write_text(OWN.format(folder=str(folder)))
    (tasks / "sounds.yaml").write_text(TASK.format(samples=folder / "samples.jsonl"))
    (tasks / "choices.yaml").write_text(CHOICE_TASK.format(samples=folder / "samples.jsonl", sounds=list(SOUNDS)))
    return folder


@pytest.fixture(scope="module")
def patched(world):
    return PaveForLmmsEval(patch=str(world / "patch"), device="cpu", dtype="float32", batch_size=3)


def pave_eval(world, *options):
    """Answers and accuracy of ``pave eval``."""
    out = world / "runs" / str(len(options))
    arguments = [str(world / "samples.jsonl"), "--out", str(out), "--device", "cpu", "--dtype", "float32", *options]
    assert main(["eval", *arguments, "--max-new-tokens", "8"]) == 0
    scores = json.loads((out / "scores.json").read_text())
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    return {line["id"]: line["prediction"] for line in lines if "id" in line}, scores["overall"]["accuracy"]


def lmms_eval(world, tmp_path, task, *options):
    """lmms-eval's own command, which finds the model by its entry point: records of documents, and the numbers of the task."""
    command = [
        sys.executable,
        "-m",
        "lmms_eval",
        "eval",
        "--model",
        "pave",
        "--tasks",
        task,
        "--include_path",
        str(world / "tasks"),
    ]
    command += ["--batch_size", "3", "--device", "cpu", "--log_samples", "--output_path", str(tmp_path), *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    (numbers,) = tmp_path.rglob("*_results.json")
    (log,) = tmp_path.rglob(f"*_samples_{task}.jsonl")
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    return rows, json.loads(numbers.read_text())["results"][task]


def requests(model, docs, arguments, visual=lambda doc: [doc["video"]], task="mine", **generation):
    """Requests as lmms-eval's evaluator hands them over."""
    model.task_dict = {task: {"test": docs}}
    return [
        SimpleNamespace(args=(doc["question"], first, visual, i, task, "test"), task_name=task)
        for i, doc in enumerate(docs)
        for first in (arguments if arguments is not None else [generation])
    ]


@pytest.mark.slow
def test_the_command_of_lmms_eval_says_what_pave_eval_says(world, tmp_path):
    answers, accuracy = pave_eval(world, "--patch", str(world / "patch"))
    arguments = f"patch={world / 'patch'},dtype=float32"
    rows, numbers = lmms_eval(world, tmp_path, "miniature_sounds", "--model_args", arguments)
    ids = [sample.id for sample in read_samples(world / "samples.jsonl")]
    assert {ids[row["doc_id"]]: row["filtered_resps"] for row in rows} == answers
    assert numbers["right,none"] == pytest.approx(accuracy)
    base, _ = pave_eval(world)
    assert base != answers, "the patch says what the base says, so the comparison shows nothing"


def test_multiple_choice_takes_what_the_model_finds_likeliest(world, patched):
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(world / "tasks"), include_defaults=False)
    samples = read_samples(world / "samples.jsonl")
    found = simple_evaluate(model=patched, tasks=["miniature_choices"], task_manager=manager, log_samples=True)
    likeliest = []
    for sample in samples:
        weighed = patched.loglikelihood(requests(patched, [{"question": sample.question, "video": sample.video}], list(SOUNDS)))
        likeliest.append(SOUNDS[int(np.argmin([found.text[0] for found in weighed]))])
    golds = [s.answer if s.answer in SOUNDS else SOUNDS[0] for s in samples]
    assert found["results"]["miniature_choices"]["acc,none"] == pytest.approx(
        np.mean([a == b for a, b in zip(likeliest, golds)])
    )


def test_a_likelihood_is_the_loss_of_the_plain_model(world, patched):
    """Against logits over the whole prompt, token by token; and greedy decoding gives the answers that are called greedy."""
    qa = VideoQA.from_pretrained("playground", world / "patch", device="cpu", dtype="float32")
    collate = PatchCollator(qa.processor, qa.model.config, qa.channels, train=True)
    greedy = []
    for sample in read_samples(world / "samples.jsonl"):
        said = qa.ask(sample.video, sample.question, max_new_tokens=8).text
        ended = len(said.split()) < 8  # a word is a token: only then is the end of turn the model's own choice as well
        answers = [answer for answer in dict.fromkeys([said, *SOUNDS]) if answer]
        asked = requests(patched, [{"question": sample.question, "video": sample.video}], answers)
        for answer, found in zip(answers, patched.loglikelihood(asked), strict=True):
            (item,) = qa.items([replace(sample, answer=answer)])
            with torch.inference_mode():
                expected = float(qa.model(**collate([item])).loss)
            loss, is_greedy = found.text
            assert loss == pytest.approx(expected, rel=1e-5)
            assert is_greedy == (answer == said and ended)
            greedy.append(is_greedy)
    assert any(greedy), "greedy decoding ended nowhere, so half of this shows nothing"


def test_side_channels_come_from_a_file_by_video_or_by_id(world, tmp_path):
    question = read_samples(world / "samples.jsonl")[0].question
    own, other = str(world / "0.mp4"), str(world / "1.mp4")
    qa = VideoQA.from_pretrained("playground", world / "patch", device="cpu", dtype="float32")
    heard = {
        name: qa.ask(own, question, side_channels={"audio": path}, max_new_tokens=8).text
        for name, path in (("other", other), ("none", None))
    }
    write_samples(
        tmp_path / "sides.jsonl",
        [
            Sample(id="one", video=own, question="?", side_channels={"audio": other}),
            Sample(id="two", video=other, question="?", side_channels={"audio": None}),
        ],
    )
    common = {
        "patch": str(world / "patch"),
        "device": "cpu",
        "dtype": "float32",
        "side_channels": str(tmp_path / "sides.jsonl"),
    }
    by_video = PaveForLmmsEval(**common)
    asked: list = []
    real = by_video.qa.answer_samples
    by_video.qa.answer_samples = lambda samples, **more: (asked.extend(samples), real(samples, **more))[1]
    assert by_video.generate_until(requests(by_video, [{"question": question, "video": own}], None, max_new_tokens=8)) == [
        heard["other"]
    ]
    assert dict(asked[0].side_channels) == {"audio": other}
    by_id = PaveForLmmsEval(**common, key="clip")
    docs = [{"question": question, "video": own, "clip": "two"}]
    assert by_id.generate_until(requests(by_id, docs, None, max_new_tokens=8)) == [heard["none"]]
    with pytest.raises(ValueError, match="mine, document 0: .*sides.jsonl has no line whose video is .*2.mp4"):
        by_video.generate_until(requests(by_video, [{"question": question, "video": str(world / "2.mp4")}], None))
    with pytest.raises(ValueError, match="it has no field 'clip' .*its fields: question, video"):
        by_id.generate_until(requests(by_id, [{"question": question, "video": own}], None))


def test_one_file_of_side_channels_must_not_say_two_things_of_a_video(world, tmp_path):
    lines = [Sample(id=name, video="0.mp4", question="?", side_channels={"audio": f"{name}.wav"}) for name in "ab"]
    write_samples(tmp_path / "sides.jsonl", lines)
    with pytest.raises(ValueError, match="the lines about .*0.mp4 name different side channels; find them by id"):
        PaveForLmmsEval(side_channels=str(tmp_path / "sides.jsonl"))


def test_a_stop_cuts_the_answer(world, patched):
    doc = {"question": "what colour is the thing ?", "video": str(world / "0.mp4")}
    plain = patched.generate_until(requests(patched, [doc], None, max_new_tokens=8))[0]
    letter = plain[1]
    assert patched.generate_until(requests(patched, [doc], None, max_new_tokens=8, until=["\n\n", letter])) == [
        plain[:1].strip()
    ]


@pytest.mark.parametrize(
    "visual, message",
    [
        ([], "but the document has none"),
        (None, "but the document has none"),
        ([Image.new("RGB", (4, 4))], "but the document has an object of type Image"),
        (["a/picture.JPG"], "but the document has an image, a/picture.JPG"),
        (["a/voice.wav"], "but the document has a sound, a/voice.wav"),
        (["a.mp4", "b.mp4"], "but the document has 2"),
        (
            [{"url": "a.mp4", "video_start": 1.0}],
            r"but the document names a part of one \(url, video_start\); cut the video first",
        ),
    ],
)
def test_documents_without_one_video_are_refused_before_any_work(patched, visual, message):
    asked = requests(patched, [{"question": "what ?"}], None, visual=lambda doc: visual)
    with pytest.raises(ValueError, match=f"^mine, document 0: the model pave answers about one video file, {message}$"):
        patched.generate_until(asked)


def test_a_video_that_cannot_be_read_stops_the_run_or_is_said(world, tmp_path, caplog):
    (tmp_path / "broken.mp4").write_bytes((world / "0.mp4").read_bytes()[:500])
    docs = [
        {"question": "what ?", "video": str(tmp_path / "broken.mp4")},
        {"question": "what ?", "video": str(world / "0.mp4")},
    ]
    stops = PaveForLmmsEval(device="cpu", batch_size=2)
    with pytest.raises(ValueError, match="broken.mp4"):
        stops.generate_until(requests(stops, docs, None))
    goes_on = PaveForLmmsEval(device="cpu", batch_size=2, on_error="empty")
    first, second = goes_on.generate_until(requests(goes_on, docs, None))
    assert first == "" and second == stops.generate_until(requests(stops, docs[1:], None))[0] != ""
    assert "answered with no text" in caplog.text and "broken.mp4" in caplog.text


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"pretrained": "x"}, "has no argument 'pretrained'; it has base, patch"),
        ({"batch_size": "auto"}, "--batch_size: the model pave needs a whole number of at least 1, got 'auto'"),
        ({"on_error": "skip"}, "on_error must be stop or empty, got 'skip'"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        PaveForLmmsEval(**arguments)


def test_several_processes_and_rounds_are_refused(monkeypatch, patched):
    with pytest.raises(ValueError, match="mine: the model pave answers tasks of one round"):
        patched.generate_until_multi_round(requests(patched, [{"question": "?"}], None))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="runs in one process"):
        PaveForLmmsEval()


def test_lmms_eval_finds_the_model_by_its_entry_point():
    from lmms_eval.models import get_model

    assert get_model("pave") is PaveForLmmsEval
    assert lmms_eval_manifest().simple_class_path.rsplit(".", 1)[1] == PaveForLmmsEval.__name__
