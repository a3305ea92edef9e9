"""Layer contributions with their errors: one row per selection, from per-response scores.

    C(k) = (S_k - S_base) / (S_full - S_base)

S is the mean over suites of the mean over prompts, base the untouched model, full the run that trains everything. The
statistics are in `intervals` (paired Fieller interval, pooled seed variance) and `depth_gp` (ranks), the way from rows
to arrays in `score_arrays`. Scores name their selection only; its kind and layer come from the table of the runs.
"""

import numpy as np
import pandas as pd

from layersweep.orchestrator.statistics import depth_gp, intervals
from layersweep.workers.storage.tables import CONTRIBUTION

from .score_arrays import (
    KINDS,
    UNPOOLED,
    UNTRAINED,
    ScoreArrays,
    SelectionFacts,
    last_steps,
    responses_of_split,
    selection_facts,
)
from .seeds import interval_covers, seeds_trained

DRAWS = 4000
"""Draws of the layers' true values from which probabilities of rank are counted."""


def contribution_table(
    scores: pd.DataFrame,
    selections: pd.DataFrame,
    *,
    split: str = "final",
    top: int = 3,
    seed_sd: float | None = None,
) -> pd.DataFrame:
    """Compute one row per selection that has scores, at the last step it was scored at.

    A run counts at a step once it has been scored there on every suite. A layer that is behind the full run (pruned,
    or still training) is set against the full run at the layer's own step where that was scored.

    Args:
        scores: the columns of scores.parquet.
        selections: what each selection is: the columns selection, kind and layer, of runs or of selections.
        split: whose prompts everything is computed on: pick layers on "selection" and report them on "final".
        top: the k of `p_top`.
        seed_sd: a standard deviation of S between RL seeds, in the unit of the scores, known from elsewhere.

    Columns: selection, kind, layer, step, seeds, prompts, score, score_low, score_high, contribution,
    contribution_low, contribution_high, contribution_sd (standard error of C relative to the mean layer: the noise
    that can change ranks), contribution_untruncated, contribution_reason (why C is null), contribution_note (what to
    know about one that is not), imprecise, rank, p_best, p_top, tied_with_best (single layers at the furthest step
    only), response_tokens, truncated_fraction, format_fraction, unjudged_fraction. `attrs["interval_covers"]` is the
    sentence to print.

    Raises:
        ValueError: scores lack a column, repeat a response, or are of a selection that is not in `selections`.
    """
    rows = responses_of_split(scores, split)
    suites = sorted(rows["suite"].unique())
    facts = selection_facts(selections)
    if unknown := set(rows["selection"]) - facts.keys():
        raise ValueError(f"there are scores of selections that no run has: {', '.join(sorted(unknown))}")
    table = _rows(rows, suites, facts, top, seed_sd) if suites else pd.DataFrame(columns=_COLUMNS).astype(_TYPES)
    table.attrs = {
        "interval_covers": interval_covers(seeds_trained(table), seed_sd),
        "split": split,
        "suites": [str(suite) for suite in suites],
        "top": top,
    }
    return table


def _rows(
    rows: pd.DataFrame, suites: list[str], facts: dict[str, SelectionFacts], top: int, seed_sd: float | None
) -> pd.DataFrame:
    last, missing = last_steps(rows, suites)
    sweep = ScoredRuns(rows, suites, last, facts, seed_sd)
    names = sorted([*last, *missing], key=lambda name: _order(name, facts[name]))
    columns = [sweep.row(name) if name in last else {"contribution_reason": missing[name]} for name in names]
    known = [{"selection": name, "kind": facts[name].kind, "layer": facts[name].layer} for name in names]
    table = pd.DataFrame([a | b for a, b in zip(known, columns, strict=True)], columns=_COLUMNS).astype(_TYPES)
    _rank(table, sweep, top)
    return table


_COLUMNS = [
    *("selection", "kind", "layer", "step", "seeds", "prompts", "score", "score_low", "score_high"),
    *("contribution", "contribution_low", "contribution_high", "contribution_sd", "contribution_untruncated"),
    *("contribution_reason", "contribution_note", "imprecise", "rank", "p_best", "p_top", "tied_with_best"),
    *("response_tokens", "truncated_fraction", "format_fraction", "unjudged_fraction"),
]


_TYPES = {name: CONTRIBUTION.types.get(name, "Int64") for name in _COLUMNS}
"""Types as in contribution.parquet; `step` is a whole number."""


def _order(name: str, facts: SelectionFacts) -> tuple[int, int, str]:
    """Base, full, the layers by depth, then the rest by name, trials last."""
    return KINDS.index(facts.kind), facts.layer or 0, name


