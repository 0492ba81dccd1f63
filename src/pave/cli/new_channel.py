"""``pave new-channel``: the skeleton of a side channel of one's own."""

from __future__ import annotations

import importlib.util
import keyword
import re
from pathlib import Path

import typer

from pave.cli.shared import JsonOption, Result


def command(
    name: str = typer.Argument(..., help="Of the channel: a lower-case word such as thermometer. It becomes a Python module."),
    out: Path = typer.Option(Path("."), "--out", help="The folder to write to; it may hold other files."),
    json_output: bool = JsonOption,
) -> Result:
    """\b
    pave new-channel thermometer --out my-channel && (cd my-channel && python -m pytest test_thermometer.py)

    Write a side channel of your own that works as it is: a module with an encoder that reads its own files, and its tests. Then
    put in what your files hold and what a step says.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise ValueError(f"the name {name!r} is no module of Python; use lower-case letters, digits and underscores")
    module, test = out / f"{name}.py", out / f"test_{name}.py"
    for path in (module, test):
        if path.exists():
            raise ValueError(f"{path} is there already; choose another name or folder")
    if importlib.util.find_spec(name) is not None:
        raise ValueError(f"a module {name!r} is installed already and would be hidden; choose another name")
    from pave.utils.files import atomic_write_text

    words = {"CLASS": "".join(part.capitalize() for part in name.split("_")) + "Encoder", "CHANNEL": name}
    for path, template in ((module, _MODULE), (test, _TEST)):
        atomic_write_text(path, re.sub("|".join(words), lambda match: words[match[0]], template))
    channel = f"      {name}: {{kind: {name}, width: 2, encoder: {{name: '{name}:{words['CLASS']}'}}}}"
    text = (
        f"wrote {module} and {test}\nnext: run the tests there (python -m pytest test_{name}.py), then name the channel and the file in a recipe,\n"
        f'  encoders: [{module}]\n  patch:\n    side_channels:\n{channel}\nand in each sample its file: "side_channels": {{"{name}": "log.csv"}}'
    )
    return Result(text, {"files": [str(module), str(test)], "encoder": f"{name}:{words['CLASS']}"})


_MODULE = '''\
"""The side channel CHANNEL: what lies in its files, and what the model is told of it.

In a recipe, which names this file besides, as no code is imported otherwise:

    encoders: [CHANNEL.py]      # relative to the recipe
    patch:
      side_channels:
        CHANNEL: {kind: CHANNEL, width: 2, encoder: {name: "CHANNEL:CLASS", settings: {step_seconds: 0.5}}}

With a finished patch: pave ask ... --encoders CHANNEL.py

In a sample: "side_channels": {"CHANNEL": "log.csv"}
"""

import numpy as np
import torch

from pave.side_channels import OwnEncoder, SideFeatures


class CLASS(OwnEncoder):
    """One step for every ``step_seconds`` that have a reading: the mean of the readings and their spread.

    Args:
        step_seconds: length of a step.
    """

    def __init__(self, *, step_seconds: float = 0.5) -> None:
        super().__init__(step_seconds=step_seconds)  # every argument, so that patches and caches record it
        if not step_seconds > 0:
            raise ValueError(f"CHANNEL: step_seconds must be positive, got {step_seconds}")
        self.step_seconds = step_seconds

    @property
    def width(self) -> int:
        """Numbers in a step; the channel's width in a recipe."""
        return 2

    def read(self, video: str, path: str | None) -> np.ndarray | None:
        """(n, 2) seconds and values, from a CSV file with a header. Seconds count from the video's first frame."""
        if path is None:  # the sample names no file: this video lacks the channel
            return None
        try:
            readings = np.loadtxt(path, delimiter=",", skiprows=1, ndmin=2)
        except (OSError, ValueError) as error:
            raise ValueError(f"{path}: cannot be read as two columns of numbers under a header ({error})") from None
        if readings.shape[1:] != (2,) or not np.isfinite(readings).all():
            raise ValueError(f"{path}: two columns of finite numbers are needed, time and value, got shape {readings.shape}")
        return readings

    def encode(self, source: np.ndarray) -> SideFeatures:
        """Features (steps, 2), each with the second in the middle of its step. Scale them to about unit size."""
        step_n = np.floor(source[:, 0] / self.step_seconds)
        steps = np.unique(step_n)  # a step without a reading is simply not there
        values = [source[step_n == step, 1] for step in steps]
        features = torch.tensor([[float(v.mean()), float(v.std())] for v in values]).reshape(len(steps), 2)
        return SideFeatures(features, torch.from_numpy((steps + 0.5) * self.step_seconds))
'''

_TEST = '''\
"""Tests of the side channel CHANNEL. Run them in this folder: python -m pytest test_CHANNEL.py"""

import numpy as np
import pytest
import torch

from CHANNEL import CLASS
from pave import EncoderConfig, SideChannelConfig
from pave.data.dataset import PatchDataset
from pave.data.media import FrameSampling, write_video
from pave.data.samples import Sample
from pave.side_channels import build_encoder

LOG = "time,value\\n0.1,1.0\\n0.3,3.0\\n1.2,5.0\\n"
CONFIG = EncoderConfig(name="CHANNEL:CLASS", settings={"step_seconds": 0.5})


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text(LOG)
    return str(path)


def test_steps_say_what_was_read_at_their_time(log):
    encoder = build_encoder(CONFIG, "CHANNEL")
    features = encoder.encode(encoder.read("video.mp4", log))
    assert features.times_K.tolist() == [0.25, 1.25]  # nothing was read between 0.5 s and 1 s
    torch.testing.assert_close(features.features_KMC[:, 0], torch.tensor([[2.0, 1.0], [5.0, 0.0]]))
    assert features.features_KMC.shape[2] == encoder.width


def test_the_recorded_settings_make_the_same_encoder(log):
    encoder = build_encoder(CONFIG, "CHANNEL")
    assert encoder.spec() == CONFIG
    again = build_encoder(encoder.spec(), "CHANNEL")
    one, two = (e.encode(e.read("video.mp4", log)) for e in (encoder, again))
    assert torch.equal(one.features_KMC, two.features_KMC)


def test_a_file_that_is_no_good_is_named(tmp_path):
    (tmp_path / "bad.csv").write_text("time,value\\n0.1,warm\\n")
    for name in ("bad.csv", "missing.csv"):
        with pytest.raises(ValueError, match=name):
            CLASS().read("video.mp4", str(tmp_path / name))


def test_samples_bring_the_channel_or_lack_it(tmp_path, log):
    video = str(tmp_path / "clip.mp4")
    write_video(video, np.zeros((16, 64, 64, 3), np.uint8), fps=8)
    channels = {"CHANNEL": SideChannelConfig(kind="CHANNEL", width=2, encoder=CONFIG)}
    samples = [
        Sample(id="with", video=video, question="q", answer="a", side_channels={"CHANNEL": log}),
        Sample(id="without", video=video, question="q", answer="a"),
    ]
    items = PatchDataset(samples, FrameSampling(num_frames=4), {"CHANNEL": build_encoder(CONFIG, "CHANNEL")}, channels)
    assert len(items[0].side["CHANNEL"]) == 2
    assert items[1].side["CHANNEL"] is None
'''
