"""Arrays that the statistics work on, made from the rows of scores.parquet."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from layersweep.orchestrator.statistics import intervals

IDENTITY = ["selection", "seed", "step", "suite", "prompt", "sample"]
"""Columns that tell one response of a split from another."""
GREEDY = "@greedy"
"""Suites whose name ends so are one greedy answer a prompt, shown beside the score and no part of it."""
RESPONSE_STATS = ["response_tokens", "truncated", "format_ok", "unjudged"]
"""Columns about responses beside their scores; unknown where a table lacks them."""


KINDS = ("base", "full", "layer", "layers", "part", "control", "trial", "variant")
"""Kinds of selections, in the order of the table: `layers` train or boost several, `part` a part of some; a `control`
trains otherwise than the sweep does, and a `variant` is made of other runs' weights."""
UNPOOLED = ("base", "control", "variant")
"""Kinds that tell nothing of how the sweep's training runs differ between seeds."""
UNTRAINED = ("random_direction", "constant_reward")
"""Types of controls that no signal trains: they differ between seeds by their draw, or not at all."""


@dataclass(frozen=True)
class SelectionFacts:
    """Kind of a selection, and its layer."""

    kind: str
    """Kind of the selection, one of KINDS."""
    layer: int | None
    """Index of a single layer; None of all others."""
    control: str | None = None
    """Type of a control; None of all others."""


def selection_facts(selections: pd.DataFrame) -> dict[str, SelectionFacts]:
    """Return facts by selection, from a table with the columns selection, kind and layer, of runs or of selections.

    The column control may be missing: then no control is known to be UNTRAINED.
    """
    known = selections.reindex(columns=["selection", "kind", "layer", "control"]).drop_duplicates("selection")
    return {
        name: SelectionFacts(kind, None if pd.isna(layer) else int(layer), None if pd.isna(control) else control)
        for name, kind, layer, control in known.itertuples(index=False)
    }


def suites_that_count(scores: pd.DataFrame) -> dict[str, bool]:
    """Return every suite of a scores table but the greedy ones, in order of their names, and whether it is part of
    S."""
    if "counts" not in scores:
        found = dict.fromkeys(scores["suite"].unique(), True)
    else:
        found = scores["counts"].astype("boolean").fillna(True).groupby(scores["suite"]).all().to_dict()
    return {suite: bool(found[suite]) for suite in sorted(found) if not str(suite).endswith(GREEDY)}


def responses_of_split(scores: pd.DataFrame, split: str, uncounted: bool = False) -> pd.DataFrame:
    """Return the responses of a split, the base's pooled: it is one model, whatever seed or step it was scored at.

    Args:
        scores: the content of scores.parquet.
        split: selection or final.
        uncounted: whether suites that are no part of S are among them.

    Raises:
        ValueError: a column is missing, a response has no score, or one is there twice.
    """
    if absent := [name for name in (*IDENTITY, "split", "score") if name not in scores]:
        raise ValueError(f"scores lack the columns {', '.join(absent)}")
    if split not in ("selection", "final"):
        raise ValueError(f'split must be "selection" or "final", not {split!r}')
    counted = [suite for suite, counts in suites_that_count(scores).items() if counts or uncounted]
    kept = (scores["split"] == split) & scores["suite"].isin(counted)
    rows = scores.loc[kept].reindex(columns=[*IDENTITY, "score", *RESPONSE_STATS, "answer"])
    if rows["score"].isna().any():
        raise ValueError(f"{int(rows['score'].isna().sum())} responses have no score")
    if (repeated := rows.duplicated(IDENTITY)).any():
        raise ValueError(f"a response is recorded twice: {rows.loc[repeated, IDENTITY].iloc[0].to_dict()}")
    for name in ("score", *RESPONSE_STATS):
        rows[name] = pd.to_numeric(rows[name], errors="raise").astype("Float64").to_numpy(float, na_value=np.nan)
    for name in ("selection", "suite"):
        rows[name] = rows[name].astype(object)
    rows.loc[rows["selection"] == "base", ["seed", "step"]] = 0
    rows["untruncated_score"] = rows["score"].where(rows["truncated"] != 1.0)
    return rows


