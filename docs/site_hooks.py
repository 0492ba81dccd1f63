"""What the documentation site needs beside the pages of docs/: it is whole in itself, wherever it is served from.

A page may link to any file of the repository (a recipe, a test, CONTRIBUTING.md), as it does where Markdown is read as it is. The site
gets a page for each file that is linked, under ``source/``, and links lead there. Pages that ``mkdocs.yml`` does not place in the menu
come last in it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SOURCE = "source"
LINK = re.compile(r"(\]\()([^)\s]+)(\))")
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LANGUAGES = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".json": "json", ".sh": "sh", ".toml": "toml"}
MENU_OF_THE_REST = "More"


# --- where a file of the repository stands in the site


def place(file: str) -> str:
    """The site's page (or asset) for a file or folder of the repository, both with ``/`` between their parts."""
    if file.startswith("docs/"):
        return file.removeprefix("docs/")
    return f"{SOURCE}/{file}" if file.endswith(".md") else f"{SOURCE}/{file or 'repository'}.md"


def target_of(link: str, page: str) -> tuple[str, str] | None:
    """The file of the repository that a link on one of its pages means, and the anchor; None for an address and for an anchor alone."""
    path, hash_, anchor = link.partition("#")
    if not path or re.match(r"[a-z]+:", path):
        return None
    return os.path.normpath(os.path.join(os.path.dirname(page), path)).replace(os.sep, "/"), hash_ + anchor


def outside_links(page: str, text: str) -> set[str]:
    """Files and folders outside of docs/ that a page links to."""
    targets = (target_of(match[2], page) for match in LINK.finditer(FENCE.sub("", text)))
    return {target[0] for target in targets if target is not None and not target[0].startswith("docs/")}


def rewritten(page: str, text: str) -> str:
    """The text of a page with its links as the site needs them. Blocks of code are left alone."""

    def link(match: re.Match[str]) -> str:
        target = target_of(match[2], page)
        if target is None or not (ROOT / target[0]).exists():
            return match[0]
        relative = os.path.relpath(place(target[0]), os.path.dirname(place(page)) or ".").replace(os.sep, "/")
        return f"{match[1]}{relative}{target[1]}{match[3]}"

    parts, end = [], 0
    for block in FENCE.finditer(text):
        parts += [LINK.sub(link, text[end : block.start()]), block[0]]
        end = block.end()
    return "".join([*parts, LINK.sub(link, text[end:])])


# --- pages for files that are linked


def source_pages(pages: Iterable[str]) -> dict[str, str]:
    """The text of a page for every file outside of docs/ that can be reached from these pages, by its path in the repository."""
    made: dict[str, str] = {}
    todo = set().union(*(outside_links(page, (ROOT / page).read_text(encoding="utf-8")) for page in pages))
    while todo:
        file = todo.pop()
        path = ROOT / file
        if file in made or not path.exists():
            continue
        made[file] = _page_of(file, path)
        if file.endswith(".md"):
            todo |= outside_links(file, made[file])
        elif path.is_dir():
            todo |= {f"{file}/{child}" for child in _children(path)}
    return made


def _children(folder: Path) -> list[str]:
    return sorted(child.name for child in folder.iterdir() if child.is_file() and child.suffix in {*LANGUAGES, ".md"})


def _page_of(file: str, path: Path) -> str:
    if path.is_dir():
        return f"# {file}\n\n" + "".join(f"- [{child}]({path.name}/{child})\n" for child in _children(path))
    text = path.read_text(encoding="utf-8")
    if file.endswith(".md"):
        return text
    fence = "````" if "```" in text else "```"
    return f"# {file}\n\n{fence}{LANGUAGES.get(path.suffix, 'text')}\n{text.rstrip()}\n{fence}\n"


# --- what mkdocs calls


def on_config(config: Any) -> Any:
    """Put pages that the menu does not name behind it."""
    named = set(_named(config.nav))
    every = sorted(path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md"))
    rest = [page for page in every if page not in named]
    if rest:
        config.nav.append({MENU_OF_THE_REST: rest})
    return config


def _named(nav: Any) -> Iterable[str]:
    if isinstance(nav, str):
        yield nav
    elif isinstance(nav, dict):
        for value in nav.values():
            yield from _named(value)
    else:
        for entry in nav:
            yield from _named(entry)


def on_files(files: Any, config: Any) -> Any:
    from mkdocs.structure.files import File, InclusionLevel

    pages = [f"docs/{file.src_uri}" for file in files if file.src_uri.endswith(".md")]
    for source, text in source_pages(pages).items():
        made = File.generated(config, place(source), content=rewritten(source, text))
        made.inclusion = InclusionLevel.NOT_IN_NAV
        files.append(made)
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    return markdown if page.file.src_uri.startswith(f"{SOURCE}/") else rewritten(f"docs/{page.file.src_uri}", markdown)
