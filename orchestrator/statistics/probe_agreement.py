"""Do measures of the untrained base predict which layers contribute? Rank correlations with C, and what they find.

The correlation is that of a population which the layers are drawn from, so its interval holds what few layers leave
open, beside the noise of C: with six of them it is wide however exact each C is. A measure that is held against the C
of another model or task is another question (`profile_agreement` has that of two sweeps). The gain of a short training
is scored on the prompts that C is: what is particular about these prompts is in both.
"""

from math import comb

import numpy as np
import pandas as pd
from scipy import stats

from .intervals import Z95
from .profile_agreement import FEWEST_LAYERS, Correlation

MEASURES = {
    "gradient_norm": "gradient norm",
    "gradient_agreement": "gradient agreement",
    "first_order_gain": "first-order gain",
    "fisher_trace": "Fisher trace",
    "skip_loss": "loss when skipped",
    "screened_gain": "gain of a short training",
}
"""Columns of probe.parquet, by what they are called."""
LOOKED_AT = 3
"""Layers that a search trains: those with the largest values of a measure."""
RHO = np.tanh(np.linspace(-3.8, 3.8, 61))
PRIOR = 0.5 * np.log(1 - RHO**2)
"""Log weight of each rho: a prior flat in its arc sine."""
AMPLITUDES = np.geomspace(0.1, 5, 16)
"""Standard deviation of the true C over layers, in units of that observed; a priori each is as likely."""
DRAWS = 100
"""Draws of the values behind a measure's ranks."""


def probe_agreement(probe: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """Hold every measure against C, of whole layers and of each part by itself.

    Args:
        probe: the content of probe.parquet; a layer's measure is its mean over seeds.
        table: the content of contribution.parquet.

    Returns:
        A row per measure and kind of selection of which at least FEWEST_LAYERS runs have completed: measure, of
        (layers, a part such as mlp, sets of layers), layers (their number), spearman (as observed), rho, rho_low,
        rho_high (`predictor_spearman`), found (the highest C among the LOOKED_AT that the measure ranks first),
        found_by_chance (expected of as many at random), best (the highest C).
    """
    trained = table[(table["status"] == "completed") & table["contribution"].notna()]
    trained = trained.set_index("selection")
    width = (trained["contribution_high"] - trained["contribution_low"]) / (2 * Z95)
    noise = trained["contribution_sd"].fillna(width)
    rows = []
    for kind, own in probe.groupby(_kinds(probe), sort=False):
        means = own.groupby("selection", sort=False)[list(MEASURES)].mean()
        for column in MEASURES:
            values = means[column].dropna()
            values = values[values.index.isin(trained.index)]
            if len(values) >= FEWEST_LAYERS:
                found = _agreement(
                    values.to_numpy(float), trained.loc[values.index, "contribution"].to_numpy(float),
                    noise[values.index].to_numpy(float, na_value=np.nan),
                )  # fmt: skip
                rows.append({"measure": column, "of": kind} | found)
    return pd.DataFrame(rows)


def _kinds(probe: pd.DataFrame) -> pd.Series:
    """Name what the selections of a probe have in common with others."""
    names = []
    for row in probe[["layer", "modules", "lora_rank"]].itertuples():
        words = [] if pd.notna(row.layer) else ["sets of layers"]
        words += [row.modules] if pd.notna(row.modules) else []
        words += [f"lora-{row.lora_rank}"] if pd.notna(row.lora_rank) else []
        names.append(" ".join(words) or "layers")
    return pd.Series(names, index=probe.index, dtype=object)


def _agreement(values: np.ndarray, contribution: np.ndarray, noise: np.ndarray) -> dict[str, float]:
    """Compare one measure [layers] with C."""
    count, best = len(values), np.sort(contribution)
    varies = np.ptp(values) > 0 and np.ptp(contribution) > 0
    rho = predictor_spearman(values, contribution, noise)
    first = np.argsort(-values, kind="stable")[:LOOKED_AT]
    looked_at = len(first)
    # P(the best of a random set is the i-th from below) = C(i - 1, size - 1) / C(count, size)
    chance = np.array([comb(i, looked_at - 1) for i in range(count)]) / comb(count, looked_at)
    return {
        "layers": count,
        "spearman": float(stats.spearmanr(values, contribution).statistic) if varies else np.nan,
        "rho": rho.median,
        "rho_low": rho.low,
        "rho_high": rho.high,
        "found": float(contribution[first].max()),
        "found_by_chance": float(chance @ best),
        "best": float(best[-1]),
    }


def predictor_spearman(values: np.ndarray, contribution: np.ndarray, noise: np.ndarray) -> Correlation:
    """Return Spearman's rho between a measure and the true C in the population of layers, median and 95 % interval.

    Some monotone functions of the true C and of the measure are bivariate normal with Pearson's correlation rho. That
    of C is the one that makes the observed normal, and takes the noise along: on a plateau it is large. Of the measure
    the ranks alone count (rank likelihood; Hoff 2007, Ann. Appl. Stat. 1:265), its latent values being drawn in their
    order. A grid over rho and the spread of C, its mean integrated out, gives the posterior of rho, and Spearman's is
    6 / pi * asin(rho / 2) (Pearson 1907). tests/simulations/probes.py has its coverage.

    Args:
        values: [layers].
        contribution, noise: [layers] C, and the standard deviation of its error.
    """
    if not np.isfinite(noise).all() or np.ptp(values) == 0 or np.ptp(contribution) == 0:
        return Correlation(np.nan, np.nan, np.nan)
    contribution, noise = _normal_scores(contribution, noise)
    order = stats.rankdata(values, method="ordinal") - 1
    latent = np.sort(np.random.default_rng(0).standard_normal((DRAWS, len(values))), axis=1)[:, order]
    centred = contribution - contribution.mean()
    amplitude = AMPLITUDES * centred.std()
    # The residuals c - rho amplitude latent, weighted by their variances, about their weighted mean.
    variance = np.multiply.outer(1 - RHO**2, amplitude**2)[..., None] + noise**2  # [rho, amplitudes, layers]
    weight = 1 / variance
    total = weight.sum(axis=-1, keepdims=True)
    slope = np.multiply.outer(RHO, amplitude)[..., None]
    squares = (weight @ centred**2)[..., None] - 2 * slope * ((weight * centred) @ latent.T)
    squares += slope**2 * (weight @ (latent**2).T)
    squares -= ((weight @ centred)[..., None] - slope * (weight @ latent.T)) ** 2 / total
    log_likelihood = -0.5 * (np.log(variance).sum(axis=-1, keepdims=True) + np.log(total) + squares)
    log_likelihood += PRIOR[:, None, None]
    posterior = np.exp(log_likelihood - log_likelihood.max()).sum(axis=(1, 2))
    below = np.cumsum(posterior) - posterior / 2
    low, median, high = np.interp([0.025, 0.5, 0.975], below / posterior.sum(), 6 / np.pi * np.arcsin(RHO / 2))
    return Correlation(float(median), float(low), float(high))


def _normal_scores(observed: np.ndarray, noise: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the normal scores of some numbers, and the noise in them: linear between the numbers and beyond them."""
    scores = stats.norm.ppf((stats.rankdata(observed) - 0.5) / len(observed))
    at, first = np.unique(observed, return_index=True)
    ends = scores[first[[0, -1]]]
    slope = (ends[1] - ends[0]) / (at[-1] - at[0])

    def score(x: np.ndarray) -> np.ndarray:
        return np.interp(x, at, scores[first]) + slope * (x - x.clip(at[0], at[-1]))

    return scores, (score(observed + noise) - score(observed - noise)) / 2
