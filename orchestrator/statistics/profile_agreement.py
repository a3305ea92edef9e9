"""Do the layer rankings of two sweeps agree? Observed and noise-corrected Spearman, overlap, concentration.

Noise pulls an observed rank correlation towards zero, and a bootstrap of the observed scores pulls a second time. So
both profiles are modelled as what they are, true values plus noise of known size, and the correlation is that of the
true values (the method was chosen by simulation, tests/simulations/agreement.py).

Noise is taken to be independent between the two sweeps. Sweeps scored on the same prompts share some, which makes them
look a little more alike than they are.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
from scipy import stats

from .layer_profile import Profile

RHO = np.tanh(np.linspace(-3.8, 3.8, 53))
PRIOR = 0.5 * np.log(1 - RHO**2)
"""Log weight of each rho: a prior flat in its arc sine. One flat in rho itself gives so little to its ends that, of
noisy profiles with a true rho of .98, the interval misses 15 to 30 %."""
AMPLITUDES = np.linspace(0.05, 1.6, 12)
"""Standard deviation of the true values over layers, in units of that observed."""
DRAWS = 1000
FEWEST_LAYERS = 4
"""Layers below which no rank correlation is given."""


@dataclass(frozen=True)
class Correlation:
    """Spearman's rho of the true profiles: median and 95 % interval; NaN where the noise is not known."""

    median: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """ "agree", "disagree" (a negative rho), or "cannot tell": the interval holds 0 or is wider than 1."""
        if not np.isfinite(self.median):
            return "noise unknown"
        if self.low <= 0 <= self.high or self.high - self.low > 1:
            return "cannot tell"
        return "agree" if self.low > 0 else "disagree"


def align(a: Profile, b: Profile) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return depths, both contributions and both noises where the two can be compared.

    Models of one depth are paired layer by layer. Otherwise the profile with more layers is interpolated linearly, in
    relative depth, to those of the other that lie within its range.
    """
    if a.model_layers == b.model_layers:
        _, of_a, of_b = np.intersect1d(a.layers, b.layers, return_indices=True)
        return a.depth[of_a], a.contribution[of_a], b.contribution[of_b], a.noise[of_a], b.noise[of_b]
    if len(a.layers) > len(b.layers):
        depth, of_b, of_a, noise_b, noise_a = align(b, a)
        return depth, of_a, of_b, noise_a, noise_b
    within = (a.depth >= b.depth[0] - 1e-9) & (a.depth <= b.depth[-1] + 1e-9)
    right = np.clip(np.searchsorted(b.depth, a.depth[within]), 1, len(b.depth) - 1)
    gap = b.depth[right] - b.depth[right - 1]
    share = np.clip((a.depth[within] - b.depth[right - 1]) / gap, 0.0, 1.0)
    between = (1 - share) * b.contribution[right - 1] + share * b.contribution[right]
    noise = np.hypot((1 - share) * b.noise[right - 1], share * b.noise[right])
    return a.depth[within], a.contribution[within], between, a.noise[within], noise


def corrected_spearman(
    x: np.ndarray, y: np.ndarray, noise_x: np.ndarray, noise_y: np.ndarray, rng: np.random.Generator
) -> Correlation:
    """Spearman's rho of the true values behind x and y [layers], given the standard deviation of each one's noise.

    The centred profiles are bivariate normal with correlation rho and two amplitudes, integrated over a grid. From its
    posterior come draws of the true values, and rho is that of the draws: of these layers, not of a population.
    """
    if not (np.isfinite(noise_x).all() and np.isfinite(noise_y).all()) or len(x) < FEWEST_LAYERS:
        return Correlation(np.nan, np.nan, np.nan)
    x, y = x - x.mean(), y - y.mean()
    if not (x.any() and y.any()):
        return Correlation(np.nan, np.nan, np.nan)
    amplitude_x, amplitude_y = AMPLITUDES * x.std(), AMPLITUDES * y.std()
    total_x = (amplitude_x**2)[:, None] + noise_x**2  # variance of what is observed [amplitudes, layers]
    total_y = (amplitude_y**2)[:, None] + noise_y**2
    product = total_x[:, None] * total_y
    squares = x**2 * total_y + y**2 * total_x[:, None]
    scale = np.multiply.outer(amplitude_x, amplitude_y)[..., None]
    log_weight = np.empty((len(RHO), len(AMPLITUDES), len(AMPLITUDES)))
    for index, rho in enumerate(RHO):
        determinant = product - (rho * scale) ** 2
        fit = (squares - 2 * rho * x * y * scale) / determinant
        log_weight[index] = -0.5 * (np.log(determinant) + fit).sum(axis=2) + PRIOR[index]
    weight = np.exp(log_weight - log_weight.max()).ravel()
    chosen = rng.choice(len(weight), size=DRAWS, p=weight / weight.sum())
    at_rho, at_x, at_y = np.unravel_index(chosen, log_weight.shape)

    # True values given the observed: prior - prior total^-1 prior, two by two for every draw and layer.
    total_x, total_y = total_x[at_x], total_y[at_y]
    prior_x, prior_y = (amplitude_x[at_x] ** 2)[:, None], (amplitude_y[at_y] ** 2)[:, None]
    shared = RHO[at_rho, None] * np.sqrt(prior_x * prior_y)
    determinant = total_x * total_y - shared**2
    xx = (prior_x * total_y - shared**2) / determinant  # weights of the observed x and y in the true x
    xy = shared * (total_x - prior_x) / determinant
    yx = shared * (total_y - prior_y) / determinant
    yy = (prior_y * total_x - shared**2) / determinant
    spread_x = np.maximum(prior_x - xx * prior_x - xy * shared, 0.0)
    spread_y = np.maximum(prior_y - yx * shared - yy * prior_y, 0.0)
    cross = shared - xx * shared - xy * prior_y
    first, second = rng.standard_normal((2, *spread_x.shape))
    root = np.sqrt(spread_x)
    slope = np.divide(cross, root, out=np.zeros_like(cross), where=root > 0)
    true_x = xx * x + xy * y + root * first
    true_y = yx * x + yy * y + slope * first + np.sqrt(np.maximum(spread_y - slope**2, 0.0)) * second
    low, median, high = np.quantile(_rank_correlation(true_x, true_y), [0.025, 0.5, 0.975])
    return Correlation(float(median), float(low), float(high))


def _rank_correlation(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """[draws] Spearman's rho of each row of x and y [draws, layers], which hold no ties."""
    n = x.shape[1]
    ranks = np.empty((2, *x.shape))
    for rank, values in zip(ranks, (x, y), strict=True):
        np.put_along_axis(rank, values.argsort(axis=1), np.arange(n, dtype=float)[None], axis=1)
    return 1 - 6 * ((ranks[0] - ranks[1]) ** 2).sum(axis=1) / (n * (n**2 - 1))


