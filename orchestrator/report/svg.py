"""Small SVG charts as strings. Colours are left to the page's style sheet, so that a chart follows its theme."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape


def element(tag: str, text: str | None = None, **attributes: object) -> str:
    """One element. `cls` is written as class, underscores as hyphens; attributes that are None are left out."""
    written = "".join(
        f' {"class" if name == "cls" else name.replace("_", "-")}="{_value(value)}"'
        for name, value in attributes.items()
        if value is not None
    )
    return f"<{tag}{written}/>" if text is None else f"<{tag}{written}>{escape(text)}</{tag}>"


def _value(value: object) -> str:
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else str(escape(value))


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers within low..high."""
    raw = (high - low) / max(count, 1)
    size = 10 ** math.floor(math.log10(raw))
    step = next(m * size for m in (1, 2, 2.5, 5, 10) if m * size >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def compact(value: float) -> str:
    """A number for an axis: 0.25, 1.2k, 3M, 2e-5."""
    if value < 0:
        return "−" + compact(-value)
    if value == 0:
        return "0"
    if value < 1e-3:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def span(values: Iterable[float], *, include: Sequence[float] = (), margin: float = 0.06) -> tuple[float, float]:
    """The range of the finite values and of `include`, a little widened; never empty."""
    finite = [float(v) for v in (*values, *include) if math.isfinite(v)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
    if high - low < 1e-12:
        low, high = low - (abs(low) or 1) * 0.5, high + (abs(high) or 1) * 0.5
    spare = (high - low) * margin
    return low - spare, high + spare


@dataclass(frozen=True)
class Scale:
    """Data to pixels; what lies outside the range is drawn at its edge."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (min(max(float(value), self.low), self.high) - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)


@dataclass(frozen=True)
class Panel:
    """A small chart with its caption, one of several side by side."""

    title: str
    meaning: str
    chart: Markup | None
    constant: str | None = None
    """What stands in place of the chart of something that never changed."""
    phases: Sequence[str] = ()
    """Its legend: names that the style sheet colours."""


class Plot:
    """A chart under construction: axes first, then marks, then `markup`.

    Args:
        size: width and height in CSS pixels; the page scales it to the width there is.
        x, y: ranges of the data.
        margins: left, right, top, bottom.
    """

    def __init__(
        self,
        size: tuple[int, int],
        x: tuple[float, float],
        y: tuple[float, float],
        margins: tuple[int, int, int, int] = (42, 12, 12, 32),
    ):
        self.width, self.height = size
        left, right, top, bottom = margins
        self.x = Scale(*x, left, self.width - right)
        self.y = Scale(*y, self.height - bottom, top)
        self.parts: list[str] = []

    def add(self, tag: str, text: str | None = None, **attributes: object) -> None:
        self.parts.append(element(tag, text, **attributes))

    def y_axis(self, count: int = 4, label=compact) -> None:
        """Horizontal grid lines with their numbers."""
        for value in ticks(self.y.low, self.y.high, count):
            at = self.y(value)
            self.add("line", cls="grid", x1=self.x.start, x2=self.x.end, y1=at, y2=at)
            self.add("text", label(value), cls="tick", x=self.x.start - 6, y=at + 4, text_anchor="end")

    def x_axis(self, values: Iterable[float], title: str | None = None, label=compact) -> None:
        """Numbers below the plot."""
        for value in values:
            self.add("text", label(value), cls="tick", x=self.x(value), y=self.y.start + 16, text_anchor="middle")
        if title:
            middle = (self.x.start + self.x.end) / 2
            self.add("text", title, cls="title", x=middle, y=self.height - 3, text_anchor="middle")

    def level(self, value: float, cls: str, label: str | None = None, nudge: int = 0) -> None:
        """A horizontal line across the plot, named in the right margin, `nudge` pixels lower."""
        at = self.y(value)
        self.add("line", cls=cls, x1=self.x.start, x2=self.x.end, y1=at, y2=at)
        if label:
            self.add("text", label, cls="name", x=self.x.end + 5, y=at + 4 + nudge)

    def line(self, points: Iterable[tuple[float, float]], cls: str = "line") -> None:
        where = " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in points if math.isfinite(y))
        self.add("polyline", cls=cls, points=where)

    def open(self, **attributes: object) -> None:
        """Start a group; `close` ends it."""
        self.parts.append(element("g", **attributes).removesuffix("/>") + ">")

    def close(self) -> None:
        self.parts.append("</g>")

    def markup(self, title: str, cls: str = "", natural: bool = False) -> Markup:
        """The chart, as wide as its place on the page, or no wider than it was made if `natural`. Its ranges are
        written along, for the page's script to read values back."""
        x, y = (f"{s.low:.6g} {s.high:.6g} {s.start:.6g} {s.end:.6g}" for s in (self.x, self.y))
        limit = f' style="max-width: {self.width}px"' if natural else ""
        return Markup(
            f'<svg class="{escape(cls)}" viewBox="0 0 {self.width} {self.height}" role="img" '
            f'aria-label="{escape(title)}"{limit} data-x="{x}" data-y="{y}">{"".join(self.parts)}</svg>'
        )


def depth_colour(depth: float) -> str:
    """A CSS colour for a layer at this relative depth, on the theme's ramp from first to last layer."""
    depth = min(max(depth, 0.0), 1.0)
    low, high, share = (
        ("--depth-0", "--depth-1", depth * 2) if depth < 0.5 else ("--depth-1", "--depth-2", depth * 2 - 1)
    )
    return f"color-mix(in oklab, var({low}), var({high}) {share * 100:.0f}%)"
