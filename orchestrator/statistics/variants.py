"""Scores of variants, beside base, full, and the runs that they were made from."""

import pandas as pd

from .contribution import contribution_table

SCORED = (
    "seeds", "prompts", "score", "score_low", "score_high", "contribution", "contribution_low", "contribution_high",
    "contribution_reason",
)  # fmt: skip


def variant_scores(scores: pd.DataFrame, facts: pd.DataFrame, variants: pd.DataFrame, split: str) -> pd.DataFrame:
    """Add the columns SCORED to a table of variants: as the contribution table has them for runs.

    Args:
        scores: the content of scores.parquet, with base, full, runs and variants.
        facts: selection, kind and layer of base, full and runs.
        variants: with a column `variant`, names that `scores` has as selections; those of runs may be among them.
        split: whose prompts.
    """
    others = pd.DataFrame({"selection": sorted(set(variants["variant"]) - set(facts["selection"]))})
    known = pd.concat([facts[["selection", "kind", "layer"]], others.assign(kind="layers", layer=None)])
    wanted = {"base", "full", *variants["variant"]}
    table = contribution_table(scores[scores["selection"].isin(wanted)], known, split=split).set_index("selection")
    return variants.join(table[list(SCORED)], on="variant")


def kept_of_runs(scores: pd.DataFrame, variants: pd.DataFrame, split: str = "selection") -> pd.DataFrame:
    """Add what each variant keeps of its run's own gain: (S - S_base) / (S_run - S_base), with Fieller's interval.

    It is the contribution of the variant in a sweep whose full run is that run.

    Args:
        scores: the content of scores.parquet, with base, runs and variants.
        variants: with columns `variant` and `selection`, the run; a run is its own variant.
        split: whose prompts.
    """
    found = []
    for selection, own in variants.groupby("selection"):
        names = sorted(set(own["variant"]) - {selection})
        rows = scores[scores["selection"].isin(["base", selection, *names])]
        rows = rows.assign(selection=rows["selection"].replace(selection, "full"))
        known = pd.DataFrame(
            {"selection": ["base", "full", *names], "kind": ["base", "full", *["layers"] * len(names)]}
        )
        table = contribution_table(rows, known.assign(layer=None), split=split).set_index("selection")
        table = table.rename(index={"full": selection}, columns=lambda name: name.replace("contribution", "kept"))
        found.append(table[["kept", "kept_low", "kept_high", "kept_reason"]])
    return variants.join(pd.concat(found), on="variant") if found else variants
