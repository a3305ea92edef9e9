"""Paired gains, their errors, and the interval of their ratio, from per-prompt scores held in arrays.

Everywhere below a suite is a float array [runs, seeds, prompts]: the mean score of one run's samples of one prompt,
NaN where a run was not scored. A sweep holds one such array per suite, with the same runs and seeds; the score of a
run is the mean over suites of its mean over prompts. Scores keep the unit they came in (usually fractions of 1).

The interval was chosen by simulation (tests/simulations/coverage.py): bootstraps over prompts, over prompts and
samples, and a t interval on per-seed ratios all covered too little or too much.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

Z95 = float(stats.norm.ppf(0.975))
"""Half-width in standard errors of a 95 % interval whose variance is known."""

NULL_TAIL = 0.005
"""The full run's gain must exceed the quantile that noise alone exceeds this often, or no ratio is given."""

IMPRECISE_G = (Z95 / 4) ** 2
"""Fieller's g = t^2 var(d) / d^2 above which a ratio is called imprecise: a gain below 4 standard errors."""


@dataclass(frozen=True)
class MeanAndCovariance:
    """Means of several runs (or of their gains over the base), and the covariance of their evaluation noise."""

    mean: np.ndarray
    """[rows]"""
    covariance: np.ndarray
    """[rows, rows]; NaN where a suite has a single prompt, from which no error can be estimated."""
    prompts: int
    """Prompts every row was scored on, over all suites."""


@dataclass(frozen=True)
class SeedVariance:
    """Variance of a score when training is repeated with another seed, pooled over the runs of a sweep."""

    pooled: float
    """Variance over seeds of one run's score, evaluation noise removed; 0 where it cannot be told."""
    dof: float
    """Degrees of freedom behind it; infinite when it is given by the user or there is one seed only."""
    own: np.ndarray
    """[runs]: the same from one run's seeds alone, 0 for a run with one seed."""
    with_noise: float = 0.0
    """Variance that the degrees of freedom are those of: the pooled variance with the evaluation noise in it."""

    def of_mean(self, seeds: int) -> float:
        """Variance that seeds add to the mean over `seeds` seeds of a layer's run."""
        return self.pooled / seeds

    def of_full(self, run: int, seeds: int) -> float:
        """Return the same for the full run, which may vary more than the layers: two parts pooled, the rest its own."""
        return (2 * self.pooled + (seeds - 1) * self.own[run]) / (seeds + 1) / seeds


def seeds_of(suites: Sequence[np.ndarray]) -> np.ndarray:
    """[runs, seeds] bool: scored at that seed on every suite."""
    return np.all([~np.isnan(suite).all(axis=2) for suite in suites], axis=0)


def seed_means(suites: Sequence[np.ndarray]) -> list[np.ndarray]:
    """[runs, prompts] per suite: each run's mean over its own seeds, NaN where one of those lacks the prompt."""
    own = seeds_of(suites)
    count = np.maximum(own.sum(axis=1), 1)[:, None]
    means = [np.where(own[:, :, None], suite, 0.0).sum(axis=1) / count for suite in suites]
    return [np.where(own.any(axis=1)[:, None], mean, np.nan) for mean in means]


def paired(means: Sequence[np.ndarray], rows: Sequence[int], base: int | None = None) -> MeanAndCovariance:
    """Mean of `rows`, less the base's where one is named, on the prompts that all of them were scored on.

    The covariance is that of the per-prompt values over prompts, divided by their number: it holds what the choice of
    prompts, the sampling of responses and the interaction of prompt and seed contribute, and the noise that rows
    share. Several suites: the sum of Cov_q / (Q^2 n_q).
    """
    rows = list(rows)
    mean, covariance, prompts = np.zeros(len(rows)), np.zeros((len(rows), len(rows))), 0
    for suite in means:
        values = suite[rows] if base is None else suite[rows] - suite[base]
        values = values[:, ~np.isnan(values).any(axis=0)]
        n = values.shape[1]
        if n == 0:
            return MeanAndCovariance(np.full(len(rows), np.nan), np.full((len(rows), len(rows)), np.nan), 0)
        mean += values.mean(axis=1) / len(means)
        centred = values - values.mean(axis=1, keepdims=True)
        spread = centred @ centred.T / (n - 1) if n > 1 else np.full_like(covariance, np.nan)
        covariance += spread / (len(means) ** 2 * n)
        prompts += n
    return MeanAndCovariance(mean, covariance, prompts)


