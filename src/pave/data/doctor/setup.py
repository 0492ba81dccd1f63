"""What the doctor is asked to look for."""

from __future__ import annotations

from dataclasses import dataclass, field

from pave.config import SideChannelConfig, Strict
from pave.data.media import FrameSampling


@dataclass(frozen=True, kw_only=True)
class Setup(Strict):
    """Everything that decides what is looked at and what counts as a defect. Worker processes get it as JSON."""

    channels: dict[str, SideChannelConfig] = field(default_factory=dict)
    """The patch's channels. Of a channel that is not here, only whether its file is there is checked."""
    encoders: tuple[str, ...] = ()
    """Modules, or .py files, with side encoders of one's own that the channels may name."""
    frames: FrameSampling = field(default_factory=lambda: FrameSampling(num_frames=8))
    """Which frames the base sees."""
    required: tuple[str, ...] = ()
    """Channels that no sample may lack."""
    base: str | None = None
    """Folder or hub id of the base whose processor writes the prompts; None leaves tokens unchecked."""
    revision: str | None = None
    """Of the base on the hub."""
    max_length: int | None = None
    """Most tokens of a prompt; None: only what the base can take."""
    max_answer_tokens: int = 64
    """Budget of an answer in tokens, its end-of-turn token included."""
    max_offset: float = 0.2
    """Seconds by which sound may begin before or after the picture."""
    quick: bool = False
    """True only probes: nothing is decoded beyond first frames, no features and no prompts are made."""
    timeout: float = 60.0
    """Seconds for each file."""

    def __post_init__(self) -> None:
        if not 0 < self.timeout < float("inf"):
            raise ValueError(f"timeout must be a positive number of seconds, got {self.timeout}")
        if not self.max_offset >= 0:
            raise ValueError(f"max_offset must not be negative, got {self.max_offset}")
        if self.quick and self.base is not None:
            raise ValueError("quick makes no prompts, so it cannot count tokens; leave out either quick or the base")
        if min(self.max_answer_tokens, self.max_length or 1) < 1:
            raise ValueError("max_answer_tokens and max_length must be at least 1")


AUDIO = "audio"
"""The channel that a video itself has where no patch says which channels there are."""
