"""A comparison's numbers in words: the same on the terminal and in the report."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from layersweep.orchestrator.statistics.layer_profile import Profile
from layersweep.orchestrator.statistics.profile_agreement import Correlation


def explanation(pairs: pd.DataFrame, profiles: Sequence[Profile]) -> str:
    """Explain the figures, and say what is missing."""
    said = (
        "Noise pulls an observed rank correlation towards 0; the corrected one is that of the true contributions. "
        "“cannot tell”: its interval holds 0 or is wider than 1."
    )
    if (pairs["verdict"] == "noise unknown").any():
        said += " “noise unknown”: a table has no intervals; give the standard deviation of its C with --noise."
    if left_out := ", ".join(f"{profile.pruned} of {profile.name}" for profile in profiles if profile.pruned):
        said += f" Left out are the layers that a search stopped early ({left_out}): their C is an extrapolation."
    taken = {profile.name: profile.optimizer_steps for profile in profiles if profile.optimizer_steps}
    if len({count for pair in taken.values() for count in pair}) > 1:
        ranges = (
            f"{low} to {high} in {name}" if low < high else f"{low} in {name}" for name, (low, high) in taken.items()
        )
        said += (
            f" The layers' runs took unequal numbers of optimizer steps: {', '.join(ranges)}. This is part of what "
            "differs, whether the specs ask for it or batches were left out whose responses are all scored alike."
        )
    return said


def number(value: float) -> str:
    return "–" if not np.isfinite(value) else f"{value:.2f}"


def interval(row) -> str:
    """Format the corrected correlation's interval."""
    known = Correlation(row.rho, row.rho_low, row.rho_high)
    return f"{known.low:.2f} .. {known.high:.2f}" if np.isfinite(known.median) else "–"


def shared(row) -> str:
    """Overlap of the best, with what chance gives."""
    if not row.top:
        return "–"
    return f"{round(row.overlap * row.top)} of {row.top} (chance {row.overlap_by_chance * row.top:.1f})"
