"""Charts read back number by number, text that nothing hides or cuts, and the files beside the page."""

import pytest
from PIL import Image

from evidence.charts import SERIES, Point, Row, curve_chart, dot_chart
from evidence.figures import add_figure, remove_unlinked
from evidence.sections.parts import mean_curve
from evidence.tables import markdown_table
from figure_checks import points, unreadable
from pave.evaluation.metrics import Interval

ROWS = [
    Row("one", {"a": Point(0, 0, 10), "b": Point(50, 40, 60)}, mark=25),
    Row("two", {"b": Point.percent(1.0, Interval(0.9, 1.0, "by hand"))}),
]


def test_dots_stand_where_their_values_are():
    figure = dot_chart("what it shows", {"group": ROWS}, ("a", "b"), axis="percent", mark="guess")
    found = points(figure)
    assert [dot[:3] for dot in found["a"]] == [(0, 0, 10)]
    assert [dot[:3] for dot in found["b"]] == [(50, 40, 60), (100, 90, 100)]
    (first,), (second, next_row) = ([dot[3] for dot in found[name]] for name in "ab")
    assert first < second < next_row  # under each other, the next row below
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["one", "two"]
    assert first < axes.get_yticks()[0] < second
    (marks,) = [c for c in axes.collections if c.get_label() == "guess"]
    assert [segment[:, 0].tolist() for segment in marks.get_segments()] == [[25, 25]]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b", "guess"]
    assert (figure.get_label(), axes.get_xlabel()) == ("what it shows", "percent")


def test_the_axis_is_made_wider_where_a_point_lies_outside():
    for point, ends, expected in (
        (Point(-40, -50, -30), (-10, 5), (-50, 5)),
        (Point(10, 5, 40), (0, 20), (0, 40)),
        (Point(10, 5, 15), (0, 20), (0, 20)),
    ):
        figure = dot_chart("x", {"g": [Row("r", {"a": point})]}, ("a",), axis="", ends=ends)
        assert figure.axes[0].get_xlim() == pytest.approx(expected, abs=0.011 * (expected[1] - expected[0]))


def test_curves_are_drawn_on_a_logarithmic_axis():
    curve = [(0, 1.0), (10, 0.1), (20, 0.01)]
    figure = curve_chart("x", {"ref": curve, "other": [(0, 1.0), (20, 0.02)]}, x_axis="steps", y_axis="loss")
    axes = figure.axes[0]
    reference, other = axes.get_lines()
    assert list(zip(*reference.get_data(), strict=True)) == curve and axes.get_yscale() == "log"
    assert reference.get_linestyle() == "--" != other.get_linestyle() and reference.zorder > other.zorder
    figure.draw_without_rendering()
    assert {"0.01", "0.02", "0.05", "0.1", "1"} <= {label.get_text() for label in axes.get_yticklabels()}
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("steps", "loss")


def test_no_text_is_cut_or_hidden():
    series = ["a" * 40, "b" * 40, "c" * 40]
    rows = [Row(f"{'long ' * 8}{n}", {name: Point(n, n - 1, n + 1) for name in series}, mark=50) for n in range(20)]
    assert unreadable(dot_chart("x", {"g" * 60: rows, "other": rows}, series, axis="percent", mark="guessing")) == []
    curves = {f"{'curve ' * 7}{n}": [(step, (n + 1) / step) for step in range(1, 350, 10)] for n in range(len(SERIES))}
    assert unreadable(curve_chart("x", curves, x_axis="steps", y_axis="training loss, mean of ten steps")) == []


def test_the_check_itself_sees_what_is_cut_or_hidden():
    figure = dot_chart("x", {"g": ROWS}, ("a", "b"), axis="percent")
    figure.text(0.99, 0.5, "cut at the edge")
    for place in (0.5, 0.52):
        figure.text(place, 0.6, "one over the other")
    assert unreadable(figure) == ["cut at the edge", ("one over the other", "one over the other")]


def test_a_curve_is_the_mean_over_seeds():
    assert mean_curve([[[1, 2.0], [10, 1.0]], [[1, 4.0], [10, 3.0], [20, 9.0]]]) == [(1, 3.0), (10, 2.0)]


def test_a_figure_is_written_on_white_and_the_same_each_time(tmp_path):
    figures = [dot_chart("a [label]", {"group": ROWS}, ("a", "b"), axis="percent") for _ in range(2)]
    assert add_figure(tmp_path, "one", figures[0]) == "![a [label]](evidence/one.png)"
    assert add_figure(tmp_path, "two", figures[1], beside="") == "![a [label]](two.png)"
    one, two = ((tmp_path / "evidence" / f"{name}.png").read_bytes() for name in ("one", "two"))
    assert one == two
    with Image.open(tmp_path / "evidence" / "one.png") as picture:
        assert picture.width == 1200 and picture.convert("RGB").getpixel((0, 0)) == (255, 255, 255)


def test_what_is_not_linked_any_more_goes(tmp_path):
    folder = tmp_path / "evidence"
    folder.mkdir()
    for name in ("kept.png", "inside.png", "old.png", "older.svg"):
        (folder / name).touch()
    (folder / "further.md").write_text("![a label](inside.png)")
    (folder / "notes.txt").write_text("not ours")
    remove_unlinked(tmp_path, "![a label](evidence/kept.png) and [more](evidence/further.md#part)")
    assert sorted(p.name for p in folder.iterdir()) == ["further.md", "inside.png", "kept.png", "notes.txt"]
    remove_unlinked(tmp_path, "nothing")
    assert [p.name for p in folder.iterdir()] == ["notes.txt"]


def test_rows_have_anchors_of_the_cells_that_name_them():
    rows = [["Audio, loud", "a b", "1"], ["", "c", "2"], ["x<br><sub>1.2 M</sub>", "d", "3"]]
    assert markdown_table(["", "", "n"], rows, "some table", named_by=2).splitlines()[2:] == [
        '| <a id="some-table-audio-loud-a-b"></a>Audio, loud | a b | 1 |',
        "|  | c | 2 |",
        '| <a id="some-table-x-d"></a>x<br><sub>1.2 M</sub> | d | 3 |',
    ]
    assert "<a" not in markdown_table(["", "", "n"], rows)
