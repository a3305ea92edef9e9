"""Charts of what the gain is made of: changes in the responses, and how far the weights moved."""

import math

import pandas as pd

from .chart import Chart, Panel, axis_range, depth_colour, whole_ticks
from .format import format_number
from .results import Results

SIZE = (344, 190)


def gain_charts(results: Results) -> list[Panel]:
    """Return panels: C without truncated responses, then changes against the base by layer, with the full run as a
    line."""
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
    """Difference to the base, by layer and of the full run."""
    layers = results.layers.set_index("layer")
    full = results.only("full")
    change = (layers[column].astype(float) - base) * scale
    return change, math.nan if full is None or pd.isna(full[column]) else (float(full[column]) - base) * scale


def _chart(results: Results, title: str, y: tuple[float, float]) -> Chart:
    count = max(results.model_layers, 1)
    chart = Chart(title, SIZE, (-0.7, count - 0.3), y, (44, 28, 10, 20))
    chart.y_axis(4)
    chart.x_axis(whole_ticks(0, count - 1, 7) if count > 1 else [0])
    return chart


def _bars(results: Results, title: str, values: pd.Series, full: float) -> Chart:
    chart = _chart(results, title, axis_range([*values, full], include=[0.0]))
    width = min(26.0, 0.66 * (chart.x(1) - chart.x(0)))
    depths = results.layers.set_index("layer")["depth"]
    for layer, value in values.items():
        if math.isfinite(value):
            top, bottom = sorted((chart.y(value), chart.y(0.0)))
            chart.add(
                "rect", "bar", colour=depth_colour(depths[layer]), x=chart.x(layer) - width / 2, y=top, width=width,
                height=max(bottom - top, 0.5), rx=1.5, data_tip=f"layer {layer}\n{format_number(value, 3)}",
            )  # fmt: skip
    chart.reference_line(0.0, "zero")
    if math.isfinite(full):
        chart.reference_line(full, "full", "full")
    return chart


def _untruncated(results: Results) -> Chart:
    layers = results.layers
    kept, all_of_them = layers["contribution_untruncated"], layers["contribution"]
    title = "C of each layer with and without truncated responses"
    chart = _chart(results, title, axis_range([*kept, *all_of_them], include=[0.0, 1.0]))
    chart.reference_line(0.0, "base")
    chart.reference_line(1.0, "full", "full")
    for layer, ring, dot, depth in zip(layers["layer"], kept, all_of_them, layers["depth"], strict=True):
        if not (math.isfinite(ring) and math.isfinite(dot)):
            continue
        tip = f"layer {layer}\nC {format_number(dot)}, without truncated {format_number(ring)}"
        x = chart.x(layer)
        with chart.group("pair", depth_colour(depth), data_tip=tip):
            chart.add("line", "whisker", x1=x, x2=x, y1=chart.y(ring), y2=chart.y(dot))
            chart.add("circle", "dot", cx=x, cy=chart.y(dot), r=3)
            chart.add("circle", "ring", cx=x, cy=chart.y(ring), r=4.5)
    return chart
