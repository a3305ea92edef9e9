"""The main chart: what each layer contributes, with intervals, ties, base and full."""

import math

import numpy as np
import pandas as pd

from .chart import Chart, axis_range, whole_ticks
from .format import format_interval, format_number
from .results import Results

FARTHEST = 1.0
"""Intervals are drawn up to this far beyond the values themselves; wider ones end in an arrow."""


def measure(results: Results) -> str:
    """Return the column that is drawn: C, or the score where C is not defined."""
    return "contribution" if results.has_contribution else "score"


def reference_values(results: Results) -> dict[str, float]:
    """Return values at which the lines of base and full lie."""
    column = measure(results)
    rows = {name: results.only(name) for name in ("base", "full")}
    found = {name: float(row[column]) for name, row in rows.items() if row is not None}
    return {name: value for name, value in found.items() if math.isfinite(value)}


def plotted_rows(results: Results) -> pd.DataFrame:
    """Return rows to draw, with their `x`: layers by index, runs of several layers behind the last."""
    column = measure(results)
    layers, several = results.layers, results.several
    x = np.concatenate([layers["layer"].astype(float), _x_of_several(results)])
    rows = pd.concat([layers, several]).assign(x=x)
    return rows[rows[column].notna()]


def _x_of_several(results: Results) -> np.ndarray:
    """Return positions of combined runs: behind the last layer, far enough apart for their names."""
    return results.model_layers + max(1.0, results.model_layers / 16) * (0.5 + np.arange(len(results.several)))


def y_range(rows: pd.DataFrame, column: str, lines: dict[str, float]) -> tuple[float, float]:
    """Return the range of the y axis, not stretched by intervals that run away."""
    values = rows[column].astype(float)
    if not len(values):
        return axis_range(lines.values())
    low, high = values.min() - FARTHEST, values.max() + FARTHEST
    ends = pd.concat([rows[f"{column}_low"], rows[f"{column}_high"]]).astype(float).dropna().clip(low, high)
    final = []
    if column == "contribution":
        final = pd.concat([rows[f"final_contribution{end}"] for end in ("", "_low", "_high")]).astype(float).dropna()
    return axis_range([*values, *ends, *np.clip(final, low, high)], include=list(lines.values()))


def legend(results: Results) -> list[tuple[str, str]]:
    """List the marks: class of each, and what it means."""
    rows = plotted_rows(results)
    entries = [("dot best", "best"), ("dot tied", "tied with the best"), ("dot other", "other layers")]
    if len(results.several):
        entries.append(("dot several", "combined runs"))
    if measure(results) == "contribution" and rows["final_contribution"].notna().any():
        entries.append(("diamond", "final split"))
    if (rows["status"] != "completed").any():
        entries.append(("dot hollow", "pruned or unfinished"))
    return entries


def profile_chart(results: Results, width: int, height: int) -> Chart:
    """Return points with 95 % intervals; the best and those tied with it filled, the final split as diamonds."""
    column, lines, rows = measure(results), reference_values(results), plotted_rows(results)
    last = max([results.model_layers - 1, 0, *_x_of_several(results)])
    bottom = 100 if len(results.several) else 36
    title = f"{column} of each layer, with 95 % intervals"
    size, x, y = (width, height + bottom - 36), (-0.6, last + 0.6), y_range(rows, column, lines)
    chart = Chart(title, size, x, y, (38, 34, 10, bottom), "chart profile")
    chart.y_axis(6)
    _layer_axis(chart, results, width)
    together = len(lines) == 2 and abs(chart.y(lines["base"]) - chart.y(lines["full"])) < 12
    for name, value in lines.items():
        nudge = {"base": 6, "full": -6}[name] if together else 0
        chart.reference_line(value, name, name, nudge)
    layers = rows[rows["kind"] == "layer"]
    chart.line(zip(layers["x"], layers[column], strict=True), "profile")
    for row in rows.to_dict("records"):
        _point(chart, row, column)
    return chart


