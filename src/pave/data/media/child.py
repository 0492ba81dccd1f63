"""Reading a file in a child process: with a time limit, and without harm if the decoder crashes.

The child answers on its standard output with one line of JSON, followed by the bytes of the arrays that the line announces.
Nothing is pickled: the file may be hostile, and so may what its decoder hands back.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from typing import Any

import numpy as np

from pave.data.media.container import MediaError


def run_in_child(function: str, path: str | os.PathLike[str], options: dict[str, Any], timeout: float) -> dict[str, Any]:
    """Call ``read_frames``, ``read_audio`` or ``probe`` in a fresh Python process.

    Args:
        function: its name.
        path: the media file.
        options: its keyword arguments, as JSON has them.
        timeout: seconds, the start of the process (about half a second) included.

    Returns:
        The fields of the dataclass that the function returns; empty where it returns None.

    Raises:
        MediaError: what the child raised, or that the time is over, or that the child crashed.
        ValueError: if ``timeout`` is not positive.
    """
    if not timeout > 0:
        raise ValueError(f"{function}: timeout must be a positive number of seconds, got {timeout}")
    name = os.fspath(path)
    request = json.dumps({"function": function, "path": os.path.abspath(name), "options": options})
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(part for part in sys.path if part)}
    command = [sys.executable, "-m", "pave.data.media.child"]
    try:
        done = subprocess.run(
            command, input=request.encode(), capture_output=True, timeout=timeout, env=environment, check=False
        )
    except subprocess.TimeoutExpired:
        raise MediaError(f"{name}: reading took longer than the {timeout:g} s allowed", "media-timeout") from None
    head, _, body = done.stdout.partition(b"\n")
    if done.returncode != 0 or not head:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise MediaError(
            f"{name}: the process that read it ended with status {done.returncode} ({' '.join(last) or 'no message'})"
        )
    answer = json.loads(head)
    if "error" in answer:
        raise MediaError(answer["error"].replace(os.path.abspath(name), name), answer["code"])
    fields: dict[str, Any] = answer["fields"]
    start = 0
    for field, (dtype, shape) in answer["arrays"].items():
        count = int(np.prod(shape, dtype=np.int64))
        fields[field] = np.frombuffer(body, dtype=dtype, count=count, offset=start).reshape(shape).copy()
        start += fields[field].nbytes
    return fields


def main() -> None:
    """Answer the one request on standard input."""
    from pave.data import media

    request = json.loads(sys.stdin.buffer.read())
    functions = {"read_frames": media.read_frames, "read_audio": media.read_audio, "probe": media.probe}
    options = request["options"]
    if "sampling" in options:
        options["sampling"] = media.FrameSampling(**options["sampling"])
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