def last_steps(rows: pd.DataFrame, suites: list[str]) -> tuple[dict[str, int], dict[str, str]]:
    """Return the last step at which each selection was scored on every suite, and for the others what is missing."""
    scored = rows.groupby(["selection", "seed", "step"])["suite"].agg(lambda names: frozenset(names.unique()))
    last: dict[str, int] = {}
    missing: dict[str, str] = {}
    for name, by_run in scored.groupby(level="selection"):
        complete = [step for (_, _, step), names in by_run.items() if len(names) == len(suites)]
        if complete:
            last[name] = int(max(complete))
        else:
            gaps = sorted(set(suites) - frozenset.union(*by_run))
            missing[name] = f"not scored yet on {', '.join(gaps)}" if gaps else "no step is scored on every suite yet"
    return last, missing


class ScoreArrays:
    """Scores of `wanted` runs, a run being a (selection, step), at the seeds that were scored there on every suite."""

    def __init__(self, rows: pd.DataFrame, suites: list[str], wanted: Iterable[tuple[str, int]]):
        complete = rows.groupby(["selection", "seed", "step"])["suite"].transform("nunique") == len(suites)
        keys = pd.MultiIndex.from_frame(rows[["selection", "step"]])
        rows = rows[complete & keys.isin(list(wanted))]
        found = sorted(set(rows[["selection", "step"]].itertuples(index=False, name=None)))
        self.runs = {run: index for index, run in enumerate(found)}
        """Index of each run that was found, in the arrays."""
        seeds = sorted(rows["seed"].unique())
        values = ["score", "untruncated_score", *RESPONSE_STATS]
        cells = rows.groupby(["suite", "selection", "step", "seed", "prompt"])[values].mean()
        by_suite = [cells[cells.index.get_level_values("suite") == suite].droplevel("suite") for suite in suites]
        self.suites = [_array(suite["score"], self.runs, seeds) for suite in by_suite]
        """[runs, seeds, prompts] per suite, see `intervals`."""
        self.untruncated_suites = [_array(suite["untruncated_score"], self.runs, seeds) for suite in by_suite]
        """The same from the responses that were not truncated."""
        self.seeds = intervals.seeds_of(self.suites).sum(axis=1)
        """[runs] number of seeds."""
        self.response_stats = (
            cells.groupby(["selection", "step", "suite"])[RESPONSE_STATS].mean().groupby(["selection", "step"]).mean()
        )
        """Response tokens, truncated, well-formed and unjudged fraction by (selection, step), a mean over suites."""


def _array(cells: pd.Series, runs: dict, seeds: list) -> np.ndarray:
    """[runs, seeds, prompts] from one suite's series indexed by selection, step, seed and prompt."""
    selection, step, seed, prompt = (cells.index.get_level_values(level) for level in range(4))
    columns, names = pd.factorize(prompt)
    array = np.full((len(runs), len(seeds), len(names)), np.nan)
    where = [runs[run] for run in zip(selection, step, strict=True)]
    array[where, pd.Index(seeds).get_indexer(seed), columns] = cells.to_numpy()
    return array


def gains_at(
    scores: pd.DataFrame,
    selections: Sequence[str],
    step: int,
    *,
    split: str = "selection",
    seed_sd: float | None = None,
) -> intervals.MeanAndCovariance:
    """Return gains over the base of `selections` at one step, in that order, with the covariance of their noise.

    What a search decides on at a rung. All of them, and the base, must have been scored on every suite that one of
    them was scored on there.
    """
    rows = responses_of_split(scores, split)
    there = rows["selection"].isin(list(selections)) & (rows["step"] == step)
    suites = sorted(rows.loc[there, "suite"].unique())
    rows = rows[there | ((rows["selection"] == "base") & rows["suite"].isin(suites))]
    wanted = [("base", 0), *((name, step) for name in selections)]
    if not suites:
        raise ValueError(f"nothing was scored at step {step} on the {split} split")
    scored = ScoreArrays(rows, suites, wanted)
    if absent := [f"{name} at step {at}" for name, at in wanted if (name, at) not in scored.runs]:
        raise ValueError(f"not scored on every suite: {', '.join(absent)}")
    runs = [scored.runs[name, step] for name in selections]
    estimate = intervals.paired(intervals.seed_means(scored.suites), runs, scored.runs["base", 0])
    seed = intervals.seed_variance(scored.suites, runs, seed_sd)
    between = np.diag([seed.of_mean(int(scored.seeds[run])) for run in runs])
    return intervals.MeanAndCovariance(estimate.mean, estimate.covariance + between, estimate.prompts)
