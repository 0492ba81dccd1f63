"""One chat completion, from admission to the last byte of its answer."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

from pave.data.media import FrameSampling, MediaChildren, reading_in_children
from pave.inference.engine import Engine
from pave.inference.request import Answer, Request
from pave.serving.asking import Asked, Reading
from pave.serving.errors import ApiError, bad_request
from pave.serving.files import Uploads
from pave.serving.limits import Limits
from pave.serving.metrics import Metrics
from pave.serving.patches import Catalog, ServedPatch
from pave.serving.scheduler import Job, Scheduler
from pave.serving.schemas import ChatRequest, read_body
from pave.serving.sources import Sources
from pave.utils.optional import MissingExtraError
from pave.utils.stops import Stop, stopped_by

logger = logging.getLogger(__name__)

_QUIET_SECONDS = 15.0
"""After which a stream says that it is still there, for proxies that would close it."""
_WITHOUT_FILES: Mapping[str, Any] = {"messages": [], "side_channels": {}, "counterfactual": None}
"""Of a request that was read: what may have held whole files."""
Gone = Callable[[], Awaitable[None]]
"""Returns when the client has closed the connection."""


@dataclass
class Services:
    """What a running server is made of."""

    engine: Engine
    limits: Limits
    catalog: Catalog
    scheduler: Scheduler
    uploads: Uploads
    sources: Sources
    metrics: Metrics
    children: MediaChildren
    readers: ThreadPoolExecutor
    base_frames: FrameSampling | None = None
    """Which the base looks at where a request does not say, so that patches that come and go change nothing about it."""

    def close(self) -> None:
        """End threads and processes, and remove files. What was admitted has been answered."""
        self.scheduler.close()
        self.readers.shutdown()
        self.children.close()
        self.uploads.close()


class Completion:
    """One chat completion.

    Args:
        services: of the server.
        owner: whose key the request came with.
        request_id: of the request.
    """

    def __init__(self, services: Services, owner: str, request_id: str) -> None:
        self._services = services
        self._owner = owner
        self._began = time.monotonic()
        self._deadline = self._began + services.limits.deadline_seconds
        self._head = {"id": f"chatcmpl-{request_id}", "created": int(time.time())}
        self._stack = ExitStack()
        """What is held until the answer is over: a place in the queue, patches."""
        self._files = ExitStack()
        """What is held until it is over and nothing reads any more: uploads, a folder."""
        self._reading: Future[list[Any]] | None = None
        self._stop = Stop(self._deadline)
        """Of fetching and reading its files."""
        self._events: asyncio.Queue[tuple[int, Any]] = asyncio.Queue()
        self._jobs: list[Job] = []
        self._patches: list[ServedPatch] = []
        self.facts: dict[str, Any] = {}
        """For the log; nothing of what was asked or answered."""

    @property
    def streamed(self) -> bool:
        """Whether the answer is wanted piece by piece."""
        return self._chat.stream

    @property
    def seconds_left(self) -> float:
        """Until its deadline, after which it is not answered."""
        return max(0.0, self._deadline - time.monotonic())

    # --- before the first token

    async def begin(self, body: Callable[[], Awaitable[bytes]], gone: Gone) -> None:
        """Everything before the first token: admission, checks, reading, queueing.

        Raises:
            ApiError: if it is refused, or the client is gone.
        """
        try:
            self._stack.enter_context(self._services.scheduler.place())
            content = await _in_time(body(), self._services.limits.fetch_seconds, "the request's body did not arrive in time")
            self._chat: ChatRequest = await asyncio.to_thread(read_body, ChatRequest, content)
            del content
            asked = self._asked(self._services.limits)
            if self._chat.n > 1:
                self._stack.enter_context(self._services.scheduler.place(self._chat.n - 1, admitted=True))
            self._patches = self._stack.enter_context(self._services.catalog.using(list(asked.uses)))
            self._uses = asked.uses
            self.facts.update(model=self._model, patches=[patch.id for patch in self._patches], n=self._chat.n)
            reads = await self._unless_gone(self._read(asked), gone)
            self._chat = self._chat.model_copy(update=dict(_WITHOUT_FILES))
            loop = asyncio.get_running_loop()
            for number, read in enumerate(reads):
                self._jobs.append(self._job(read, partial(self._put, loop, number)))
            for job in self._jobs:
                self._services.scheduler.submit(job)
        except BaseException:
            self.end()
            raise

    def _asked(self, limits: Limits) -> Asked:
        return Asked.of(self._chat, self._services.catalog.base, limits)

    def _job(self, read: Any, put: Callable[[Any], None]) -> Job:
        """What the scheduler is to do with what was read."""
        frames = None if read.item is None or read.item.vision is not None else read.item.frames_FHWC
        return Job(read, self._deadline, put, on_text=put if self._chat.stream else None, frames=frames)

    def _read_all(self, requests: list[Request]) -> list[Any]:
        """In the reading thread: what the files of the requests hold."""
        return [self._services.engine.read(request) for request in requests]

    @property
    def _model(self) -> str:
        return self._services.catalog.base if self._chat.model == self._services.catalog.base else self._patches[0].name

    def _put(self, loop: asyncio.AbstractEventLoop, number: int, event: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody waits
            loop.call_soon_threadsafe(self._events.put_nowait, (number, event))

    async def _read(self, asked: Asked) -> list[Any]:
        """The media of a request, read in a thread."""
        services = self._services
        folder = self._files.enter_context(services.uploads.workspace())
        reading = Reading(asked, self._patches, services.sources, self._owner, folder, self._files)

        def read() -> list[Any]:
            began = time.monotonic()
            if began > self._deadline:
                raise ApiError(504, "the deadline passed before the media could be read", code="deadline_exceeded")
            try:
                with reading_in_children(services.children), stopped_by(self._stop):
                    requests = reading.requests(services.limits, services.base_frames)
                    with services.catalog.unchanged():
                        return self._read_all(requests)
            except (ApiError, ValueError, MissingExtraError) as error:
                if not self.seconds_left:
                    raise ApiError(504, "the deadline passed while the media were read", code="deadline_exceeded") from error
                if isinstance(error, ApiError):
                    raise
                raise bad_request(reading.plain(error), code=getattr(error, "code", None) or "invalid_value") from error
            finally:
                services.metrics.read_seconds.observe(time.monotonic() - began)

        self._reading = services.readers.submit(read)
        return await asyncio.wrap_future(self._reading)

    async def _unless_gone(self, work: Any, gone: Gone) -> Any:
        """What ``work`` gives, unless the client is gone first, or the deadline passes."""
        doing, leaving = asyncio.ensure_future(work), asyncio.ensure_future(gone())
        try:
            await asyncio.wait({doing, leaving}, timeout=self.seconds_left, return_when=asyncio.FIRST_COMPLETED)
            if doing.done():
                return doing.result()
            if leaving.done():
                raise ApiError(499, "the client closed the connection", code="cancelled")
            raise ApiError(504, "the request took longer than the deadline allows", code="deadline_exceeded")
        finally:
            doing.cancel()
            leaving.cancel()

    def end(self) -> None:
        """Let everything go. What is still generated is given up."""
        for job in self._jobs:
            job.cancelled = True
        self._stop.stop()
        self._stack.close()
        if self._reading is None or self._reading.cancel() or self._reading.done():
            self._files.close()
        else:  # a thread still reads them
            self._reading.add_done_callback(lambda _: self._files.close())

    # --- whole answers

    async def answer(self, gone: Gone) -> dict[str, Any]:
        """The whole answer as an object ``chat.completion``.

        Raises:
            ApiError: if it fails, is late, or the client is gone.
        """
        try:
            answers = await self._unless_gone(self._all(), gone)
            choices = [
                {
                    "index": number,
                    "message": {"role": "assistant", "content": answer.text, "refusal": None},
                    "logprobs": None,
                    "finish_reason": answer.finish_reason,
                }
                for number, answer in enumerate(answers)
            ]
            return {
                **self._head,
                "object": "chat.completion",
                "model": self._chat.model,
                "choices": choices,
                "usage": _usage(answers),
                "pave": self._about(answers[0]),
            }
        finally:
            self.end()

    async def _all(self) -> list[Answer]:
        found: dict[int, Answer] = {}
        while len(found) < len(self._jobs):
            number, event = await self._events.get()
            if not isinstance(event, str):
                found[number] = self._answered(event)
        return [found[number] for number in range(len(found))]

    def _checked(self, event: Any) -> Any:
        """What the scheduler gave, unless that is an error.

        Raises:
            ApiError: what the client is told of it.
        """
        if isinstance(event, ApiError):
            raise event
        if isinstance(event, (ValueError, MissingExtraError)):
            message = " ".join(str(event).split())
            for patch in self._patches:
                message = message.replace(patch.id, patch.name)
            raise bad_request(message.removeprefix("sample 'request': ")) from event
        if isinstance(event, BaseException):
            logger.error("a batch failed", exc_info=event)
            raise ApiError(
                500, "the answer failed; the server's log says where, under this request's id", code="internal_error"
            )
        return event

    def _answered(self, event: Any) -> Answer:
        """An answer, noted."""
        answer: Answer = self._checked(event)
        self._services.metrics.answer(answer.prompt_tokens, answer.new_tokens, answer.cached)
        for name, count in (("prompt_tokens", answer.prompt_tokens), ("new_tokens", answer.new_tokens)):
            self.facts[name] = self.facts.get(name, 0) + count
        return answer

    def _about(self, answer: Answer) -> dict[str, Any]:
        """What OpenAI's objects have no place for."""
        sides = {
            name: {"steps": side.steps, "start": side.start, "end": side.end, "acting": side.acting, "why": list(side.why)}
            for name, side in answer.side_channels.items()
        }
        for patch in self._patches:
            sides = {name.replace(f"{patch.id}.", f"{patch.name}."): side for name, side in sides.items()}
        patches = [
            {"name": patch.name, "id": patch.id, "strength": self._uses[given][0], "lora_strength": self._uses[given][1]}
            for given, patch in zip(self._uses, self._patches, strict=True)
        ]
        return {
            "patches": patches,
            "frame_times": list(answer.frame_times),
            "side_channels": sides,
            "cached_video": answer.cached,
        }

    # --- streams

    async def pieces(self) -> AsyncIterator[bytes]:
        """The answer as server-sent events, up to ``[DONE]``."""
        told = [""] * len(self._jobs)
        answers: dict[int, Answer] = {}
        try:
            for number in range(len(self._jobs)):
                yield self._chunk(number, {"role": "assistant", "content": ""})
            while len(answers) < len(self._jobs):
                try:
                    number, event = await asyncio.wait_for(self._events.get(), _QUIET_SECONDS)
                except asyncio.TimeoutError:
                    yield b": still at work\n\n"
                    continue
                if isinstance(event, str):
                    told[number] += event
                    yield self._chunk(number, {"content": event})
                    continue
                answer = answers[number] = self._answered(event)
                rest = answer.text[len(told[number]) :] if answer.text.startswith(told[number]) else ""
                if rest:
                    yield self._chunk(number, {"content": rest})
                yield self._chunk(number, {}, answer.finish_reason, about=self._about(answer))
            if self._chat.stream_options is not None and self._chat.stream_options.include_usage:
                yield _event({**self._chunk_head(), "choices": [], "usage": _usage([answers[n] for n in sorted(answers)])})
        except ApiError as error:
            self.facts["code"] = error.code
            yield _event(error.body())
        finally:
            self.end()
        yield b"data: [DONE]\n\n"

    def _chunk_head(self) -> dict[str, Any]:
        return {**self._head, "object": "chat.completion.chunk", "model": self._chat.model}

    def _chunk(
        self, number: int, delta: dict[str, Any], reason: str | None = None, about: dict[str, Any] | None = None
    ) -> bytes:
        choice = {"index": number, "delta": delta, "logprobs": None, "finish_reason": reason}
        return _event({**self._chunk_head(), "choices": [choice], **({} if about is None else {"pave": about})})


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def _usage(answers: list[Answer]) -> dict[str, int]:
    """The prompt counts once: it is read once, however many answers there are to it."""
    prompt, new = answers[0].prompt_tokens, sum(answer.new_tokens for answer in answers)
    return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}


async def _in_time(work: Awaitable[Any], seconds: float, complaint: str) -> Any:
    try:
        return await asyncio.wait_for(work, seconds)
    except asyncio.TimeoutError:
        raise ApiError(408, complaint, code="timeout") from None
