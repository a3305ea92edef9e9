"""Scores of variants, beside base, full, and the runs that they were made from."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from .contribution import contribution_table
from .intervals import Z95
from .score_arrays import UNPOOLED, gains_at

SCORED = (
    "seeds", "prompts", "score", "score_low", "score_high", "contribution", "contribution_low", "contribution_high",
    "contribution_reason",
)  # fmt: skip


def variant_scores(
    scores: pd.DataFrame, facts: pd.DataFrame, variants: pd.DataFrame, split: str, seed_sd: float | None = None
) -> pd.DataFrame:
    """Add the columns SCORED to a table of variants: as the contribution table has them for runs.

    What training runs differ by between seeds is taken from the sweep's runs alone: all of them, as in its own table.

    Args:
        scores: the content of scores.parquet, with base, runs and variants.
        facts: selection, kind, layer and, of controls, control of base and runs.
        variants: with a column `variant`, names that `scores` has as selections; those of runs may be among them.
        split: whose prompts.
        seed_sd: as for `contribution_table`.
    """
    known = _known(facts, set(variants["variant"]))
    rows = scores[scores["selection"].isin(known["selection"])]
    table = contribution_table(rows, known, split=split, seed_sd=seed_sd).set_index("selection")
    return variants.join(table[list(SCORED)], on="variant")


def kept_of_runs(
    scores: pd.DataFrame, facts: pd.DataFrame, variants: pd.DataFrame, split: str, seed_sd: float | None = None
) -> pd.DataFrame:
    """Add what each variant keeps of its run's own gain: (S - S_base) / (S_run - S_base), with Fieller's interval.

    It is the contribution of the variant in a sweep whose full run is that run.

    Args:
        scores, facts, split, seed_sd: as for `variant_scores`.
        variants: with columns `variant` and `selection`, the run; a run is its own variant.
    """
    found = []
    for selection, own in variants.groupby("selection"):
        as_full = {selection: "full"} | ({} if selection == "full" else {"full": "the full run itself"})
        known = _known(facts, set(own["variant"]))
        kinds = known["kind"].where(known["kind"].isin(UNPOOLED), "layers")
        known = known.assign(selection=known["selection"].replace(as_full), layer=None)
        known["kind"] = kinds.where(known["selection"] != "full", "full")
        rows = scores.assign(selection=scores["selection"].replace(as_full))
        rows = rows[rows["selection"].isin(known["selection"])]
        table = contribution_table(rows, known, split=split, seed_sd=seed_sd).set_index("selection")
        table = table.rename(index={"full": selection}, columns=lambda name: name.replace("contribution", "kept"))
        found.append(table.loc[sorted(set(own["variant"])), ["kept", "kept_low", "kept_high", "kept_reason"]])
    return variants.join(pd.concat(found), on="variant") if found else variants


def _known(facts: pd.DataFrame, variants: set[str]) -> pd.DataFrame:
    """Return what is known of the sweep's runs, and of the variants that are none of them."""
    others = pd.DataFrame({"selection": sorted(variants - set(facts["selection"]))})
    known = facts.reindex(columns=["selection", "kind", "layer", "control"])
    return pd.concat([known, others.assign(kind="variant", layer=None, control=None)])


def seed_gains(scores: pd.DataFrame, selections: Mapping[int, Sequence[str]], step: int) -> pd.DataFrame:
    """Return the gains of runs over the base, each seed by itself, with 95 % intervals over prompts.

    Args:
        scores: the content of scores.parquet.
        selections: names by seed.
        step: at which they were scored, all on the same suites.

    Returns:
        selection, seed, gain, gain_low, gain_high, prompts.
    """
    found = [pd.DataFrame(columns=["selection", "seed", "gain", "gain_low", "gain_high", "prompts"])]
    for seed, names in selections.items():
        if names:
            own = scores[(scores["selection"] == "base") | (scores["seed"] == seed)]
            gains = gains_at(own, names, step)
            error = Z95 * np.sqrt(np.diag(gains.covariance))
            found.append(pd.DataFrame({
                "selection": names, "seed": seed, "gain": gains.mean, "gain_low": gains.mean - error,
                "gain_high": gains.mean + error, "prompts": gains.prompts,
            }))  # fmt: skip
    return pd.concat(found[1:] or found, ignore_index=True)
