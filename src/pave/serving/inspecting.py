"""What stands behind an answer, for people to look at: the frames, the streams, and what each patch does with them, on one clock."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pave.data.media import probe, read_audio
from pave.data.sources import read_source
from pave.inference.attention import FusionView
from pave.inference.reading import ReadRequest
from pave.inference.request import Request
from pave.serving.asking import Asked
from pave.serving.chat import Completion, Gone
from pave.serving.errors import bad_request
from pave.serving.lanes import channel_lanes, frame_lane, sound_lane
from pave.serving.limits import Limits
from pave.serving.scheduler import Job
from pave.side_channels import AudioClip
from pave.side_channels.sensor import SensorSeries

_SOUND_RATE = 8000
_DRAWN = ("audio", "sensor")
"""Sources that are drawn as they are, beside what their encoders make of them."""


@dataclass(frozen=True, eq=False)
class Looked:
    """A request with all that is drawn of its files."""

    read: ReadRequest
    frames: dict[str, Any]
    """See ``frame_lane``."""
    seconds: float
    """Of the video."""
    sound: AudioClip | None
    """Of the video itself."""
    streams: dict[str, AudioClip | SensorSeries | None]
    """By PATCH.CHANNEL, what was recorded; only where it can be drawn as it is."""


class Inspection(Completion):
    """The lanes of one request: as a completion up to the reading of files, and then a look instead of an answer."""

    def _asked(self, limits: Limits) -> Asked:
        asked = super()._asked(limits)
        for name, given in (("stream", self._chat.stream), ("n", self._chat.n > 1)):
            if given:
                raise bad_request(f"{name}: a look at a request has no answers; leave it out", name)
        if asked.video is None:
            raise bad_request("messages: there is no video to look at", "messages")
        return asked

    def _read_all(self, requests: list[Request]) -> list[Looked]:
        (request,) = requests
        read = self._services.engine.read(request, pictures=True)
        found = probe(str(request.video)).video
        streams = {name: self._stream(read, name) for name in read.channels}
        assert read.item is not None and found is not None  # there are frames, so there is a video
        sound = read_audio(str(request.video), _SOUND_RATE)
        return [Looked(read, frame_lane(read.item), found.duration, sound, streams)]

    def _stream(self, read: ReadRequest, name: str) -> AudioClip | SensorSeries | None:
        encoder = self._services.engine.reader.media.encoder(read.channels[name].encoder)
        if encoder.source not in _DRAWN:
            return None
        path = read.file_of(name, "")
        stream = None if path is None else read_source(encoder, str(read.request.video), path or None)
        return stream if isinstance(stream, (AudioClip, SensorSeries)) else None

    def _job(self, looked: Looked, put: Callable[[Any], None]) -> Job:
        assert looked.read.item is not None
        view = self._services.engine.view
        return Job(looked, self._deadline, put, work=lambda seen: view(seen.read), frames=looked.read.item.frames_FHWC)

    async def look(self, gone: Gone) -> dict[str, Any]:
        """The lanes as an object ``pave.inspection``.

        Raises:
            ApiError: if it fails, is late, or the client is gone.
        """
        try:
            _, event = await self._unless_gone(self._events.get(), gone)
            views: dict[str, FusionView] = self._checked(event)
            lanes = await asyncio.to_thread(self._lanes, self._jobs[0].read, views)
            return {"object": "pave.inspection", "model": self._chat.model, **lanes}
        finally:
            self.end()

    def _lanes(self, looked: Looked, views: dict[str, FusionView]) -> dict[str, Any]:
        read, names = looked.read, {patch.id: patch.name for patch in self._patches}
        assert read.item is not None
        channels = []
        for name, settings in read.channels.items():
            patch, channel = name.split(".", 1)
            about = {
                "patch": names[patch],
                "channel": channel,
                "encoder": settings.encoder.name,
                "strength": read.patches[patch][0],
            }
            channels.append({**about, **channel_lanes(read.item, name, looked.streams[name], views.get(name))})
        return {"seconds": looked.seconds, "frames": looked.frames, "sound": sound_lane(looked.sound), "channels": channels}
