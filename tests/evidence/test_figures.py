"""Drawings, charts and the files beside the page, read back number by number."""

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from pave.evaluation.metrics import Interval
from pave.evidence.charts import Point, Row, curve_chart, dot_chart
from pave.evidence.figures import add_figure, on_page, remove_unlinked
from pave.evidence.sections.parts import mean_curve
from pave.evidence.svg import Drawing
from pave.evidence.tables import markdown_table

SVG = "{http://www.w3.org/2000/svg}"


def painted(drawing, shape):
    """The pixels of the first picture in a drawing, from its boxes."""
    group = ET.fromstring(str(drawing)).find(f"{SVG}g")
    pixels = np.zeros((*shape, 3), dtype=int)
    for path in group:
        colour = [int(path.get("fill")[i : i + 2], 16) for i in (1, 3, 5)]
        for x, y, wide, tall in re.findall(r"M(\d+) (\d+)h(\d+)v(\d+)h-\d+z", path.get("d")):
            pixels[int(y) : int(y) + int(tall), int(x) : int(x) + int(wide)] = colour
    return pixels


def test_a_picture_keeps_its_colours_and_loses_its_noise():
    rng = np.random.default_rng(0)
    clean = np.full((20, 30, 3), (40, 30, 50))
    clean[5:9, 10:20], clean[15:, :4] = (225, 40, 40), (50, 90, 240)
    drawing = Drawing(100, 100, "x")
    drawing.picture(0, 0, 60, 40, (clean + rng.integers(-4, 5, (20, 30, 1))).astype(np.uint8))
    assert np.abs(painted(drawing, (20, 30)) - clean).max() <= 3
    assert str(drawing).count("M") < 40


def test_a_drawing_loads_nothing_and_serves_both_colour_schemes():
    drawing = Drawing(10, 10, 'a "quoted" <label>')
    drawing.text(1, 2, "1 < 2 & 3")
    root = ET.fromstring(str(drawing))
    assert root.get("aria-label") == 'a "quoted" <label>' and root.find(f"{SVG}text").text == "1 < 2 & 3"
    style = root.find(f"{SVG}style").text
    assert "prefers-color-scheme:dark" in style and root.find(f"{SVG}rect").get("class") == "g"
    used = set(re.findall(r"var\(--(\w+)\)", style))
    light, dark = style.split("@media")
    assert used <= set(re.findall(r"--(\w+):#", light)) and used <= set(re.findall(r"--(\w+):#", dark))
    assert not re.search(r"href|url\(|data:|<image|<script|@import", str(drawing))


def test_dots_stand_where_their_values_are():
    rows = [
        Row("one", {"a": Point(0, 0, 10), "b": Point(50, 40, 60)}, mark=25),
        Row("two", {"b": Point.percent(1.0, Interval(0.9, 1.0, "by hand"))}),
    ]
    root = ET.fromstring(str(dot_chart("x", {"group": rows}, ("a", "b"), axis="percent", mark="guess")))
    dots = [(c.get("class"), float(c.get("cx")), float(c.get("cy"))) for c in root.iter(f"{SVG}circle")][
        2:
    ]  # after the legend's
    left, right = 300, 736
    assert [(kind, round(100 * (x - left) / (right - left), 1)) for kind, x, _ in dots] == [("s0", 0), ("s1", 50), ("s1", 100)]
    assert dots[1][2] - dots[0][2] == 6 and dots[2][2] - dots[1][2] == 24  # under each other; the next row
    spans = [p.get("d") for p in root.iter(f"{SVG}path") if p.get("class") == "c t1"]
    ends = [[round(100 * (float(x) - left) / (right - left)) for x in re.findall(r"[ML]([\d.]+) ", span)] for span in spans]
    assert ends == [[40, 60], [90, 100]]
    marks = [p.get("d") for p in root.iter(f"{SVG}path") if p.get("class") == "n"]
    assert float(re.match(r"M([\d.]+)", marks[1])[1]) == left + 0.25 * (right - left)
    many = ET.fromstring(str(dot_chart("x", {"g": rows}, ("a" * 40, "b" * 40, "c" * 40), axis="")))
    named = [t for t in many.iter(f"{SVG}text") if t.text in ("a" * 40, "b" * 40, "c" * 40)]
    assert len({t.get("y") for t in named}) == 2 and all(float(t.get("x")) + 6.6 * 40 < 760 for t in named)
    wider = str(dot_chart("x", {"g": [Row("r", {"a": Point(-40, -50, -30)})]}, ("a",), axis="", ends=(-10, 5)))
    assert ">-50<" in wider and ">0<" in wider
    assert float(re.findall(r'cx="([\d.]+)"', wider)[1]) == pytest.approx(left + 10 / 55 * (right - left), abs=0.06)
    higher = str(dot_chart("x", {"g": [Row("r", {"a": Point(10, 5, 40)})]}, ("a",), axis="", ends=(0, 20)))
    assert float(re.findall(r'cx="([\d.]+)"', higher)[1]) == pytest.approx(left + 10 / 40 * (right - left), abs=0.06)


