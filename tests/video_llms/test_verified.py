"""What is written down of the families is what the code describes and the suite checks; families can be added from outside."""

from __future__ import annotations

import ast
import inspect
import json
from pathlib import Path

import pytest

import pave.video_llms as video_llms
from family_cases import FAMILY_CASES
from pave.cli import main
from pave.video_llms import NOT_SUPPORTED, VideoLLMInterface, get_interface, register, supported_types
from pave.video_llms.verified import RECORD, STORED_VISION, verified_families

SUITE = Path(__file__).parents[1] / "conformance" / "test_families.py"
AGAIN = "run: pytest tests/conformance/test_families.py --write-families src/pave/video_llms/families.json"


def config_of(model_type):
    return type("Config", (), {"model_type": model_type})()


def checks():
    """What the tests of the suite say they show."""
    found = []
    for node in ast.parse(SUITE.read_text(encoding="utf-8")).body:
        for mark in getattr(node, "decorator_list", ()):
            if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.shows":
                found.append(mark.args[0].value)
    return found


def test_the_record_names_every_type_and_every_check():
    record = json.loads(RECORD.read_text(encoding="utf-8"))["families"]
    assert list(record) == list(FAMILY_CASES) and set(record) == set(supported_types()), AGAIN
    assert len(checks()) > 15 and STORED_VISION in checks()
    assert sum(family.stores_vision for family in verified_families()) == 23
    for model_type, entry in record.items():
        merged = FAMILY_CASES[model_type].merges > 1
        expected = {check for check in checks() if merged or check != "an odd number of frames in merged steps"}
        assert set(entry["checks"]) == expected, AGAIN
        vision = entry["checks"].pop(STORED_VISION)
        assert vision in ("passed", get_interface(config_of(model_type)).vision_not_stored), AGAIN
        limits = {reason for what, (reason, _) in FAMILY_CASES[model_type].limits.items() if what != "prompt"}
        assert {state for state in entry["checks"].values() if state != "passed"} == limits, AGAIN


def test_the_record_agrees_with_the_descriptions():
    for family in verified_families():
        interface = get_interface(config_of(family.model_type))
        assert family.facts["frames_per_step"] == interface.frames_per_step
        assert family.facts["features_method"] == interface.features_method
        assert family.model_class.endswith("ForConditionalGeneration") and not family.open


def test_every_description_is_short_and_holds_no_model_code():
    for family in video_llms.FAMILIES:
        source = inspect.getsource(inspect.getmodule(family))
        assert len(source.splitlines()) <= 75, family
        assert "nn.Module)" not in source and "forward(" not in source


def test_families_are_listed_for_people_and_machines(capsys):
    assert main(["families", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert [family["model_type"] for family in data["families"]] == supported_types()
    assert main(["families"]) == 0
    table = capsys.readouterr().out
    glm = next(f for f in data["families"] if f["model_type"] == "glm4v")
    assert f"{len(glm['passed'])} of {len(glm['passed']) + len(glm['limits'])}  {len(glm['limits'])}" in table
    assert main(["families", "glm4v"]) == 0
    text = capsys.readouterr().out
    assert all(f"passed   {check}" in text for check in glm["passed"])
    assert all(f"limit    {check}: {reason}" in text for check, reason in glm["limits"].items())


@pytest.mark.parametrize("model_type", [*NOT_SUPPORTED, "gpt2"])
def test_what_is_not_supported_is_said_with_its_reason(model_type, capsys):
    with pytest.raises(ValueError, match=rf"'{model_type}' are not supported") as caught:
        get_interface(config_of(model_type))
    assert NOT_SUPPORTED.get(model_type, "docs/new_video_llm.md") in str(caught.value)
    assert main(["families", model_type]) == 2
    assert NOT_SUPPORTED.get(model_type, "pave families lists") in capsys.readouterr().err


@pytest.fixture
def table(monkeypatch):
    monkeypatch.setattr(video_llms, "_BY_TYPE", dict(video_llms._BY_TYPE))


def test_a_family_can_be_described_outside_the_library(table, capsys):
    class Mine(video_llms.GridInterface):
        model_types = ("my_vl",)

    assert register(Mine) is Mine
    assert isinstance(get_interface(config_of("my_vl")), Mine)
    assert main(["families"]) == 0
    assert any(line.split()[0] == "my_vl" and "not verified" in line for line in capsys.readouterr().out.splitlines() if line)
    with pytest.raises(ValueError, match="Mine: my_vl is described already; pass replace=True"):
        register(Mine)
    assert register(Mine, replace=True) is Mine


@pytest.mark.parametrize(
    ("family", "message"),
    [
        (object, "register takes a subclass of VideoLLMInterface, got <class 'object'>"),
        (type("Nameless", (VideoLLMInterface,), {}), "Nameless.model_types must be a tuple of config.model_type values, got"),
        (type("Text", (VideoLLMInterface,), {"model_types": "my_vl"}), "Text.model_types must be a tuple .* got 'my_vl'"),
    ],
)
def test_what_is_no_description_is_refused(table, family, message):
    with pytest.raises(ValueError, match=message):
        register(family)
