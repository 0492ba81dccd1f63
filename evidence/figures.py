"""Files beside the page: figures and further pages, in a folder that is copied with it."""

from __future__ import annotations

import io
import re
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

from pave.utils.files import atomic_path

FOLDER = "evidence"
"""Beside ``evidence.md``."""
_DOTS_PER_INCH = 150
_LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)\s]*)?\)")


def add_figure(root: Path, name: str, figure: Figure, *, beside: str = f"{FOLDER}/") -> str:
    """Write a figure as a PNG on white, and return the Markdown that shows it. Equal figures give equal files.

    Args:
        root: folder of the page.
        name: name of the file, without its ending.
        figure: with its label, which becomes the alternative text.
        beside: the path in links to the folder, by default from ``evidence.md``; empty for pages inside the folder.
    """
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=_DOTS_PER_INCH, facecolor="white")
    few_colours = Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    with atomic_path(root / FOLDER / f"{name}.png") as path:
        few_colours.save(path, optimize=True)
    return f"![{figure.get_label()}]({beside}{name}.png)"


def remove_unlinked(root: Path, page: str) -> None:
    """Remove from the folder what neither the page nor a page in the folder links to: an earlier reproduction's files.

    Args:
        root: folder of the page.
        page: its text.
    """
    folder = root / FOLDER
    linked = {(root / link).resolve() for link in _LINK.findall(page)}
    pages = [path for path in linked if path.suffix == ".md" and path.parent == folder.resolve() and path.exists()]
    for further in pages:
        linked |= {(folder / link).resolve() for link in _LINK.findall(further.read_text(encoding="utf-8"))}
    for file in folder.glob("*.*"):
        if file.suffix in (".png", ".svg", ".md") and file.resolve() not in linked:
            file.unlink()
