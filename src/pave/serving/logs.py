"""Log lines for machines: one JSON object each, with the id of the request that it is about, and never what was asked or answered."""

from __future__ import annotations

import json
import logging
import re
import sys
import traceback
import uuid
from contextvars import ContextVar
from datetime import datetime, timezone

request_id: ContextVar[str] = ContextVar("pave_request_id", default="")
"""Of the request that this code works for."""
_WANTED_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


def choose_id(wanted: str | None) -> str:
    """The id of a request: what it brings in ``X-Request-ID``, if that is short and plain, else a new one."""
    return wanted if wanted and _WANTED_ID.fullmatch(wanted) else uuid.uuid4().hex


class JsonLines(logging.Formatter):
    """Each record as a JSON object; ``extra={"facts": {...}}`` becomes keys of it."""

    def format(self, record: logging.LogRecord) -> str:
        """One line. Of an exception where it was raised, but not its words, which may repeat what was asked."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        if request_id.get():
            line["request_id"] = request_id.get()
        line.update(getattr(record, "facts", {}))
        if record.exc_info and record.exc_info[0] is not None:
            frames = traceback.extract_tb(record.exc_info[2])
            line["error"] = record.exc_info[0].__name__
            line["raised_at"] = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames[-8:]]
        return json.dumps(line, ensure_ascii=False, default=str)


def log_as_json(level: int = logging.INFO) -> None:
    """Send what this package and uvicorn have to say to standard error, as JSON. For programs."""
    handler = logging.StreamHandler(sys.stderr)
    handler.set_name("pave")  # in place of the one that commands write by
    handler.setFormatter(JsonLines())
    for name, least in (("pave", level), ("uvicorn", max(level, logging.WARNING))):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(least)
        logger.propagate = False
