"""Numbers, sizes and the console as text."""

from typing import IO, Any

from rich.console import Console


def size(count: float) -> str:
    """Return the bytes in the largest binary unit that leaves at least 1."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def plain_console(file: IO[str] | None = None, width: int | None = None) -> Console:
    """Return a console, the one way to a terminal: all text is printed as it is. Reasons, names and paths hold what
    they please, brackets too, which rich would take for markup, and `:words:`, which it would take for emoji.

    Args:
        file: where to; standard output by default.
        width: columns; those of the terminal by default.
    """
    return Console(file=file, width=width, markup=False, emoji=False, highlight=False)


def wide_console() -> Console:
    """Return a terminal's own width; in a pipe, wide enough that tables are not cut."""
    console = plain_console()
    return console if console.is_terminal else plain_console(width=140)


def is_missing(value: Any) -> bool:
    """Tell whether a table's value is None, NaN or pandas' NA, without pandas."""
    return value is None or str(value) in ("nan", "<NA>")


def format_number(value: Any, digits: int = 2) -> str:
    """Return a number in the report, with a true minus sign; a dash where there is none."""
    if is_missing(value):
        return "–"
    text = f"{value:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text.replace("-", "−")


def format_interval(low: Any, high: Any, digits: int = 2) -> str:
    """Return an interval in the report; a dash where there is none."""
    return (
        "–" if is_missing(low) or is_missing(high) else f"{format_number(low, digits)} to {format_number(high, digits)}"
    )


def number_text(value: Any) -> str:
    """Three decimals; nothing for None and NaN."""
    return "" if is_missing(value) else f"{value:.3f}"


def interval_text(low: Any, high: Any) -> str:
    """`low .. high`; nothing where there is none."""
    return "" if is_missing(low) else f"{number_text(low)} .. {number_text(high)}"


def plain_text(value: Any) -> str:
    """Return a value as it is; nothing for None, NaN and NA."""
    return "" if is_missing(value) else str(value)
