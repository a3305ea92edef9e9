"""The main chart: what each layer contributes, with intervals, ties, base and full."""

import math

import numpy as np
import pandas as pd
from markupsafe import Markup

from .results import Results
from .svg import Plot, span, ticks

FARTHEST = 1.0
"""Intervals are drawn up to this far beyond the values themselves; wider ones end in an arrow."""


def number(value: object, digits: int = 2) -> str:
    """For people; a dash where there is none."""
    if pd.isna(value):
        return "–"
    text = f"{value:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text.replace("-", "−")


def between(low: object, high: object, digits: int = 2) -> str:
    """An interval for people."""
    return "–" if pd.isna(low) or pd.isna(high) else f"{number(low, digits)} to {number(high, digits)}"


def measure(results: Results) -> str:
    """The column that is drawn: C, or the score where C is not defined."""
    return "contribution" if results.has_contribution else "score"


def levels(results: Results) -> dict[str, float]:
    """Where the lines of base and full lie."""
    column = measure(results)
    rows = {name: results.only(name) for name in ("base", "full")}
    found = {name: float(row[column]) for name, row in rows.items() if row is not None}
    return {name: value for name, value in found.items() if math.isfinite(value)}


def shown(results: Results) -> pd.DataFrame:
    """Rows to draw, with `place` on the x axis: layers by index, runs of several layers behind the last."""
    column = measure(results)
    layers, several = results.layers, results.several
    places = [layers["layer"].astype(float), _places(results)]
    rows = pd.concat([layers, several]).assign(place=np.concatenate(places))
    return rows[rows[column].notna()]


def _places(results: Results) -> np.ndarray:
    """Of combined runs: behind the last layer, far enough apart for their names."""
    return results.model_layers + max(1.0, results.model_layers / 16) * (0.5 + np.arange(len(results.several)))


def limits(rows: pd.DataFrame, column: str, lines: dict[str, float]) -> tuple[float, float]:
    """The range of the y axis, not stretched by intervals that run away."""
    values = rows[column].astype(float)
    if not len(values):
        return span(lines.values())
    low, high = values.min() - FARTHEST, values.max() + FARTHEST
    ends = pd.concat([rows[f"{column}_low"], rows[f"{column}_high"]]).astype(float).dropna().clip(low, high)
    final = []
    if column == "contribution":
        final = pd.concat([rows[f"final_contribution{end}"] for end in ("", "_low", "_high")]).astype(float).dropna()
    return span([*values, *ends, *np.clip(final, low, high)], include=list(lines.values()))


def profile_chart(results: Results, width: int, height: int) -> Markup:
    """Points with 95 % intervals; the best and those tied with it filled, the final split as diamonds."""
    column, lines, rows = measure(results), levels(results), shown(results)
    last = max([results.model_layers - 1, 0, *_places(results)])
    bottom = 100 if len(results.several) else 36
    size, x = (width, height + bottom - 36), (-0.6, last + 0.6)
    plot = Plot(size, x, limits(rows, column, lines), (38, 34, 10, bottom))
    plot.y_axis(6)
    _layer_axis(plot, results, width)
    together = len(lines) == 2 and abs(plot.y(lines["base"]) - plot.y(lines["full"])) < 12
    for name, value in lines.items():
        nudge = {"base": 6, "full": -6}[name] if together else 0
        plot.level(value, f"level {name}", name, nudge)
    layers = rows[rows["kind"] == "layer"]
    plot.line(zip(layers["place"], layers[column], strict=True), cls="thread")
    for row in rows.to_dict("records"):
        _point(plot, row, column)
    what = "contribution" if column == "contribution" else "score"
    return plot.markup(f"{what} of each layer, with 95 % intervals", "chart profile")


def _layer_axis(plot: Plot, results: Results, width: int) -> None:
    """Layer numbers, and the names of combined runs, slanted."""
    count = results.model_layers
    if count:
        room = max(2, int((width - 50) / 26))
        values = range(count) if count <= room else sorted({int(v) for v in ticks(0, count - 1, min(room, 9))})
        inside = [v for v in values if v == int(v) and v < count]
        plot.x_axis(inside, label=lambda v: f"{v:.0f}")
        plot.add("text", "layer", cls="title", x=plot.x((count - 1) / 2), y=plot.y.start + 32, text_anchor="middle")
    for at, name in zip(_places(results), results.several["selection"], strict=True):
        x, y = plot.x(at) + 4, plot.y.start + 12
        plot.add("text", name, cls="tick", x=x, y=y, text_anchor="end", transform=f"rotate(-40 {x:.1f} {y:.1f})")


def _point(plot: Plot, row: dict, column: str) -> None:
    x, value = plot.x(row["place"]), row[column]
    low, high = row[f"{column}_low"], row[f"{column}_high"]
    kind = standing(row)
    plot.open(
        cls=f"point {kind}{'' if row['status'] == 'completed' else ' hollow'}", data_tip=_tip(row, column), tabindex="0"
    )
    if pd.notna(low) and pd.notna(high):
        plot.add("line", cls="whisker", x1=x, x2=x, y1=plot.y(low), y2=plot.y(high))
        for end, sign in ((low, 1), (high, -1)):
            if end < plot.y.low or end > plot.y.high:
                y, back = plot.y(end), plot.y(end) - 5 * sign
                plot.add("path", cls="arrow", d=f"M{x - 3:.1f} {back:.1f}L{x:.1f} {y:.1f}L{x + 3:.1f} {back:.1f}")
    if column == "contribution" and pd.notna(row["final_contribution"]):
        _final(plot, x + min(11.0, (plot.x(1) - plot.x(0)) * 0.4), row)
    plot.add("circle", cls="dot", cx=x, cy=plot.y(value), r=4.5 if kind in ("best", "tied") else 3.5)
    plot.add("circle", cls="target", cx=x, cy=plot.y(value), r=11)
    plot.close()


def _final(plot: Plot, x: float, row: dict) -> None:
    """The same layer on the final split, beside its point."""
    y, low, high = plot.y(row["final_contribution"]), row["final_contribution_low"], row["final_contribution_high"]
    if pd.notna(low) and pd.notna(high):
        plot.add("line", cls="final", x1=x, x2=x, y1=plot.y(low), y2=plot.y(high))
    plot.add("path", cls="final", d=f"M{x:.1f} {y - 4:.1f}l4 4l-4 4l-4 -4z")


def standing(row: dict) -> str:
    """How a row is marked: base, full; single layers best, tied or other; several for combined runs."""
    if row["kind"] != "layer":
        return row["kind"] if row["kind"] in ("base", "full") else "several"
    if pd.notna(row["rank"]) and row["rank"] == 1:
        return "best"
    return "tied" if pd.notna(row["tied_with_best"]) and row["tied_with_best"] else "other"


def _tip(row: dict, column: str) -> str:
    """What the pointer reads: a line per fact."""
    lines = [row["selection"] + (f" ({row['status']})" if row["status"] != "completed" else "")]
    if column == "contribution":
        low, high = row["contribution_low"], row["contribution_high"]
        lines.append(f"C {number(row['contribution'])}, 95 % {between(low, high)}")
    lines.append(f"score {number(row['score'], 3)}, 95 % {between(row['score_low'], row['score_high'], 3)}")
    if pd.notna(row["p_best"]):
        lines.append(f"best with probability {number(row['p_best'])}")
    if pd.notna(row["final_contribution"]):
        final = between(row["final_contribution_low"], row["final_contribution_high"])
        lines.append(f"final split: C {number(row['final_contribution'])}, 95 % {final}")
    return "\n".join(lines)
