"""Server-sent events whose source always learns that nobody listens any more."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from starlette.responses import Response

_MORE_SECONDS = 5.0
"""That a client may take to read what was sent last."""


class EventStream(Response):
    """A response of events.

    Args:
        events: that are sent; closed at the end, and at once when the client closes the connection.
        gone: returns when the client has closed the connection.
        at_end: called at the end, also where not one event was asked for.
        seconds: until the last event; a client that takes a little longer to read them is given up.
    """

    media_type = "text/event-stream"

    def __init__(
        self, events: AsyncIterator[bytes], gone: Callable[[], Awaitable[None]], at_end: Callable[[], None], seconds: float
    ) -> None:
        self.status_code = 200
        self.background = None
        self._events = events
        self._gone = gone
        self._at_end = at_end
        self._seconds = seconds
        self.init_headers({"Cache-Control": "no-store", "X-Accel-Buffering": "no"})

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Send the events."""
        sending = asyncio.ensure_future(self._send(send))
        leaving = asyncio.ensure_future(self._gone())
        try:
            await asyncio.wait({sending, leaving}, timeout=self._seconds + _MORE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
            if not sending.done():
                sending.cancel()
            try:
                with contextlib.suppress(asyncio.CancelledError):
                    await sending
            finally:
                self._at_end()

    async def _send(self, send: Any) -> None:
        async with contextlib.aclosing(self._events) as events:  # type: ignore[type-var]
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async for event in events:
                await send({"type": "http.response.body", "body": event, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
