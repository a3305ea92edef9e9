"""Charts are described once: the page's SVG and the PNG draw the same marks with the same style sheet."""

import io
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image as Picture

from layersweep.orchestrator import report
from layersweep.orchestrator.report.chart import Blend, Chart
from layersweep.orchestrator.report.png import Image, LegendEntry, write_png
from layersweep.orchestrator.report.svg import svg

HEADER = 40
"""Pixels above a chart in a PNG, for its title."""


def one_of_each():
    """100 x 80 pixels, data 0..10 by 0..1: every kind of mark."""
    chart = Chart("all marks", (100, 80), (0, 10), (0, 1), (0, 0, 0, 0))
    chart.add("rect", "phase rollout", x=10, y=10, width=20, height=10)
    chart.add("rect", "bar", colour=Blend("depth-0", "depth-2", 0.5), x=40, y=10, width=20, height=10)
    with chart.group("point best"):
        chart.add("circle", "dot", cx=20, cy=50, r=6)
        chart.add("polygon", "final", points=[(70, 40), (80, 50), (70, 60), (60, 50)])
    chart.add("line", "reference full", x1=0, x2=100, y1=70, y2=70)
    with chart.group("run", "#c2500c"):
        chart.line([(0, 0), (2, float("nan")), (10, 0)])
    chart.add("text", "tick", "0.5", x=50, y=35, text_anchor="middle", rotate=-40)
    return chart


def test_svg_says_classes_points_and_own_colours():
    root = ElementTree.fromstring(str(svg(one_of_each())))
    marks = [(mark.tag, mark.get("class")) for mark in root.iter() if mark is not root]
    assert marks == [
        ("rect", "phase rollout"), ("rect", "bar"), ("g", "point best"), ("circle", "dot"), ("polygon", "final"),
        ("line", "reference full"), ("g", "run"), ("polyline", "line"), ("text", "tick"),
    ]  # fmt: skip
    assert root.find("*[@class='bar']").get("style") == "color: color-mix(in srgb, var(--depth-0), var(--depth-2) 50%)"
    assert root.find("*/polyline").get("points") == "0.0,80.0 100.0,80.0"  # data 0 is at the bottom, NaN left out
    assert root.find("*/polygon").get("points").split()[0] == "70.0,40.0"
    assert root.find("text").get("transform") == "rotate(-40 50.0 35.0)" and root.find("text").text == "0.5"


def test_the_png_has_the_same_marks_at_the_same_places():
    """Two pixels of the file to one of the chart. Colours are the palette's; halfway from #4a2a8a to #c9a20e is
    (4a + c9) / 2 = 89.5, (2a + a2) / 2 = 66, (8a + 0e) / 2 = 4c."""
    file = io.BytesIO()
    write_png([Image("", one_of_each(), [LegendEntry("best", "best")])], file)
    picture = Picture.open(file).convert("RGB")
    assert picture.width == 200 and picture.height == 2 * (HEADER + 80 + 24)

    def at(x, y):
        return "#" + "".join(f"{part:02x}" for part in picture.getpixel((2 * x, 2 * (y + HEADER))))

    assert at(20, 15) == "#3f74c9"  # --rollout
    assert at(50, 15) in ("#89664c", "#8a664c")
    assert at(20, 50) == "#1f5fd1"  # --accent, by way of its group
    assert at(70, 50) == "#fcfcfb"  # the diamond is filled with the page
    assert at(30, 69) == at(30, 71) == at(5, 30) == "#fcfcfb" and at(30, 70) < "#888888"  # a line of one pixel
    assert at(14, 92) == "#1f5fd1"  # the legend's dot, 12 below the chart


def test_every_class_that_is_drawn_has_a_rule(tmp_path):
    """Neither renderer draws a mark that chart.css does not style; groups without one have a colour of their own."""
    folder = Path(report.__file__).parent
    ruled = {
        rule.split(".")[0] for rule in re.findall(r"^svg \.([\w.-]+) \{", (folder / "chart.css").read_text(), re.M)
    }
    drawn = set()
    for path in folder.glob("*.py"):
        text = path.read_text()
        drawn |= set(re.findall(r'\.add\(\s*"(?:line|polyline|polygon|circle|rect|text)", f?"(\w+)', text))
        drawn |= set(re.findall(r'\.group\(f?"(\w+)', text))
    assert len(drawn) > 15 and drawn - {"pair"} <= ruled


@pytest.mark.parametrize("name", ["$x$ & <y>", "lr[2e-3]", "a^b_c $"])
def test_names_are_drawn_as_they_are(name):
    """Not as markup, and not as mathematics."""
    chart = Chart(name, (100, 20), (0, 1), (0, 1))
    chart.add("text", "name", name, x=5, y=10, data_tip=name)
    root = ElementTree.fromstring(str(svg(chart)))
    assert root.get("aria-label") == root.find("text").text == root.find("text").get("data-tip") == name
    write_png([Image(name, chart)], io.BytesIO())
