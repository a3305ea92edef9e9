"""Rows of steps.parquet as trackers use them."""

from typing import Any


def run_name(row: dict[str, Any]) -> str:
    """Name of a row's run, as in the tables and on the terminal."""
    return f"{row['selection']}-seed{row['seed']}"


def metrics(row: dict[str, Any]) -> dict[str, float]:
    """Numbers of a row by column; missing ones are left out."""
    known = ("selection", "seed", "step")
    return {k: float(v) for k, v in row.items() if k not in known and v is not None and v == v}
