"""Counts in messages."""


def counted(count: int, what: str) -> str:
    """Write a count and what is counted, `1 row` or `1,200 rows`; `what` is the plural in -s."""
    return f"{count:,} {what.removesuffix('s') if count == 1 else what}"
