"""The routes. Each reads what came, asks the part that knows, and writes what OpenAI's clients expect."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, JSONResponse, Response

from pave import __version__
from pave.serving.auth import Keys
from pave.serving.chat import Completion, Services
from pave.serving.errors import ApiError, bad_request
from pave.serving.front import Front, error_response
from pave.serving.inspecting import Inspection
from pave.serving.metrics import CONTENT_TYPE
from pave.serving.page import Page
from pave.serving.patches import ServedPatch
from pave.serving.schemas import ChatRequest, LoadPatch, UnloadPatch, read_body
from pave.serving.streaming import EventStream

_SCHEMA = "#/components/schemas/{model}"


class Routes:
    """The handlers, by what they serve.

    Args:
        services: of the server.
        admin: who may load and unload; without a token nobody.
    """

    def __init__(self, services: Services, admin: Keys) -> None:
        self._services = services
        self._admin = admin
        self._uploading = asyncio.Semaphore(4)

    # --- chat

    async def chat(self, request: Request) -> Response:
        """Answer a question about a video."""
        state = request.scope["state"]
        completion = Completion(self._services, state["owner"], state["request_id"])
        state["facts"] = completion.facts
        gone = _leaving(request)
        require_json(request)
        await completion.begin(request.body, gone)
        if completion.streamed:
            return EventStream(completion.pieces(), gone, completion.end, completion.seconds_left)
        return JSONResponse(await completion.answer(gone))

    async def inspect(self, request: Request) -> Response:
        """What stands behind the answer to a question, to be drawn over time."""
        state = request.scope["state"]
        inspection = Inspection(self._services, state["owner"], state["request_id"])
        state["facts"] = inspection.facts
        gone = _leaving(request)
        require_json(request)
        await inspection.begin(request.body, gone)
        return JSONResponse(await inspection.look(gone))

    # --- models

    def _model(self, patch: ServedPatch | None) -> dict[str, Any]:
        base = self._services.catalog.base
        model: dict[str, Any] = {
            "id": base if patch is None else patch.name,
            "object": "model",
            "created": 0,
            "owned_by": "pave",
        }
        if patch is None:
            return {**model, "parent": None}
        return {**model, "parent": base, "content": patch.id, "digest": patch.digest, "side_channels": patch.sources}

    async def models(self) -> Response:
        """The base and its patches."""
        patches = self._services.catalog.all()
        return JSONResponse({"object": "list", "data": [self._model(None), *map(self._model, patches)]})

    async def model(self, name: str) -> Response:
        """The base or one patch."""
        if name == self._services.catalog.base:
            return JSONResponse(self._model(None))
        with self._services.catalog.using([name]) as patches:
            return JSONResponse(self._model(patches[0]))

    # --- files

    async def upload(self, request: Request) -> Response:
        """Keep a file for later requests, for a while."""
        uploads, limits = self._services.uploads, self._services.limits
        length = request.headers.get("content-length", "")
        if not length.isdigit():
            raise ApiError(411, "an upload says how long it is: send Content-Length", code="length_required")
        if self._uploading.locked():
            raise ApiError(429, "other uploads are on their way; try again", code="uploads_busy", headers={"Retry-After": "1"})
        async with self._uploading:
            with uploads.room(int(length)):
                try:
                    form = await asyncio.wait_for(request.form(max_files=1, max_fields=4), limits.deadline_seconds)
                except asyncio.TimeoutError:
                    raise ApiError(408, "the upload did not arrive in time", code="timeout") from None
                async with contextlib.AsyncExitStack() as stack:
                    stack.push_async_callback(form.close)
                    file, seconds = form.get("file"), _expiry(form)
                    if file is None or isinstance(file, str):
                        raise bad_request("the form has no file; send it under the name 'file'", "file")
                    unknown = [
                        k for k in form if k not in ("file", "purpose", "expires_after[anchor]", "expires_after[seconds]")
                    ]
                    if unknown:
                        raise bad_request(f"unknown key {unknown[0][:60]!r}", unknown[0][:60], "unknown_key")
                    arguments = (file.file, file.filename or "", str(form.get("purpose", "user_data")))
                    owner = request.scope["state"]["owner"]
                    upload = await asyncio.to_thread(uploads.add, *arguments, owner, seconds)
        return JSONResponse(upload.to_dict())

    async def files(self, request: Request) -> Response:
        """The uploads of this key."""
        found = self._services.uploads.of(request.scope["state"]["owner"])
        return JSONResponse({"object": "list", "data": [upload.to_dict() for upload in found], "has_more": False})

    async def file(self, request: Request, file_id: str) -> Response:
        """One upload."""
        return JSONResponse(self._services.uploads.get(file_id, request.scope["state"]["owner"]).to_dict())

    async def file_content(self, request: Request, file_id: str) -> Response:
        """What is in an upload. Never shown as a page."""
        upload = self._services.uploads.get(file_id, request.scope["state"]["owner"])
        return FileResponse(upload.path, media_type="application/octet-stream")

    async def delete_file(self, request: Request, file_id: str) -> Response:
        """Forget an upload."""
        self._services.uploads.delete(file_id, request.scope["state"]["owner"])
        return JSONResponse({"id": file_id, "object": "file", "deleted": True})

    # --- the administrator

    def _check_admin(self, request: Request) -> None:
        if not self._admin:
            raise ApiError(403, "loading and unloading is off; start the server with --admin-token-file", code="admin_off")
        self._admin.check(request.headers.get("authorization"))
        require_json(request)

    async def load_patch(self, request: Request) -> Response:
        """Serve a patch from a folder, from the next request on."""
        self._check_admin(request)
        wanted: LoadPatch = read_body(LoadPatch, await request.body())
        folder = self._services.sources.allowed(wanted.path, "path")
        try:
            patch = await asyncio.to_thread(self._services.catalog.load, wanted.name, folder)
        except ValueError as error:
            raise bad_request(" ".join(str(error).split()), "path") from error
        return JSONResponse(self._model(patch))

    async def unload_patch(self, request: Request) -> Response:
        """Serve a patch no more. Requests that began with it end with it."""
        self._check_admin(request)
        wanted: UnloadPatch = read_body(UnloadPatch, await request.body())
        await asyncio.to_thread(self._services.catalog.unload, wanted.name)
        return JSONResponse({"id": wanted.name, "object": "model", "deleted": True})

    # --- the server itself

    async def health(self) -> Response:
        """Whether answers can come."""
        alive = self._services.scheduler.alive
        return JSONResponse({"status": "ok" if alive else "broken", "version": __version__}, 200 if alive else 503)

    async def ready(self) -> Response:
        """Whether new requests are taken."""
        ready = self._services.scheduler.alive and not self._services.scheduler.draining
        return JSONResponse({"ready": ready}, 200 if ready else 503)

    async def metrics(self) -> Response:
        """Numbers for Prometheus."""
        return Response(self._services.metrics.text(), media_type=CONTENT_TYPE)


def _leaving(request: Request) -> Callable[[], Awaitable[None]]:
    """Returns when the client has closed the connection."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            continue

    return gone


