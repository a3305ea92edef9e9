"""PNGs of the page's own charts, for a README or a slide: the same marks and style sheet, drawn by matplotlib."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import BinaryIO

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, Polygon, Rectangle

from .chart import Blend, Chart, Colour, Mark
from .curve_charts import curve_chart, curves, line_class, line_colour
from .profile_chart import diamond, legend, measure, profile_chart
from .results import Results

DPI = 100
"""Pixels of a chart in an inch of a figure; the file has twice as many."""
ROW, ENTRY = 20, 30
"""Height of a legend's row; pixels of an entry beside its name."""
LETTER = 6.2
"""Pixels of a letter, about."""
NAMED = 12
"""Learning curves that a legend names, at most."""


@dataclass(frozen=True)
class LegendEntry:
    """Entry of a legend: a mark and what it means."""

    mark: str
    """Kind of mark: line, diamond, or the class of a dot."""
    name: str
    colour: Colour | None = None
    cls: str = ""
    """Classes around the mark."""


@dataclass(frozen=True)
class Image:
    """A chart with a title above and a legend below."""

    title: str
    chart: Chart
    legend: Sequence[LegendEntry] = ()


def images(results: Results) -> dict[str, Callable[[BinaryIO], None]]:
    """File names of a sweep's PNGs, and what writes each."""
    profile = _profile(results)
    learning = _learning(results)
    beside = [profile, learning] if learning else [profile]
    return {
        "profile.png": lambda file: write_png([profile], file),
        "report.png": lambda file: write_png(beside, file),
    }


def write_png(charts: Sequence[Image], file: BinaryIO) -> None:
    """Draw charts side by side."""
    legends = [_legend(image) for image in charts]
    width = sum(image.chart.width for image in charts)
    height = max(40 + image.chart.height + key.height for image, key in zip(charts, legends, strict=True))
    figure = Figure((width / DPI, height / DPI), DPI, facecolor=_palette()["page"])
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    left = 0
    for image, key in zip(charts, legends, strict=True):
        _draw(axes, Mark("text", "heading", {"x": 12, "y": 24}, image.title), left, 0)
        for mark in image.chart.marks:
            _draw(axes, mark, left, 40)
        for mark in key.marks:
            _draw(axes, mark, left, 40 + image.chart.height)
        left += image.chart.width
    FigureCanvasAgg(figure)
    figure.savefig(file, format="png", dpi=2 * DPI, facecolor=figure.get_facecolor())


def _profile(results: Results) -> Image:
    name = results.table["sweep"].iloc[0] if len(results.table) else ""
    what = "layer contribution C" if measure(results) == "contribution" else "score"
    entries = [LegendEntry(mark.removeprefix("dot "), name) for mark, name in legend(results)]
    return Image(f"{name}: {what}, 95 % intervals{results.one_run_each}", profile_chart(results, 800, 360), entries)


def _learning(results: Results) -> Image | None:
    chart = curve_chart(results, "reward_mean", "mean training reward", (640, 360))
    if chart is None:
        return None
    names = list(curves(results, "reward_mean"))
    entries = [
        LegendEntry("line", name, line_colour(results, name), f"run {line_class(results, name)}") for name in names
    ]
    return Image("Mean training reward by step", chart, entries if len(names) <= NAMED else [])


def _legend(image: Image) -> Chart:
    """Return marks and names in rows as wide as the chart."""
    width, x, y = image.chart.width, 14.0, 12.0
    key = Chart("", (width, 0), (0, 1), (0, 1))
    for entry in image.legend:
        wanted = ENTRY + LETTER * len(entry.name)
        if x > 14 and x + wanted > width:
            x, y = 14.0, y + ROW
        with key.group(entry.cls or f"point {entry.mark}", entry.colour):
            if entry.mark == "line":
                key.add("polyline", "line full", points=[(x - 4, y), (x + 10, y)])
            elif entry.mark == "diamond":
                diamond(key, x, y)
            else:
                key.add("circle", "dot hollow" if entry.mark == "hollow" else "dot", cx=x, cy=y, r=4)
        key.add("text", "name", entry.name, x=x + 14, y=y + 4)
        x += wanted
    key.height = int(y + 12) if image.legend else 12
    return key


