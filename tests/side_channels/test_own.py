"""Encoders by import path: what is found, what is refused, and that nothing else is ever called."""

import sys

import pytest
import torch

from pave.config import EncoderConfig
from pave.data.sources import read_source
from pave.side_channels import OwnEncoder, SideEncoder, SideFeatures, build_encoder

MODULE = """
import torch
from pave.side_channels import OwnEncoder, SideFeatures

class Gauge(OwnEncoder):
    def __init__(self, *, gain=1.0):
        super().__init__(gain=gain)
        self.gain = gain

    @property
    def width(self):
        return 1

    def read(self, video, path):
        return None if path is None else (video, path)

    def encode(self, source):
        return SideFeatures(torch.full((2, 1), self.gain * len(source[1])), torch.tensor([0.0, 1.0]))

class Half(OwnEncoder):
    width = 1

class Plain:
    pass

number = 3
"""


@pytest.fixture
def gauges(tmp_path, monkeypatch):
    (tmp_path / "gauges.py").write_text(MODULE)
    (tmp_path / "broken_gauge.py").write_text("import a_package_nobody_has\n")
    (tmp_path / "raising_gauge.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    for name in ("gauges", "broken_gauge", "raising_gauge"):
        sys.modules.pop(name, None)


def build(name, **settings):
    return build_encoder(EncoderConfig(name=name, settings=settings))


def test_an_encoder_by_its_import_path(gauges):
    encoder = build("gauges:Gauge", gain=2.0)
    assert isinstance(encoder, SideEncoder) and isinstance(encoder, OwnEncoder)
    assert (encoder.source, encoder.width, encoder.tokens_per_step, encoder.sample_rate) == ("own", 1, 1, None)
    assert encoder.spec() == EncoderConfig(name="gauges:Gauge", settings={"gain": 2.0})
    assert build_encoder(encoder.spec()).spec() == encoder.spec()
    assert build("gauges:Gauge").spec().settings == {"gain": 1.0}
    assert read_source(encoder, "video.mp4", None) is None
    source = read_source(encoder, "video.mp4", "log")
    assert source == ("video.mp4", "log")
    one, two = encoder.to("cpu").encode_batch([source, source])
    assert isinstance(one, SideFeatures) and torch.equal(one.features_KMC, two.features_KMC)
    assert one.features_KMC.flatten().tolist() == [6.0, 6.0]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gauges:Gage", "the module 'gauges' has no class 'Gage'"),
        ("gauges:number", "has no class 'number'"),
        ("gauge_of_nobody:Gauge", r"there is no module 'gauge_of_nobody' here; run in the folder of gauge_of_nobody\.py"),
        ("broken_gauge:Gauge", "cannot be imported: No module named 'a_package_nobody_has'"),
        ("raising_gauge:Gauge", "cannot be imported: ZeroDivisionError"),
        ("gauges:Plain", "'gauges:Plain' is no encoder: it lacks source, width"),
        ("gauges:Half", "cannot be built .*abstract"),
        ("gauges:", "is no import path"),
        ("../gauges:Gauge", "is no import path"),
        (":Gauge", "is no import path"),
    ],
)
def test_what_is_not_there_is_said(gauges, name, words):
    with pytest.raises(ValueError, match=words) as caught:
        build(name)
    assert "\n" not in str(caught.value)


def test_settings_are_checked_as_those_of_the_library(gauges):
    with pytest.raises(ValueError, match="the encoder 'gauges:Gauge' has no setting 'gian'; did you mean 'gain'"):
        build("gauges:Gauge", gian=2)
    with pytest.raises(ValueError, match="'gauges:Gauge' has no weights, so it takes no model"):
        build_encoder(EncoderConfig(name="gauges:Gauge", model="x"))


@pytest.mark.parametrize("name", ["os:system", "subprocess:Popen", "builtins:exec", "pathlib:Path"])
def test_a_patch_of_a_stranger_cannot_call_anything_else(tmp_path, name):
    argument = {"os:system": "command", "subprocess:Popen": "args", "builtins:exec": "source", "pathlib:Path": "args"}[name]
    with pytest.raises(ValueError, match="has no class|is no encoder"):
        build(name, **{argument: f"touch {tmp_path / 'evil'}"})
    assert not (tmp_path / "evil").exists()


def test_another_class_with_the_source_of_ours_is_refused():
    class Odd:
        source = "own"

    with pytest.raises(ValueError, match=r"an encoder with the source 'own' is a pave\.side_channels\.own\.OwnEncoder"):
        read_source(Odd(), "video.mp4", None)
