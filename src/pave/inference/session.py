"""A running stream on a patched model: frames and side steps are pushed as they come, and questions are asked in between.

An answer is that of one call of the model on the same frames and steps (docs/streaming.md says what "the same" means).
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import Self

from pave.data.collator import PatchCollator
from pave.data.items import PatchItem
from pave.inference.generation import FirstToken, evaluation_mode, generate_ids, one_answer_each
from pave.inference.reading import adding_patches, newline_of
from pave.inference.session_answers import SessionReport, SideSeen, StreamAnswer
from pave.inference.session_clip import Reader, check_streams, choose_clip, clip_of, final_length
from pave.inference.session_sides import SideStreams
from pave.inference.session_streams import Frame, FrameStream, Lateness, SideStream, checked_times
from pave.inference.session_vision import StreamVision
from pave.patching import is_patched
from pave.patching.rows import Patches, Plan
from pave.video_llms import get_interface

logger = logging.getLogger(__name__)


class Session:
    """A stream of frames and side steps, and questions about it. Safe to use from several threads.

    All times are seconds on one clock, finite; those of frames are not negative.

    Args:
        model: a base, patched or not, in evaluation. Patches may come and go while the session runs.
        processor: the base's processor.
        keep_seconds: frames are let go when they are older than this, counted back from the newest frame. Side steps are held half
            as long again, so that a frame behind a gap finds what it reads.
        keep_bytes: most bytes of frames and of what the vision tower made of them; the oldest frames go first, the newest time step
            always stays. None: as many as ``keep_seconds`` says.
        max_frames: most frames that a question looks at, the newest ones. None: all that are held.
        lateness: how long side channels are waited for, for all of them or by channel.
        reorder_frames: seconds by which frames may be out of order.
        encode_ahead: run frames through the vision tower when they are pushed, where the base allows it, rather than when a question is
            asked.

    Raises:
        ValueError: if a limit is not positive.

    Example:
        >>> session = Session(model, processor, keep_seconds=30)
        >>> session.push_frames(frames, times)
        >>> session.push_side("audio", tokens, step_times)
        >>> session.ask("What was that sound?", at=12.5).text
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        *,
        keep_seconds: float = 60.0,
        keep_bytes: int | None = None,
        max_frames: int | None = None,
        lateness: Lateness | Mapping[str, Lateness] | None = None,
        reorder_frames: float = 0.0,
        encode_ahead: bool = True,
    ) -> None:
        for name, value in (("keep_seconds", keep_seconds), ("keep_bytes", keep_bytes), ("max_frames", max_frames)):
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be a positive number, got {value!r}")
        if max_frames is not None and max_frames != int(max_frames):
            raise ValueError(f"max_frames must be a whole number, got {max_frames!r}")
        self.model = model
        self.processor = processor
        self.keep_seconds = keep_seconds
        self.keep_bytes = keep_bytes
        self.max_frames = max_frames
        self._encode_ahead = encode_ahead
        self._family = get_interface(model.config)
        self._frames = FrameStream(Lateness(reorder_frames))
        self._sides = SideStreams(model, Lateness() if lateness is None else lateness)
        self._vision = StreamVision(model, processor)
        self._lock = threading.RLock()
        self._vision_lock = threading.Lock()
        self._closed = False

    # --- what comes

    def push_frames(self, frames: NDArray[np.uint8] | Tensor, times: Tensor | NDArray[np.floating] | Sequence[float]) -> None:
        """Take in frames.

        Args:
            frames: (F, height, width, 3) RGB, uint8, all of one session in one size. They are copied.
            times: seconds of each frame, from 0 on.

        Raises:
            ValueError: if they are no frames, there is not one finite time of at least 0 for each, or the session is closed. Nothing is taken in then.
        """
        pictures = np.asarray(frames.cpu() if isinstance(frames, Tensor) else frames)
        if pictures.ndim != 4 or pictures.shape[3] != 3 or pictures.dtype != np.uint8:
            raise ValueError(
                f"frames: expected uint8 of shape (frames, height, width, 3), got {pictures.dtype} of shape {pictures.shape}"
            )
        seconds = checked_times(times, len(pictures), "frames")
        if len(seconds) and seconds.min() < 0:
            raise ValueError(
                f"frames: a time is {seconds.min():.6g} s, and bases know no time before 0; move the clock of frames and side steps"
            )
        with self._lock:
            self._check_open()
            size = self._frames.size
            if size not in (None, pictures.shape[1:3]):
                raise ValueError(
                    f"frames: they are {pictures.shape[1]} x {pictures.shape[2]}, those before are {size[0]} x {size[1]}; "  # type: ignore[index]
                    "resize them, or open another session"
                )
            late = self._frames.late
            self._frames.push(pictures, seconds)
            self._say_late(self._frames, late)
            self._let_go()
            settled = self._settled(self._frames.frames)
        if self._encode_ahead:
            self._encode(settled)

    def push_side(
        self, channel: str, tokens: Tensor, times: Tensor | NDArray[np.floating] | Sequence[float], *, patch: str | None = None
    ) -> None:
        """Take in steps of a side channel, as the channel's encoder makes them.

        Args:
            channel: its name; for every patch that has such a channel, which must all be of one encoder.
            tokens: (K, M, C) or (K, C), floating. They are copied.
            times: seconds of each step, its centre.
            patch: the patch that they are for, where several have a channel of this name and are of different encoders.

        Raises:
            ValueError: if no patch has such a channel, the tokens do not fit it, its fusion cannot be known before a stream ends, a step lies
                more than ``keep_seconds`` ahead of the newest frame, or the session is closed. Nothing is taken in then.
        """
        if tokens.ndim not in (2, 3) or not tokens.is_floating_point():
            raise ValueError(
                f"side channel {channel!r}: tokens must be floating, of shape (steps, tokens per step, width) or (steps, width), got "
                f"{tokens.dtype} of shape {tuple(tokens.shape)}"
            )
        tokens_KMC = (tokens if tokens.ndim == 3 else tokens[:, None]).detach().cpu()
        seconds = torch.from_numpy(checked_times(times, len(tokens), f"side channel {channel!r}"))
        self._sides.check(channel, patch, tokens_KMC)
        with self._lock:
            self._check_open()
            stream = self._sides.open(channel, patch)
            newest_frame = self._frames.newest
            if len(seconds) and float(seconds.max()) > newest_frame + self.keep_seconds > -math.inf:
                raise ValueError(
                    f"side channel {channel!r}: a step at {float(seconds.max()):.6g} s lies more than keep_seconds ({self.keep_seconds:g}) ahead of "
                    f"the newest frame ({newest_frame:.6g} s); give both on one clock in seconds, or push frames as well"
                )
            late, broken = stream.late, stream.broken
            stream.push(tokens_KMC, seconds, newest_frame)
            self._say_late(stream, late)
            if stream.broken > broken:
                logger.warning("%s: %d steps hold NaN or infinity and are left out", stream.what, stream.broken - broken)
            self._let_go()

    def complete(self, channel: str | None = None, until: float = math.inf, *, patch: str | None = None) -> None:
        """Say that nothing before ``until`` will come any more, so that nothing waits for it.

        Args:
            channel: a side channel, also one of which nothing came; None for the frames and all side channels.
            until: seconds; without it the channel is over.
            patch: as for ``push_side``.

        Raises:
            ValueError: if no patch has such a channel, or the session is closed.
        """
        with self._lock:
            self._check_open()
            if channel is None:
                self._frames.complete(until)
                self._sides.complete(until)
            else:
                self._sides.check(channel, patch)
                self._sides.open(channel, patch).complete(until)

    # --- what goes out

    def ask(
        self,
        question: str,
        *,
        at: float | None = None,
        patches: Patches = None,
        history: Iterable[tuple[str, str]] = (),
        incomplete: bool = False,
        max_new_tokens: int = 64,
        **generation: Any,
    ) -> StreamAnswer:
        """Answer a question about the newest frames.

        They are the frames up to ``at`` that are held and *complete*: no step that may still come, before ``at``, can change what one of
        them reads. The last one reads what the last frame of a video reads. Frames that are not complete yet are left out.

        Args:
            question: what to ask.
            at: seconds; what came from this time on, frames of this very time excepted, does not count. None: everything counts.
            patches: which patches act, as in ``model.generate``.
            history: earlier questions and answers.
            incomplete: take frames that are not complete as well, with what has come.
            max_new_tokens: most tokens of the answer.
            generation: further arguments of ``generate``; greedy decoding without any.

        Raises:
            ValueError: if there is no frame to look at (the message says what is waited for), the question cannot be asked, a patch that acts
                cannot be streamed, or the session is closed.
        """
        start = time.monotonic()
        generation = one_answer_each(generation)
        with self._lock:
            self._check_open()
            plan = self.model.plan(patches, 1) if is_patched(self.model) else Plan.of(patches, 1, ())
            names = plan.names()
            until = math.inf if at is None else at
            sides = self._sides.read(names, self._frames.newest, until)
            for reader in sides.readers.values():
                check_streams(reader.name, reader.fusion)
            frames, complete = self._clip(list(sides.readers.values()), until, incomplete)
            now = max(self._frames.newest, self._sides.newest()) if at is None else at
        batch = self._batch(frames, [*history, (question, None)], plan)
        batch["side_channels"] = sides.tokens
        clock = FirstToken()
        options: dict[str, Any] = {**generation, "patches": patches} if is_patched(self.model) else generation
        if generation["num_beams"] == 1:
            options = {"streamer": clock, **options}
        ids = generate_ids(self.model, batch, max_new_tokens=max_new_tokens, **options)
        text: str = self.processor.tokenizer.batch_decode(ids, skip_special_tokens=True)[0].strip()
        end = time.monotonic()
        return StreamAnswer(
            text=text,
            frame_times=tuple(frame.time for frame in frames),
            complete=complete,
            staleness=now - frames[-1].time,
            side_channels={name: _seen(reader) for name, reader in sides.readers.items()},
            seconds=end - start,
            first_token_seconds=(clock.first or end) - start,
        )

    def report(self) -> SessionReport:
        """What became of all that was pushed so far."""
        with self._lock:
            newest = self._frames.newest
            return SessionReport(
                frames=self._frames.report(len(self._frames.frames), self._frames.num_bytes, -math.inf),
                side_channels=self._sides.report(newest),
                final_until=self._final_until(),
                encoded_steps=self._vision.encoded,
                reused_steps=self._vision.reused,
                vision_bytes=self._vision.num_bytes,
            )

    def close(self) -> None:
        """Let go of everything. What was counted can still be reported; nothing else can be done. Closing twice is fine."""
        with self._lock:
            self._closed = True
            self._drop_frames(len(self._frames.frames))
            self._sides.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # --- parts

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("the session is closed; open another one")

    def _final_until(self) -> float | None:
        times = self._frames.times()
        if not times:
            return None
        names = self.model.plan(None, 1).names() if is_patched(self.model) else []
        readers = list(self._sides.read(names, self._frames.newest).readers.values())
        final = final_length(_tensor(times), readers, self._family, self._frames.watermark(-math.inf))
        return times[final - 1] if final else None

    def _clip(self, readers: Sequence[Reader], at: float, incomplete: bool) -> tuple[list[Frame], bool]:
        """The frames that a question looks at, and whether they are complete."""
        there = [frame for frame in self._frames.frames if frame.time <= at]
        if not there:
            held = self._frames.times()
            why = f"the oldest one held is of {held[0]:.6g} s" if held else "none is held"
            raise ValueError(f"there is no frame up to {at:.6g} s: {why}" if math.isfinite(at) else f"there is no frame: {why}")
        settled = self._settled(there)
        clip = choose_clip(_tensor([frame.time for frame in settled]), readers, self._family, at, self.max_frames)
        if incomplete:
            wanted = clip_of(len(there), self._family, self.max_frames)
            return there[wanted.start : wanted.stop], wanted == clip
        if not clip:
            waiting = ", ".join(f"{reader.name} (complete up to {reader.watermark:.6g} s)" for reader in readers) or "frames"
            raise ValueError(
                f"no frame is complete yet, the first one is of {there[0].time:.6g} s; waiting for {waiting}: push more, say with "
                "complete(channel) that nothing more will come, or ask with incomplete=True"
            )
        return settled[clip.start : clip.stop], True

    def _settled(self, frames: Sequence[Frame]) -> list[Frame]:
        """Those before and between which no other frame can come."""
        known = self._frames.watermark(-math.inf)
        return [frame for frame in frames if frame.time <= known]

    def _reads_pre_projector(self) -> bool:
        return any(config.reads_pre_projector for config in self._sides.configs().values())

    def _encode(self, frames: Sequence[Frame]) -> None:
        with self._vision_lock, evaluation_mode(self.model):
            self._vision.encode(frames, pre_projector=self._reads_pre_projector())
        self._keep_to_limits()

    def _keep_to_limits(self) -> None:
        """After vision was made: of frames that are held alone, and no more of it than there is room for."""
        with self._lock:
            self._vision.keep_only(self._frames.frames)
            self._let_go()

    def _batch(self, frames: Sequence[Frame], turns: Sequence[tuple[str, str | None]], plan: Plan) -> dict[str, Any]:
        """What the model takes for a clip and a conversation, without side channels, where patches act as planned."""
        with self._vision_lock, evaluation_mode(self.model):
            vision = self._vision.of(frames, pre_projector=self._reads_pre_projector())
        self._keep_to_limits()
        times_F = np.array([frame.time for frame in frames])
        pictures = np.stack([frame.pixels_HWC for frame in frames]) if vision is None else vision.shape_of_frames
        item = PatchItem("the stream", pictures, times_F, tuple(turns), vision=vision)
        configs = self._sides.configs()
        strengths = {name: (plan.strengths(name)[0], plan.lora_strengths(name)[0]) for name in plan.names()}
        newline = newline_of(configs, adding_patches(configs, strengths))
        return PatchCollator(self.processor, self.model.config, {}, newline=newline, train=False)([item])

    def _let_go(self) -> None:
        """Keep to the limits: frames go in whole time steps, and side steps that no frame can reach any more go with them."""
        merged = self._family.frames_per_step
        times = self._frames.times()
        old = sum(seconds < self._frames.newest - self.keep_seconds for seconds in times)
        self._drop_frames(old // merged * merged)
        while (
            self.keep_bytes is not None and len(self._frames.frames) >= 2 * merged and self._picture_bytes() > self.keep_bytes
        ):
            self._drop_frames(merged)
        self._sides.keep_from(next(iter(self._frames.times()), None), self.keep_seconds)

    def _picture_bytes(self) -> int:
        return self._frames.num_bytes + self._vision.num_bytes

    def _drop_frames(self, count: int) -> None:
        if count:
            self._frames.drop_oldest(count)
            self._vision.keep_only(self._frames.frames)

    def _say_late(self, stream: FrameStream | SideStream, before: int) -> None:
        if stream.late > before:
            logger.warning(
                "%s: %d came too late and are left out, the worst so far %.3g s behind the watermark",
                stream.what,
                stream.late - before,
                stream.latest_seconds,
            )


def _tensor(times: Sequence[float]) -> Tensor:
    return torch.tensor(times, dtype=torch.float64)


def _seen(reader: Reader) -> SideSeen:
    times = reader.steps_K
    return SideSeen(
        len(times), float(times[0]) if len(times) else None, float(times[-1]) if len(times) else None, reader.watermark
    )
