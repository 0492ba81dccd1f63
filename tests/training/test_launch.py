"""The configs of accelerate in recipes/, by accelerate's own loader, and what they say beside the recipes."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_multi_gpu_env

from pave.training.recipe import read_recipe

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "recipes" / "accelerate").glob("*.yaml"))


def launch_line(path: Path) -> list[str]:
    (line,) = re.findall(r"^#\s+accelerate launch (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return line.split()


def arguments(path: Path) -> argparse.Namespace:
    return launch_command_parser().parse_args(launch_line(path))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_accelerate_reads_the_config(path):
    config = load_config_from_file(str(path))  # unknown keys are refused there
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert config.distributed_type.value == values["distributed_type"] and config.mixed_precision == "bf16"
    assert (config.num_machines, config.num_processes) == (values["num_machines"], values["num_processes"])


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_its_launch_line_names_the_config_a_recipe_and_keeps_32_samples_a_step(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    found = arguments(path)
    assert found.config_file == f"recipes/accelerate/{path.name}" and found.module and found.training_script == "pave.cli"
    verb, recipe, *overrides = found.training_script_args
    assert verb == "train"
    training = read_recipe(recipe, overrides).training
    processes = load_config_from_file(str(path)).num_processes
    assert training.batch_size * training.accumulation * processes == 32


def test_the_environment_that_fsdp2_is_launched_with_makes_the_plugin_of_the_recipe(monkeypatch):
    """accelerate's own way from the file to its plugin; the recipe laid over says the same to the Trainer."""
    path = ROOT / "recipes" / "accelerate" / "fsdp2.yaml"
    monkeypatch.chdir(ROOT)
    found, _, _ = _validate_launch_command(arguments(path))
    assert found.use_fsdp and found.num_processes == 4
    for name, value in prepare_multi_gpu_env(found).items():
        if name.startswith(("FSDP_", "ACCELERATE_")):
            monkeypatch.setenv(name, value)
    plugin = FullyShardedDataParallelPlugin()
    recipe = read_recipe("recipes/avsd_paper.yaml", ["recipes/common/fsdp2.yaml"]).training.trainer
    assert recipe["fsdp"] is True and plugin.fsdp_version == recipe["fsdp_config"]["version"] == 2
    assert list(plugin.transformer_cls_names_to_wrap) == recipe["fsdp_config"]["transformer_layer_cls_to_wrap"]
    assert plugin.reshard_after_forward is True and not plugin.cpu_ram_efficient_loading


def test_deepspeeds_accumulation_is_that_of_its_launch_line():
    path = ROOT / "recipes" / "accelerate" / "deepspeed_zero2.yaml"
    config = load_config_from_file(str(path)).deepspeed_config
    assert config["zero_stage"] == 2
    assert f"training.accumulation={config['gradient_accumulation_steps']}" in launch_line(path)
