"""contribution.parquet: the statistics of the scores beside what is known of the runs."""

import pandas as pd

from .contribution import contribution_table

FIRST = (
    "sweep", "model", "algorithm", "task", "selection", "kind", "layer", "depth", "seeds", "score", "score_low",
    "score_high", "contribution", "contribution_low", "contribution_high", "rank", "response_tokens",
    "truncated_fraction", "format_fraction", "trainable_parameters", "update_norm", "learning_rate", "steps",
    "prompts", "generated_tokens", "seconds", "status", "reason",
)  # fmt: skip
"""The columns of the design, first; the statistics' further columns follow."""
FINAL = ("score", "score_low", "score_high", "contribution", "contribution_low", "contribution_high")
"""Repeated for the `final` split as final_score, ..."""


def sweep_table(
    sweep: dict[str, str],
    runs: pd.DataFrame,
    steps: pd.DataFrame,
    scores: pd.DataFrame,
    *,
    seed_sd: float | None = None,
) -> pd.DataFrame:
    """One row per selection, base first, then full, then by layer; complete at any moment of the sweep.

    Args:
        sweep: the constant columns: sweep, model, algorithm, task.
        runs: one row per run (and base): selection, seed, kind, layer, depth, trainable_parameters,
            learning_rate, seconds, status, reason.
        steps, scores: the content of steps.parquet and scores.parquet.
        seed_sd: standard deviation of S between RL seeds, known from elsewhere; None estimates it from the seeds.
    """
    table = _of_runs(runs, steps)
    # A selection is scored on the `selection` split, and the best ones once more on `final`.
    ranked = contribution_table(scores, split="selection", seed_sd=seed_sd)
    ranked = ranked.drop(columns=["kind", "layer", "seeds", "step"])
    table = table.merge(ranked, on="selection", how="left")
    final = contribution_table(scores, split="final", seed_sd=seed_sd).set_index("selection")
    for column in FINAL:
        table[f"final_{column}"] = table["selection"].map(final[column])
    table["reason"] = table["reason"].fillna(table["contribution_reason"])
    for column, value in sweep.items():
        table[column] = value
    return table[[*FIRST, *(column for column in table if column not in FIRST)]]


def _of_runs(runs: pd.DataFrame, steps: pd.DataFrame) -> pd.DataFrame:
    """One row per selection from one row per run."""
    last = steps.groupby(["selection", "seed"]).agg(
        steps=("step", lambda s: int(s.max()) + 1),
        update_norm=("update_norm", "last"),
        generated_tokens=("tokens", "sum"),
    )
    runs = runs.merge(last, how="left", on=["selection", "seed"])
    grouped = runs.groupby("selection", sort=False)
    table = grouped.agg(
        kind=("kind", "first"),
        layer=("layer", "first"),
        depth=("depth", "first"),
        layers=("layers", "first"),
        seeds=("seed", "size"),
        trainable_parameters=("trainable_parameters", "first"),
        learning_rate=("learning_rate", "first"),
        steps=("steps", "min"),
        update_norm=("update_norm", "mean"),
        generated_tokens=("generated_tokens", "sum"),
        seconds=("seconds", "sum"),
        status=("status", _together),
        reason=("reason", lambda r: "; ".join(dict.fromkeys(r.dropna())) or None),
    ).reset_index()
    whole = ("layer", "seeds", "trainable_parameters", "steps", "generated_tokens")
    return table.astype(
        dict.fromkeys(whole, "Int64") | {"reason": "string", "depth": "float64", "update_norm": "float64"}
    )


def _together(status: pd.Series) -> str:
    """Of several seeds: the worst news first."""
    return next(s for s in ("failed", "running", "pruned", "completed") if (status == s).any())