def _draw(axes: Axes, mark: Mark, dx: float, dy: float, current: str = "#000000") -> None:
    """Draw one mark, or a group of them; `current` is the colour that currentColor means."""
    style = _style(frozenset(mark.cls.split()))
    current = _rgb(mark.colour) if mark.colour else _resolve(style.get("color", "currentColor"), current)
    if mark.kind == "g":
        for inner in mark.marks:
            _draw(axes, inner, dx, dy, current)
        return
    at, order = mark.attributes, len(axes.get_children())
    fill, stroke = (
        _resolve(style.get(name, default), current) for name, default in (("fill", "none"), ("stroke", "none"))
    )
    width, alpha = _pixels(style.get("stroke-width", "1")), float(style.get("opacity", 1))
    if mark.kind == "text":
        axes.text(
            at["x"] + dx, at["y"] + dy, mark.text, color=fill, fontsize=_pixels(style["font-size"]),
            ha={"middle": "center", "end": "right"}.get(at.get("text_anchor"), "left"), va="baseline",
            rotation=-(at.get("rotate") or 0), rotation_mode="anchor", zorder=order, parse_math=False,
        )  # fmt: skip
        return
    drawn = {"lw": width if stroke != "none" else 0, "alpha": alpha, "zorder": order, "clip_on": False}
    if mark.kind in ("line", "polyline"):
        points = at["points"] if "points" in at else [(at["x1"], at["y1"]), (at["x2"], at["y2"])]
        dashes = [_pixels(part) / width for part in style.get("stroke-dasharray", "").split()]
        xs, ys = zip(*((x + dx, y + dy) for x, y in points), strict=True) if points else ((), ())
        axes.add_line(Line2D(xs, ys, color=stroke, ls=(0, dashes) if dashes else "-", **drawn))
        return
    shape = {
        "circle": lambda: Circle((at["cx"] + dx, at["cy"] + dy), at["r"]),
        "rect": lambda: Rectangle((at["x"] + dx, at["y"] + dy), at["width"], at["height"]),
        "polygon": lambda: Polygon([(x + dx, y + dy) for x, y in at["points"]]),
    }[mark.kind]()
    shape.set(facecolor=fill, edgecolor=stroke, **drawn)
    axes.add_patch(shape)


@cache
def _rules() -> list[tuple[frozenset[str], dict[str, str]]]:
    """Return classes and declarations of chart.css, in order."""
    text = (Path(__file__).parent / "chart.css").read_text(encoding="utf-8")
    return [
        (frozenset(classes.split(".")), dict(re.findall(r"([\w-]+): ([^;]+);", body)))
        for classes, body in re.findall(r"^svg \.([\w.-]+) \{(.*?)\}", text, re.MULTILINE)
    ]


@cache
def _style(classes: frozenset[str]) -> dict[str, str]:
    """Return declarations of chart.css for an element: a later rule wins, one of more classes wins over one of
    fewer."""
    matching = sorted((rule for rule in _rules() if rule[0] <= classes), key=lambda rule: len(rule[0]))
    return {name: value for _, body in matching for name, value in body.items()}


@cache
def _palette() -> dict[str, str]:
    """Return the light theme of style.css."""
    text = (Path(__file__).parent / "style.css").read_text(encoding="utf-8")
    return dict(re.findall(r"--([\w-]+): (#\w+)", text[: text.index("}")]))


def _pixels(length: str) -> float:
    """Return a length of chart.css in matplotlib's points."""
    return float(length.removesuffix("px")) * 72 / DPI


def _resolve(value: str, current: str) -> str:
    """Return a colour of chart.css as matplotlib names it."""
    if value == "currentColor":
        return current
    return "none" if value in ("none", "transparent") else _palette()[value.removeprefix("var(--").removesuffix(")")]


def _rgb(colour: Colour) -> str:
    """#rrggbb of a colour."""
    if not isinstance(colour, Blend):
        return colour
    ends = (to_rgb(_palette()[name]) for name in (colour.first, colour.second))
    mixed = [(1 - colour.share) * a + colour.share * b for a, b in zip(*ends, strict=True)]
    return "#" + "".join(f"{round(255 * part):02x}" for part in mixed)