def _layer_axis(chart: Chart, results: Results, width: int) -> None:
    """Layer numbers, and the names of combined runs, slanted."""
    count = results.model_layers
    if count:
        most_labels = max(2, int((width - 50) / 26))
        values = range(count) if count <= most_labels else sorted(whole_ticks(0, count - 1, min(most_labels, 9)))
        chart.x_axis(value for value in values if value < count)
        middle, below = chart.x((count - 1) / 2), chart.y.start + 32
        chart.add("text", "tick", "layer", x=middle, y=below, text_anchor="middle")
    for at, name in zip(_x_of_several(results), results.several["selection"], strict=True):
        x, y = chart.x(at) + 4, chart.y.start + 12
        chart.add("text", "tick", name, x=x, y=y, text_anchor="end", rotate=-40)


def _point(chart: Chart, row: dict, column: str) -> None:
    x, value = chart.x(row["x"]), row[column]
    low, high = row[f"{column}_low"], row[f"{column}_high"]
    marked = row_class(row)
    with chart.group(f"point {marked}", data_tip=_tooltip(row, column), tabindex="0"):
        if pd.notna(low) and pd.notna(high):
            chart.add("line", "whisker", x1=x, x2=x, y1=chart.y(low), y2=chart.y(high))
            for end, sign in ((low, 1), (high, -1)):
                if end < chart.y.low or end > chart.y.high:
                    y, back = chart.y(end), chart.y(end) - 5 * sign
                    chart.add("polyline", "arrow", points=[(x - 3, back), (x, y), (x + 3, back)])
        if column == "contribution" and pd.notna(row["final_contribution"]):
            _final(chart, x + min(11.0, (chart.x(1) - chart.x(0)) * 0.4), row)
        hollow = "" if row["status"] == "completed" else " hollow"
        radius = 4.5 if marked in ("best", "tied") else 3.5
        chart.add("circle", f"dot{hollow}", cx=x, cy=chart.y(value), r=radius)
        chart.add("circle", "target", cx=x, cy=chart.y(value), r=11)


def _final(chart: Chart, x: float, row: dict) -> None:
    """Draw the same layer on the final split, beside its point."""
    low, high = row["final_contribution_low"], row["final_contribution_high"]
    if pd.notna(low) and pd.notna(high):
        chart.add("line", "final whisker", x1=x, x2=x, y1=chart.y(low), y2=chart.y(high))
    diamond(chart, x, chart.y(row["final_contribution"]))


def diamond(chart: Chart, x: float, y: float) -> None:
    """Draw the mark of the final split."""
    chart.add("polygon", "final", points=[(x, y - 4), (x + 4, y), (x, y + 4), (x - 4, y)])


def row_class(row: dict) -> str:
    """Return the class of a row's mark: base, full; single layers best, tied or other; several for combined runs."""
    if row["kind"] != "layer":
        return row["kind"] if row["kind"] in ("base", "full") else "several"
    if pd.notna(row["rank"]) and row["rank"] == 1:
        return "best"
    return "tied" if pd.notna(row["tied_with_best"]) and row["tied_with_best"] else "other"


def _tooltip(row: dict, column: str) -> str:
    """Text at the pointer: a line per fact."""
    lines = [row["selection"] + (f" ({row['status']})" if row["status"] != "completed" else "")]
    if column == "contribution":
        interval = format_interval(row["contribution_low"], row["contribution_high"])
        lines.append(f"C {format_number(row['contribution'])}, 95 % {interval}")
    interval = format_interval(row["score_low"], row["score_high"], 3)
    lines.append(f"score {format_number(row['score'], 3)}, 95 % {interval}")
    if pd.notna(row["p_best"]):
        lines.append(f"best with probability {format_number(row['p_best'])}")
    if pd.notna(row["final_contribution"]):
        final = format_interval(row["final_contribution_low"], row["final_contribution_high"])
        lines.append(f"final split: C {format_number(row['final_contribution'])}, 95 % {final}")
    return "\n".join(lines)
