"""What one request may cost, and all of them together."""

from __future__ import annotations

from dataclasses import dataclass, fields

from pave.data.media import ChildLimits


@dataclass(frozen=True)
class Limits:
    """Everything that is bounded. Each is an option of ``pave serve``.

    Raises:
        ValueError: if one is not positive.
    """

    body_megabytes: int = 96
    """Largest request that is no upload, files inside it included."""
    bodies_megabytes: int = 1024
    """All requests under way together, uploads aside, which go to the disk; further ones get 429."""
    file_megabytes: int = 512
    """Largest upload, and largest file that is fetched from an allowed host."""
    media_seconds: float = 600.0
    """Longest video or sound."""
    media_pixels: int = 3840 * 2160 * 2
    """Largest picture of a video."""
    media_frames: int = 60_000
    """Most frames of a video."""
    media_tracks: int = 16
    """Most tracks of a file, pictures and sound each."""
    frames: int = 256
    """Most frames that a request may ask to look at."""
    text_characters: int = 32_768
    """Of all messages of a request together."""
    messages: int = 64
    """Most messages of a request."""
    new_tokens: int = 1024
    """Most tokens of an answer; also where a request says nothing."""
    choices: int = 8
    """Largest n."""
    waiting: int = 64
    """Answers that may be under way or waiting; further requests get 429."""
    waiting_megabytes: int = 4096
    """Frames of all answers that wait together; further requests get 429."""
    batch: int = 8
    """Most answers that are generated together."""
    wait_milliseconds: int = 15
    """How long a request waits for others to share its batch."""
    deadline_seconds: float = 120.0
    """Longest that a request may take, from its arrival to the end of its answer."""
    readers: int = 2
    """Requests whose media are read at the same time, each in a process of its own."""
    read_seconds: float = 30.0
    """Longest that reading one file may take."""
    read_megabytes: int = 2048
    """Most memory that a process takes for reading one file."""
    fetch_seconds: float = 30.0
    """Longest that fetching one file may take."""
    uploads: int = 256
    """Most files that are kept."""
    uploads_megabytes: int = 4096
    """Most that they take together."""
    upload_seconds: int = 3600
    """How long an upload is kept, if it does not say."""
    archive_files: int = 4096
    """Most files in a zip archive."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not value > 0:
                raise ValueError(f"{field.name} must be positive, got {value}")

    @property
    def reading(self) -> ChildLimits:
        """Of the processes that read media."""
        return ChildLimits(self.read_seconds, self.read_megabytes * 2**20, self.media_pixels, 4 * self.media_frames)
