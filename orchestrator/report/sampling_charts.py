"""Charts of pass@k and maj@k, and their table."""

import pandas as pd

from layersweep.orchestrator.statistics.sampling_curves import BEST_LAYERS, MAJORITY, PASS, sampling_curves

from .chart import Chart, Panel, axis_range, depth_colour
from .format import format_interval, format_number
from .profile_chart import row_class
from .results import Results

TITLES = {
    PASS: ("pass@k", "chance that at least one of k samples is right (unbiased, Chen et al. 2021)"),
    MAJORITY: (
        "maj@k",
        "chance that the majority answer of k samples is right; “best layers”: of the k best single-"
        "layer models, one sample each",
    ),
}
SIZE = (430, 260)


def curves_shown(results: Results) -> tuple[pd.DataFrame, str]:
    """Return the curves on the split with more samples, and the split: `final`, once base and finalists are scored
    there."""
    if len(results.scores):
        for split in ("final", "selection"):
            found = sampling_curves(results.scores, results.table, split)
            scored = split == "selection" or {"base", "full"} <= set(found["selection"])
            if found["k"].nunique() > 1 and scored:
                return found, split
    return pd.DataFrame(), ""


def sampling_charts(results: Results, found: pd.DataFrame) -> list[Panel]:
    """Return a panel per measure: a line per selection, by the number of samples on a scale of doublings."""
    return [
        Panel(*TITLES[measure], _chart(results, TITLES[measure][0], found[found["measure"] == measure]))
        for measure in found["measure"].unique()
    ]


def _chart(results: Results, title: str, found: pd.DataFrame) -> Chart:
    ks = sorted(found["k"].unique())
    place = {k: i for i, k in enumerate(ks)}
    chart = Chart(title, SIZE, (0, max(1, len(ks) - 1)), axis_range(found["value"]), (44, 40, 10, 32), "chart curves")
    chart.y_axis(4)
    for k in ks:
        chart.add("text", "tick", str(k), x=chart.x(place[k]), y=chart.y.start + 16, text_anchor="middle")
    chart.add("text", "tick", "k samples", x=(chart.x.start + chart.x.end) / 2, y=chart.height - 3,
              text_anchor="middle")  # fmt: skip
    for name, line in found.groupby("selection", sort=False):
        kind, points = (
            line["kind"].iloc[0],
            [(place[k], value) for k, value in zip(line["k"], line["value"], strict=True)],
        )
        drawn_as = "several" if kind == "layers" else kind
        colour = depth_colour(results.depth(name)) if kind == "layer" else None
        with chart.group(f"run {drawn_as}", colour, data_run=name):
            chart.line(points, f"line {drawn_as}")
        if kind in ("base", "full"):
            chart.add("text", "name", name, x=chart.x(points[-1][0]) + 5, y=chart.y(points[-1][1]) + 4)
    return chart


def sampling_rows(results: Results, found: pd.DataFrame) -> tuple[list[str], list[dict]]:
    """Return heads, and rows by selection: each value with its interval, and C where there is one."""
    columns = list(found[["measure", "k"]].drop_duplicates().itertuples(index=False, name=None))
    columns.sort(key=lambda column: (column[0] != PASS, column[1]))
    cells = {(row["selection"], row["measure"], row["k"]): row for row in found.to_dict("records")}
    rows = [
        {
            "selection": row["selection"],
            "mark": row_class(row),
            "cells": [_cell(cells.get((row["selection"], *column))) for column in columns],
        }
        for row in [*results.table.to_dict("records"), {"selection": BEST_LAYERS, "kind": "layers"}]
        if any((row["selection"], *column) in cells for column in columns)
    ]
    return [f"{measure}@{k}" for measure, k in columns], rows


def _cell(row: dict | None) -> dict:
    if row is None:
        return {"value": "–", "interval": "", "contribution": ""}
    shared = row["kind"] not in ("base", "full") and pd.notna(row["contribution"])
    return {
        "value": format_number(row["value"], 3),
        "interval": format_interval(row["low"], row["high"], 3),
        "contribution": f"C {format_number(row['contribution'])}" if shared else "",
    }


def sampling_sentence(found: pd.DataFrame) -> str:
    """Gain of full training with one sample, and with the most; empty without a full run."""
    full = found[(found["kind"] == "full") & (found["measure"] == PASS)].sort_values("k")
    if not len(full) or full["gain"].isna().any():
        return ""
    ends = [
        f"pass@{row['k']} {format_number(row['gain'], 3)} ({format_interval(row['gain_low'], row['gain_high'], 3)})"
        for row in (full.iloc[0], full.iloc[-1])
    ]
    return f"The full run's gain over the base: {', '.join(dict.fromkeys(ends))}."
