"""What all verbs share: errors become exit codes, and ``--json`` keeps standard output to one JSON object."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import typer
import typer.core

from pave.utils.console import setup_logging
from pave.utils.files import DiskError
from pave.utils.optional import MissingExtraError

if TYPE_CHECKING:
    from pave.data.vision import StorageDtype

DEBUG_VARIABLE = "PAVE_DEBUG"
debug_mode: ContextVar[bool] = ContextVar("pave_debug", default=False)
message_level: ContextVar[int] = ContextVar("pave_message_level", default=logging.INFO)
FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130
_LARGEST_NUMBER, _LARGEST_SEED = 10**9, 2**63 - 1
MOST_PROCESSES = 1024

_Function = TypeVar("_Function", bound=Callable[..., Any])

JsonOption = typer.Option(
    False, "--json", help="Print one JSON object on standard output and nothing else there; under torchrun, that of rank 0."
)
BaseOption = typer.Option(
    None, "--base", help="The frozen Video LLM: a folder or a hub id. Default: playground, the small one inside pave."
)
PatchOption = typer.Option(None, "--patch", help="A patch: a folder or a hub id.")
DeviceOption = typer.Option("auto", "--device", help="auto (an accelerator if there is one), cpu, cuda, cuda:1, mps, ...")
DtypeOption = typer.Option(
    "auto", "--dtype", help="How the base's weights are held: auto (as stored), float32, bfloat16, float16."
)
MismatchOption = typer.Option(False, "--allow-base-mismatch", help="Load the patch although it was trained on another base.")
EncodersOption = typer.Option(
    None,
    "--encoders",
    metavar="MODULE",
    help="A module, or a .py file, with side encoders of your own that the patch may name. No other code is imported. May be repeated.",
)
VisionOption = typer.Option(
    None,
    "--vision",
    help="The store holds the base's frozen vision features as well, kept exact, or rounded to bfloat16 or float16.",
)


def storage_dtype(value: str | None) -> StorageDtype | None:
    """The value of ``--vision``."""
    if value not in (None, "exact", "bfloat16", "float16"):
        raise ValueError(f"--vision is exact, bfloat16 or float16, got {value!r}")
    return value  # type: ignore[return-value]


def check_choice(option: str, value: str | None, choices: Sequence[str]) -> str | None:
    """``value`` if it is one of ``choices`` or not given; ``option`` is named where it is neither."""
    if value is not None and value not in choices:
        raise ValueError(f"{option} is {' or '.join(choices)}, got {value!r}")
    return value


class Verb(typer.core.TyperCommand):
    """A verb whose options are given once, unless they may be repeated, and whose numbers are ones that something can be counted by.

    Without it the last of two values would win in silence, and 1e400 would be infinity.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As click does, but what it lets pass is one sentence and exit code 2."""
        as_json = "--json" in args
        *_, order = self.make_parser(ctx).parse_args(args=list(args))
        options: list[Any] = [param for param in order if param.param_type_name == "option"]
        single = [option for option in options if not (option.multiple or option.is_flag or option.count)]
        twice = next((param for number, param in enumerate(single) if param in single[:number]), None)
        if twice is not None:
            _fail(
                f"{_longest_name(twice)} is given more than once, and takes one value; give it once", BAD_INPUT, as_json, None
            )
        rest: list[str] = super().parse_args(ctx, args)
        for param in self.params:
            number, largest = ctx.params.get(param.name), _LARGEST_SEED if param.name == "seed" else _LARGEST_NUMBER
            if isinstance(number, (int, float)) and not abs(number) <= largest:
                _fail(f"{_longest_name(param)} is at most {largest:,}, got {str(number)[:20]}", BAD_INPUT, as_json, None)
        return rest


def _longest_name(param: Any) -> str:
    return str(max(param.opts, key=len))


def rank_of_process() -> tuple[int, int]:
    """This process's number, and how many there are, as torchrun says in the environment; 0 of 1 without it."""
    try:
        return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    except ValueError:
        raise ValueError("the variables RANK and WORLD_SIZE must be numbers, as torchrun sets them") from None


