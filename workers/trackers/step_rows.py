"""Rows of steps.parquet as trackers use them."""

from typing import Any


def metrics(row: dict[str, Any]) -> dict[str, float]:
    """Return the numbers of a row by column; missing ones are left out."""
    known = ("selection", "seed", "step")
    return {k: float(v) for k, v in row.items() if k not in known and v is not None and v == v}
