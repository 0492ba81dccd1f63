"""Files beside the page: figures and further pages, in a folder of their own that is copied with it."""

from __future__ import annotations

import re
from pathlib import Path

from pave.evidence.svg import Drawing
from pave.utils.files import atomic_write_text

FOLDER = "evidence"
"""Beside ``evidence.md``."""
_LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)\s]*)?\)")


def add_figure(root: Path, name: str, drawing: Drawing, *, beside: str = "") -> str:
    """Write a drawing, and return the Markdown that shows it.

    Args:
        root: folder of the page.
        name: of the file, without its ending.
        drawing: with its label, which becomes the alternative text.
        beside: the path in links from the page to the folder; empty for pages inside the folder.
    """
    atomic_write_text(root / FOLDER / f"{name}.svg", str(drawing))
    return f"![{drawing.label}]({beside}{name}.svg)"


def on_page(root: Path, name: str, drawing: Drawing) -> str:
    """``add_figure`` for ``evidence.md`` itself."""
    return add_figure(root, name, drawing, beside=f"{FOLDER}/")


def remove_unlinked(root: Path, page: str) -> None:
    """Remove from the folder what neither the page nor a page in the folder links to: figures of an earlier reproduction.

    Args:
        root: folder of the page.
        page: its text.
    """
    folder = root / FOLDER
    linked = {(root / link).resolve() for link in _LINK.findall(page)}
    for further in sorted(
        path for path in linked if path.suffix == ".md" and path.parent == folder.resolve() and path.exists()
    ):
        linked |= {(folder / link).resolve() for link in _LINK.findall(further.read_text(encoding="utf-8"))}
    for file in folder.glob("*.*"):
        if file.suffix in (".svg", ".md") and file.resolve() not in linked:
            file.unlink()
