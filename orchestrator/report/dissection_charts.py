"""Charts of what `dissect` and `compose` found: pieces of each run's change, and pairs of runs together."""

import math

import pandas as pd

from .chart import Blend, Chart, Panel, axis_range
from .format import format_interval, format_number
from .matrix_chart import matrix_chart
from .results import Results

HEIGHT, NARROWEST, BAR = 190, 344, 11
"""Height of a chart, its least width, and the width of a bar, in pixels."""
MEANINGS = {
    "part": ("Parts of the change", "C of {names} alone"),
    "rank": ("Ranks of the change", "C of the change at {names}"),
    "largest": ("Largest entries", "C of the entries that changed most, at {names}"),
    "scaled": ("Multiples of the change", "C of the change at {names}"),
    "only": ("The change of one layer alone", "C; the rest as in the base"),
    "without": ("The change without one layer", "C; that layer as in the base"),
    "random": ("A random change of the same norm", "C; the null"),
}
"""Panels in order, by kind of change: title and meaning."""


def dissection_charts(results: Results) -> list[Panel]:
    """Return panels of bars: C of each piece by run, or of a run of many layers by layer."""
    table = results.dissection
    panels = []
    for change, (title, meaning) in MEANINGS.items():
        rows = table[(table["change"] == change) & table["contribution"].notna()]
        for group, own in rows.groupby("selection", sort=False) if change in ("only", "without") else [("", rows)]:
            if len(own):
                by_layer = change in ("only", "without")
                labels = own["amount"].map("{:.0f}".format) if by_layer else own["selection"].map(results.label)
                names = list(dict.fromkeys(own.apply(_piece, axis=1)))
                chart = _bars(title, own.assign(place=labels, piece=own.apply(_piece, axis=1)), by_layer)
                shown = meaning.format(names=", ".join(names))
                panels.append(Panel(f"{title}{f' of {group}' if group else ''}", shown, chart))
    return panels


def pair_chart(results: Results) -> Chart | None:
    """C of pairs of runs together, each by itself on the diagonal; None without pairs at full strength."""
    table = results.composition
    pairs = table[(table["rule"] == "pair") & (table["strength"] == 1.0)]
    if pairs.empty:
        return None
    names = sorted({name for members in pairs["members"] for name in members})
    alone = results.table.set_index("selection")["contribution"]
    square = pd.DataFrame(math.nan, index=names, columns=names)
    for name in names:
        square.loc[name, name] = alone.get(name, math.nan)
    for members, value in zip(pairs["members"], pairs["contribution"].astype(float), strict=True):
        one, other = members
        square.loc[one, other] = square.loc[other, one] = value
    return matrix_chart(square, "C of two runs together", [results.label(name) for name in names])


def _piece(row: pd.Series) -> str:
    """Name a piece among those of the same kind."""
    if row["change"] == "part":
        return row["part"]
    amount = "" if pd.isna(row["amount"]) else f"{row['amount']:g}"
    return {"rank": f"rank {amount}", "largest": f"{amount} of all", "scaled": f"{amount} times"}.get(row["change"], "")


def _bars(title: str, rows: pd.DataFrame, by_layer: bool) -> Chart:
    """Return groups of bars by place, one for each piece, shaded in their order."""
    places, pieces = (list(dict.fromkeys(rows[name])) for name in ("place", "piece"))
    step = len(pieces) + 1
    width = max(NARROWEST, 60 + BAR * step * len(places))
    low, high = axis_range(rows["contribution"].astype(float), include=[0.0, 1.0])
    chart = Chart(title, (width, HEIGHT), (0, step * len(places)), (low, high), (44, 12, 10, 32))
    chart.y_axis(4)
    for i, place in enumerate(places):
        at = chart.x(step * i + step / 2)
        chart.add("text", "tick", place, x=at, y=chart.y.start + 16, text_anchor="middle")
    if by_layer:
        chart.add("text", "tick", "layer", x=(chart.x.start + chart.x.end) / 2, y=HEIGHT - 3, text_anchor="middle")
    side = chart.x(1) - chart.x(0)
    for row in rows.to_dict("records"):
        i, j, value = places.index(row["place"]), pieces.index(row["piece"]), float(row["contribution"])
        top, bottom = sorted((chart.y(value), chart.y(0.0)))
        interval = format_interval(row["contribution_low"], row["contribution_high"])
        chart.add(
            "rect", "bar", colour=Blend("panel", "accent", 0.35 + 0.65 * (j + 1) / len(pieces)),
            x=chart.x(step * i + j + 0.5) + 0.5, y=top, width=side - 1, height=max(bottom - top, 0.5), rx=1.5,
            data_tip=f"{row['variant']}\nC {format_number(value)}, 95 % {interval}",
        )  # fmt: skip
    chart.reference_line(0.0, "zero")
    return chart
