"""Encoders by import path: what is found, what is refused, and that nothing else is ever called."""

import sys

import pytest
import torch

from pave.config import EncoderConfig
from pave.data.sources import read_source
from pave.side_channels import OwnEncoder, SideEncoder, SideFeatures, build_encoder, encoder_source

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


OWN = ["gauges", "gauge_of_nobody", "broken_gauge", "raising_gauge", "os", "subprocess", "builtins", "pathlib"]


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
    return build_encoder(EncoderConfig(name=name, settings=settings), OWN)


def test_an_encoder_by_its_import_path(gauges):
    encoder = build("gauges:Gauge", gain=2.0)
    assert isinstance(encoder, SideEncoder) and isinstance(encoder, OwnEncoder)
    assert (encoder.source, encoder.width, encoder.tokens_per_step, encoder.sample_rate) == ("own", 1, 1, None)
    assert encoder.spec() == EncoderConfig(name="gauges:Gauge", settings={"gain": 2.0})
    assert build_encoder(encoder.spec(), "gauges").spec() == encoder.spec()
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
        (
            "gauge_of_nobody:Gauge",
            r"there is no installed module 'gauge_of_nobody'; name its file instead, such as FOLDER/gauge_of_nobody\.py",
        ),
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
        build_encoder(EncoderConfig(name="gauges:Gauge", model="x"), OWN)


MARK = "from pathlib import Path\nPath(__file__).with_name('ran').touch()\n" + MODULE


@pytest.fixture
def stranger(tmp_path, monkeypatch):
    """A folder with a module that leaves a mark when it runs, and that folder is where the program runs and on its path."""
    (tmp_path / "evil.py").write_text(MARK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("evil", None)


INSIDE = {"views": ["left"], "encoder": {"name": "evil:Gauge"}}


@pytest.mark.parametrize(("name", "settings"), [("evil:Gauge", {}), ("multiview", INSIDE), ("scene3d", INSIDE)])
@pytest.mark.parametrize("others", [(), ("gauges",), ("evil_twin",)])
def test_code_that_only_a_config_names_is_not_run(stranger, name, settings, others):
    (stranger / "evil_twin.py").write_text("")
    config = EncoderConfig(name=name, settings=settings if name != "scene3d" else {"encoder": settings["encoder"]})
    with pytest.raises(ValueError, match=r"'evil:Gauge' is code .* --encoders evil .*encoders=\['evil'\]") as caught:
        build_encoder(config, others)
    assert "\n" not in str(caught.value)
    assert not (stranger / "ran").exists() and "evil" not in sys.modules


def test_the_source_of_an_encoder_is_not_looked_up_in_code_that_nobody_named(stranger):
    with pytest.raises(ValueError, match="'evil:Gauge' is code"):
        encoder_source(EncoderConfig(name="evil:Gauge"))
    assert not (stranger / "ran").exists()
    assert encoder_source(EncoderConfig(name="evil:Gauge"), "evil") == "own"


@pytest.fixture
def away(tmp_path, monkeypatch):
    """A module in a folder that Python does not look into."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "beside.py").write_text("GAIN = 7.0\n")
    (tmp_path / "lib" / "gauge_file.py").write_text(
        MODULE.replace("import torch\n", "import torch\nfrom beside import GAIN\n", 1)
    )
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path / "lib" / "gauge_file.py"
    for name in ("gauge_file", "beside"):
        sys.modules.pop(name, None)


def test_a_file_that_is_named_is_found_with_what_lies_beside_it(away, monkeypatch):
    config = EncoderConfig(name="gauge_file:Gauge", settings={"gain": 2.0})
    with pytest.raises(ValueError, match="there is no installed module 'gauge_file'; name its file instead"):
        build_encoder(config, "gauge_file")
    monkeypatch.chdir(away.parent.parent)
    for named in (str(away), "lib/gauge_file.py"):
        encoder = build_encoder(config, [named])
        assert encoder.encode(("video", "log")).features_KMC.flatten().tolist() == [6.0, 6.0]
    with pytest.raises(ValueError, match="'gauge_file:Gauge' is code"):  # it was named for that one call alone
        build_encoder(config)


def test_another_module_of_the_name_of_the_file_is_not_taken_for_it(away, tmp_path, monkeypatch):
    (tmp_path / "gauge_file.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ValueError, match=r"lib/gauge_file\.py was named, but Python has another module 'gauge_file'"):
        build_encoder(EncoderConfig(name="gauge_file:Gauge"), str(away))


@pytest.mark.parametrize("entry", ["gone.py", "no-module", "a/b", ""])
def test_a_name_that_is_no_module_is_refused(tmp_path, monkeypatch, entry):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="^encoders: "):
        build_encoder(EncoderConfig(), entry)


def test_a_package_stands_for_its_modules_and_not_the_other_way(stranger):
    (stranger / "evil_package").mkdir()
    (stranger / "evil_package" / "__init__.py").write_text("")
    (stranger / "evil_package" / "inner.py").write_text(MARK)
    config = EncoderConfig(name="evil_package.inner:Gauge")
    for other in ("evil", "evil_package.other", "evil_package.inner.deeper"):
        with pytest.raises(ValueError, match="'evil_package.inner:Gauge' is code"):
            build_encoder(config, other)
    assert build_encoder(config, "evil_package").source == "own"
    for name in ("evil_package", "evil_package.inner"):
        sys.modules.pop(name)


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


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("log_mel", {"n_mels": 10**9}),
        ("log_mel", {"window_seconds": 1e9}),
        ("log_mel", {"n_mels": 10**400}),
        ("log_mel", {"n_mels": 900_000, "window_seconds": 100.0}),
        ("log_mel", {"window_seconds": float("nan")}),
        ("text_hash", {"width": 10**9}),
        ("features", {"width": 10**9}),
        ("frames_pixels", {"grid": 10**9, "detail": 1}),
        ("multiview", {"views": ["a"], "encoder": {"name": "frames_pixels", "settings": {"grid": 10**9}}}),
    ],
)
def test_settings_that_no_memory_holds_are_refused_before_it_is_taken(name, settings):
    with pytest.raises(ValueError, match=r"too large to be meant|at most (60|1,000,000|4,096)|would take .* MiB"):
        build_encoder(EncoderConfig(name=name, settings=settings))
