"""Gains by how often the base solves a prompt: something new, or what it could do already, more reliably."""

from typing import Any

import pandas as pd

from layersweep.orchestrator.statistics.base_success import CLASSES

from .format import format_interval, format_number
from .profile_chart import row_class
from .results import Results
from .suites import score_cell


def base_success_section(results: Results) -> dict[str, Any] | None:
    """Return scores on the selection split by class of prompts; None where the base has one sample to a prompt."""
    table = results.by_base_success
    table = table[table["split"] == "selection"]
    if not len(table):
        return None
    shares = table.groupby("base_success")["share"].first()
    columns = [name for name in CLASSES if name in shares]
    cells = {(row["selection"], row["base_success"]): row for row in table.to_dict("records")}
    whole = table.groupby("selection")["gain_part"].sum()
    rows = [
        {
            "selection": row["selection"],
            "mark": row_class(row),
            "cells": [_cell(cells.get((row["selection"], name)), whole) for name in columns],
        }
        for row in results.table.to_dict("records")
        if (row["selection"], columns[0]) in cells
    ]
    named = [(name, f"{100 * shares[name]:.0f} %") for name in columns]
    return {"columns": named, "rows": rows, "sentence": _sentence(table)}


def _cell(row: dict[str, Any] | None, whole: pd.Series) -> dict[str, str]:
    shown = score_cell(row) | {"part": ""}
    if row is None or row["kind"] == "base" or pd.isna(row["gain_low"]):
        return shown
    gain = whole[row["selection"]]
    if gain > 0 and row["gain_low"] * row["gain_high"] > 0:
        shown["part"] = f"{100 * row['gain_part'] / gain:.0f} % of its gain"
    return shown


def _sentence(table: pd.DataFrame) -> str:
    """Say what the full run gained on what the base never solves; empty without both."""
    row = next(iter(table[(table["kind"] == "full") & (table["base_success"] == "never")].to_dict("records")), None)
    if row is None or pd.isna(row["gain_low"]):
        return ""
    return (
        f"On prompts that the base never solves the full run gained {format_number(row['gain'], 3)} "
        f"({format_interval(row['gain_low'], row['gain_high'], 3)})."
    )
