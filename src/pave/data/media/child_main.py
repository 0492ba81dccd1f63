"""The child process of ``child``: reads one media file and answers with what was read."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import Any

import numpy as np

from pave.data.media.container import MediaError
from pave.data.media.frames import read_frames
from pave.data.media.probing import probe
from pave.data.media.sampling import FrameSampling
from pave.data.media.sound import read_audio


def main() -> None:
    """Answer the one request on standard input."""
    request = json.loads(sys.stdin.buffer.read())
    functions = {"read_frames": read_frames, "read_audio": read_audio, "probe": probe}
    options = request["options"]
    if "sampling" in options:
        options["sampling"] = FrameSampling(**options["sampling"])
    out = sys.stdout.buffer
    try:
        result: Any = functions[request["function"]](request["path"], **options)  # type: ignore[operator]
    except MediaError as error:
        out.write(json.dumps({"error": str(error), "code": error.code}).encode())
        return
    fields = {f.name: getattr(result, f.name) for f in dataclasses.fields(result)} if result is not None else {}
    arrays = {name: np.ascontiguousarray(value) for name, value in fields.items() if isinstance(value, np.ndarray)}
    plain = {
        name: dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value
        for name, value in fields.items()
        if name not in arrays
    }
    layout = {name: (array.dtype.str, array.shape) for name, array in arrays.items()}
    out.write(json.dumps({"fields": plain, "arrays": layout}).encode() + b"\n")
    for array in arrays.values():
        out.write(array.data)


if __name__ == "__main__":
    main()
