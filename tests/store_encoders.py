"""An encoder of one's own for processes that tests start; what it reads says how it misbehaves."""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch

from pave.side_channels import OwnEncoder, SideFeatures


class Fragile(OwnEncoder):
    """A step of the file's length; a file that says so hangs, ends the process, or raises."""

    width = 1

    def read(self, video, path):
        text = Path(path).read_text()
        if text == "hang":
            time.sleep(1000)
        if text == "crash":
            os._exit(3)
        if text == "raise":
            raise RuntimeError("a decoder's own error")
        return text

    def encode(self, source):
        return SideFeatures(torch.full((1, 1), float(len(source))), torch.zeros(1))
