"""The contribution table as the page shows it: what each column is called, how it reads, what it sorts by."""

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd
from markupsafe import Markup

from .profile import between, limits, number, shown, standing
from .read import Results
from .svg import Plot


@dataclass(frozen=True)
class Column:
    """`value` gives what to sort by (None for nothing), `text` what to read."""

    title: str
    meaning: str
    value: Callable[[dict], object]
    text: Callable[[dict], str]


@dataclass(frozen=True)
class Cell:
    text: str | Markup
    sort: str
    """Empty where there is no value: such cells stay last."""


def _plain(title: str, meaning: str, name: str, digits: int | None = None, scale: float = 1) -> Column:
    def text(row: dict) -> str:
        value = row[name]
        if pd.isna(value):
            return "–"
        return f"{value:,}" if digits is None else number(value * scale, digits)

    return Column(title, meaning, lambda row: row[name], text)


COLUMNS = (
    Column("status", "completed, running, pruned or failed", lambda r: r["status"], lambda r: r["status"]),
    _plain("score", "mean over suites of the mean over prompts", "score", 3),
    Column(
        "95 %", "interval of the score", lambda r: r["score"],
        lambda r: between(r["score_low"], r["score_high"], 3),
    ),
    _plain("C", "layer contribution", "contribution"),
    Column(
        "95 %", "interval of C", lambda r: r["contribution"],
        lambda r: between(r["contribution_low"], r["contribution_high"]) if r["kind"] not in ("base", "full") else "–",
    ),
    _plain("rank", "among single layers", "rank"),
    _plain("P best", "probability of being the best layer", "p_best"),
    _plain("P top 3", "probability of being among the best three", "p_top"),
    _plain("C untr.", "C on the responses that were not truncated", "contribution_untruncated"),
    _plain("C final", "C on the final split", "final_contribution"),
    _plain("tokens", "mean response length", "response_tokens", 1),
    _plain("cut %", "responses truncated at the limit", "truncated_fraction", 1, 100),
    _plain("format %", "answers that could be parsed", "format_fraction", 1, 100),
    _plain("moved", "L2 norm of the weights' change", "update_norm"),
    _plain("trained", "trainable parameters", "trainable_parameters"),
    Column("rate", "learning rate", lambda r: r["learning_rate"],
           lambda r: "–" if pd.isna(r["learning_rate"]) else f"{r['learning_rate']:g}"),
    _plain("steps", "training steps", "steps"),
    _plain("seeds", "RL seeds trained", "seeds"),
    _plain("generated", "tokens generated in training", "generated_tokens"),
    _plain("seconds", "from start to end of its runs", "seconds", 0),
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    selection: str
    mark: str
    """best, tied, several, other"""
    cells: list[Cell]
    glyph: Markup
    """C and its interval, drawn on the scale of all rows."""


def table_rows(results: Results) -> list[Row]:
    """One row per selection, in the order of the table."""
    drawn = shown(results)
    scale = limits(drawn, "contribution", {"base": 0.0, "full": 1.0}) if results.has_contribution else None
    rows = []
    for row in results.table.to_dict("records"):
        cells = [Cell(column.text(row), _sort(column.value(row))) for column in COLUMNS]
        glyph = _glyph(row, scale) if scale and pd.notna(row["contribution"]) else Markup("")
        rows.append(Row(row["selection"], standing(row), cells, glyph))
    return rows


def _sort(value: object) -> str:
    return "" if pd.isna(value) else str(value)


def _glyph(row: dict, scale: tuple[float, float]) -> Markup:
    plot = Plot((96, 16), scale, (0, 1), (3, 3, 1, 1))
    for value, cls in ((0.0, "level base"), (1.0, "level full")):
        plot.add("line", cls=cls, x1=plot.x(value), x2=plot.x(value), y1=1, y2=15)
    plot.add("line", cls="whisker", x1=plot.x(row["contribution_low"]), x2=plot.x(row["contribution_high"]), y1=8, y2=8)
    plot.add("circle", cls="dot", cx=plot.x(row["contribution"]), cy=8, r=3)
    return plot.markup(f"C {number(row['contribution'])}", f"glyph point {standing(row)}")
