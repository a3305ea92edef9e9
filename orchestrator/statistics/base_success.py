"""contribution_by_base_success.parquet: C on prompts by how often the base itself solves them.

Gains on prompts that the base never solves are something new; on those that it sometimes solves, reliability; on those
that it always solves there is nothing to gain and something to forget.

A base's success is known from a few samples. Were the same samples to sort prompts and to give the base's score, chance
alone would let every run gain on "never" and lose on "always" (regression to the mean). So each sample of the base is
sorted by the others of its prompt, and its score counts in the class where these put it. Runs are sampled with the
base's random numbers: sample by sample they go where the base's of the same number goes, or a run that is the base
would lose on "never". A sample and the verdict of the others are independent, so no class favours anybody, and the
parts of a gain add up to the gain.
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
_PROMPT = ["suite", "prompt"]
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
        classes = sort_samples(there[there["selection"] == "base"])
        if not len(classes):
            continue
        suites = sorted(classes["suite"].unique())
        there = there[there["suite"].isin(suites)]
        last, _ = last_steps(there, suites)
        # Layers that a search has stopped are set against the full run at their own step.
        wanted = {*last.items(), *(("full", step) for step in last.values())}
        there = there[pd.MultiIndex.from_frame(there[["selection", "step"]]).isin(list(wanted))]
        weights = class_weights(there, classes)
        for name in CLASSES:
            known = {"sweep": sweep, "split": split, "base_success": name}
            rows += [known | row for row in _of_class(there, weights[name], suites, last, facts, seed_sd)]
    frame = pd.DataFrame(rows, columns=None if rows else list(BY_BASE_SUCCESS.types))
    return BY_BASE_SUCCESS.frame(frame[[name for name in BY_BASE_SUCCESS.types if name in frame]])


def sort_samples(responses: pd.DataFrame) -> pd.DataFrame:
    """Sort the base's responses by the others to the same prompt.

    Args:
        responses: of the base, with suite, prompt, sample and score; prompts with a single one are left out.

    Returns:
        suite, prompt, sample, class.
    """
    right = (responses["score"] >= RIGHT).astype(int)
    by_prompt = right.groupby([responses[name] for name in _PROMPT])
    others, right_others = by_prompt.transform("size") - 1, by_prompt.transform("sum") - right
    named = np.select([right_others == 0, right_others == others], ["never", "always"], "sometimes")
    found = responses[[*_PROMPT, "sample"]].assign(**{"class": named})
    return found[(others > 0).to_numpy()].reset_index(drop=True)


def class_weights(responses: pd.DataFrame, classes: pd.DataFrame) -> pd.DataFrame:
    """Return how far each response counts in each class, [responses, classes], in the order of `responses`.

    Wholly, in the class of the base's sample of its number. A number that the base does not have counts in all classes,
    by the shares of the base's samples; a prompt that was not sorted counts in none.
    """
    one = pd.get_dummies(classes["class"]).reindex(columns=list(CLASSES), fill_value=False).astype(float)
    sorted_samples = pd.concat([classes[[*_PROMPT, "sample"]], one], axis=1)
    own = responses[[*_PROMPT, "sample"]].merge(sorted_samples, how="left", on=[*_PROMPT, "sample"])[list(CLASSES)]
    shares = sorted_samples.groupby(_PROMPT)[list(CLASSES)].mean()
    further = responses[_PROMPT].merge(shares, how="left", left_on=_PROMPT, right_index=True)[list(CLASSES)]
    return own.where(own.notna(), further.to_numpy()).set_axis(responses.index)


def _of_class(
    responses: pd.DataFrame,
    weight: pd.Series,
    suites: list[str],
    last: dict[str, int],
    facts: dict[str, SelectionFacts],
    seed_sd: float | None,
) -> list[dict]:
    """Make a row per selection of its scores on one class of prompts.

    Args:
        responses: of all runs at their last steps.
        weight: how far each is in the class, NaN where its prompt was not sorted.
        suites: those with sorted prompts.
    """
    rows = responses.assign(share=weight, weighted=responses["score"] * weight)[weight.notna()]
    rows = rows.groupby([*_RUN, "prompt"], as_index=False)[["share", "weighted"]].mean()
    base = rows[rows["selection"] == "base"]
    shares = base.groupby("suite")["share"].mean()
    there = list(shares.index[shares > 0])
    if not there:
        return []
    ends = rows[rows["step"] == rows["selection"].map(last)].groupby(_RUN)["weighted"].mean()
    parts = ends.groupby(["selection", "suite"]).mean().groupby("selection").sum() / len(suites)
    rows = rows[rows["suite"].isin(there)]
    of_run = rows.groupby(_RUN)
    ratio = of_run["weighted"].transform("sum") / of_run["share"].transform("sum")
    # The mean over the class is a ratio of sums; to first order it varies as these values' mean (Cochran 1977, 6.3).
    rows = rows.assign(score=ratio + (rows["weighted"] - ratio * rows["share"]) / of_run["share"].transform("mean"))
    scored = ScoredRuns(rows.assign(**dict.fromkeys(_UNKNOWN, np.nan)), there, last, facts, seed_sd)
    named = {"share": float(shares.mean()), "suites": len(there)}
    if base.groupby("suite")["share"].sum()[there].min() < FEWEST:
        too_few = f"fewer than {FEWEST} such prompts" + (" in a suite" if len(there) > 1 else "")
        named |= dict.fromkeys(_INTERVALS) | {"contribution_reason": too_few}
    return [
        {"selection": name, "kind": known.kind, "layer": known.layer}
        | scored.row(name)
        | scored.gain(name)
        | {"gain_part": None if name == "base" else parts[name] - parts["base"]}
        | named
        for name, known in facts.items()
        if name in last
    ]
