"""The contribution table as the page shows it: what each column is called, how it reads, what it sorts by."""

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

from .chart import Chart
from .format import format_interval, format_number
from .profile_chart import plotted_rows, row_class, y_range
from .results import Results


@dataclass(frozen=True)
class PageColumn:
    """Column of the page's table."""

    title: str
    meaning: str
    name: str
    """The column of the table that it sorts by."""
    text: Callable[[dict], str]
    """Text of a cell, from the whole row."""


@dataclass(frozen=True)
class Cell:
    text: str
    sort: str
    """Empty where there is no value: such cells stay last."""


@dataclass(frozen=True)
class TableRow:
    selection: str
    mark: str
    """Class of its dot, see `profile_chart.row_class`."""
    cells: list[Cell]
    status: str
    glyph: Chart | None
    """C and its interval, drawn on the scale of all rows."""


def _decimals(title: str, meaning: str, name: str, digits: int = 2, scale: float = 1) -> PageColumn:
    return PageColumn(title, meaning, name, lambda row: format_number(row[name] * scale, digits))


def _count(title: str, meaning: str, name: str) -> PageColumn:
    return PageColumn(title, meaning, name, lambda row: "–" if pd.isna(row[name]) else f"{row[name]:,}")


def _interval_of_c(row: dict) -> str:
    """Those of base and full are 0 and 1 by definition."""
    return (
        "–" if row["kind"] in ("base", "full") else format_interval(row["contribution_low"], row["contribution_high"])
    )


def _score_interval(row: dict) -> str:
    return format_interval(row["score_low"], row["score_high"], 3)


def _rate(row: dict) -> str:
    return "–" if pd.isna(row["learning_rate"]) else f"{row['learning_rate']:g}"


COLUMNS = (
    _decimals("C", "layer contribution", "contribution"),
    PageColumn("95 %", "interval of C", "contribution_low", _interval_of_c),
    _count("rank", "among single layers", "rank"),
    _decimals("P best", "probability of being the best layer", "p_best"),
    _decimals("P top 3", "probability of being among the best three", "p_top"),
    _decimals("score", "mean over suites of the mean over prompts", "score", 3),
    PageColumn("95 %", "interval of the score", "score_low", _score_interval),
    _decimals("C untr.", "C on the responses that were not truncated", "contribution_untruncated"),
    _decimals("C final", "C on the final split", "final_contribution"),
    _decimals("tokens", "mean response length", "response_tokens", 1),
    _decimals("cut %", "responses truncated at the limit", "truncated_fraction", 1, 100),
    _decimals("format %", "answers that could be parsed", "format_fraction", 1, 100),
    _decimals("moved", "L2 norm of the weights' change", "update_norm"),
    _count("trained", "trainable parameters", "trainable_parameters"),
    PageColumn("rate", "learning rate", "learning_rate", _rate),
    _count("steps", "training steps", "steps"),
    _count("seeds", "RL seeds trained", "seeds"),
    _count("generated", "tokens generated in training", "generated_tokens"),
    _decimals("seconds", "from start to end of its runs", "seconds", 0),
    PageColumn("status", "completed, running, pruned or failed", "status", lambda row: row["status"]),
)


def table_rows(results: Results) -> list[TableRow]:
    """Make the page's rows, one per selection, in the order of the table."""
    lines = {"base": 0.0, "full": 1.0}
    scale = y_range(plotted_rows(results), "contribution", lines) if results.has_contribution else None
    rows = []
    for row in results.table.to_dict("records"):
        cells = [Cell(column.text(row), _sort(row[column.name])) for column in COLUMNS]
        glyph = _glyph(row, scale) if scale and pd.notna(row["contribution"]) else None
        rows.append(TableRow(row["selection"], row_class(row), cells, row["status"], glyph))
    return rows


def _sort(value: object) -> str:
    return "" if pd.isna(value) else str(value)


def _glyph(row: dict, scale: tuple[float, float]) -> Chart:
    chart = Chart(f"C {format_number(row['contribution'])}", (124, 16), scale, (0, 1), (4, 4, 1, 1), "glyph")
    for value, name in ((0.0, "base"), (1.0, "full")):
        chart.add("line", f"reference {name}", x1=chart.x(value), x2=chart.x(value), y1=1, y2=15)
    low, high = chart.x(row["contribution_low"]), chart.x(row["contribution_high"])
    with chart.group(f"point {row_class(row)}"):
        chart.add("line", "whisker wide", x1=low, x2=high, y1=8, y2=8)
        chart.add("circle", "dot", cx=chart.x(row["contribution"]), cy=8, r=2.6)
    return chart