def test_curves_are_drawn_on_a_logarithmic_axis():
    root = ET.fromstring(str(curve_chart("x", {"ref": [(0, 1.0), (10, 0.1), (20, 0.01)]}, x_axis="", y_axis="")))
    curve = next(p.get("d") for p in root.iter(f"{SVG}path") if p.get("class") == "c d t0" and p.get("d").count("L") == 2)
    xs, ys = zip(*[[float(v) for v in pair] for pair in re.findall(r"([\d.]+) ([\d.]+)", curve)], strict=True)
    assert xs == (64, 400, 736) and ys[1] - ys[0] == pytest.approx(ys[2] - ys[1], abs=0.2) and ys[0] < ys[2]
    labels = {t.text: float(t.get("y")) - 4 for t in root.iter(f"{SVG}text") if t.text in ("1", "0.1", "0.01")}
    assert labels == {
        "1": pytest.approx(ys[0], abs=0.1),
        "0.1": pytest.approx(ys[1], abs=0.1),
        "0.01": pytest.approx(ys[2], abs=0.1),
    }


def test_a_curve_is_the_mean_over_seeds():
    assert mean_curve([[[1, 2.0], [10, 1.0]], [[1, 4.0], [10, 3.0], [20, 9.0]]]) == [(1, 3.0), (10, 2.0)]


def test_what_is_not_linked_any_more_goes(tmp_path):
    drawing = Drawing(10, 10, "a label")
    assert on_page(tmp_path, "kept", drawing) == "![a label](evidence/kept.svg)"
    assert add_figure(tmp_path, "inside", drawing) == "![a label](inside.svg)"
    add_figure(tmp_path, "old", drawing)
    (tmp_path / "evidence" / "further.md").write_text("![a label](inside.svg)")
    (tmp_path / "evidence" / "notes.txt").write_text("not ours")
    remove_unlinked(tmp_path, "![a label](evidence/kept.svg) and [more](evidence/further.md#part)")
    assert sorted(p.name for p in (tmp_path / "evidence").iterdir()) == ["further.md", "inside.svg", "kept.svg", "notes.txt"]
    remove_unlinked(tmp_path, "nothing")
    assert [p.name for p in (tmp_path / "evidence").iterdir()] == ["notes.txt"]


def test_rows_have_anchors_of_the_cells_that_name_them():
    rows = [["Audio, loud", "a b", "1"], ["", "c", "2"], ["x<br><sub>1.2 M</sub>", "d", "3"]]
    assert markdown_table(["", "", "n"], rows, "some table", named_by=2).splitlines()[2:] == [
        '| <a id="some-table-audio-loud-a-b"></a>Audio, loud | a b | 1 |',
        "|  | c | 2 |",
        '| <a id="some-table-x-d"></a>x<br><sub>1.2 M</sub> | d | 3 |',
    ]
    assert "<a" not in markdown_table(["", "", "n"], rows)
