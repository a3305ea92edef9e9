"""How many seeds an interval of a wanted width takes, or telling two layers apart; from the seeds that there are."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from . import intervals
from .contribution import ScoredRuns
from .score_arrays import last_steps, responses_of_split, selection_facts

HALF_WIDTHS = (0.2, 0.1, 0.05)
"""Half-widths of C's interval that seeds are counted for."""
MOST = 200
"""More seeds than this are as good as none that suffice."""


@dataclass(frozen=True)
class SeedsNeeded:
    """Seeds in all, those that are there among them; None where even MOST are too few."""

    seeds: int
    """Trained so far."""
    half_width: float
    """Half-width of the widest interval of a layer's C, as it is now."""
    floor: float
    """Part of it that evaluation alone leaves, however many seeds are trained."""
    by_half_width: dict[float, int | None]
    """Seeds for every layer's interval to be at most this wide to either side."""
    best: str
    runner_up: str | None
    """The two layers with the highest scores."""
    to_tell_apart: int | None
    """Seeds for the difference of these two, if it stays as it is, to exceed what noise explains."""


def seeds_needed(
    scores: pd.DataFrame, selections: pd.DataFrame, seed_sd: float | None = None, split: str = "selection"
) -> SeedsNeeded | str:
    """Project the intervals of contribution.parquet to more seeds; a sentence why where that cannot be done.

    With S seeds in all the seeds' part of each variance is sigma^2 / S, and t has (runs)(S - 1) degrees of freedom;
    sigma is the pooled estimate of the seeds there are, or `seed_sd`. The evaluation's part is taken to stay, although
    what it holds of sampling falls with more seeds too: the numbers are rather too high than too low.

    Args:
        scores: the content of scores.parquet.
        selections: what each selection is: the columns selection, kind and layer, of runs or of selections.
        seed_sd: as for `contribution_table`.
        split: whose prompts.
    """
    facts = {name: known for name, known in selection_facts(selections).items() if known.kind != "trial"}
    rows = responses_of_split(scores, split)
    rows = rows[rows["selection"].isin(list(facts))]
    suites = sorted(rows["suite"].unique())
    last = last_steps(rows, suites)[0] if suites else {}
    layers = [name for name in last if facts[name].kind == "layer" and last[name] == last.get("full")]
    if "base" not in last or not layers:
        return "Seeds needed: base, full and a layer must be scored first."
    sweep = ScoredRuns(rows, suites, last, facts, seed_sd)
    seeds = int(min(sweep.seeds[sweep.of(name)] for name in (*layers, "full")))
    if seed_sd is None and not np.isfinite(sweep.seed.dof):
        return "Seeds needed: one seed says nothing of how runs differ; train a second, or give evaluation.seed_sd."
    base, full = sweep.of("base"), sweep.of("full")
    gains = [intervals.paired(sweep.means, [sweep.of(name), full], base) for name in layers]
    if gains[0].mean[1] <= 0 or not all(np.isfinite(gain.covariance).all() for gain in gains):
        return "Seeds needed: the full run gained nothing to measure layers by."

    def half_width(count: float) -> float:
        t, of_mean, of_full = _noise(sweep, seeds, full, count)
        ends = [
            intervals.fieller(
                gain.mean[0], gain.mean[1], gain.covariance[0, 0] + of_mean, gain.covariance[0, 1],
                gain.covariance[1, 1] + of_full, t,
            )
            for gain in gains
        ]  # fmt: skip
        return max(float(high - low) / 2 for low, high in ends)

    ranked = sorted(layers, key=lambda name: -gains[layers.index(name)].mean[0])
    first, second = ranked[0], ranked[1] if ranked[1:] else None
    return SeedsNeeded(
        seeds,
        half_width(seeds),
        half_width(np.inf),
        {wanted: _fewest(lambda count, w=wanted: half_width(count) <= w, sweep) for wanted in HALF_WIDTHS},
        first,
        second,
        None if second is None else _fewest(_told_apart(sweep, seeds, first, second), sweep),
    )


def _noise(sweep: ScoredRuns, seeds: int, full: int, count: float) -> tuple[float, float, float]:
    """Student's t, and the variances that `count` seeds add to the mean score of a layer and of full."""
    seed = sweep.seed
    dof = seed.dof / (seeds - 1) * (count - 1) if np.isfinite(seed.dof) else np.inf
    own = (2 * seed.pooled + (count - 1) * seed.own[full]) / (count + 1) / count if np.isfinite(count) else 0.0
    return intervals.critical(dof), seed.pooled / count, own


def _told_apart(sweep: ScoredRuns, seeds: int, first: str, second: str) -> Callable[[int], bool]:
    runs = [sweep.of(first), sweep.of(second)]
    gain = intervals.paired(sweep.means, runs, sweep.of("base"))
    evaluation = gain.covariance[0, 0] - 2 * gain.covariance[0, 1] + gain.covariance[1, 1]

    def enough(count: int) -> bool:
        t, of_mean, _ = _noise(sweep, seeds, sweep.of("full"), count)
        return bool(gain.mean[0] - gain.mean[1] > t * np.sqrt(evaluation + 2 * of_mean))

    return enough


def _fewest(enough: Callable[[int], bool], sweep: ScoredRuns) -> int | None:
    start = 2 if np.isfinite(sweep.seed.dof) else 1
    return next((count for count in range(start, MOST + 1) if enough(count)), None)


def seeds_text(found: SeedsNeeded | str) -> str:
    """Return the projection in sentences."""
    if isinstance(found, str):
        return found
    said = [
        f"{_seeds(found.seeds)} give every layer's C to ±{found.half_width:.2g} or better; for an interval of "
        + ", ".join(f"±{wanted:g} {_more(count, found.seeds)}" for wanted, count in found.by_half_width.items())
        + "."
    ]
    if None in found.by_half_width.values():
        said.append(f"Evaluation alone leaves ±{found.floor:.2g} however many seeds are trained: score more prompts.")
    if found.runner_up is not None:
        said.append(
            f"To tell {found.best} from {found.runner_up} (at the difference seen) "
            f"{_more(found.to_tell_apart, found.seeds)}."
        )
    return " ".join(said)


def _seeds(count: int) -> str:
    return "1 seed" if count == 1 else f"{count} seeds"


def _more(count: int | None, now: int) -> str:
    if count is None:
        return f"more than {MOST} seeds"
    return "these are enough" if count <= now else f"{_seeds(count)} ({count - now} more)"
