"""Words on what the intervals of a contribution table cover: with one seed, the evaluation alone."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # only the terminal's table needs this module, without pandas
    import pandas as pd


def seeds_trained(table: "pd.DataFrame") -> int:
    """Training runs of a selection, the most there are; 1 where nothing is known."""
    trained = table.loc[table["kind"] != "base", "seeds"].dropna()
    return int(trained.max()) if len(trained) else 1


def one_run_each(seeds: int) -> str:
    """Return words beside an interval in every headline: none where the interval covers RL seeds."""
    return "" if seeds > 1 else "one training run each"


def interval_covers(seeds: int, seed_sd: float | None = None) -> str:
    """Return a sentence on what the intervals cover, to print under a table.

    Args:
        seeds: training runs of a selection.
        seed_sd: standard deviation of a score between RL seeds, known from elsewhere.
    """
    if seeds > 1:
        return f"95 % intervals cover the choice of prompts, the sampling of responses and RL seeds ({seeds} trained)."
    if seed_sd is not None:
        return (
            "95 % intervals cover the choice of prompts, the sampling of responses, and RL seeds by the given standard "
            f"deviation of {seed_sd:g}; one seed was trained."
        )
    return (
        "One training run each: 95 % intervals cover the evaluation noise of these models only; another RL seed may "
        "differ."
    )
