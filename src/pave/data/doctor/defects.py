"""The kinds of defects that are looked for. A code never changes its meaning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


@dataclass(frozen=True)
class Defect:
    """One kind of defect."""

    severity: Severity
    """error: training or scoring stops at it, or its result means nothing. warning: it runs, and is probably not meant. note: an
    ordinary case that is good to know."""
    what: str
    """What is found."""
    remedy: str
    """What to do."""


def _readable(what: str) -> Defect:
    return Defect("error", f"{what} cannot be read", "repair or replace the file, or take it out of the sample")


DEFECTS: dict[str, Defect] = {
    # the file of samples
    "sample-invalid": Defect("error", "the line is no sample", "correct the line"),
    "text-empty": Defect("error", "a text is empty", "write the text, or leave the sample out"),
    "id-repeated": Defect("error", "the id stands in an earlier line", "give every sample an id of its own"),
    "answer-missing": Defect(
        "error", "there is no answer to learn or to be judged by", "add the answer, or leave the sample out"
    ),
    "question-repeated": Defect("warning", "the same question with the same answer on the same files", "leave one of them out"),
    "answer-conflict": Defect("warning", "the same question on the same files with another answer", "keep the right one"),
    "split-question": Defect("error", "the question on the same video is in another file", "leave it out of one of the files"),
    "split-media": Defect("warning", "the same media content is in another file", "keep each recording in one file only"),
    # the video
    "media-missing": Defect("error", "the file is not there", "correct the path, or put the file there"),
    "media-unreadable": Defect("error", "the file cannot be read as video or audio", "replace the file"),
    "media-empty": Defect("error", "the file or its stream holds nothing", "replace the file"),
    "media-truncated": Defect("error", "the file is cut off or damaged", "get the file again"),
    "media-timeout": Defect("error", "reading took too long", "look at the file, or allow more time with --timeout"),
    "media-crash": Defect("error", "the process that read the file crashed", "replace the file"),
    "video-none": Defect("error", "the file has no video stream", "name a video; sound alone belongs into side_channels"),
    "frames-few": Defect(
        "warning", "the video has fewer frames than asked for", "ask for fewer frames, or leave the sample out"
    ),
    "times-counted": Defect("warning", "the file does not say when its frames are shown", "write it anew as mp4 or mkv"),
    "times-gap": Defect("warning", "no frame is shown for a long time", "check the time stamps, or cut the video there"),
    "rate-variable": Defect("note", "the frame rate varies", "nothing: true times are used"),
    "codec-unknown": Defect("error", "there is no decoder for the video or the sound", "convert the file to a common codec"),
    "packets-marked": Defect(
        "warning", "packets are marked as damaged", "nothing if the video plays well, else get the file again"
    ),
    "picture-mirrored": Defect(
        "note", "the file says that its pictures are mirrored", "nothing: they are read as they are shown"
    ),
    "pixels-not-square": Defect("note", "the pixels are not square", "nothing: pictures are read in their true shape"),
    "picture-hdr": Defect("warning", "the video has a high dynamic range", "convert it with tone mapping"),
    "picture-interlaced": Defect("warning", "the video is interlaced", "convert it with a deinterlacer"),
    "tracks-further": Defect("note", "there are more tracks of a kind", "check that the one that is read is the one meant"),
    # its sound
    "audio-none": Defect("note", "the video has no audio track", "nothing, or name a sound file for the channel"),
    "audio-offset": Defect("warning", "sound and picture begin at different times", "check that they are in step"),
    "audio-short": Defect("warning", "the sound is much shorter than the video", "check that the sound belongs to the video"),
    "audio-long": Defect("warning", "the sound is much longer than the video", "check that the sound belongs to the video"),
    # side channels
    "channel-missing": Defect("note", "the sample lacks the channel", "nothing, or name a file for the channel"),
    "channel-file-missing": Defect("error", "the file of a channel is not there", "correct the path, or write null"),
    "channel-empty": Defect("warning", "the channel gives not a single step", "check the file, or write null"),
    "channel-apart": Defect("error", "no step of the channel lies within the video", "check the clocks of both"),
    "channel-idle": Defect("error", "nothing of the channel can act", "correct its times or its content, or write null"),
    "channel-little": Defect("warning", "less than half of the channel can act", "check its times, its units and its content"),
    "audio-unreadable": _readable("sound"),
    "features-unreadable": _readable("stored features"),
    "own-unreadable": _readable("a side channel of your own"),
    "scene3d-unreadable": _readable("pictures with depth and poses"),
    "sensor-unreadable": _readable("a sensor"),
    "text-unreadable": _readable("captions or a transcript"),
    "video-unreadable": _readable("the frames of a channel"),
    "views-unreadable": _readable("further cameras"),
    "scene3d-counts": Defect("error", "pictures, depth maps and poses differ in number", "complete or remove the odd ones"),
    "scene3d-axes": Defect(
        "warning",
        "one picture's points do not lie where the others see them",
        "give camera-to-world poses in OpenCV's axes (x right, y down, z forward)",
    ),
    "scene3d-near": Defect("warning", "depths are too small to be metres", "set the scene's depth_unit"),
    "sensor-format": Defect("note", "how a log is written had to be found out", "nothing, if it was found out rightly"),
    "features-width": Defect("error", "features have another width than the patch", "extract them anew, or change the width"),
    "features-not-finite": Defect(
        "warning",
        "features hold NaN or infinity",
        "extract them anew; training stops there, inference counts such steps as missing",
    ),
    "features-constant": Defect("warning", "all steps of the channel are the same", "check that the stream is not dead"),
    # the prompt, with a base
    "text-special": Defect("error", "a text holds a special token of the base", "remove it from the text"),
    "prompt-long": Defect("error", "the prompt is longer than allowed", "sample fewer frames, or raise the limit"),
    "prompt-refused": Defect("error", "the base's processor or chat template refuses the sample", "correct the sample"),
    "answer-long": Defect("warning", "an answer is longer than the budget", "shorten it, or raise --max-answer-tokens"),
    "word-unknown": Defect("error", "the vocabulary lacks a word of an answer", "use words that the base knows"),
}
"""By code."""
