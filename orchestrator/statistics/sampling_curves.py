"""Curves of pass@k and maj@k: what k samples reach together, with intervals over prompts and seeds.

"RL raises pass@1 and leaves pass@k where it was" is a statement about these curves of base and trained models.
"""

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from .contribution import ScoredRuns
from .score_arrays import RESPONSE_STATS, SelectionFacts, last_steps, responses_of_split, selection_facts
from .solved_prompts import RIGHT

PASS, MAJORITY = "pass", "maj"
BEST_LAYERS = "best layers"
"""Selection under which the vote of the best k single-layer models stands, each with one sample."""
RUN_PROMPT = ["selection", "seed", "step", "suite", "prompt"]
COLUMNS = [
    *("selection", "kind", "layer", "measure", "k", "value", "low", "high", "gain", "gain_low", "gain_high"),
    *("contribution", "contribution_low", "contribution_high", "prompts"),
]
_UNKNOWN = ["untruncated_score", *RESPONSE_STATS]
"""Columns of single responses, which several together do not have."""


def pass_at_k(right: np.ndarray, samples: np.ndarray, k: int) -> np.ndarray:
    """Return the chance that at least one of k samples is right, unbiased from c right ones of n: 1 - C(n-c, k) / C(n,
    k).

    Chen et al. 2021 (arXiv 2107.03374), eq. 1.

    Args:
        right, samples: [prompts] c and n.
        k: at most every n.
    """
    drawn = np.arange(k)[:, None]
    return 1 - np.prod(np.maximum(samples - right - drawn, 0) / (samples - drawn), axis=0)


def majority_at_k(right: Sequence[bool], answers: Sequence[str | None], k: int) -> float:
    """Return the chance that the majority answer of k samples is right: the mean over disjoint votes of k samples in
    order.

    All right responses count as one answer, in whatever form; responses without an answer do not vote. A tie between
    m answers is right with a chance of 1/m where the right one is among them.

    Args:
        right, answers: [samples] of one prompt.
        k: samples in a vote; those left over are not used.
    """
    votes = [_vote(right[at : at + k], answers[at : at + k]) for at in range(0, len(right) - k + 1, k)]
    return float(np.mean(votes))


def _vote(right: Sequence[bool], answers: Sequence[str | None]) -> float:
    counts = Counter((ok, None if ok else answer) for ok, answer in zip(right, answers, strict=True) if ok or answer)
    if not counts:
        return 0.0
    most = max(counts.values())
    winners = [answer for answer, count in counts.items() if count == most]
    return ((True, None) in winners) / len(winners)


