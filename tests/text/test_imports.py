"""What `import pave` promises: the public names are there, and nothing heavy is loaded before it is used."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys

import pytest

import pave

HEAVY = {
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "av",
    "numpy",
    "safetensors",
    "huggingface_hub",
    "typer",
    "pydantic",
    "yaml",
}


def loaded_after(code: str) -> set[str]:
    """The heavy packages that a fresh process has loaded after ``code``."""
    report = f"import json, sys; print(json.dumps(sorted({HEAVY!r} & set(sys.modules))))"
    done = subprocess.run([sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_import_pave_loads_nothing_heavy():
    assert loaded_after("import pave; pave.__version__; dir(pave)") == set()


def test_the_check_itself_sees_what_is_loaded():
    assert "pydantic" in loaded_after("from pave import PatchConfig")
    assert "torch" in loaded_after("from pave import SideTokens")


def test_configs_load_without_torch():
    assert not loaded_after("from pave import PatchConfig; PatchConfig.compact(audio=64)") & {"torch", "transformers", "av"}


@pytest.mark.parametrize("name", pave.__all__)
def test_public_names_are_there(name):
    assert getattr(pave, name) is not None
    assert name in dir(pave)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'attach_patches'"):
        pave.attach_patches  # noqa: B018


PACKAGES = (
    "data.media",
    "data.store",
    "demo",
    "evaluation.benchmarks",
    "evaluation.metrics",
    "fusion",
    "patching",
    "side_channels",
    "video_llms",
)


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_hold_what_they_announce(package):
    module = importlib.import_module(f"pave.{package}")
    missing = [name for name in module.__all__ if not hasattr(module, name)]
    assert module.__all__ and missing == []
