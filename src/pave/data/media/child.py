"""Reading a file in a child process: with a time limit, and without harm if the decoder crashes.

The child runs ``child_main``. It answers on its standard output with one line of JSON, followed by the bytes of the
arrays that the line announces.
Nothing is pickled: the file may be hostile, and so may what its decoder hands back.
"""

from __future__ import annotations

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
    command = [sys.executable, "-m", "pave.data.media.child_main"]
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