def sampling_curves(scores: pd.DataFrame, selections: pd.DataFrame, split: str) -> pd.DataFrame:
    """Compute pass@k and, where the task says what answers are, maj@k, for k = 1, 2, 4, ... up to the samples taken.

    Each is a mean over suites that count of the mean over prompts, at each selection's last step, with the interval
    and the contribution that the score would have: of the gain in pass@k, the share of the full run's. The vote of the
    best k single-layer models, which the selection split picks, stands under BEST_LAYERS beside the votes of k samples
    of one model.

    Args:
        scores: the content of scores.parquet.
        selections: what each selection is: the columns selection, kind and layer, of runs or of selections.
        split: whose prompts.

    Returns:
        A row per selection, measure and k, with COLUMNS; selections in the order of `selections`.
    """
    facts = {
        name: known for name, known in selection_facts(selections).items() if known.kind not in ("control", "trial")
    }
    rows = responses_of_split(scores, split)
    rows = rows[rows["selection"].isin(list(facts))]
    suites = sorted(rows["suite"].unique())
    last = last_steps(rows, suites)[0] if suites else {}
    if not last:
        return pd.DataFrame(columns=COLUMNS)
    rows = rows[rows["step"] == rows["selection"].map(last)].sort_values([*RUN_PROMPT, "sample"])
    right = (rows["score"] >= RIGHT).to_numpy()
    answers = [answer if isinstance(answer, str) else None for answer in rows["answer"]]
    prompts = rows.groupby(RUN_PROMPT, as_index=False).agg(n=("score", "size"))
    ends = np.cumsum(prompts["n"])
    prompts["c"] = np.add.reduceat(right, ends - prompts["n"])
    parts = [slice(end - n, end) for end, n in zip(ends, prompts["n"], strict=True)]
    values: dict[str, Callable[[pd.DataFrame, int], np.ndarray]] = {
        PASS: lambda some, k: pass_at_k(some["c"].to_numpy(), some["n"].to_numpy(), k)
    }
    if any(answers):
        values[MAJORITY] = lambda some, k: np.array(
            [majority_at_k(right[parts[i]], answers[parts[i]], k) for i in some.index]
        )
    fewest = prompts.groupby("selection")["n"].min()
    layers = _best_layers(scores, facts, last) if any(answers) else []
    together = rows.assign(right=right, answer=answers)
    facts[BEST_LAYERS], last[BEST_LAYERS] = SelectionFacts("layers", None), max(last.values())
    found = []
    for measure, value in values.items():
        k = 1
        while len(enough := fewest.index[fewest >= k]) or (measure == MAJORITY and k <= len(layers)):
            some = prompts[prompts["selection"].isin(enough)]
            values_at_k = [some.assign(score=value(some, k))]
            if measure == MAJORITY and k <= len(layers):
                values_at_k.append(_vote_of_layers(together, layers[:k], last[BEST_LAYERS]))
            found += _at_k(pd.concat(values_at_k), suites, last, facts, {"measure": measure, "k": k})
            k *= 2
    table = pd.DataFrame(found, columns=COLUMNS)
    order = {name: place for place, name in enumerate(facts)}
    return table.sort_values("selection", key=lambda names: names.map(order), kind="stable", ignore_index=True)


def _best_layers(scores: pd.DataFrame, facts: dict[str, SelectionFacts], last: dict[str, int]) -> list[str]:
    """Single layers at the furthest step, the best on the selection split first."""
    known = [name for name in last if facts[name].kind == "layer"]
    furthest = max((last[name] for name in known), default=0)
    rows = responses_of_split(scores, "selection")
    rows = rows[rows["selection"].isin([name for name in known if last[name] == furthest]) & (rows["step"] == furthest)]
    by_prompt = rows.groupby(["selection", "suite", "prompt"])["score"].mean()
    means = by_prompt.groupby(["selection", "suite"]).mean().groupby("selection").mean()
    return means.sort_values(ascending=False, kind="stable").index.to_list()


def _vote_of_layers(rows: pd.DataFrame, layers: list[str], step: int) -> pd.DataFrame:
    """Return the share of right votes among these models by prompt and seed, each with the sample of the same
    number."""
    index = ["suite", "prompt", "seed", "sample"]
    parts = [rows[rows["selection"] == name].set_index(index)[["right", "answer"]] for name in layers]
    joined = pd.concat(parts, axis=1, join="inner", keys=range(len(layers)))
    right, answers = (joined.xs(column, axis=1, level=1).to_numpy() for column in ("right", "answer"))
    votes = pd.Series(map(_vote, right.tolist(), answers.tolist()), joined.index, dtype=float)
    by_prompt = votes.groupby(["suite", "prompt", "seed"]).mean().rename("score").reset_index()
    return by_prompt.assign(selection=BEST_LAYERS, step=step)


def _at_k(
    values: pd.DataFrame, suites: list[str], last: dict[str, int], facts: dict[str, SelectionFacts], known: dict
) -> list[dict]:
    """Make a row per selection of what k samples reach, by the statistics of the score."""
    there = {name: last[name] for name in values["selection"].unique()}
    scored = ScoredRuns(values.assign(**dict.fromkeys(_UNKNOWN, np.nan)), suites, there, facts, None)
    rows = []
    for name in there:
        row = scored.row(name)
        value = {"value": row["score"], "low": row["score_low"], "high": row["score_high"]}
        named = {"selection": name, "kind": facts[name].kind, "layer": facts[name].layer}
        rows.append(known | named | row | value | scored.gain(name))
    return rows