_DTYPES = ("auto", "float32", "bfloat16", "float16")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def check_model_options(base: str | None, patch: str | None, dtype: str) -> None:
    """Refuse, before torch is loaded, which takes seconds, what neither is a folder nor can be an id on the hub, and unknown dtypes.

    Raises:
        ValueError: naming it.
    """
    if dtype not in _DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(_DTYPES)}, got {dtype!r}")
    for name, complaint in (
        (base, "base {!r} is no folder with a model"),
        (patch, "no patch at {!r}: there is no such folder"),
    ):
        if name is not None and not os.path.isdir(name) and not _HUB_ID.fullmatch(name):
            raise ValueError(f"{complaint.format(name)}, and it is no id of a repository on the hub either")


class JobFailed(Exception):
    """The job ran but did not succeed. The message is one sentence for the user."""


def guarded(function: _Function) -> _Function:
    """Turn errors of a verb into one clear sentence on standard error and an exit code.

    Bad input (ValueError, a missing file, a missing extra) is 2, anything else 1. With ``--json`` the sentence is also printed
    as ``{"error": ..., "exit_code": ...}``. The traceback is shown only on request (``--debug`` or PAVE_DEBUG=1).
    """

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        debug = debug_mode.get()
        as_json = bool(kwargs.get("json_output"))
        setup_logging(message_level.get())
        try:
            with _stdout_kept_for_json(as_json):
                value = function(*args, **kwargs)
            _emit(value, as_json)
            if isinstance(value, Result) and value.exit_code:
                raise typer.Exit(value.exit_code)
        except (typer.Exit, typer.Abort):
            raise
        except KeyboardInterrupt as stop:
            _fail(str(stop) or "interrupted", INTERRUPTED, as_json, None)
        except BrokenPipeError:  # the reader of our output is gone, as in `pave show | head`: nothing to tell anybody
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(FAILED) from None
        except (JobFailed, DiskError) as error:
            _fail(str(error), FAILED, as_json, error if debug else None)
        except (ValueError, MissingExtraError, FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            _fail(_sentence(error), BAD_INPUT, as_json, error if debug else None)
        except Exception as error:
            hint = "" if debug else "; run again with --debug for the traceback"
            _fail(f"{type(error).__name__}: {_sentence(error)}{hint}", FAILED, as_json, error if debug else None)

    return wrapper  # type: ignore[return-value]


class Result:
    """What a verb returns: text for people, data for ``--json``, and the exit code."""

    def __init__(self, text: str, data: dict[str, Any], exit_code: int = 0) -> None:
        self.text = text
        self.data = data
        self.exit_code = exit_code


def _emit(value: Any, as_json: bool) -> None:
    """Of several processes, rank 0 has standard output to itself; what another one found goes where messages go."""
    if isinstance(value, Result):
        text = json.dumps(value.data, ensure_ascii=False, allow_nan=False) if as_json else value.text
        if text:
            print(text, flush=True, file=sys.stdout if rank_of_process()[0] == 0 else sys.stderr)


@contextlib.contextmanager
def _stdout_kept_for_json(as_json: bool) -> Iterator[None]:
    """With ``--json``, whatever anything prints while the verb runs goes to standard error."""
    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        yield


def _fail(message: str, code: int, as_json: bool, error: BaseException | None) -> NoReturn:
    message = _for_terminal(message)
    if error is not None:
        logging.getLogger("pave").error("", exc_info=error)
    if as_json and os.environ.get("RANK", "0") == "0":
        print(json.dumps({"error": message, "exit_code": code}, ensure_ascii=False), flush=True)
    print(f"pave: {message}", file=sys.stderr, flush=True)
    raise typer.Exit(code)


LONGEST_MESSAGE = 2000
"""Characters of an error that are shown; a refused line of a file may be of any length."""


def _for_terminal(message: str) -> str:
    """Without control characters, which may come from a file and would act on the terminal, and of bounded length."""
    message = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message)
    if len(message) <= LONGEST_MESSAGE:
        return message
    begin, end = message[: LONGEST_MESSAGE * 3 // 4], message[-LONGEST_MESSAGE // 4 :]
    return f"{begin} [... {len(message) - len(begin) - len(end):,} characters left out ...] {end}"


def _sentence(error: BaseException) -> str:
    """The message on one line; for an error of the operating system, the file and the reason."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or "no further message"
