"""Numbers for Prometheus."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100)


class Metrics:
    """What ``/metrics`` says.

    Args:
        places: answers under way or waiting, asked each time.
        patches: patches that are served, likewise.
    """

    def __init__(self, places: Callable[[], int], patches: Callable[[], int]) -> None:
        self.registry = CollectorRegistry()
        shared: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter("pave_requests", "Requests by route and status", ["route", "status"], **shared)
        self.seconds = Histogram(
            "pave_request_seconds", "From the arrival to the end of the answer", ["route"], buckets=_SECONDS, **shared
        )
        self.refused = Counter("pave_refused", "Requests that were not answered, by code", ["code"], **shared)
        self.tokens = Counter("pave_tokens", "Tokens of prompts and of answers", ["kind"], **shared)
        self.cached = Counter("pave_cached_videos", "Answers about a video that was encoded before", **shared)
        self.batch_size = Histogram(
            "pave_batch_size", "Answers that were generated together", buckets=(1, 2, 4, 8, 16, 32), **shared
        )
        self.batch_seconds = Histogram("pave_batch_seconds", "Time that a batch took", buckets=_SECONDS, **shared)
        self.read_seconds = Histogram(
            "pave_read_seconds", "Time to get and read the media of a request", buckets=_SECONDS, **shared
        )
        Gauge("pave_places", "Answers under way or waiting", **shared).set_function(lambda: float(places()))
        Gauge("pave_patches", "Patches that are served", **shared).set_function(lambda: float(patches()))

    def batch(self, size: int, seconds: float) -> None:
        """Note a batch."""
        self.batch_size.observe(size)
        self.batch_seconds.observe(seconds)

    def answer(self, prompt_tokens: int, new_tokens: int, cached: bool) -> None:
        """Note an answer."""
        self.tokens.labels("prompt").inc(prompt_tokens)
        self.tokens.labels("new").inc(new_tokens)
        if cached:
            self.cached.inc()

    def text(self) -> bytes:
        """In Prometheus' own format."""
        return generate_latest(self.registry)