def seed_variance(suites: Sequence[np.ndarray], runs: Sequence[int], seed_sd: float | None = None) -> SeedVariance:
    """Variance between seeds of every run that has at least two, and pooled over those of them in `runs`.

    A run's scores vary between seeds by more than the seed: each also carries the noise of its evaluation. That part,
    e = sum of squares of the scores centred over prompts and over seeds / ((n-1)(S-1)n), is subtracted:
    sigma^2 = max(0, mean of [Var_s(S_ks) - e_k]), weighted by S_k - 1 where runs differ in their seeds.
    A `seed_sd` the user knows from elsewhere replaces the pooled estimate.
    """
    own = np.zeros(suites[0].shape[0])
    scored = seeds_of(suites)
    excess, between, dof = 0.0, 0.0, 0
    for run in range(len(own)):
        seeds = int(scored[run].sum())
        if seeds < 2:
            continue
        scores, noise = np.zeros(seeds), 0.0
        for suite in suites:
            values = suite[run, scored[run]]
            values = values[:, ~np.isnan(values).any(axis=0)]
            n = values.shape[1]
            if n < 2:
                noise = np.nan
                break
            means = values.mean(axis=1)
            residual = values - means[:, None] - values.mean(axis=0) + values.mean()
            scores += means / len(suites)
            noise += (residual**2).sum() / ((n - 1) * (seeds - 1) * n) / len(suites) ** 2
        if np.isnan(noise):
            continue
        difference = scores.var(ddof=1) - noise
        own[run] = max(0.0, difference)
        if run not in runs:
            continue
        excess += (seeds - 1) * difference
        between += (seeds - 1) * scores.var(ddof=1)
        dof += seeds - 1
    if seed_sd is not None:
        return SeedVariance(float(seed_sd) ** 2, np.inf, own)
    if not dof:
        return SeedVariance(0.0, np.inf, own)
    return SeedVariance(max(0.0, excess / dof), float(dof), own, between / dof)


def effective_dof(variance: float, estimated: Sequence[tuple[float, float]]) -> float:
    """Return degrees of freedom of a variance, parts of which are estimates and the rest known (Satterthwaite 1946).

    They are V^2 / sum(v^2 / n) over the parts v with n degrees of freedom, and no fewer than the least of these.

    Args:
        estimated: value and degrees of freedom of each such part.
    """
    parts = [(value, dof) for value, dof in estimated if value and np.isfinite(dof)]
    if not parts:
        return np.inf
    return max(variance**2 / sum(value**2 / dof for value, dof in parts), min(dof for _, dof in parts))


def critical(dof: float, tail: float = 0.025) -> float:
    """Student's t that is exceeded with probability `tail`; the normal quantile for infinite `dof`."""
    return float(stats.t.ppf(1 - tail, dof))


def fieller(gain, full, var_gain, covariance, var_full, t):
    """Return both ends of the interval of gain / full (Fieller 1954); scalars or arrays that broadcast.

    They are the roots C of (gain - C full)^2 = t^2 (var_gain - 2 C covariance + C^2 var_full). The interval is an
    interval only where full^2 > t^2 var_full; elsewhere it is unbounded and (-inf, inf) is returned.
    """
    a = np.asarray(full**2 - t**2 * var_full, dtype=float)
    b = gain * full - t**2 * covariance
    c = gain**2 - t**2 * var_gain
    bounded = a > 0
    safe = np.where(bounded, a, 1.0)
    root = np.sqrt(np.maximum(b**2 - safe * c, 0.0))
    return np.where(bounded, (b - root) / safe, -np.inf), np.where(bounded, (b + root) / safe, np.inf)
