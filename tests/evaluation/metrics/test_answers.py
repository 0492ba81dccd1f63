"""Which answers count as right, and which tricks do not."""

import pytest

from pave.evaluation.metrics import choice_letter, exact_match, normalize_answer, parse_choice

CHOICES = ["red circle", "blue circle", "green square", "none of these"]


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("  The  Bell. ", "bell"),
        ("(bell),", "bell"),
        ("x-ray", "x-ray"),
        ("don't", "don't"),
        ("Two", "2"),
        ("twenty one", "20 1"),
        ("-3", "-3"),
        ("3.5.", "3.5"),
        (".5", ".5"),
        ("- 3", "3"),
        ("a", "a"),
        ("The", "the"),
        ("ＢＥＬＬ", "bell"),
        ("STRASSE", "strasse"),
        ("straße", "strasse"),
        ("...", ""),
        ("", ""),
        ("„klang“", "klang"),
        ("A. bell", "a bell"),
        ('"A bell"', "bell"),
    ],
)
def test_normalisation(text, normal):
    assert normalize_answer(text) == normal


@pytest.mark.parametrize(
    ("prediction", "truth", "right"),
    [
        ("A bell.", "bell", True),
        ("two", "2", True),
        ("piano", "no", False),
        ("no", "piano", False),
        ("saxophone", "one", False),
        ("bell buzz chirp", "bell", False),
        ("", "bell", False),
        (".", "bell", False),
        ("3", "-3", False),
        ("red circle", ["circle", "the red circle"], True),
    ],
)
def test_exact_match(prediction, truth, right):
    assert exact_match(prediction, truth) is right


@pytest.mark.parametrize("truth", ["", "?", [], ["bell", "!"]])
def test_exact_match_refuses_an_empty_truth(truth):
    with pytest.raises(ValueError, match="accepted answer"):
        exact_match("", truth)


@pytest.mark.parametrize(
    "prediction",
    [
        "B",
        "b",
        "(B)",
        "[B]",
        "B.",
        "B)",
        "B:",
        " B \n",
        "(B",
        "B. blue circle",
        "(B) Blue circle.",
        "B: the blue circle",
        "blue circle",
        "The blue circle.",
        "Best option: B",
        "Best option: (B)",
        "The best answer is: B",
        "The correct option is B.",
        "Answer: B. blue circle",
        "So, the answer is blue circle.",
    ],
)
def test_forms_that_name_choice_b(prediction):
    assert parse_choice(prediction, CHOICES) == 1


@pytest.mark.parametrize(
    "prediction",
    [
        "",
        ".",
        "(",
        "E",
        "A dog barks",
        "Because of that",
        "A. blue circle",
        "A B C D",
        "A, B",
        "red circle, blue circle",
        "All of the answers: A",
        "circle",
        "The best answer is",
        "not red circle",
    ],
)
def test_forms_that_name_nothing(prediction):
    assert parse_choice(prediction, CHOICES) is None


def test_the_text_of_a_choice_wins_over_its_letter():
    assert parse_choice("B", ["B", "A"]) == 0
    assert parse_choice("The answer is B", ["c", "b"]) == 1


def test_equal_choices_are_told_apart_by_letter_only():
    choices = ["a dog", "the dog", "cat"]
    assert parse_choice("dog", choices) is None
    assert parse_choice("B", choices) == 1
    assert parse_choice("cat", choices) == 2


def test_the_number_of_choices_is_checked():
    with pytest.raises(ValueError, match="2 to 26"):
        parse_choice("A", ["one"])
    with pytest.raises(ValueError, match="2 to 26"):
        parse_choice("A", [str(i) for i in range(27)])
    assert parse_choice("Z", [f"x{i}" for i in range(26)]) == 25
    assert choice_letter(25) == "Z"


def test_a_long_run_of_blanks_is_read_at_once():
    """In the square of its length this would take minutes."""
    assert parse_choice("so" + " " * 100_000 + "the answer is B", ["red", "blue"]) == 1
    assert parse_choice("so" + " " * 100_000 + "x", ["red", "blue"]) is None


def test_where_the_letter_is_asked_for_it_wins_over_choices_that_are_letters():
    choices = ["c", "a", "e"]
    for text in ("A", "(A)", "(a)", "A.", "A)", "The best answer is: A", "Best option: (A)", "(A) c"):
        assert parse_choice(text, choices, letters_first=True) == 0, text
    assert parse_choice("a", choices, letters_first=True) == 1 and parse_choice("e", choices, letters_first=True) == 2
    assert parse_choice("E", choices, letters_first=True) == 2  # there is no fifth choice
    assert parse_choice("b", choices, letters_first=True) == 1
    assert parse_choice("B", ["B", "A"], letters_first=True) == 1
    for first in (True, False):
        assert parse_choice("(A) a", choices, letters_first=first) is None
        assert parse_choice("B. B. King", ["B. B. King", "Elvis"], letters_first=first) == 0
