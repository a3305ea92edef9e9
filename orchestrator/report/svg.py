"""Charts as SVG. Colours are left to the page's style sheets, so that a chart follows the page's theme."""

from markupsafe import Markup, escape

from .chart import Blend, Chart, Colour, Mark


def svg(chart: Chart) -> Markup:
    """Return the chart, as wide as its place on the page. Its ranges are written along, for the page's script to read
    values back."""
    x, y = (f"{s.low:.6g} {s.high:.6g} {s.start:.6g} {s.end:.6g}" for s in (chart.x, chart.y))
    limit = f' style="max-width: {chart.width}px"' if chart.natural else ""
    marks = "".join(map(_element, chart.marks))
    return Markup(
        f'<svg class="{escape(chart.cls)}" viewBox="0 0 {chart.width} {chart.height}" role="img" '
        f'aria-label="{escape(chart.title)}"{limit} data-x="{x}" data-y="{y}">{marks}</svg>'
    )


def css_colour(colour: Colour) -> str:
    """Return a colour as CSS writes it."""
    if not isinstance(colour, Blend):
        return colour
    return f"color-mix(in srgb, var(--{colour.first}), var(--{colour.second}) {100 * colour.share:.0f}%)"


def _element(mark: Mark) -> str:
    attributes = {"class": mark.cls} | mark.attributes
    if mark.colour:
        attributes["style"] = f"color: {css_colour(mark.colour)}"
    if (degrees := attributes.pop("rotate", None)) is not None:
        attributes["transform"] = f"rotate({degrees} {attributes['x']:.1f} {attributes['y']:.1f})"
    if "points" in attributes:
        attributes["points"] = " ".join(f"{x:.1f},{y:.1f}" for x, y in attributes["points"])
    written = "".join(
        f' {name.replace("_", "-")}="{_value(value)}"' for name, value in attributes.items() if value is not None
    )
    inner = "".join(map(_element, mark.marks)) if mark.kind == "g" else escape(mark.text or "")
    return f"<{mark.kind}{written}>{inner}</{mark.kind}>" if inner else f"<{mark.kind}{written}/>"


def _value(value: object) -> str:
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else str(escape(value))
