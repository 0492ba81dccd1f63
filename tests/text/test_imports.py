"""What `import pave` promises: the public names are there, and nothing heavy is loaded before it is used."""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

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


def imports_of_files(root: Path, package: str) -> dict[str, set[str]]:
    """The files of a package that each file imports, wherever in it the import stands; a package's own file has the package's name."""
    files = {
        path.relative_to(root).with_suffix("").as_posix().replace("/", "."): path for path in (root / package).rglob("*.py")
    }
    files = {name.removesuffix(".__init__"): path for name, path in files.items()}
    graph: dict[str, set[str]] = {}
    for name, path in files.items():
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        named = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
        for node in (node for node in nodes if isinstance(node, ast.ImportFrom)):
            assert node.level == 0, f"{path}: imports are absolute"
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            named += [module if module in files else str(node.module) for module in inner]
        graph[name] = {module for module in named if module in files and module != name}
    return graph


ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("root", "package"), [(ROOT / "src", "pave"), (ROOT, "evidence")])
def test_no_files_import_each_other_in_a_circle(root, package):
    graph = imports_of_files(root, package)
    assert len(graph) > 10
    order = list(TopologicalSorter(graph).static_order())
    assert len(order) == len(graph)


def test_a_circle_is_seen_also_through_a_function_or_a_package(tmp_path):
    package = tmp_path / "p"
    package.mkdir()
    (package / "__init__.py").write_text("from p.a import f\n")
    (package / "a.py").write_text("import json\n\ndef f():\n    from p import b\n")
    (package / "b.py").write_text("")
    assert list(TopologicalSorter(imports_of_files(tmp_path, "p")).static_order()) == ["p.b", "p.a", "p"]
    (package / "b.py").write_text("def g():\n    from p import f\n")
    with pytest.raises(CycleError):
        TopologicalSorter(imports_of_files(tmp_path, "p")).prepare()


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