class ScoredRuns:
    """The runs of a sweep, each selection at its last step, and full at every step that one of them ended at."""

    def __init__(
        self,
        rows: pd.DataFrame,
        suites: list[str],
        last: dict[str, int],
        facts: dict[str, SelectionFacts],
        seed_sd: float | None,
    ):
        self.last, self.facts = last, facts
        scored = ScoreArrays(rows, suites, {*last.items(), *(("full", step) for step in last.values())})
        self.runs, self.seeds, self.response_stats = scored.runs, scored.seeds, scored.response_stats
        self.means = intervals.seed_means(scored.suites)
        self.untruncated_means = intervals.seed_means(scored.untruncated_suites)
        trained = [self.runs[run] for run in last.items() if facts[run[0]].kind not in UNPOOLED]
        self.seed = intervals.seed_variance(scored.suites, trained, seed_sd)
        self.t = intervals.critical(self.seed.dof)
        self.draws: dict[str, intervals.SeedVariance] = {}
        """Variance between the draws of controls that nothing trains, by their type."""
        for control in UNTRAINED:
            if drawn := [self.runs[run] for run in last.items() if facts[run[0]].control == control]:
                self.draws[control] = intervals.seed_variance(scored.suites, drawn)

    def of(self, name: str) -> int | None:
        """Return the index of a selection's run at its last step."""
        return self.runs[name, self.last[name]] if name in self.last else None

    def seed_part(self, name: str, run: int) -> float:
        """Variance that RL seeds add to a run's score."""
        if name == "base":
            return 0.0
        seeds = int(self.seeds[run])
        if (draws := self.draws_of(name)) is not None:
            return draws.of_mean(seeds)
        return self.seed.of_full(run, seeds) if name == "full" else self.seed.of_mean(seeds)

    def draws_of(self, name: str) -> intervals.SeedVariance | None:
        """Variance between a selection's draws, if it is a control that nothing trains."""
        return self.draws.get(self.facts[name].control) if name in self.facts else None

    def t_of(self, name: str, run: int, variance: float, full: float = 0.0) -> float:
        """Half-width of a selection's interval in standard errors.

        Of runs that train it is that of their pooled seed variance. Of a control that nothing trains little of the
        variance is estimated, from few draws: it is the t of as many degrees of freedom as the whole has.

        Args:
            variance: all of it.
            full: what of it the full run's seeds add.
        """
        if (draws := self.draws_of(name)) is None:
            return self.t
        own = draws.with_noise / int(self.seeds[run])
        return intervals.critical(intervals.effective_dof(variance, [(own, draws.dof), (full, self.seed.dof)]))

    def row(self, name: str) -> dict:
        """Return all columns of a selection but those that rank it among the layers."""
        run = self.of(name)
        own = intervals.paired(self.means, [run])
        variance = own.covariance[0, 0] + self.seed_part(name, run)
        half = self.t_of(name, run, variance) * np.sqrt(variance)
        stats = self.response_stats.loc[(name, self.last[name])]
        return {
            "step": self.last[name],
            "seeds": int(self.seeds[run]),
            "prompts": own.prompts,
            "score": own.mean[0],
            "score_low": own.mean[0] - half,
            "score_high": own.mean[0] + half,
            "response_tokens": stats["response_tokens"],
            "truncated_fraction": stats["truncated"],
            "format_fraction": stats["format_ok"],
            "unjudged_fraction": stats["unjudged"],
            **self.contribution(name, own.prompts),
        }

    def gain(self, name: str) -> dict:
        """Return the paired gain over the base with its interval; nothing for the base, and without one."""
        base, run = self.of("base"), self.of(name)
        if base is None or name == "base":
            return {}
        gain = intervals.paired(self.means, [run], base)
        variance = gain.covariance[0, 0] + self.seed_part(name, run)
        half = self.t_of(name, run, variance) * np.sqrt(variance)
        return {"gain": gain.mean[0], "gain_low": gain.mean[0] - half, "gain_high": gain.mean[0] + half}

    def steps(self, name: str) -> tuple[int, int]:
        """Return the step of a selection and that of the full run it is set against: the same where full was scored
        there."""
        step = self.last["full"] if name == "base" else self.last[name]
        return step, step if ("full", step) in self.runs else self.last["full"]

    def contribution(self, name: str, prompts: int) -> dict:
        """C with its interval, or the reason why there is none."""
        if self.facts[name].kind == "trial":
            return {"contribution_reason": "a trial of a learning rate"}
        base, run = self.of("base"), self.of(name)
        if base is None or "full" not in self.last:
            return {"contribution_reason": "no base scores" if base is None else "no full run"}
        step, at = self.steps(name)
        full = self.runs["full", at]
        gain = intervals.paired(self.means, [run, full], base)
        if not np.isfinite(gain.covariance).all():
            return {"contribution_reason": "fewer than two prompts of a suite in common with base and full"}
        var_full = gain.covariance[1, 1] + self.seed_part("full", full)
        if reason := self.null(gain.mean[1], var_full):
            return {"contribution_reason": reason}
        kept = self.untruncated(run, full, base)
        if name in ("base", "full"):  # 0 and 1 by definition, whatever the noise
            value = float(name == "full")
            return {column: value for column in ("contribution", "contribution_low", "contribution_high")} | {
                "contribution_untruncated": kept if np.isnan(kept) else value
            }
        value, covariance = gain.mean[0] / gain.mean[1], gain.covariance[0, 1]
        var_gain = gain.covariance[0, 0] + self.seed_part(name, run)
        of_ratio = var_gain - 2 * value * covariance + value**2 * var_full
        t = self.t_of(name, run, of_ratio, value**2 * self.seed_part("full", full))
        low, high = intervals.fieller(gain.mean[0], gain.mean[1], var_gain, covariance, var_full, t)
        notes = []
        if step < self.last["full"]:
            notes.append(f"an extrapolation: scored at step {step} of {self.last['full']}")
        if at != step:
            notes.append(f"full scored at step {at}, this at step {step}")
        if gain.prompts < prompts:
            notes.append(f"paired on {gain.prompts} of {prompts} prompts")
        return {
            "contribution": value,
            "contribution_low": float(low),
            "contribution_high": float(high),
            "contribution_untruncated": kept,
            "contribution_note": "; ".join(notes) or None,
            "imprecise": self.t**2 * var_full / gain.mean[1] ** 2 > intervals.IMPRECISE_G,
        }

    def null(self, gain: float, variance: float) -> str | None:
        """Return the null rule: why a full run with this gain defines no contribution, or None where it does."""
        limit = intervals.critical(self.seed.dof, intervals.NULL_TAIL)
        error = float(np.sqrt(variance))
        if gain > limit * error:
            return None
        if gain < -limit * error:
            return f"the full run lost {-gain:.4g} (standard error {error:.2g}): there is no gain to attribute"
        z = f"z = {gain / error:.2f}, below {limit:.2f}" if error else "and no noise either"
        return f"the full run gained nothing that its noise could not explain: {gain:.4g} ({z})"

    def untruncated(self, run: int, full: int, base: int) -> float:
        """C on the responses that were not truncated; NaN where these alone show no gain of the full run."""
        gain = intervals.paired(self.untruncated_means, [run, full], base)
        if not np.isfinite(gain.covariance).all():
            return np.nan
        var_full = gain.covariance[1, 1] + self.seed_part("full", full)
        return np.nan if self.null(gain.mean[1], var_full) else gain.mean[0] / gain.mean[1]


