"""``pave import-base``, ``pave import`` and ``pave export``, and what can be done with what they write."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pave.cli import main
from pave.data.media import FrameSampling
from pave.data.samples import Sample
from pave.evaluation.inference import VideoQA
from tiny_runs import write_clip

GOLDEN = Path(__file__).parents[1] / "golden" / "whole_model_A"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("import") / "base"
    assert main(["import-base", str(GOLDEN / "base"), "--out", str(folder), "--vision-heads", "4"]) == 0
    return folder


@pytest.fixture(scope="module")
def patch(base):
    folder = base.parent / "patch"
    assert main(["import", str(GOLDEN / "patch"), "--out", str(folder), "--base", str(base)]) == 0
    return folder


def test_import_says_what_it_assumed_and_left_out(base, tmp_path, capsys):
    arguments = ["import", str(GOLDEN / "patch"), "--out", str(tmp_path / "patch"), "--base", str(base)]
    assert main([*arguments, "--json", "--heads", "2", "--no-rope", "--newline", "base", "--channel", "audio"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["patch"]["newline"] == "base"
    assert data["patch"]["side_channels"]["audio"]["fusion"]["num_heads"] == 2
    assert not any("num_cross_attn_head" in sentence or "rope" in sentence for sentence in data["assumed"])
    assert len(data["dropped"]) == 4
    assert main([*arguments, "--arguments", str(GOLDEN / "aggregator_config.json")]) == 0
    out, err = capsys.readouterr()
    assert "left out 4 tensors" in out and "v_linear" in out
    assert "the rate of the side features is not given" in err


def test_wrong_input_is_2(base, tmp_path, capsys):
    out = str(tmp_path / "out")
    assert main(["import", str(GOLDEN / "patch"), "--out", out, "--base", str(base), "--newline", "rows"]) == 2
    assert "--newline must be grid or base, got 'rows'" in capsys.readouterr().err
    assert main(["import", str(tmp_path / "nothing"), "--out", out, "--base", str(base)]) == 2
    assert "there is no such folder" in capsys.readouterr().err
    assert main(["import", str(GOLDEN / "patch"), "--out", out, "--base", str(GOLDEN / "base")]) == 2
    assert "pave import-base" in capsys.readouterr().err
    assert main(["import-base", str(GOLDEN / "base"), "--out", out]) == 2
    assert "give num_attention_heads" in capsys.readouterr().err
    assert main(["export", str(tmp_path), "--out", out]) == 2
    assert "is no patch" in capsys.readouterr().err


def test_show_and_export(patch, tmp_path, capsys):
    assert main(["show", str(patch)]) == 0
    shown = capsys.readouterr().out
    assert "newline grid" in shown and "vocabulary 259" in shown
    assert f"{32 * 14 * 15 + 64} tokens in the language model" in shown
    assert main(["export", str(patch), "--out", str(tmp_path / "out")]) == 0
    assert "image_newline" in capsys.readouterr().out
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()


def test_questions_about_files_with_stored_features(base, patch, tmp_path):
    """Nothing is asked of the user: the processor counts one newline, the patched model lays the prompt out anew."""
    clips = [write_clip(tmp_path / f"{n}.mp4", n) for n in range(2)]
    for n in range(2):
        torch.save(
            torch.from_numpy(np.random.default_rng(n).standard_normal((5 + n, 24), dtype=np.float32)), tmp_path / f"{n}.pt"
        )
    qa = VideoQA.from_pretrained(base, patch, device="cpu", sampling=FrameSampling(num_frames=3))
    samples = [
        Sample(id=str(n), video=str(clip), question="What is heard?", side_channels={"side": str(tmp_path / f"{n}.pt")})
        for n, clip in enumerate(clips)
    ]
    seen = []
    handle = qa.model.model.language_model.register_forward_pre_hook(
        lambda _, __, kwargs: seen.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    answers = qa.answer_samples(samples, max_new_tokens=4)
    alone = qa.answer_samples(samples, patch=False, max_new_tokens=4)
    handle.remove()
    assert [answer.side_channels["side"].steps for answer in answers] == [5, 6]
    prefills = [length for length in seen if length > 1]
    assert prefills[0] - prefills[1] == 3 * 14 * 15 - (3 * 14 * 14 + 1)
    assert [a.text for a in answers] != [a.text for a in alone]
