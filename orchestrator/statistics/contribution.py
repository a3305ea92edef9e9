"""From per-response scores to one row per selection: its layer contribution, with the error that goes with it.

    C(k) = (S_k - S_base) / (S_full - S_base)

S is the mean over suites of the mean over prompts, base the untouched model, full the run that trains everything. The
statistics are in `intervals` (paired Fieller interval, pooled seed variance) and `depth_gp` (ranks), the way from rows
to arrays in `scores`.
"""

import re

import numpy as np
import pandas as pd

from layersweep.orchestrator.statistics import depth_gp, intervals

from .score_arrays import ScoreArrays, counted, last_steps

DRAWS = 4000
"""Draws of the layers' true values from which probabilities of rank are counted."""


def kind_and_layer(selection: str) -> tuple[str, int | None]:
    """`layer-07` -> ("layer", 7); `base` and `full` are kinds of their own, trials of a learning rate such as
    `full@lr-1e-06` too; all else ("layers", None)."""
    if match := re.fullmatch(r"layer-(\d+)", selection):
        return "layer", int(match[1])
    if "@lr-" in selection:
        return "trial", None
    return (selection, None) if selection in ("base", "full") else ("layers", None)


def interval_covers(seeds: int, seed_sd: float | None = None) -> str:
    """What the intervals of a table speak about, in a sentence to print under it."""
    if seeds > 1:
        return f"95 % intervals cover the choice of prompts, the sampling of responses and RL seeds ({seeds} trained)."
    if seed_sd is not None:
        return (
            "95 % intervals cover the choice of prompts, the sampling of responses, and RL seeds by the given standard "
            f"deviation of {seed_sd:g}; one seed was trained."
        )
    return "95 % intervals cover the evaluation noise of these models only: another RL seed may differ."


def contribution_table(
    scores: pd.DataFrame, *, split: str = "final", top: int = 3, seed_sd: float | None = None
) -> pd.DataFrame:
    """One row per selection of `scores` (the columns of scores.parquet), at the last step it was scored at.

    Everything is computed on the prompts of one `split`: pick layers on "selection" and report them on "final".
    A run counts at a step once it has been scored there on every suite. A layer that is behind the full run (pruned,
    or still training) is set against the full run at the layer's own step where that was scored. `top` is the k of
    `p_top`; `seed_sd` is a standard deviation of S between RL seeds, in the unit of the scores, known from elsewhere.

    Columns: selection, kind, layer, step, seeds, prompts, score, score_low, score_high, contribution,
    contribution_low, contribution_high, contribution_sd (standard error of C relative to the mean layer: the noise
    that can change ranks), contribution_untruncated, contribution_reason (why C is null), contribution_note (what to
    know about one that is not), imprecise, rank, p_best, p_top, tied_with_best (single layers at the furthest step
    only), response_tokens, truncated_fraction, format_fraction. `attrs["interval_covers"]` is the sentence to print.
    """
    rows = counted(scores, split)
    suites = sorted(rows["suite"].unique())
    table = _rows(rows, suites, top, seed_sd) if suites else pd.DataFrame(columns=_COLUMNS).astype(_TYPES)
    trained = table.loc[table["kind"] != "base", "seeds"].dropna()
    table.attrs = {
        "interval_covers": interval_covers(int(trained.max()) if len(trained) else 1, seed_sd),
        "split": split,
        "suites": [str(suite) for suite in suites],
        "top": top,
    }
    return table


def _rows(rows: pd.DataFrame, suites: list[str], top: int, seed_sd: float | None) -> pd.DataFrame:
    last, missing = last_steps(rows, suites)
    sweep = ScoredRuns(rows, suites, last, seed_sd)
    names = sorted([*last, *missing], key=_order)
    table = pd.DataFrame(
        [sweep.row(name) if name in last else _unscored(name, missing[name]) for name in names], columns=_COLUMNS
    ).astype(_TYPES)
    _rank(table, sweep, top)
    return table


_FLOATS = (
    *("score", "score_low", "score_high", "contribution", "contribution_low", "contribution_high", "contribution_sd"),
    *("contribution_untruncated", "p_best", "p_top", "response_tokens", "truncated_fraction", "format_fraction"),
)
_TYPES = (
    {name: "float64" for name in _FLOATS}
    | {name: "Int64" for name in ("layer", "step", "seeds", "prompts", "rank")}
    | {name: "boolean" for name in ("imprecise", "tied_with_best")}
    | {name: "string" for name in ("selection", "kind", "contribution_reason", "contribution_note")}
)
_COLUMNS = [
    *("selection", "kind", "layer", "step", "seeds", "prompts", "score", "score_low", "score_high"),
    *("contribution", "contribution_low", "contribution_high", "contribution_sd", "contribution_untruncated"),
    *("contribution_reason", "contribution_note", "imprecise", "rank", "p_best", "p_top", "tied_with_best"),
    *("response_tokens", "truncated_fraction", "format_fraction"),
]


