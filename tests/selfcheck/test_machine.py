"""What a machine can do is tried, and named for what it is."""

from __future__ import annotations

import json
import os

import pytest
import torch
from torch.nn.attention import SDPBackend

from pave.selfcheck import machine
from pave.selfcheck.machine import describe_device, describe_machine, devices, usable_device

CPU = torch.device("cpu")


def test_the_cpu_computes_in_every_format_and_by_the_plain_formula():
    facts = describe_device(CPU)
    assert facts["dtypes"] == {"float32": "yes", "bfloat16": "yes", "float16": "yes"}
    assert facts["attention"]["math"] == facts["dtypes"]
    assert facts["attention"]["cudnn"]["float32"] != "yes"  # no GPU's kernel runs here


def test_a_kernel_that_computes_something_else_is_no_yes(monkeypatch):
    attention = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(machine.F, "scaled_dot_product_attention", lambda q, k, v, is_causal: attention(q, k, v))
    assert machine._tried(machine._attend, CPU, "float32", SDPBackend.MATH).startswith("off by ")


def test_a_format_that_overflows_is_no_yes(monkeypatch):
    monkeypatch.setattr(machine.F, "linear", lambda rows, weight: rows @ weight.T * (1e4 if rows.dtype == torch.float16 else 1))
    assert machine._tried(machine._multiply, CPU, "float16").startswith("off by ")
    assert machine._tried(machine._multiply, CPU, "float32") == "yes"


def test_the_facts_are_numbers_of_this_machine_and_name_no_path(monkeypatch):
    monkeypatch.setenv("PAVE_DECODER", "pyav")
    facts = describe_machine([CPU])
    assert facts["variables"]["PAVE_DECODER"] == "pyav"
    assert facts["versions"]["torch"] == torch.__version__ and facts["cores"]["all"] == os.cpu_count()
    assert 0 < facts["memory"]["free"] <= facts["memory"]["all"] and facts["disk"]["here"] > 0
    assert all(facts["codecs"]["decodes"].values()) and all(facts["codecs"]["encodes"].values())
    text = json.dumps({**facts, "variables": {}})
    assert os.getcwd() not in text and os.uname().nodename not in text.replace(os.uname().release, "")


def test_a_codec_that_is_not_there_is_said(monkeypatch):
    from pave.data.media import abilities

    monkeypatch.setattr(abilities, "DECODERS", ("h264", "no_such_codec"))
    assert abilities.describe_codecs()["decodes"] == {"h264": True, "no_such_codec": False}


def test_devices_are_those_that_torch_can_use():
    assert devices()[0] == CPU and all(torch.empty(0, device=device).device == device for device in devices())
    assert usable_device("cpu") == CPU
    with pytest.raises(ValueError, match="--device maia:0: it cannot be used: "):
        usable_device("maia:0")
