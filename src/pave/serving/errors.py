"""What a client is told when a request is refused or fails: the error object of OpenAI's API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_KINDS = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """A request that is not answered. The message is one sentence that says what was found and what to do.

    Args:
        status: of HTTP.
        message: for the client; it holds nothing that others sent.
        code: for programs.
        param: the key of the request that is to blame, such as ``messages[0].content``.
        headers: of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        message = message.encode(errors="backslashreplace").decode()  # names of files may be no Unicode
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The error object."""
        kind = _KINDS.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def bad_request(message: str, param: str | None = None, code: str = "invalid_value") -> ApiError:
    """A request that cannot be meant."""
    return ApiError(400, message, code=code, param=param)
