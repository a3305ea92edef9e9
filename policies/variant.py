"""Variants: weights made without training from what finished runs changed in the base's."""

from dataclasses import dataclass

from .selection import Selection


@dataclass(frozen=True)
class RunChange:
    """Change of the base's weights by one run of the variant's seed, or something of it."""

    selection: str
    """Name of the run's selection."""
    strength: float = 1.0
    """Factor of the change."""
    keep: Selection | None = None
    """Parameters whose change is kept; None keeps all."""
    leave_out: Selection | None = None
    """Parameters whose change is left out."""
    rank: int | None = None
    """Rank that each matrix's change is reduced to; vectors stay as they are."""
    largest: float | None = None
    """Share of all entries that are kept, those that changed most."""
    random: bool = False
    """Replace each tensor's change by a normally distributed one of the same L2 norm."""
    draw: int = 0
    """Number of the random draw."""


@dataclass(frozen=True)
class Variant:
    """The base's weights plus a sum of runs' changes. The name stands in the tables."""

    name: str
    changes: tuple[RunChange, ...]
