"""pave selfcheck on the command line: the table, the JSON, the exit codes."""

import json

from pave.cli import main
from pave.selfcheck import checks


def test_the_table_and_the_json_say_what_works(capsys):
    assert main(["selfcheck", "--device", "cpu", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["passed"] is True and set(data["checks"]) == {"cpu float32", "cpu bfloat16", "pave train"}
    assert {check["result"] for column in data["checks"].values() for check in column} == {"ok"}
    assert list(data["machine"]["devices"]) == ["cpu"]


def test_a_failed_check_is_exit_code_1_and_stands_in_the_table(monkeypatch, capsys):
    monkeypatch.setattr(checks, "STEPS", 0)
    monkeypatch.setattr("pave.cli.selfcheck._DTYPES", ("float32",))
    assert main(["selfcheck", "--device", "cpu"]) == 1
    out = capsys.readouterr().out
    assert "FAILED   training learns" in out and out.splitlines()[-1].endswith("failed")
    assert "ok       identity at start" in out and "computes in float32, bfloat16, float16" in out


def test_a_device_that_is_not_there_is_2(capsys):
    assert main(["selfcheck", "--device", "maia:0"]) == 2
    assert capsys.readouterr().err.startswith("pave: --device maia:0: it cannot be used: ")