def _order(name: str) -> tuple:
    """Base, full, the layers by depth, then the rest by name, trials last."""
    kind, layer = kind_and_layer(name)
    return ("base", "full", "layer", "layers", "trial").index(kind), layer or 0, name


def _unscored(name: str, reason: str) -> dict:
    kind, layer = kind_and_layer(name)
    return {"selection": name, "kind": kind, "layer": layer, "contribution_reason": reason}


class ScoredRuns:
    """The runs of a sweep, each selection at its last step, and full at every step that one of them ended at."""

    def __init__(self, rows: pd.DataFrame, suites: list[str], last: dict[str, int], seed_sd: float | None):
        self.last = last
        scored = ScoreArrays(rows, suites, {*last.items(), *(("full", step) for step in last.values())})
        self.runs, self.seeds, self.habits = scored.runs, scored.seeds, scored.habits
        self.means = intervals.seed_means(scored.suites)
        self.kept_means = intervals.seed_means(scored.kept_suites)
        trained = [self.runs[run] for run in last.items() if run[0] != "base"]
        self.seed = intervals.seed_variance(scored.suites, trained, seed_sd)
        self.t = intervals.critical(self.seed.dof)

    def of(self, name: str) -> int | None:
        """The index of a selection's run at its last step."""
        return self.runs[name, self.last[name]] if name in self.last else None

    def seed_part(self, name: str, run: int) -> float:
        """Variance that RL seeds add to a run's score."""
        if name == "base":
            return 0.0
        seeds = int(self.seeds[run])
        return self.seed.of_full(run, seeds) if name == "full" else self.seed.of_mean(seeds)

    def row(self, name: str) -> dict:
        """All columns of a selection but those that rank it among the layers."""
        run = self.of(name)
        kind, layer = kind_and_layer(name)
        own = intervals.paired(self.means, [run])
        half = self.t * np.sqrt(own.covariance[0, 0] + self.seed_part(name, run))
        habits = self.habits.loc[(name, self.last[name])]
        return {
            "selection": name,
            "kind": kind,
            "layer": layer,
            "step": self.last[name],
            "seeds": int(self.seeds[run]),
            "prompts": own.prompts,
            "score": own.mean[0],
            "score_low": own.mean[0] - half,
            "score_high": own.mean[0] + half,
            "response_tokens": habits["response_tokens"],
            "truncated_fraction": habits["truncated"],
            "format_fraction": habits["format_ok"],
            **self.contribution(name, own.prompts),
        }

    def steps(self, name: str) -> tuple[int, int]:
        """The step of a selection and that of the full run it is set against: the same where full was scored there."""
        step = self.last["full"] if name == "base" else self.last[name]
        return step, step if ("full", step) in self.runs else self.last["full"]

    def contribution(self, name: str, prompts: int) -> dict:
        """C with its interval, or the reason why there is none."""
        if kind_and_layer(name)[0] == "trial":
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
        low, high = intervals.fieller(
            gain.mean[0],
            gain.mean[1],
            gain.covariance[0, 0] + self.seed_part(name, run),
            gain.covariance[0, 1],
            var_full,
            self.t,
        )
        notes = []
        if step < self.last["full"]:
            notes.append(f"an extrapolation: scored at step {step} of {self.last['full']}")
        if at != step:
            notes.append(f"full scored at step {at}, this at step {step}")
        if gain.prompts < prompts:
            notes.append(f"paired on {gain.prompts} of {prompts} prompts")
        return {
            "contribution": gain.mean[0] / gain.mean[1],
            "contribution_low": float(low),
            "contribution_high": float(high),
            "contribution_untruncated": kept,
            "contribution_note": "; ".join(notes) or None,
            "imprecise": self.t**2 * var_full / gain.mean[1] ** 2 > intervals.IMPRECISE_G,
        }

    def null(self, gain: float, variance: float) -> str | None:
        """The null rule: why a full run with this gain defines no contribution, or None where it does."""
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
        gain = intervals.paired(self.kept_means, [run, full], base)
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
    everyone = intervals.paired(sweep.means, runs, base)
    step = table.loc[layers, "step"].to_numpy(int)
    value = np.array([intervals.paired(sweep.means, [run], base).mean[0] for run in runs])
    table.loc[layers[np.lexsort([-value, -step])], "rank"] = np.arange(1, len(layers) + 1)

    centre = np.eye(len(runs)) - 1 / len(runs)
    spread = np.sqrt(np.diag(centre @ (everyone.covariance + np.diag(seeds)) @ centre))
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
