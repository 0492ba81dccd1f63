"""Video and audio files. The only package that decodes or encodes media.

The clock of a video starts at its first frame: every time here, of frames and of sound, is in seconds after that.
"""

from pave.data.media.container import MediaError
from pave.data.media.frames import VideoClip, read_frames
from pave.data.media.pictures import read_depth, read_picture, write_depth, write_picture
from pave.data.media.probing import AudioInfo, MediaInfo, VideoInfo, probe
from pave.data.media.remarks import picture_remarks, remarks, sound_remarks
from pave.data.media.sampling import FrameSampling
from pave.data.media.sound import read_audio
from pave.data.media.streaming import FramesInPieces
from pave.data.media.writing import write_video

__all__ = [
    "AudioInfo",
    "FrameSampling",
    "FramesInPieces",
    "MediaError",
    "MediaInfo",
    "VideoClip",
    "VideoInfo",
    "picture_remarks",
    "probe",
    "read_audio",
    "read_depth",
    "read_frames",
    "read_picture",
    "remarks",
    "sound_remarks",
    "write_depth",
    "write_picture",
    "write_video",
]
