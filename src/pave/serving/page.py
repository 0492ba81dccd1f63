"""The page for people: a handful of files that this package holds, and what a browser may do with them."""

from __future__ import annotations

import hashlib
from importlib.resources import files
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from pave.utils.embedded import WHISTLE, embedded_path

_KINDS = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mp4": "video/mp4",
    ".svg": "image/svg+xml",
}
_HEADERS = {
    # scripts and styles are files of this server and stand in no attribute; blob: is a video of one's own, data: the pictures of its frames
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; media-src blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


class Page:
    """Everything that is served to browsers, held in memory: no request reaches the disk. With it goes the clip inside this package, for
    who has none at hand."""

    def __init__(self) -> None:
        folder = files("pave.serving").joinpath("page")
        found = [file for file in folder.iterdir() if file.name[file.name.rfind(".") :] in _KINDS]
        self._files = {"/" if file.name == "index.html" else f"/page/{file.name}": file.read_bytes() for file in found}
        self._files["/page/whistle.mp4"] = Path(embedded_path(WHISTLE)).read_bytes()

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths of its files, which hold no secrets and need no key."""
        return tuple(self._files)

    async def file(self, request: Request) -> Response:
        """One of the files."""
        path: str = request.scope["path"]
        content = self._files[path]
        tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
        headers = {**_HEADERS, "ETag": tag}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        kind = _KINDS[".html" if path == "/" else path[path.rfind(".") :]]
        return Response(content, media_type=kind, headers=headers)
