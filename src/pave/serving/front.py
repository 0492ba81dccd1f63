"""What every request passes first: its id, who it is from, how long it may be; and what is written down about it at the end."""

from __future__ import annotations

import logging
import time
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from pave.serving.auth import Keys
from pave.serving.chat import Services
from pave.serving.errors import ApiError
from pave.serving.logs import choose_id, request_id

logger = logging.getLogger("pave.serving.requests")

_OPEN = ("/health", "/ready", "/docs", "/openapi.json", "/docs/oauth2-redirect")
"""Paths that need no key."""
_ADMIN = ("/v1/load_patch", "/v1/unload_patch")
"""Paths that need the administrator's token, and no key beside."""
_UPLOAD = "/v1/files"
_FORM_BYTES = 2**16
"""What a form may be longer than its file."""
_HTTP = {
    404: ("not_found", "there is nothing under this path"),
    405: ("method_not_allowed", "this path does not take this method"),
}
"""By status, code and sentence of what the framework refuses."""


class Front:
    """An ASGI application around the routes.

    Args:
        app: the routes.
        services: of the server.
        keys: who may ask.
        admin: whose token may also read metrics.
        hosts: names in the header ``Host`` that are answered; none for all.
        page: paths of the page for people, which needs no key.
    """

    def __init__(
        self, app: Any, services: Services, keys: Keys, admin: Keys, hosts: tuple[str, ...], page: tuple[str, ...]
    ) -> None:
        self.app = app
        self.services = services
        self._keys = keys
        self._admin = admin
        self._hosts = hosts
        self._open = (*_OPEN, *page)
        self.held = 0
        """Bytes of the bodies under way, uploads aside."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        own_id = choose_id(headers.get("x-request-id"))
        token = request_id.set(own_id)
        state = scope.setdefault("state", {})
        state.update(request_id=own_id, facts={})
        status, began = 0, time.monotonic()
        body = _Body(self, scope["path"] == _UPLOAD)

        async def send_with_id(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                kept = [
                    *message.get("headers", ()),
                    (b"x-request-id", own_id.encode()),
                    (b"x-content-type-options", b"nosniff"),
                ]
                message = {**message, "headers": kept}
            await send(message)

        try:
            state["owner"] = self._check(scope, headers)
            await self.app(scope, body.counted(receive, self._most_bytes(scope, headers)), send_with_id)
        except ApiError as error:
            await error_response(None, error, state)(scope, receive, send_with_id)
        except Exception as error:
            logger.error("a request failed", exc_info=error)
            if not status:
                await error_response(None, error, state)(scope, receive, send_with_id)
        finally:
            body.release()
            self._note(scope, state, status, time.monotonic() - began)
            request_id.reset(token)

    def _check(self, scope: Any, headers: Headers) -> str:
        """Whose request it is.

        Raises:
            ApiError: if it is nobody's who may ask, or sent by a page of another site.
        """
        host, origin = headers.get("host", ""), headers.get("origin")
        if self._hosts and _host_name(host) not in self._hosts:
            raise ApiError(
                403, "this server is not known under the name in the header Host; name it with --name", code="host_not_allowed"
            )
        if origin is not None and origin.partition("://")[2] != host:
            raise ApiError(403, "pages of other sites may not use this server", code="origin_not_allowed")
        if scope["path"] in self._open or scope["path"] in _ADMIN:
            return "everybody"
        authorization = headers.get("authorization")
        if scope["path"] == "/metrics" and self._admin and self._admin.holds((authorization or "").partition(" ")[2].strip()):
            return "everybody"
        return self._keys.check(authorization)

    def _most_bytes(self, scope: Any, headers: Headers) -> int:
        """That the body may have.

        Raises:
            ApiError: 413, if it announces more.
        """
        limits = self.services.limits
        upload = scope["path"] == _UPLOAD
        most = limits.file_megabytes * 2**20 + _FORM_BYTES if upload else limits.body_megabytes * 2**20
        announced = headers.get("content-length", "")
        if announced.isdigit() and int(announced) > most:
            raise _too_large(most)
        return most

    def _note(self, scope: Any, state: dict[str, Any], status: int, seconds: float) -> None:
        """One line in the log, and the metrics. A path is noted as its route: an unknown one could say anything."""
        found = getattr(scope.get("route"), "path", None)
        known = (*self._open, *_ADMIN, _UPLOAD, "/v1/chat/completions", "/v1/pave/inspect")
        route = found or (scope["path"] if scope["path"] in known else "other")
        metrics = self.services.metrics
        metrics.requests.labels(route, str(status)).inc()
        metrics.seconds.labels(route).observe(seconds)
        if state["facts"].get("code"):
            metrics.refused.labels(str(state["facts"]["code"])).inc()
        facts = {
            "method": scope["method"][:10],
            "route": route,
            "status": status,
            "seconds": round(seconds, 4),
            **state["facts"],
        }
        logger.info("request", extra={"facts": facts})


class _Body:
    """Counts the body of one request, and what all of them hold together."""

    def __init__(self, front: Front, upload: bool) -> None:
        self._front = front
        self._upload = upload
        self._count = 0

    def counted(self, receive: Any, most: int) -> Any:
        """``receive``, which raises ``ApiError`` when the body is larger than ``most``, or all are larger than allowed."""

        async def count() -> Any:
            message = await receive()
            if message["type"] == "http.request":
                self._add(len(message.get("body", b"")), most)
            return message

        return count

    def _add(self, size: int, most: int) -> None:
        self._count += size
        self._front.held += 0 if self._upload else size
        if self._count > most:
            raise _too_large(most)
        if not self._upload and self._front.held > self._front.services.limits.bodies_megabytes * 2**20:
            raise ApiError(
                429, "too much is being sent at the moment; try again", code="bodies_full", headers={"Retry-After": "1"}
            )

    def release(self) -> None:
        """At the end of the request."""
        if not self._upload:
            self._front.held -= self._count


def _host_name(header: str) -> str | None:
    """The name in a header ``Host``, without its port."""
    try:
        return urlsplit(f"//{header}").hostname
    except ValueError:
        return None


def _too_large(most: int) -> ApiError:
    return ApiError(413, f"the request is larger than {most} bytes; upload files by POST {_UPLOAD}", code="body_too_large")


def error_response(request: Any, error: Exception, state: dict[str, Any] | None = None) -> Response:
    """The error object of anything that was refused."""
    if isinstance(error, HTTPException):
        code, said = _HTTP.get(error.status_code, ("invalid_request", "the request cannot be read"))
        error = ApiError(error.status_code, said, code=code, headers=error.headers)
    elif not isinstance(error, ApiError):  # what it says may repeat what was asked
        said = "the request failed; the server's log says where, under this request's id"
        error = ApiError(500, said, code="internal_error")
    facts = (request.scope["state"] if state is None else state)["facts"]
    facts["code"] = error.code
    return JSONResponse(error.body(), error.status, error.headers)
