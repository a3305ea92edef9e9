"""Charts described once: marks in pixels with classes, which `svg` writes for the page and `png` draws as an image.

Classes are styled by chart.css, for both.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Blend:
    """A colour between two of the palette (style.css), `share` of the way from the first to the second."""

    first: str
    second: str
    share: float


Colour = Blend | str
"""A blend, or a colour as #rrggbb."""


@dataclass(frozen=True)
class Mark:
    """Element of a chart: line, polyline, polygon, circle, rect, text, or a group of marks."""

    kind: str
    cls: str = ""
    """Classes in chart.css, separated by blanks."""
    attributes: dict[str, object] = field(default_factory=dict)
    """Attributes as SVG names them, in pixels; None is left out."""
    text: str | None = None
    colour: Colour | None = None
    """Colour that `currentColor` means in it, where its class does not say."""
    marks: list["Mark"] = field(default_factory=list)
    """Marks that a group holds."""


@dataclass(frozen=True)
class Scale:
    """Scale from data to pixels; what lies outside the range is drawn at its edge."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (min(max(float(value), self.low), self.high) - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)


class Chart:
    """A chart under construction: axes first, then marks.

    Args:
        title: read out where the chart cannot be seen.
        size: width and height in CSS pixels; the page scales it to the width there is.
        x, y: ranges of the data.
        margins: left, right, top, bottom.
        cls: classes of the whole chart.
        natural: whether the page shows it no wider than `size`.
    """

    def __init__(
        self,
        title: str,
        size: tuple[int, int],
        x: tuple[float, float],
        y: tuple[float, float],
        margins: tuple[int, int, int, int] = (42, 12, 12, 32),
        cls: str = "chart",
        natural: bool = False,
    ):
        self.title, self.cls, self.natural = title, cls, natural
        self.width, self.height = size
        left, right, top, bottom = margins
        self.x = Scale(*x, left, self.width - right)
        self.y = Scale(*y, self.height - bottom, top)
        self.marks: list[Mark] = []
        self.open = self.marks
        """List that the next mark goes to."""

    def add(
        self, kind: str, cls: str, text: str | None = None, colour: Colour | None = None, **attributes: object
    ) -> None:
        """Add one mark; `rotate` of a text is in degrees, clockwise."""
        self.open.append(Mark(kind, cls, attributes, text, colour))

    @contextmanager
    def group(self, cls: str, colour: Colour | None = None, **attributes: object) -> Iterator[None]:
        """Yield marks that share class, colour and tooltip."""
        outer, group = self.open, Mark("g", cls, attributes, colour=colour)
        outer.append(group)
        self.open = group.marks
        yield
        self.open = outer

    def y_axis(self, count: int = 4) -> None:
        """Horizontal grid lines with their numbers."""
        for value in ticks(self.y.low, self.y.high, count):
            at = self.y(value)
            self.add("line", "grid", x1=self.x.start, x2=self.x.end, y1=at, y2=at)
            self.add("text", "tick", axis_number(value), x=self.x.start - 6, y=at + 4, text_anchor="end")

    def x_axis(self, values: Iterable[float], title: str | None = None) -> None:
        """Draw numbers below the chart."""
        for value in values:
            at = self.x(value)
            self.add("text", "tick", axis_number(value), x=at, y=self.y.start + 16, text_anchor="middle")
        if title:
            middle = (self.x.start + self.x.end) / 2
            self.add("text", "tick", title, x=middle, y=self.height - 3, text_anchor="middle")

    def reference_line(self, value: float, cls: str, label: str | None = None, nudge: int = 0) -> None:
        """Draw a horizontal line across the chart, named in the right margin, `nudge` pixels lower."""
        at = self.y(value)
        self.add("line", f"reference {cls}", x1=self.x.start, x2=self.x.end, y1=at, y2=at)
        if label:
            self.add("text", "name", label, x=self.x.end + 5, y=at + 4 + nudge)

    def line(self, points: Iterable[tuple[float, float]], cls: str = "line") -> None:
        """Draw a line through points of the data; those that are not finite are left out."""
        self.add("polyline", cls, points=[(self.x(x), self.y(y)) for x, y in points if math.isfinite(y)])


@dataclass(frozen=True)
class Panel:
    """A small chart with its caption, one of several side by side."""

    title: str
    meaning: str
    chart: Chart | None
    constant: str | None = None
    """Text in place of the chart of something that never changed."""
    phases: Sequence[str] = ()
    """Legend: names that the style sheet colours."""


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers within low..high."""
    raw = (high - low) / max(count, 1)
    size = 10 ** math.floor(math.log10(raw))
    step = next(m * size for m in (1, 2, 2.5, 5, 10) if m * size >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def whole_ticks(low: float, high: float, count: int) -> list[float]:
    """Those of `ticks` that are whole numbers."""
    return [value for value in ticks(low, high, count) if value == int(value)]


def axis_number(value: float) -> str:
    """Return a number for an axis: 0.25, 1.2k, 3M, 2e-5."""
    if value < 0:
        return "−" + axis_number(-value)
    if value == 0:
        return "0"
    if value < 1e-3:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def axis_range(values: Iterable[float], *, include: Sequence[float] = (), margin: float = 0.06) -> tuple[float, float]:
    """Return the range of the finite values and of `include`, a little widened; never empty."""
    finite = [float(v) for v in (*values, *include) if math.isfinite(v)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
    if high - low < 1e-12:
        low, high = low - (abs(low) or 1) * 0.5, high + (abs(high) or 1) * 0.5
    spare = (high - low) * margin
    return low - spare, high + spare


def depth_colour(depth: float) -> Blend:
    """Return the colour of a layer at this relative depth, on the ramp from the first to the last layer."""
    depth = min(max(depth, 0.0), 1.0)
    return Blend("depth-0", "depth-1", depth * 2) if depth < 0.5 else Blend("depth-1", "depth-2", depth * 2 - 1)
