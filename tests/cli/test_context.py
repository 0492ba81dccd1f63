"""A prompt longer than the base's context is one sentence with both numbers, wherever it comes up."""

from __future__ import annotations

import json
import re

import pytest
import yaml

from pave import attach_patch, save_patch
from pave.cli import main
from pave.config import PatchConfig
from pave.data.samples import Sample, write_samples
from pave.video_llms.context import context_length, over_limit
from tiny_models import tiny_llava_onevision
from tiny_runs import hearing_config, write_clip

CONTEXT = 60
LONG = r"the prompt has (\d+) tokens, the base's context is 60"
QUESTION = "what sound is heard?"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Four frames fit, sixteen do not: 65 tokens of video."""
    folder = tmp_path_factory.mktemp("short")
    model, processor = tiny_llava_onevision(max_position_embeddings=CONTEXT)
    model.save_pretrained(folder / "base"), processor.save_pretrained(folder / "base")
    attach_patch(model, hearing_config())
    save_patch(model, folder / "patch", processor=processor)
    write_clip(folder / "0.mp4", 0)
    write_samples(folder / "one.jsonl", [Sample(id="a", video=str(folder / "0.mp4"), question=QUESTION, answer="bell")])
    recipe = {
        "base": {"model": "base"},
        "patch": hearing_config().to_dict(),
        "data": {"train": "one.jsonl", "frames": {"num_frames": 4}},
        "training": {"steps": 1, "batch_size": 1},
        "output": str(folder / "run"),
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(recipe))))
    return folder


def tokens(capsys):
    """The number in what is said on either stream; an evaluation in which nothing can be answered says it twice."""
    streams = capsys.readouterr()
    said = re.findall(LONG, streams.out + streams.err)
    assert len(said) in (1, 2) and len(set(said)) == 1, streams
    return int(said[0])


def test_ask_eval_train_and_doctor_say_one_number_and_the_dry_run_says_it_before(world, capsys):
    model = ["--base", str(world / "base"), "--patch", str(world / "patch")]
    recipe = [str(world / "recipe.yaml"), "data.frames.num_frames=16"]
    found = []
    for code, arguments in (
        (2, ["ask", str(world / "0.mp4"), QUESTION, *model, "--frames", "16"]),
        (1, ["eval", str(world / "one.jsonl"), *model, "--frames", "16"]),
        (2, ["train", *recipe]),
        (1, ["doctor", recipe[0].replace("recipe", "long")]),
        (1, ["train", *recipe, "--dry-run"]),
    ):
        (world / "long.yaml").write_text("extends: recipe.yaml\ndata: {frames: {num_frames: 16}}\n")
        assert main(arguments) == code, arguments
        found.append(tokens(capsys))
    asked, evaluated, trained, examined, estimated = found
    assert CONTEXT < asked == evaluated < trained == examined  # with the answer
    assert estimated > CONTEXT
    assert not (world / "run" / "patch").exists()


def test_a_prompt_that_fits_is_nothing_to_talk_about(world, capsys):
    model = ["--base", str(world / "base"), "--patch", str(world / "patch")]
    assert main(["ask", str(world / "0.mp4"), QUESTION, *model, "--frames", "4", "--max-new-tokens", "2"]) == 0
    assert main(["train", str(world / "recipe.yaml"), "--dry-run"]) == 0
    streams = capsys.readouterr()
    assert "context" not in streams.out + streams.err


def test_the_tokens_that_a_patch_puts_in_count_too(world):
    """The prompt of 4 frames fits; the newlines behind every row of the picture, seven more, do not."""
    model, processor = tiny_llava_onevision(max_position_embeddings=CONTEXT)
    from pave.data.collator import PatchCollator
    from pave.data.dataset import PatchDataset
    from pave.data.media import FrameSampling
    from pave.data.samples import read_samples

    samples = read_samples(world / "one.jsonl")
    batch = PatchCollator(processor, model.config, {})(PatchDataset(samples, FrameSampling(num_frames=4), {}, {}).read(samples))
    length = int(batch["attention_mask"].sum())
    model.config.text_config.max_position_embeddings = length
    PatchCollator(processor, model.config, {})
    attach_patch(model, PatchConfig(side_channels={}, newline="grid"))
    with pytest.raises(
        ValueError, match=rf"the prompt has {length + 7} tokens, the base's context is {length}, with the tokens that"
    ):
        model(**batch)


def test_stretched_positions_are_the_context_of_a_base():
    config = tiny_llava_onevision()[0].config
    assert context_length(config) == 2048
    config.text_config.rope_parameters = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}
    assert context_length(config) == 4096
    assert over_limit(4096, config) is None
    assert over_limit(4097, config, 100) == "the prompt has 4097 tokens, max_length is 100 and the base's context is 4096"
