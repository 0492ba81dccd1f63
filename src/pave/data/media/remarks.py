"""What is good to know about a file that is read without an error."""

from __future__ import annotations

from collections.abc import Iterator

from pave.data.media.probing import AudioInfo, MediaInfo, VideoInfo


def remarks(info: MediaInfo) -> Iterator[tuple[str, str]]:
    """Pairs of a code of the doctor (``pave.data.doctor.defects``) and a sentence, without the name of the file: how pictures are
    changed to be shown, what they hold that is not undone, and tracks that are not read."""
    if info.video is not None:
        yield from picture_remarks(info.video)
    if info.audio is not None:
        yield from sound_remarks(info.audio)
    elif info.audio_error is not None:
        yield "codec-unknown", info.audio_error


def picture_remarks(video: VideoInfo) -> Iterator[tuple[str, str]]:
    """Those about the video track."""
    if video.pixel_aspect != 1:
        yield (
            "pixels-not-square",
            f"its pixels are {video.pixel_aspect:.4g} times as wide as high; its pictures are read as {video.width}x{video.height} "
            "with square ones",
        )
    if video.mirrored:
        yield "picture-mirrored", "the file says that its pictures are shown mirrored, and so they are read"
    if video.hdr is not None:
        yield (
            "picture-hdr",
            f"its brightness is stored for a high dynamic range ({video.hdr}), which is not mapped to the usual one: it looks pale",
        )
    if video.interlaced:
        yield "picture-interlaced", "its pictures are interlaced, which is not undone: what moves is seen as a comb"
    if video.flagged:
        yield "packets-marked", f"{video.flagged} of its packets are marked as damaged or as following a gap"
    if video.tracks > 1:
        yield "tracks-further", f"the file has {video.tracks} video tracks, of which number {video.track} is read"


def sound_remarks(audio: AudioInfo) -> Iterator[tuple[str, str]]:
    """Those about the audio track."""
    if audio.tracks > 1:
        yield "tracks-further", f"the file has {audio.tracks} audio tracks, of which number {audio.track} is read"
