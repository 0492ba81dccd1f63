"""Server-sent events whose source always learns that nobody listens any more."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from starlette.responses import Response


class EventStream(Response):
    """A response of events.

    Args:
        events: that are sent; closed at the end, and at once when the client closes the connection.
        gone: returns when the client has closed the connection.
        at_end: called at the end, also where not one event was asked for.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[bytes], gone: Callable[[], Awaitable[None]], at_end: Callable[[], None]) -> None:
        self.status_code = 200
        self.background = None
        self._events = events
        self._gone = gone
        self._at_end = at_end
        self.init_headers({"Cache-Control": "no-store", "X-Accel-Buffering": "no"})

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Send the events."""
        sending = asyncio.ensure_future(self._send(send))
        leaving = asyncio.ensure_future(self._gone())
        try:
            await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
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
