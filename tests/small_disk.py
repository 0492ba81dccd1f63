"""Python on a real file system of a few kilobytes, in a mount namespace of its own that ends with it."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


def on_small_disk(folder: Path, code: str, kilobytes: int = 256, read_only: bool = False) -> subprocess.CompletedProcess[str]:
    """Run code in a process for which ``folder`` is such a disk; skips where this machine does not allow to mount one."""
    folder.mkdir(exist_ok=True)
    place = shlex.quote(str(folder))
    mount = f"mount -t tmpfs -o size={kilobytes}k{',ro' if read_only else ''} none {place}"
    enter = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    if shutil.which("unshare") is None or subprocess.run([*enter, mount], capture_output=True).returncode:
        pytest.skip("file systems cannot be mounted here")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(part for part in sys.path if part)}
    run = f"{mount} && exec {shlex.quote(sys.executable)} -c {shlex.quote(code)}"
    return subprocess.run([*enter, run], capture_output=True, text=True, env=environment)
