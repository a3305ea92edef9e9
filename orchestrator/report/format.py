"""Numbers, sizes and the console as text."""

from typing import Any

from rich.console import Console


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def wide_console() -> Console:
    """A terminal's own width; in a pipe, wide enough that tables are not cut."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=140)


def number_text(value: Any) -> str:
    """Three decimals; nothing for None and NaN."""
    return "" if value is None or value != value else f"{value:.3f}"


def interval_text(low: Any, high: Any) -> str:
    """`low .. high`; nothing where there is none."""
    return f"{number_text(low)} .. {number_text(high)}" if low == low else ""


def plain_text(value: Any) -> str:
    return "" if value is None or str(value) in ("<NA>", "nan") else str(value)
