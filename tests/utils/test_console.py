"""Messages and progress go to standard error only."""

import logging

import pytest

from pave.utils.console import _time_left, setup_logging, track


@pytest.fixture(autouse=True)
def _restore_logging():
    logger = logging.getLogger("pave")
    before = (logger.level, logger.propagate, list(logger.handlers))
    yield
    logger.setLevel(before[0])
    logger.propagate = before[1]
    logger.handlers[:] = before[2]


def test_messages_go_to_standard_error_once(capsys):
    setup_logging()
    setup_logging()
    logging.getLogger("pave.training").info("epoch %d", 3)
    out, err = capsys.readouterr()
    assert (out, err) == ("", "epoch 3\n")


def test_debug_messages_need_the_debug_level(capsys):
    setup_logging()
    logging.getLogger("pave.x").debug("hidden")
    setup_logging(logging.DEBUG)
    logging.getLogger("pave.x").debug("shown")
    err = capsys.readouterr().err
    assert "hidden" not in err and "pave.x: shown" in err


def test_track_yields_everything_and_logs_the_end(capsys):
    setup_logging()
    assert list(track([3, 1, 2], "Scoring", every_seconds=0)) == [3, 1, 2]
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == ["Scoring: 1 of 3", "Scoring: 2 of 3", "Scoring: 3 of 3 done"]


def test_track_of_a_generator_and_without_display(capsys):
    setup_logging()
    assert list(track((x for x in "ab"), "Reading", enabled=False)) == ["a", "b"]
    assert capsys.readouterr().err == ""
    assert list(track((x for x in "ab"), "Reading")) == ["a", "b"]
    assert capsys.readouterr().err.startswith("Reading: 2 done")


def test_track_shows_nothing_where_only_warnings_are_wanted(capsys):
    setup_logging(logging.WARNING)
    assert list(track([3, 1], "Scoring", every_seconds=0)) == [3, 1]
    logging.getLogger("pave.x").warning("shown")
    assert capsys.readouterr().err == "shown\n"


@pytest.mark.parametrize(
    ("done", "total", "seconds", "text"),
    [
        (1, 4, 10.0, ", about 30 s left"),
        (1, 4, 40.0, ", about 2 min left"),
        (10, 100, 1200.0, ", about 3 h left"),
        (4, 4, 10.0, ""),
        (3, None, 10.0, ""),
        (0, 5, 1.0, ""),
    ],
)
def test_the_time_left_is_that_of_the_pace_so_far(done, total, seconds, text):
    assert _time_left(done, total, seconds) == text
