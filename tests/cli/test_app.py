"""The command as a whole: help, exit codes, one clear sentence, JSON alone on standard output, fast start."""

import json
import os
import re
import subprocess
import sys

import pytest
import typer

import pave
from pave.cli import main
from pave.cli.app import VERBS
from pave.cli.shared import JobFailed, JsonOption, Result, debug_mode, guarded


@pytest.fixture(autouse=True)
def _debug_off():
    token = debug_mode.set(False)
    yield
    debug_mode.reset(token)


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"pave {pave.__version__}\n"


def test_help_lists_every_verb_with_a_sentence(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    known = {
        "demo",
        "ask",
        "init",
        "new-channel",
        "data",
        "doctor",
        "extract",
        "report",
        "train",
        "eval",
        "score",
        "show",
        "compress",
        "families",
        "import",
        "import-base",
        "export",
    }
    assert set(VERBS) == known
    for verb, (_, summary) in VERBS.items():
        assert re.search(rf"^  {verb} +{re.escape(summary[:30])}", out, re.MULTILINE)


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_every_help_starts_with_an_example_that_parses(verb, capsys):
    assert main([verb, "--help"]) == 0
    out = capsys.readouterr().out
    lines = [line.strip() for line in out.splitlines() if line.strip()]
    assert lines[0].startswith(f"Usage: pave {verb}")
    assert lines[1].startswith(f"pave {verb}")
    assert "Traceback" not in out


def test_without_arguments_help_is_shown_and_nothing_is_done(capsys):
    assert main([]) == 2
    out, err = capsys.readouterr()
    assert "Usage: pave" in out + err


@pytest.mark.parametrize(
    "arguments", [["shwo"], ["ask"], ["show", "--frames", "0"], ["show", "--frames", "many"], ["demo", "--no-such-option"]]
)
def test_wrong_usage_is_2_and_leaves_standard_output_empty(arguments, capsys):
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and "Error" in err and "Traceback" not in err


def test_bad_input_is_one_sentence_and_2(capsys):
    assert main(["ask", "no/such/video.mp4", "what?"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err == "pave: no/such/video.mp4: there is no such file\n"
    assert main(["ask", __file__, "what?", "--compare"]) == 2
    assert capsys.readouterr().err == "pave: --compare shows the base beside a patch; give one with --patch\n"


@pytest.mark.parametrize("arguments", [["--debug", "show", "--preset", "big"], ["show", "--preset", "big", "--debug"]])
def test_debug_shows_the_traceback_wherever_it_stands(arguments, capsys):
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and "Traceback" in err and "there is no preset 'big'" in err.splitlines()[-1]


def test_debug_by_environment(capsys, monkeypatch):
    monkeypatch.setenv("PAVE_DEBUG", "1")
    assert main(["show", "--preset", "big"]) == 2
    assert "Traceback" in capsys.readouterr().err
    monkeypatch.setenv("PAVE_DEBUG", "0")
    assert main(["show", "--preset", "big"]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_with_json_an_error_is_one_object_too(capsys):
    assert main(["show", "--preset", "big", "--json"]) == 2
    out, err = capsys.readouterr()
    assert json.loads(out) == {"error": "--preset: there is no preset 'big'; it is compact or paper", "exit_code": 2}
    assert err == "pave: --preset: there is no preset 'big'; it is compact or paper\n"


def run_verb(function, arguments):
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(guarded(function))
    with pytest.raises(SystemExit) as stop:
        app(arguments)
    return stop.value.code


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ValueError("two\n  lines"), 2, "two lines"),
        (FileNotFoundError(2, "No such file or directory", "x.jsonl"), 2, "x.jsonl: No such file or directory"),
        (JobFailed("nothing could be answered"), 1, "nothing could be answered"),
        (RuntimeError("shapes"), 1, "RuntimeError: shapes; run again with --debug for the traceback"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_errors_become_exit_codes(error, code, message, capsys):
    def verb(json_output: bool = JsonOption) -> None:
        raise error

    assert run_verb(verb, []) == code
    assert capsys.readouterr() == ("", f"pave: {message}\n")
    assert run_verb(verb, ["--json"]) == code
    assert json.loads(capsys.readouterr().out) == {"error": message, "exit_code": code}


def test_json_keeps_standard_output_to_one_object_whatever_libraries_print(capsys):
    def verb(json_output: bool = JsonOption) -> Result:
        print("noise from a library")
        return Result("for people", {"text": "ü", "number": 1})

    assert run_verb(verb, ["--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == {"text": "ü", "number": 1} and out.count("\n") == 1
    assert err == "noise from a library\n"
    assert run_verb(verb, []) == 0
    assert capsys.readouterr().out == "noise from a library\nfor people\n"


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["ask", "--help"], ["train", "--help"]])
def test_help_loads_nothing_heavy(arguments):
    """In a fresh process: neither torch nor transformers nor a decoder is imported to print help."""
    code = (
        "import sys; from pave.cli import main; code = main(sys.argv[1:]); "
        "heavy = {'torch', 'transformers', 'av', 'peft', 'numpy'} & set(sys.modules); sys.exit(f'imported {heavy}' if heavy else code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, env={**os.environ, "COLUMNS": "100"}
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_library_itself_imports_lightly():
    code = "import sys, pave; sys.exit(bool({'torch', 'transformers', 'typer'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


_LONG_OUTPUT = """
import sys, typer
from pave.cli.shared import Result, guarded
app = typer.Typer()
app.command()(guarded(lambda: Result("x" * 10**6, {})))
app()
"""


def test_a_reader_that_leaves_early_is_no_error_message():
    with subprocess.Popen(
        [sys.executable, "-c", _LONG_OUTPUT], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.read(10) == "x" * 10
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1


def test_the_module_runs_as_a_program():
    done = subprocess.run([sys.executable, "-m", "pave.cli", "show", "--preset", "x"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.startswith("pave: --preset")
