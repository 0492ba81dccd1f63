"""``pave compress`` from files to a smaller patch with its quality, and ``pave show`` on what it wrote."""

from __future__ import annotations

import json

import pytest
from safetensors.torch import load_file

from pave.cli import main
from pave.cli.compress import parse_ranks
from pave.data.samples import Sample, write_samples
from pave.evaluation.inference import VideoQA
from pave.evaluation.result import compare_results
from pave.evaluation.runner import evaluate
from pave.patching import read_record
from pave.patching.storage import tensor_bytes
from tiny_runs import save_base_and_patch, write_clip


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """(base, patch, samples), half of the truths being what the patch itself says."""
    folder = tmp_path_factory.mktemp("compress")
    base, patch = save_base_and_patch(folder, {"seed": 5, "recipe": {"data": {"frames": {"num_frames": 4}}}})
    qa = VideoQA.from_pretrained(base, patch)
    samples = []
    for seed in range(4):
        clip = write_clip(folder / f"{seed}.mp4", seed)
        said = qa.ask(clip, "what sound?", max_new_tokens=4).text
        samples.append(Sample(id=str(seed), video=clip.name, question="what sound?", answer=said if seed % 2 else "nothing"))
    write_samples(folder / "test.jsonl", samples)
    return base, patch, folder / "test.jsonl"


def run(capsys, *arguments):
    code = main([*map(str, arguments), "--json"])
    return code, json.loads(capsys.readouterr().out)


def sizes(folder):
    return {
        part: tensor_bytes(load_file(folder / name))
        for part, name in (("fusion", "patch.safetensors"), ("lora", "lora/adapter_model.safetensors"))
    }


def test_a_smaller_patch_with_its_quality(files, tmp_path, capsys):
    base, patch, samples = files
    options = ["--lora-rank", 1, "--fusion", "4bit"]
    scored = ["--samples", samples, "--base", base, "--max-new-tokens", 4]
    code, data = run(capsys, "compress", patch, "--out", tmp_path / "small", *options, *scored)
    assert code == 0
    for when, folder in (("before", patch), ("after", tmp_path / "small")):
        found = sizes(folder)
        assert data[f"bytes_{when}"] == {**found, "patch": sum(found.values())}
    assert data["lora_ranks"] == {"q_proj": [2, 1], "v_proj": [2, 1]}
    assert data["bytes_on_disk"] == sum(p.stat().st_size for p in (tmp_path / "small").rglob("*") if p.is_file())
    from pave.data.samples import read_samples

    before, after = (
        evaluate(VideoQA.from_pretrained(base, folder), read_samples(samples), max_new_tokens=4, progress=False)
        for folder in (patch, tmp_path / "small")
    )
    assert before.overall.accuracy == 0.5
    pair = compare_results(before, after)["all"]
    measured = data["measured"]
    assert measured["before"] == before.overall.to_dict() and measured["after"] == after.overall.to_dict()
    assert measured["differences"]["all"]["difference"] == pair.difference
    assert measured["sentence"].startswith("accuracy on 4 samples: 50.0 % [")
    record = read_record(tmp_path / "small")
    assert record.provenance["compressed"]["measured"] == measured and record.provenance["seed"] == 5
    assert measured["sentence"] in (tmp_path / "small" / "README.md").read_text()

    code, shown = run(capsys, "show", tmp_path / "small", "--base", base)
    assert code == 0
    assert (shown["cost"]["fusion_bytes"], shown["cost"]["lora_bytes"]) == tuple(sizes(tmp_path / "small").values())
    code, foreseen = run(capsys, "show", patch, "--base", base, *options)
    assert code == 0 and foreseen["cost"] == shown["cost"] and foreseen["patch"] == shown["patch"]
    assert main(["show", str(tmp_path / "small"), "--base", str(base)]) == 0
    assert "the matrices of the fusion are stored in 4bit" in capsys.readouterr().out


def test_without_out_it_says_what_it_would_reach_and_writes_nothing(files, tmp_path, capsys, monkeypatch):
    _, patch, _ = files
    monkeypatch.chdir(tmp_path)
    assert main(["compress", str(patch), "--lora-energy", "0.6", "--fusion", "8bit"]) == 0
    out, err = capsys.readouterr()
    assert list(tmp_path.iterdir()) == []
    code, data = run(capsys, "compress", patch, "--lora-energy", "0.6", "--fusion", "8bit")
    assert code == 0 and data["out"] is None
    reached = data["bytes_after"]["patch"]
    assert f"{reached / 1e6:.2f} MB" in out and f"the patch will take {reached / 1e6:.2f} MB of tensors" in err
    assert "audio.query_embed.weight, 8bit" in out and len(data["errors"]) >= 10


def test_what_is_refused_before_any_work(files, tmp_path, capsys):
    base, patch, samples = files
    for arguments, message in (
        ([patch], "say what to compress"),
        ([patch, "--fusion", "2bit"], "--fusion is 8bit or 4bit, got '2bit'"),
        ([patch, "--lora-rank", "few"], "--lora-rank is a number, or kinds of layers with their ranks"),
        ([patch, "--lora-rank", "1", "--base", base], "--base answers --samples"),
        ([patch, "--lora-rank", "1", "--out", patch], "are one folder or inside each other"),
        ([patch, "--lora-rank", "1", "--samples", tmp_path / "none.jsonl"], "none.jsonl"),
        ([tmp_path, "--lora-rank", "1"], "is no patch: it has no patch_config.json"),
    ):
        assert main(["compress", *map(str, arguments)]) == 2
        out, err = capsys.readouterr()
        assert out == "" and message in err and err.count("\n") == 1


def test_ranks_on_the_command_line():
    assert parse_ranks("8") == 8
    assert parse_ranks("q_proj=8, down_proj=4") == {"q_proj": 8, "down_proj": 4}
    for text in ("", "8,4", "q_proj", "=3", "q_proj=", "q_proj=2,q_proj=3", "q_proj=-1", "q_proj=1.5", "q_proj=8,3"):
        with pytest.raises(ValueError, match="--lora-rank is a number, or kinds"):
            parse_ranks(text)


def test_show_refuses_what_compress_would(files, capsys):
    base, patch, _ = files
    for arguments, message in (
        (["--lora-rank", "9"], "--lora-rank: no LoRA update has a higher rank than asked for"),
        (["--fusion", "plain"], "--fusion is 8bit or 4bit, got 'plain'"),
    ):
        assert main(["show", str(patch), "--base", str(base), *arguments]) == 2
        assert message in capsys.readouterr().err


def test_the_published_preset_on_7b_in_20_megabytes(capsys):
    code, shown = run(capsys, "show", "--preset", "paper", "--lora-rank", 3, "--fusion", "4bit")
    assert code == 0 and shown["base"] == "llava-onevision-qwen2-7b"
    assert shown["cost"]["patch_bytes"] == 19_664_064
