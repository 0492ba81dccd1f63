"""The Makefile of the chain and the script for Slurm: what they would run is right, and the shell around it does what it says."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pave.training.recipe import read_recipe

ROOT = Path(__file__).parents[2]
SBATCH = ROOT / "recipes" / "slurm" / "train.sbatch"
TASKS = [path for path in sorted(ROOT.glob("recipes/*.yaml")) if path.stem.endswith(("_compact", "_paper"))]


def make(*words, cwd=ROOT):
    return subprocess.run(
        ["make", "-f", str(ROOT / "recipes" / "chain.mk"), f"PYTHON={sys.executable}", *words],
        cwd=cwd, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )  # fmt: skip


@pytest.fixture
def make_is_there():
    if shutil.which("make") is None:
        pytest.skip("make is not installed")


def test_the_chain_of_a_recipe(make_is_there):
    done = make("-n", "RECIPE=recipes/avqa_compact.yaml", "TEST=t.jsonl", "SET=training.seed=1", "LAUNCH=torchrun -m pave.cli")
    assert done.stdout.splitlines() == [
        "true",
        "torchrun -m pave.cli train recipes/avqa_compact.yaml training.seed=1 ",
        "pave eval t.jsonl --base llava-hf/llava-onevision-qwen2-7b-ov-hf --patch runs/avqa_compact/patch --out runs/avqa_compact/test ",
        "pave score runs/avqa_compact/test/predictions.jsonl",
        "pave report runs/avqa_compact/test --out runs/avqa_compact/report.html",
    ], done.stderr


def test_the_chain_extracts_where_there_is_a_store_and_goes_on_where_it_stopped(make_is_there, tmp_path):
    (tmp_path / "r.yaml").write_text("base: {model: b}\ndata: {store: features}\noutput: out\n")
    (tmp_path / "out" / "checkpoint-5").mkdir(parents=True)
    done = make("-n", "RECIPE=r.yaml", "TEST=t.jsonl", cwd=tmp_path)
    assert done.stdout.splitlines()[:2] == ["pave extract r.yaml --store features", "pave train r.yaml  --resume"]
    (tmp_path / "out" / "patch").mkdir()
    (tmp_path / "out" / "patch" / "patch_config.json").write_text("{}")
    assert "pave train" not in make("-n", "RECIPE=r.yaml", "TEST=t.jsonl", cwd=tmp_path).stdout
    assert "give RECIPE=" in make("-n", "TEST=t.jsonl", cwd=tmp_path).stderr


def test_the_store_that_is_filled_is_the_one_that_is_read(make_is_there, tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "r.yaml").write_text("base: {model: b}\ndata: {store: features}\noutput: out\n")
    for change, store in (
        ("base.model=small", "sub/features"),
        ("patch.lora.rank=4", "sub/features"),
        ("data.store=other", "sub/other"),
        ("data.store=/fast/f", "/fast/f"),
    ):
        done = make("-n", "RECIPE=sub/r.yaml", "TEST=t.jsonl", f"SET={change}", cwd=tmp_path)
        assert done.stdout.splitlines()[0] == f"pave extract sub/r.yaml --store {store}", done.stderr
    assert make("-n", "RECIPE=sub/r.yaml", "TEST=t.jsonl", "SET=data.store=null", cwd=tmp_path).stdout.startswith("true\n")
    (tmp_path / "v.yaml").write_text("base: {model: b}\ndata: {store: features, vision: store}\noutput: out\n")
    for recipe, change in (
        ("sub/r.yaml", "patch.side_channels.audio.encoder.name=clap"),
        ("sub/r.yaml", "data.train=more.jsonl"),
        ("v.yaml", "base.model=small"),
    ):
        done = make("-n", f"RECIPE={recipe}", "TEST=t.jsonl", f"SET={change}", cwd=tmp_path)
        assert done.returncode != 0 and f"SET changes what is extracted ({change})" in done.stderr


@pytest.mark.parametrize("path", TASKS, ids=lambda path: path.stem)
def test_headers_show_the_chain_with_the_recipes_own_names(path):
    recipe, text = read_recipe(path), path.read_text(encoding="utf-8")
    assert f"#   make -f recipes/chain.mk RECIPE=recipes/{path.name} TEST=data/" in text
    assert f"--base {recipe.base.model} --patch {recipe.output}/patch --out {recipe.output}/test\n" in text
    assert f"#   pave score {recipe.output}/test/predictions.jsonl\n" in text


# --- Slurm, with its commands imitated


@pytest.fixture
def cluster(tmp_path):
    """A folder to submit from, with a recipe, and with commands of Slurm that note how they are called."""
    commands = tmp_path / "bin"
    commands.mkdir()
    _program(commands / "scontrol", f'echo "$@" >> {tmp_path}/scontrol.log; [ "$1" = show ] && echo node7; exit 0')
    _program(commands / "srun", f'echo "$@" > {tmp_path}/srun.log; sleep "${{SRUN_SLEEPS:-0}}"')
    (tmp_path / "r.yaml").write_text("output: out\n")
    (tmp_path / "scripts").symlink_to(ROOT / "scripts")
    return tmp_path


def _program(path, text):
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def submit(cluster, *words, **more):
    environment = {
        **os.environ, "PATH": f"{cluster / 'bin'}:{os.environ['PATH']}", "PYTHON": sys.executable, "PYTHONPATH": str(ROOT / "src"),
        "SLURM_JOB_ID": "42", "SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "node[7-8]", "SLURM_GPUS_ON_NODE": "4", **more,
    }  # fmt: skip
    return subprocess.Popen(["bash", str(SBATCH), *words], cwd=cluster, env=environment, stderr=subprocess.PIPE, text=True)


def test_the_script_starts_torchrun_on_every_node(cluster):
    job = submit(cluster, "r.yaml", "training.save_every=5")
    assert job.wait() == 0, job.stderr.read()
    words = (cluster / "srun.log").read_text()
    assert "--nnodes 2 --nproc-per-node 4 --rdzv-id 42-0 --rdzv-backend c10d --rdzv-endpoint node7:29500" in words
    assert words.endswith("-m pave.cli train r.yaml training.save_every=5\n")


def test_a_job_that_was_queued_again_resumes(cluster):
    (cluster / "elsewhere" / "checkpoint-5").mkdir(parents=True)
    job = submit(cluster, "r.yaml", "output=elsewhere", SLURM_RESTART_COUNT="1")
    assert job.wait() == 0, job.stderr.read()
    words = (cluster / "srun.log").read_text()
    assert "--rdzv-id 42-1" in words and words.endswith("train r.yaml output=elsewhere --resume\n")


def test_a_job_whose_time_is_nearly_up_queues_itself_again(cluster):
    job = submit(cluster, "r.yaml", SRUN_SLEEPS="30")
    until = time.monotonic() + 20
    while not (cluster / "srun.log").exists() and time.monotonic() < until:
        time.sleep(0.05)
    job.send_signal(signal.SIGUSR1)
    assert job.wait() > 128  # what ends a job that was interrupted
    assert (cluster / "scontrol.log").read_text().splitlines()[-1] == "requeue 42"


def test_without_a_recipe_it_says_how_it_is_called(cluster):
    job = submit(cluster)
    assert job.wait() != 0 and "usage: sbatch recipes/slurm/train.sbatch RECIPE" in job.stderr.read()
