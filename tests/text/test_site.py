"""The documentation site: links stay inside it, every page is in its menu, its examples run, and (where mkdocs is installed) it builds."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pave.cli import main

ROOT = Path(__file__).parents[2]


def load_script(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


hooks = load_script(ROOT / "docs" / "site_hooks.py")
API = sorted((ROOT / "docs" / "api").glob("*.md"))
RUN = [*API, ROOT / "docs" / "your_own_benchmark.md"]


def test_links_out_of_docs_lead_to_pages_of_the_site():
    text = "[a](../recipes) [b](training.md#samples) [c](#here) [d](https://x.org) [e](../gone.md) ![f](figures/patch.svg)"
    expected = (
        "[a](source/recipes.md) [b](training.md#samples) [c](#here) [d](https://x.org) [e](../gone.md) ![f](figures/patch.svg)"
    )
    assert hooks.rewritten("docs/index.md", text) == expected
    assert hooks.rewritten("docs/api/index.md", "[x](../../README.md#a) [y](../training.md)") == (
        "[x](../source/README.md#a) [y](../training.md)"
    )
    assert (
        hooks.rewritten("CONTRIBUTING.md", "[x](docs/training.md) [y](tests/text)") == "[x](../training.md) [y](tests/text.md)"
    )


def test_blocks_of_code_are_left_alone():
    text = "```md\n[a](../recipes)\n```\n[a](../recipes)\n"
    assert hooks.rewritten("docs/index.md", text) == "```md\n[a](../recipes)\n```\n[a](source/recipes.md)\n"


def test_every_file_that_is_linked_gets_a_page():
    pages = hooks.source_pages([f"docs/{path.relative_to(ROOT / 'docs')}" for path in (ROOT / "docs").rglob("*.md")])
    assert {"recipes", "recipes/music_avqa_paper.yaml", "CONTRIBUTING.md", "tests/training/test_kills.py"} <= set(pages)
    assert (
        pages["recipes"].startswith("# recipes\n\n- [")
        and "[music_avqa_paper.yaml](recipes/music_avqa_paper.yaml)" in pages["recipes"]
    )
    assert pages["recipes/music_avqa_paper.yaml"].startswith("# recipes/music_avqa_paper.yaml\n\n```yaml\n# Music-AVQA")
    assert not any(page.startswith("docs/") for page in pages)


class _Config:
    nav = [{"Start": "index.md"}, {"Guide": [{"Training": "training.md"}, "doctor.md"]}]


def test_pages_that_the_menu_forgets_come_last_in_it():
    rest = hooks.on_config(_Config()).nav[-1]["More"]
    assert "concepts.md" in rest and "api/patching.md" in rest and not {"index.md", "training.md", "doctor.md"} & set(rest)


def test_the_menu_names_pages_that_are_there():
    named = re.findall(r"^\s+- (?:[^:\n]+: )?([\w/]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert len(named) > 30 and len(named) == len(set(named))
    assert [page for page in named if not (ROOT / "docs" / page).is_file()] == []


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    folder = tmp_path_factory.mktemp("started")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["init", "my-patch"]) == 0
    return folder


@pytest.mark.parametrize("path", RUN, ids=lambda path: path.stem)
def test_python_of_these_pages_runs_and_shows_something(path, started, monkeypatch, capsys):
    from pave.evaluation.benchmarks import BENCHMARKS

    monkeypatch.chdir(started)
    monkeypatch.delitem(BENCHMARKS, "kitchen", raising=False)
    found = blocks(path, "python")
    assert found
    names: dict = {"__name__": "__main__"}
    try:
        for block in found:
            exec(compile(block, str(path), "exec"), names)
    finally:
        BENCHMARKS.pop("kitchen", None)
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("path", API, ids=lambda path: path.stem)
def test_the_api_names_what_exists(path):
    import importlib

    for module, listed in re.findall(r"^::: ([\w.]+)\n((?:    .*\n)*)", path.read_text(), re.MULTILINE):
        try:
            home = importlib.import_module(module)
        except ModuleNotFoundError:  # a class
            parent, _, name = module.rpartition(".")
            home = getattr(importlib.import_module(parent), name)
        members = re.findall(r"^\s+- (\w+)$", listed, re.MULTILINE) + re.findall(
            r"\w+", "".join(re.findall(r"members: \[(.*)\]", listed))
        )
        assert [name for name in members if not hasattr(home, name)] == []


def test_every_page_begins_with_what_it_lets_one_do():
    """Behind the title stands a sentence, and what can be run or read in a table, a picture or a block comes soon."""
    for path in sorted((ROOT / "docs").glob("*.md")):
        title, _, rest = path.read_text(encoding="utf-8").partition("\n\n")
        assert re.fullmatch(r"# .+", title), path.name
        first = rest.partition("\n\n")[0]
        assert re.match(r"[A-Z`*\[]", first), f"{path.name} begins with {first[:40]!r}"


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("mkdocs", "material", "mkdocstrings_handlers")),
    reason="the extra docs is not installed",
)
def test_the_site_builds_without_a_warning(tmp_path):
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "attach_patch" in (tmp_path / "site" / "api" / "patching" / "index.html").read_text(encoding="utf-8")
    assert "pave selfcheck" in (tmp_path / "site" / "search" / "search_index.json").read_text(encoding="utf-8")
