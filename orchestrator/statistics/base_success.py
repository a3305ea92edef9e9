"""contribution_by_base_success.parquet: C on prompts by how often the base itself solves them.

Gains on prompts that the base never solves are something new; on those that it sometimes solves, reliability; on those
that it always solves there is nothing to gain and something to forget.

A base's success is known from a few samples. Were the same samples to sort prompts and to give the base's score, chance
alone would let every run gain on "never" and lose on "always" (regression to the mean). So each sample of the base is
sorted by the others of its prompt: with n samples a prompt belongs to a class by the share of its samples that the
others put there, and the base's score in the class is that of these samples. A sample and the verdict of the others are
independent, so no class favours anybody; the parts of a gain add up to the gain.
"""

import numpy as np
import pandas as pd

from layersweep.workers.storage.tables import BY_BASE_SUCCESS

from .contribution import ScoredRuns
from .score_arrays import RESPONSE_STATS, SelectionFacts, last_steps, responses_of_split, selection_facts
from .solved_prompts import RIGHT

CLASSES = ("never", "sometimes", "always")
"""None, some, or all of the prompt's other samples by the base are right."""
FEWEST = 10
"""Prompts of a class in each suite, its shares added up, below which there are no intervals: the error of a ratio is
that of many prompts (test_base_success.py holds it against a jackknife)."""
_INTERVALS = [
    "score_low",
    "score_high",
    "gain_low",
    "gain_high",
    "contribution",
    "contribution_low",
    "contribution_high",
]
_RUN = ["selection", "seed", "step", "suite"]
_UNKNOWN = ["untruncated_score", *RESPONSE_STATS]
"""Columns of single responses, which a part of a prompt does not have."""


def base_success_table(
    sweep: str, runs: pd.DataFrame, scores: pd.DataFrame, *, seed_sd: float | None = None
) -> pd.DataFrame:
    """Build contribution_by_base_success.parquet: rows by split, by class, then by selection as they come.

    Over the suites that count, each at the selection's last step. Classes that no prompt has are left out, and so is
    everything where the base has a single sample to each prompt; classes of few prompts have no intervals.

    Args:
        sweep: its name.
        runs: one row per run (and base): selection, kind, layer.
        scores: the content of scores.parquet.
        seed_sd: as for `contribution_table`.
    """
    facts = {name: known for name, known in selection_facts(runs).items() if known.kind != "trial"}
    rows = []
    for split in ("selection", "final"):
        there = responses_of_split(scores, split)
        there = there[there["selection"].isin(list(facts))]
        base = base_shares(there[there["selection"] == "base"])
        if not len(base):
            continue
        suites = sorted(base.index.unique("suite"))
        there = there[there["suite"].isin(suites)]
        last, _ = last_steps(there, suites)
        # Layers that a search has stopped are set against the full run at their own step.
        wanted = {*last.items(), *(("full", step) for step in last.values())}
        there = there[pd.MultiIndex.from_frame(there[["selection", "step"]]).isin(list(wanted))]
        means = there.groupby([*_RUN, "prompt"], as_index=False)["score"].mean()
        for name in CLASSES:
            known = {"sweep": sweep, "split": split, "base_success": name}
            rows += [known | row for row in _of_class(means, base.xs(name, level="class"), last, facts, seed_sd)]
    frame = pd.DataFrame(rows, columns=None if rows else list(BY_BASE_SUCCESS.types))
    return BY_BASE_SUCCESS.frame(frame[[name for name in BY_BASE_SUCCESS.types if name in frame]])


def base_shares(responses: pd.DataFrame) -> pd.DataFrame:
    """Sort the base's responses by the others to the same prompt.

    Args:
        responses: of the base, with suite, prompt and score; prompts with a single one are left out.

    Returns:
        Indexed by suite, prompt and class (all three of each prompt): `share` of the prompt's responses that are in the
        class, and `score`, their sum of scores over the prompt's number of responses.
    """
    right = (responses["score"] >= RIGHT).astype(int)
    by_prompt = right.groupby([responses["suite"], responses["prompt"]])
    others, right_others = by_prompt.transform("size") - 1, by_prompt.transform("sum") - right
    named = np.select([right_others == 0, right_others == others], ["never", "always"], "sometimes")
    sorted_in = responses.assign(**{"class": named})[(others > 0).to_numpy()]
    cells = sorted_in.groupby(["suite", "prompt", "class"])["score"].agg(["size", "sum"])
    every = pd.MultiIndex.from_tuples(
        [(*prompt, name) for prompt in cells.index.droplevel("class").unique() for name in CLASSES],
        names=cells.index.names,
    )
    cells = cells.reindex(every, fill_value=0)
    count = cells.groupby(["suite", "prompt"])["size"].transform("sum")
    return pd.DataFrame({"share": cells["size"] / count, "score": cells["sum"] / count})


def _of_class(
    means: pd.DataFrame,
    base: pd.DataFrame,
    last: dict[str, int],
    facts: dict[str, SelectionFacts],
    seed_sd: float | None,
) -> list[dict]:
    """Make a row per selection of its scores on one class of prompts.

    Args:
        means: mean score of each run on each prompt.
        base: `share` and `score` of the class by suite and prompt, from `base_shares`.
    """
    shares = base["share"].groupby("suite").mean()
    suites = list(shares.index[shares > 0])
    if not suites:
        return []
    rows = means[means["suite"].isin(suites)].join(
        base.rename(columns={"score": "own"}), on=["suite", "prompt"], how="inner"
    )
    # A run's score counts as far as the prompt is in the class; the base's is that of the samples in it.
    weighted = rows["score"] * rows["share"]
    rows["weighted"] = weighted.where(rows["selection"] != "base", rows["own"])
    of_run = rows.groupby(_RUN)
    total, share = of_run["weighted"].transform("sum"), of_run["share"].transform("mean")
    ratio = total / of_run["share"].transform("sum")
    # The mean over the class is a ratio of sums; to first order it varies as these values' mean (Cochran 1977, 6.3).
    rows["score"] = ratio + (rows["weighted"] - ratio * rows["share"]) / share
    scored = ScoredRuns(rows.assign(**dict.fromkeys(_UNKNOWN, np.nan)), suites, last, facts, seed_sd)
    ends = rows[rows["step"] == rows["selection"].map(last)].groupby(_RUN)["weighted"].mean()
    parts = ends.groupby(["selection", "suite"]).mean().groupby("selection").sum()
    parts = (parts - parts["base"]) / base.index.unique("suite").size
    named = {"share": float(shares.mean()), "suites": len(suites)}
    if base["share"].groupby("suite").sum()[suites].min() < FEWEST:
        too_few = f"fewer than {FEWEST} such prompts" + (" in a suite" if len(suites) > 1 else "")
        named |= dict.fromkeys(_INTERVALS) | {"contribution_reason": too_few}
    return [
        {"selection": name, "kind": known.kind, "layer": known.layer}
        | scored.row(name)
        | scored.gain(name)
        | {"gain_part": None if name == "base" else parts[name]}
        | named
        for name, known in facts.items()
        if name in last
    ]
