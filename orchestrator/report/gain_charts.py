"""What the gain is made of: beside C, what changed in the responses, and how far the weights moved."""

import math

import pandas as pd
from markupsafe import Markup

from .profile_chart import number
from .results import Results
from .svg import Panel, Plot, depth_colour, span, ticks

SIZE = (344, 190)


def gain_charts(results: Results) -> list[Panel]:
    """Panels: C without truncated responses, then changes against the base by layer, with the full run as a line."""
    panels = []
    if results.layers["contribution_untruncated"].notna().any():
        meaning = (
            "ring: on the responses that were not cut, dot: on all. A ring below its dot says that part of the gain "
        )
        meaning += "is getting to the end in time"
        panels.append(Panel("C without truncated responses", meaning, _untruncated(results)))
    base = results.only("base")
    if base is None:
        return panels
    for column, title, meaning, scale in (
        ("truncated_fraction", "Change in truncation", "percentage points of responses cut at the limit", 100),
        ("response_tokens", "Change in response length", "tokens", 1),
        ("format_fraction", "Change in format rate", "percentage points of answers that could be parsed", 100),
    ):
        if pd.notna(base[column]):
            change = _of_layers(results, column, float(base[column]), scale)
            panels.append(Panel(title, meaning, _bars(results, title, *change)))
    if results.layers["update_norm"].notna().any():
        moved = _of_layers(results, "update_norm", 0.0, 1)
        meaning = "L2 norm of the change; of the full run over all parameters"
        panels.append(
            Panel("How far the weights moved", meaning, _bars(results, "norm of the weights' change", *moved))
        )
    return panels


def _of_layers(results: Results, column: str, base: float, scale: float) -> tuple[pd.Series, float]:
    """By layer, and of the full run: the difference to the base."""
    layers = results.layers.set_index("layer")
    full = results.only("full")
    change = (layers[column].astype(float) - base) * scale
    return change, math.nan if full is None or pd.isna(full[column]) else (float(full[column]) - base) * scale


def _plot(results: Results, y: tuple[float, float]) -> Plot:
    count = max(results.model_layers, 1)
    plot = Plot(SIZE, (-0.7, count - 0.3), y, (44, 28, 10, 20))
    plot.y_axis(4)
    plot.x_axis(sorted({v for v in ticks(0, count - 1, 7) if v == int(v)}) if count > 1 else [0])
    return plot


def _bars(results: Results, title: str, values: pd.Series, full: float) -> Markup:
    plot = _plot(results, span([*values, full], include=[0.0]))
    width = min(26.0, 0.66 * (plot.x(1) - plot.x(0)))
    depths = results.layers.set_index("layer")["depth"]
    for layer, value in values.items():
        if math.isfinite(value):
            top, bottom = sorted((plot.y(value), plot.y(0.0)))
            plot.add(
                "rect", cls="bar", x=plot.x(layer) - width / 2, y=top, width=width, height=max(bottom - top, 0.5),
                rx=1.5, style=f"--c: {depth_colour(depths[layer])}", data_tip=f"layer {layer}\n{number(value, 3)}",
            )  # fmt: skip
    plot.level(0.0, "level zero")
    if math.isfinite(full):
        plot.level(full, "level full", "full")
    return plot.markup(title, "chart")


def _untruncated(results: Results) -> Markup:
    layers = results.layers
    kept, all_of_them = layers["contribution_untruncated"].astype(float), layers["contribution"].astype(float)
    plot = _plot(results, span([*kept, *all_of_them], include=[0.0, 1.0]))
    plot.level(0.0, "level base")
    plot.level(1.0, "level full", "full")
    for layer, ring, dot, depth in zip(layers["layer"], kept, all_of_them, layers["depth"], strict=True):
        if not (math.isfinite(ring) and math.isfinite(dot)):
            continue
        tip = f"layer {layer}\nC {number(dot)}, without truncated {number(ring)}"
        plot.open(cls="pair", style=f"--c: {depth_colour(depth)}", data_tip=tip)
        plot.add("line", cls="whisker", x1=plot.x(layer), x2=plot.x(layer), y1=plot.y(ring), y2=plot.y(dot))
        plot.add("circle", cls="dot", cx=plot.x(layer), cy=plot.y(dot), r=3)
        plot.add("circle", cls="ring", cx=plot.x(layer), cy=plot.y(ring), r=4.5)
        plot.close()
    return plot.markup("C of each layer with and without truncated responses", "chart")
