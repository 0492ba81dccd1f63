"""What a session gives back: answers and reports."""

from __future__ import annotations

from dataclasses import dataclass

from pave.inference.session_streams import StreamReport


@dataclass(frozen=True)
class SideSeen:
    """What an answer saw of a side channel."""

    steps: int
    """That were held when the question was asked, up to its time."""
    start: float | None
    """Seconds of the first one; None where there was none."""
    end: float | None
    """Seconds of the last one."""
    watermark: float
    """Seconds up to which the channel was complete."""


@dataclass(frozen=True)
class StreamAnswer:
    """An answer and what it is based on."""

    text: str
    """As generated, without special tokens."""
    frame_times: tuple[float, ...]
    """Seconds of the frames that were looked at."""
    complete: bool
    """Whether no step that may still come before ``at`` could change what these frames read. False only where ``incomplete`` was given."""
    staleness: float
    """Seconds from the last of these frames to ``at``, or to the newest time in any stream where that was not given."""
    side_channels: dict[str, SideSeen]
    """By patch and channel, as "patch.channel"; of the patches that acted."""
    seconds: float
    """The whole call took."""
    first_token_seconds: float
    """From the call to the first token of the answer."""


@dataclass(frozen=True)
class SessionReport:
    """What became of all that was pushed."""

    frames: StreamReport
    side_channels: dict[str, StreamReport]
    """By channel as it was pushed: "channel", or "patch.channel"."""
    final_until: float | None
    """Seconds of the newest frame that nothing can change any more; None where there is none."""
    encoded_steps: int
    """Time steps of the base that went through its vision tower."""
    reused_steps: int
    """Time steps of clips that were asked about and did not have to."""
    vision_bytes: int
    """Held of what the vision tower made."""

    @property
    def num_bytes(self) -> int:
        """Held of everything."""
        return self.frames.num_bytes + self.vision_bytes + sum(side.num_bytes for side in self.side_channels.values())
