"""contribution.parquet: the statistics of the scores beside what is known of the runs."""

import pandas as pd

from layersweep.workers.storage.tables import CONTRIBUTION

from .contribution import contribution_table
from .score_arrays import KINDS

FINAL = ("score", "score_low", "score_high", "contribution", "contribution_low", "contribution_high")
"""Repeated for the `final` split as final_score, ..."""
ADDED = ("modules", "lora_rank", "lora_alpha", "control", "control_of", "change_norm")
"""Columns of runs that earlier versions lack; `change_norm` is of those that are made without training."""
STATUSES = ("failed", "running", "pruned", "completed")
"""Status of a selection; of several seeds the first of these that one has, the worst news first."""


def sweep_table(
    sweep: dict[str, str | int],
    runs: pd.DataFrame,
    steps: pd.DataFrame,
    scores: pd.DataFrame,
    *,
    seed_sd: float | None = None,
) -> pd.DataFrame:
    """Build contribution.parquet: a row per selection, base first, then full, then by layer; whole at any moment.

    Args:
        sweep: the constant columns: sweep, model, algorithm, task, learning_rate_policy, model_layers.
        runs: one row per run (and base): selection, seed, kind, layer, depth, trainable_parameters,
            layers, modules, lora_rank, lora_alpha, learning_rate, seconds, status, reason.
        steps, scores: the content of steps.parquet and scores.parquet.
        seed_sd: standard deviation of S between RL seeds, known from elsewhere; None estimates it from the seeds.
    """
    table = _of_runs(runs, steps)
    # A selection is scored on the `selection` split, and the best ones once more on `final`.
    ranked = contribution_table(scores, runs, split="selection", seed_sd=seed_sd)
    ranked = ranked.drop(columns=["kind", "layer", "seeds", "step"])
    table = table.merge(ranked, on="selection", how="left")
    final = contribution_table(scores, runs, split="final", seed_sd=seed_sd).set_index("selection")
    for column in FINAL:
        table[f"final_{column}"] = table["selection"].map(final[column])
    table["reason"] = table["reason"].fillna(table["contribution_reason"])
    for column, value in sweep.items():
        table[column] = value
    return CONTRIBUTION.frame(table)


def _of_runs(runs: pd.DataFrame, steps: pd.DataFrame) -> pd.DataFrame:
    """Reduce one row per run to one row per selection."""
    steps = steps.assign(generated=steps["tokens"] + steps["discarded_tokens"].fillna(0))
    last = steps.groupby(["selection", "seed"]).agg(
        steps=("step", lambda s: int(s.max()) + 1),
        update_norm=("update_norm", "last"),
        generated_tokens=("generated", "sum"),
        optimizer_steps=("optimizer_steps", lambda s: s.sum(min_count=1)),
    )
    runs = runs.assign(**{name: runs.get(name) for name in ADDED})
    runs = runs.merge(last, how="left", on=["selection", "seed"])
    grouped = runs.groupby("selection", sort=False)
    table = grouped.agg(
        kind=("kind", "first"),
        layer=("layer", "first"),
        depth=("depth", "first"),
        layers=("layers", "first"),
        modules=("modules", "first"),
        lora_rank=("lora_rank", "first"),
        lora_alpha=("lora_alpha", "first"),
        control=("control", "first"),
        control_of=("control_of", "first"),
        seeds=("seed", "size"),
        trainable_parameters=("trainable_parameters", "first"),
        learning_rate=("learning_rate", "first"),
        steps=("steps", "min"),
        optimizer_steps=("optimizer_steps", "min"),
        update_norm=("update_norm", "mean"),
        change_norm=("change_norm", "mean"),
        generated_tokens=("generated_tokens", "sum"),
        seconds=("seconds", "sum"),
        status=("status", _together),
        reason=("reason", lambda r: "; ".join(dict.fromkeys(r.dropna())) or None),
    ).reset_index()
    table["update_norm"] = table["update_norm"].fillna(table.pop("change_norm"))
    return table.astype({name: CONTRIBUTION.types[name] for name in table})


def _together(status: pd.Series) -> str:
    """Return the status of several seeds together: the worst of them."""
    return next(s for s in STATUSES if (status == s).any())


def table_problem(table: pd.DataFrame) -> str | None:
    """Problem of a contribution table that no sweep has written so; None where there is none."""
    if table["selection"].isna().any():
        return "a row has no selection"
    if (twice := table["selection"].duplicated()).any():
        return f"{table.loc[twice, 'selection'].iloc[0]} has more than one row"
    if strange := sorted(set(table["kind"].fillna("nothing")) - {*KINDS}):
        return f"{strange[0]} is no kind of selection; there are {', '.join(KINDS)}"
    if strange := sorted(set(table["status"].fillna("nothing")) - {*STATUSES}):
        return f"{strange[0]} is no status of a selection; there are {', '.join(STATUSES)}"
    if (table["seeds"] < 0).any():
        return "the number of seeds is negative"
    layers = table.loc[table["kind"] == "layer", "layer"]
    if layers.isna().any() or layers.duplicated().any() or (layers < 0).any():
        return "each single layer has one row, and a number from 0"
    return None