def overlap(x: np.ndarray, y: np.ndarray, top: int) -> float:
    """Share of the `top` best of x that are among the `top` best of y; by chance it is top / layers."""
    top = min(top, len(x))
    best = [set(np.argsort(-values, kind="stable")[:top]) for values in (x, y)]
    return len(best[0] & best[1]) / top if top else np.nan


def concentration(profile: Profile, top: int = 5) -> dict[str, float]:
    """Measure of how unevenly the gains sit in the model; negative contributions count as 0.

    `top_share`: the part of the summed contribution that the best `top` layers hold. `centre_of_mass`: their mean
    depth, 0 the first layer, 1 the last. `gini`: 0 when all are equal, (n-1)/n when one layer holds everything.
    """
    if not profile.is_contribution:  # a score without its base has no zero to share out from
        return {"top_share": np.nan, "centre_of_mass": np.nan, "gini": np.nan}
    held = np.maximum(profile.contribution, 0.0)
    if not held.sum():
        return {"top_share": np.nan, "centre_of_mass": np.nan, "gini": np.nan}
    share = np.sort(held / held.sum())
    n = len(share)
    return {
        "top_share": float(share[max(n - top, 0) :].sum()),
        "centre_of_mass": float((profile.depth * held).sum() / held.sum()),
        "gini": float((2 * np.arange(1, n + 1) - n - 1) @ share / n),
    }


def compare(a: Profile, b: Profile, top: int = 5) -> dict:
    """Compare two profiles: `spearman` as observed, `rho` of the true values, and the overlap of the best."""
    _, x, y, noise_x, noise_y = align(a, b)
    varies = len(x) >= FEWEST_LAYERS and np.ptp(x) > 0 and np.ptp(y) > 0
    rho = corrected_spearman(x, y, noise_x, noise_y, np.random.default_rng(0))
    return {
        "a": a.name,
        "b": b.name,
        "layers": len(x),
        "spearman": float(stats.spearmanr(x, y).statistic) if varies else np.nan,
        "rho": rho.median,
        "rho_low": rho.low,
        "rho_high": rho.high,
        "verdict": rho.verdict if varies else "cannot tell",
        "top": min(top, len(x)),
        "overlap": overlap(x, y, top),
        "overlap_by_chance": min(top / len(x), 1.0) if len(x) else np.nan,
    }


def compare_all(profiles: Sequence[Profile], top: int = 5) -> pd.DataFrame:
    """Compare every pair of profiles, a row each."""
    if len(profiles) < 2:
        raise ValueError("a comparison needs at least two tables")
    if len({profile.name for profile in profiles}) < len(profiles):
        raise ValueError("two tables have the same name: give each its own")
    return pd.DataFrame([compare(a, b, top) for a, b in combinations(profiles, 2)])


def concentrations(profiles: Iterable[Profile], top: int = 5) -> pd.DataFrame:
    """Measure every profile's concentration, a row each."""
    return pd.DataFrame([{"table": profile.name, **concentration(profile, top)} for profile in profiles])


def matrix(pairs: pd.DataFrame, column: str = "rho") -> pd.DataFrame:
    """Return the rows of `compare_all` as a square, symmetric table of one of its columns, 1 on the diagonal."""
    names = list(dict.fromkeys([*pairs["a"], *pairs["b"]]))
    square = pd.DataFrame(np.eye(len(names)), index=names, columns=names)
    for a, b, value in pairs[["a", "b", column]].itertuples(index=False):
        square.loc[a, b] = square.loc[b, a] = value
    return square