def require_json(request: Request) -> None:
    """Refuse bodies that a page of another site may send without asking.

    Raises:
        ApiError: 415, if the body does not say that it is JSON.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise ApiError(415, "the body is JSON: send the header Content-Type: application/json", code="not_json")


def _expiry(form: Any) -> int | None:
    anchor, seconds = form.get("expires_after[anchor]"), form.get("expires_after[seconds]")
    if anchor not in (None, "created_at"):
        raise bad_request("expires_after[anchor] is created_at", "expires_after[anchor]")
    if seconds is None:
        return None
    if not isinstance(seconds, str) or not seconds.isascii() or not seconds.isdigit() or len(seconds) > 9:
        raise bad_request("expires_after[seconds] is a number of seconds", "expires_after[seconds]")
    return int(seconds)


def make_app(services: Services, keys: Keys, admin: Keys, *, hosts: tuple[str, ...] = ()) -> Any:
    """The server as an ASGI application.

    Args:
        services: of the server; closed when the application ends.
        keys: who may ask; with none everybody.
        admin: who may load and unload patches; with none nobody.
        hosts: names in the header ``Host`` that are answered; none for all.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(services.close)

    app = FastAPI(title="pave", version=__version__, lifespan=lifespan, redoc_url=None)
    routes = Routes(services, admin)
    body = {
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": _SCHEMA.format(model="ChatRequest")}}},
        }
    }
    handlers: list[tuple[str, str, Callable[..., Awaitable[Response]], dict[str, Any] | None]] = [
        ("POST", "/v1/chat/completions", routes.chat, body),
        ("POST", "/v1/pave/inspect", routes.inspect, body),
        ("GET", "/v1/models", routes.models, None),
        ("GET", "/v1/models/{name:path}", routes.model, None),
        ("POST", "/v1/files", routes.upload, None),
        ("GET", "/v1/files", routes.files, None),
        ("GET", "/v1/files/{file_id}", routes.file, None),
        ("GET", "/v1/files/{file_id}/content", routes.file_content, None),
        ("DELETE", "/v1/files/{file_id}", routes.delete_file, None),
        ("POST", "/v1/load_patch", routes.load_patch, None),
        ("POST", "/v1/unload_patch", routes.unload_patch, None),
        ("GET", "/health", routes.health, None),
        ("GET", "/ready", routes.ready, None),
        ("GET", "/metrics", routes.metrics, None),
    ]
    for method, path, handler, extra in handlers:
        app.add_api_route(path, handler, methods=[method], openapi_extra=extra, response_model=None)
    page = Page()
    for path in page.paths:
        app.add_route(path, page.file, include_in_schema=False)
    app.add_exception_handler(ApiError, error_response)
    app.add_exception_handler(HTTPException, error_response)
    app.add_exception_handler(Exception, error_response)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return Front(app, services, keys, admin, hosts, page.paths)


def _openapi(app: FastAPI) -> dict[str, Any]:
    """The description behind ``/docs``, with the schema of chat requests, which are read by hand."""
    if app.openapi_schema is None:
        described = get_openapi(title=app.title, version=app.version, routes=app.routes)
        schema = ChatRequest.model_json_schema(ref_template=_SCHEMA)
        parts = schema.pop("$defs")
        described.setdefault("components", {}).setdefault("schemas", {}).update({**parts, "ChatRequest": schema})
        app.openapi_schema = described
    return app.openapi_schema
