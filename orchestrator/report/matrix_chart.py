"""Matrix charts, and the figures of the vote among single-layer models."""

import math
from collections.abc import Sequence

import pandas as pd

from layersweep.orchestrator.statistics.solved_prompts import SolvedOverlap

from .chart import Blend, Chart

LABEL = 18
"""Pixels that a label takes, across its text."""


def matrix_chart(table: pd.DataFrame, title: str, labels: Sequence[str] | None = None, signed: bool = False) -> Chart:
    """Return a table of numbers as shaded cells.

    Args:
        table: [rows, columns] the numbers.
        title: read out where the chart cannot be seen.
        labels: for both margins of a square table, where they differ from the names.
        signed: numbers run from -1 to 1 instead of from 0 to 1.
    """
    rows, columns = ([str(name) for name in names] for names in (table.index, table.columns))
    beside, above = ([_short(name) for name in labels or names] for names in (rows, columns))
    cell = 42 if len(columns) <= 12 else max(9, 420 // len(columns))
    tall = cell if len(rows) > 12 else max(cell, LABEL)
    left, upper = (min(10 + int(6.2 * max(map(len, short))), 150) for short in (beside, above))
    top = 18 if upper < 60 else upper
    size = (left + cell * len(columns) + 4, top + tall * len(rows) + 4)
    chart = Chart(title, size, (0, len(columns)), (len(rows), 0), (left, 4, top, 4), "chart matrix", natural=True)
    for i, name in enumerate(beside):
        if i % -(-LABEL // tall) == 0:
            chart.add("text", "tick", name, x=left - 5, y=top + tall * (i + 0.5) + 4, text_anchor="end")
    for j, name in enumerate(above):
        if j % -(-LABEL // cell) == 0:
            anchor, slant = ("middle", None) if upper < 60 else ("start", -50)
            chart.add("text", "tick", name, x=left + cell * (j + 0.5), y=top - 6, text_anchor=anchor, rotate=slant)
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            value = float(table.iat[i, j])
            _cell(chart, left + cell * j, top + tall * i, cell, tall, value, f"{row} and {column}", signed)
    return chart


def _short(name: str) -> str:
    """Shorten a name for the margin; the cell's tip has all of it."""
    return name if len(name) <= 22 else f"{name[:10]}…{name[-11:]}"


def _cell(chart: Chart, x: float, y: float, width: int, height: int, value: float, tip: str, signed: bool) -> None:
    known = math.isfinite(value)
    text = f"{value:.2f}".replace("-", "−") if known else "–"
    strength = min(abs(value), 1.0) if known else 0.0
    full = "final" if signed and value < 0 else "accent"
    chart.add(
        "rect", "cell", colour=Blend("panel", full, strength), x=x + 0.5, y=y + 0.5, width=width - 1, height=height - 1,
        rx=2, data_tip=f"{tip}\n{text}",
    )  # fmt: skip
    if width >= 30:
        shade = "number strong" if strength > 0.72 else "number"
        chart.add("text", shade, text, x=x + width / 2, y=y + height / 2 + 4, text_anchor="middle")


def vote_rows(found: SolvedOverlap) -> list[tuple[str, str]]:
    """Return figures beside the matrix: what one model gets right, and what they get right together."""
    best = found.members.idxmax()
    rows = [
        ("mean single-layer model", found.members.mean(), "right responses"),
        (f"best of them, {best}", found.members.max(), "right responses"),
        (f"majority vote of all {len(found.layers)}", found.majority, "right votes"),
        ("solved by any of them", found.solved["any"], "prompts"),
        ("solved by all of them", found.solved["all"], "prompts"),
    ]
    rows += [(f"solved by {name}", found.solved[name], "prompts") for name in ("base", "full") if name in found.solved]
    return [(name, f"{100 * value:.1f} % of {unit}" if unit == "prompts" else f"{100 * value:.1f} % {unit}")
            for name, value, unit in rows]  # fmt: skip


def mean_overlap(square: pd.DataFrame) -> float:
    """Average over pairs of different models; NaN where no pair has one."""
    count = len(square)
    pairs = [square.iat[i, j] for i in range(count) for j in range(i)]
    known = [value for value in pairs if math.isfinite(value)]
    return sum(known) / len(known) if known else math.nan