def _rank(table: pd.DataFrame, sweep: ScoredRuns, top: int) -> None:
    """Fill in what compares the single layers: rank, p_best, p_top, tied_with_best, contribution_sd.

    Layers further along rank first, as survivors of a search do, and probabilities are shared by those at the
    furthest step alone: an earlier score says little of a later one.
    """
    layers = table.index[(table["kind"] == "layer") & table["score"].notna()]
    if not len(layers):
        return
    base = sweep.of("base")
    runs = [sweep.of(name) for name in table.loc[layers, "selection"]]
    seeds = np.array([sweep.seed_part("layer", run) for run in runs])
    everything = intervals.paired(sweep.means, runs, base)
    step = table.loc[layers, "step"].to_numpy(int)
    value = np.array([intervals.paired(sweep.means, [run], base).mean[0] for run in runs])
    table.loc[layers[np.lexsort([-value, -step])], "rank"] = np.arange(1, len(layers) + 1)

    centre = np.eye(len(runs)) - 1 / len(runs)
    spread = np.sqrt(np.diag(centre @ (everything.covariance + np.diag(seeds)) @ centre))
    for row, sd, run in zip(layers, spread, runs, strict=True):
        if pd.notna(table.at[row, "contribution"]):
            full = sweep.runs["full", sweep.steps(table.at[row, "selection"])[1]]
            table.loc[row, "contribution_sd"] = sd / intervals.paired(sweep.means, [run, full], base).mean[1]

    ahead = np.flatnonzero(step == step.max())
    estimate = intervals.paired(sweep.means, [runs[i] for i in ahead], base)
    noise = estimate.covariance + np.diag(seeds[ahead])
    if not np.isfinite(noise).all():
        return
    index = layers[ahead]
    known = depth_gp.posterior(table.loc[index, "layer"].astype(int), estimate.mean, noise)
    draws = known.draws(DRAWS, np.random.default_rng(0))
    table.loc[index, "p_best"], table.loc[index, "p_top"] = depth_gp.top_probabilities(draws, top)
    best = int(estimate.mean.argmax())
    apart = estimate.mean[best] - estimate.mean
    error = np.sqrt(np.maximum(noise[best, best] - 2 * noise[best] + np.diag(noise), 0.0))
    table.loc[index, "tied_with_best"] = (apart < sweep.t * error) | (apart == 0)
