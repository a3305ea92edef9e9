"""Overlap of the prompts that single-layer models solve, and a majority vote among them.

A vote is counted response by response: each model gives one answer, and the vote is right when more than half of them
are. Tables hold scores, not answers, so wrong answers count as one; a vote over the answers themselves can only be
better, where the wrong ones disagree.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from .score_arrays import last_steps, responses_of_split, selection_facts

RIGHT = 0.5
"""A response with at least this score is right; a model solves a prompt when at least half its responses are."""


@dataclass(frozen=True)
class SolvedOverlap:
    """Single-layer models, all at the same step, against each other."""

    layers: list[str]
    """Selections of the models, by depth."""
    jaccard: pd.DataFrame
    """[layers, layers] prompts that both solve, of those that either solves; NaN where neither solves any."""
    beyond_base: pd.DataFrame
    """The same for the prompts that the base does not solve; NaN throughout without a base."""
    members: pd.Series
    """[layers] share of right responses: a mean over suites of the mean over prompts, as the score."""
    majority: float
    """Share of prompts and responses where more than half of the models are right."""
    solved: pd.Series
    """Share of prompts solved by `any` layer, by `all` of them, and by `base` and `full` where these were scored."""


def solved_overlap(scores: pd.DataFrame, selections: pd.DataFrame, split: str = "selection") -> SolvedOverlap | None:
    """Compare the single layers at the last step that any was scored at; None where there are fewer than two.

    Args:
        scores: the content of scores.parquet.
        selections: what each selection is: the columns selection, kind and layer, of runs or of selections.
        split: whose prompts.
    """
    answers = right_answers(scores, selections, split)
    layers = [name for name in answers if name not in ("base", "full")]
    if len(layers) < 2:
        return None
    solves = solved(answers)
    new = solves[~solves["base"]] if "base" in solves else solves.iloc[:0]
    together = answers[layers].dropna()
    shares = {"any": _mean(solves[layers].any(axis=1)), "all": _mean(solves[layers].all(axis=1))}
    shares |= {name: _mean(solves[name]) for name in ("base", "full") if name in solves}
    return SolvedOverlap(
        layers,
        jaccard(solves[layers]),
        jaccard(new[layers]),
        together.apply(_mean),
        _mean(together.mean(axis=1) > 0.5),
        pd.Series(shares),
    )


def right_answers(scores: pd.DataFrame, selections: pd.DataFrame, split: str) -> pd.DataFrame:
    """[responses, selections] 1 where right, 0 where wrong, NaN where not scored; base, full, then layers by depth.

    Rows are indexed by suite, prompt, seed and sample. Layers are those at the last step that any was scored at:
    what a pruned one solved says little of what it would have.
    """
    rows = responses_of_split(scores, split)
    suites = sorted(rows["suite"].unique())
    last = last_steps(rows, suites)[0] if suites else {}
    layer_of = {name: facts.layer for name, facts in selection_facts(selections).items() if facts.kind == "layer"}
    last_step = max((step for name, step in last.items() if name in layer_of), default=0)
    wanted = {
        name: step
        for name, step in last.items()
        if name in ("base", "full") or (name in layer_of and step == last_step)
    }
    rows = rows[rows["step"] == rows["selection"].map(wanted)]
    right = rows.assign(right=(rows["score"] >= RIGHT).astype(float))
    wide = right.pivot_table(index=["suite", "prompt", "seed", "sample"], columns="selection", values="right")
    layers = sorted(wanted.keys() & layer_of.keys(), key=layer_of.get)
    return wide[[name for name in ("base", "full") if name in wide] + layers]


def solved(answers: pd.DataFrame) -> pd.DataFrame:
    """[prompts, selections] whether at least half of a model's responses, over all seeds, are right."""
    rates = answers.groupby(level=["suite", "prompt"]).mean().dropna()
    return rates >= 0.5


def jaccard(solves: pd.DataFrame) -> pd.DataFrame:
    """[models, models] size of the intersection over that of the union, from [prompts, models] booleans."""
    each = solves.to_numpy(dtype=float)
    both = each.T @ each
    own = each.sum(axis=0)
    either = own[:, None] + own - both
    share = np.divide(both, either, out=np.full_like(both, np.nan), where=either > 0)
    return pd.DataFrame(share, index=solves.columns, columns=solves.columns)


def _mean(values: pd.Series) -> float:
    """Average over prompts, then over suites."""
    return float(values.astype(float).groupby(level=["suite", "prompt"]).mean().groupby(level="suite").mean().mean())
