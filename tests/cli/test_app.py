"""The command as a whole: help, exit codes, one clear sentence, JSON alone on standard output, fast start."""

import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

import pave
from pave.cli import main
from pave.cli.app import VERBS, app
from pave.cli.shared import JobFailed, JsonOption, Result, debug_mode, guarded

RECIPE = str(Path(__file__).parents[2] / "recipes" / "playground_audio.yaml")


@pytest.fixture(autouse=True)
def _debug_off():
    token = debug_mode.set(False)
    yield
    debug_mode.reset(token)


@pytest.mark.parametrize("option", ["--version", "-V"])
def test_version(option, capsys):
    assert main([option]) == 0
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
        "sign",
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


def test_verbose_tells_more_and_quiet_tells_less(capsys):
    for arguments, shown in (([], False), (["--verbose"], True), (["--quiet"], False)):
        assert main(["show", "--preset", "compact", *arguments]) == 0
        logging.getLogger("pave.x").debug("a detail")
        logging.getLogger("pave.x").info("a step")
        messages = capsys.readouterr().err
        assert ("a detail" in messages) is shown and ("a step" in messages) is (arguments != ["--quiet"])
        assert "Traceback" not in messages
    assert main(["show", "--quiet", "--debug"]) == 2
    assert "--quiet and --debug ask for opposite things; give one" in capsys.readouterr().err


def test_a_shell_can_complete_verbs_and_options():
    shell = {"_PAVE_COMPLETE": "complete_bash", "COMP_WORDS": "pave ex", "COMP_CWORD": "1"}
    words = subprocess.run(
        [sys.executable, "-m", "pave.cli"], env={**os.environ, **shell}, capture_output=True, text=True, check=True
    ).stdout.split()
    assert words == ["extract", "export"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["ask", "v.mp4", "?", "--patch", "A", "--patch", "B"],
            "--patch is given more than once, and takes one value; give it once",
        ),
        (["ask", "--base=A", "v.mp4", "--base", "A", "?"], "--base is given more than once, and takes one value; give it once"),
        (
            ["data", "convert", "avqa", "--media", "a", "--media", "b"],
            "--media is given more than once, and takes one value; give it once",
        ),
        (["doctor", "x.jsonl", "--max-offset", "1e400"], "--max-offset is at most 1,000,000,000, got inf"),
        (["doctor", "x.jsonl", "--timeout", "nan"], "--timeout is at most 1,000,000,000, got nan"),
        (["show", "--frames", "9" * 400], f"--frames is at most 1,000,000,000, got {'9' * 20}"),
        (["show", "--frames", "1000000001"], "--frames is at most 1,000,000,000, got 1000000001"),
        (["demo", "--seed", "9223372036854775808"], "--seed is at most 9,223,372,036,854,775,807, got 9223372036854775808"),
        (["train", RECIPE, "output=a", "output=b"], "override 'output=b': output is set already, by 'output=a'; give it once"),
    ],
)
def test_what_would_be_lost_or_endless_is_one_sentence_and_2(arguments, message, capsys):
    for as_json in (False, True):
        assert main([*arguments, *(["--json"] if as_json else [])]) == 2
        out, err = capsys.readouterr()
        assert err == f"pave: {message}\n"
        assert out == "" if not as_json else json.loads(out) == {"error": message, "exit_code": 2}


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_every_verb_refuses_an_option_that_is_given_twice(verb, capsys):
    command = typer.main.get_command(app).commands[verb]
    command = command.commands["convert"] if verb == "data" else command
    single = [p for p in command.params if p.param_type_name == "option" and not (p.multiple or p.is_flag)]
    named = [verb, "convert"] if verb == "data" else [verb]
    for option in single:
        assert main([*named, option.opts[0], "1", option.opts[0], "2"]) == 2
        assert f"pave: {max(option.opts, key=len)} is given more than once" in capsys.readouterr().err


def test_flags_and_options_that_may_be_repeated_are_taken(capsys):
    assert main(["show", "--json", "--preset", "big", "--json"]) == 2
    assert "there is no preset 'big'" in capsys.readouterr().err
    arguments = ["--counterfactual", "removed", "--counterfactual", "swapped", "--frames", "1000000000"]
    assert main(["eval", "gone.jsonl", *arguments]) == 2
    assert capsys.readouterr().err == "pave: gone.jsonl: there is no such file of samples\n"


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
        (ValueError("a\x1b[2Jb ü 漢"), 2, "a\\x1b[2Jb ü 漢"),
        (ValueError("a" * 1500 + "b" * 9 + "c" * 500), 2, f"{'a' * 1500} [... 9 characters left out ...] {'c' * 500}"),
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


def test_a_slip_is_told_before_torch_is_loaded(tmp_path):
    """Loading it takes seconds, and the sentence about a wrong name has to wait for nothing."""
    (tmp_path / "clip.mp4").write_bytes(b"")
    (tmp_path / "one.jsonl").write_text(json.dumps({"id": "1", "video": "clip.mp4", "question": "?", "answer": "a"}))
    (tmp_path / "recipe.yaml").write_text("data: {train: gone.jsonl}")
    clip, samples, recipe = "clip.mp4", "one.jsonl", "recipe.yaml"
    slips = {
        "gone.mp4: there is no such file": ["ask", "gone.mp4", "?"],
        "no patch at './gone'": ["ask", clip, "?", "--patch", "./gone"],
        "base '/gone/base' is no folder": ["ask", clip, "?", "--base", "/gone/base"],
        "dtype must be one of": ["ask", clip, "?", "--dtype", "int4"],
        "gone.jsonl": ["eval", "gone.jsonl"],
        "no patch at 'a/b/c'": ["eval", samples, "--patch", "a/b/c"],
        "a shard is written as": ["eval", samples, "--shard", "2", "--out", "run"],
        "--vision says what --store holds": ["eval", samples, "--vision", "exact"],
        "gone.yaml: there is no such file": ["train", "gone.yaml"],
        "over.yaml: there is no such file": ["train", recipe, "over.yaml"],
        "override 'steps': expected key=value": ["train", recipe, "steps"],
        "gone.jsonl: there is no such file of samples": ["train", recipe],
        "--video-size is width x height": ["train", recipe, "--video-size", "wide", "--dry-run"],
    }
    script = (
        "import io, sys; from contextlib import redirect_stderr; from pave.cli import main\n"
        f"for said, arguments in {slips!r}.items():\n"
        "    with redirect_stderr(io.StringIO()) as err: code = main(arguments)\n"
        "    assert code == 2 and said in err.getvalue(), (arguments, err.getvalue())\n"
        "    assert 'torch' not in sys.modules, arguments\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
