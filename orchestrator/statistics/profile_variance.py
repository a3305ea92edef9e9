"""Variance of layer profiles: by the layer, whatever the sweep, or by the layer under an algorithm, a task, a model.

    C[sweep, layer] = level[sweep] + a[layer] + sum over factors f of b_f[level of f, layer] + c[sweep, layer] + noise

a, b_f and c are normal with variances that share a total; their shares are what is asked for. Levels are left free,
and the noise is known, so what a rerun of the evaluation would change is in no share. What another RL seed would change
is in the noise where sweeps had several seeds, else in c. The shares have a flat prior (all mixtures alike), their
total a flat one in its logarithm; both are integrated over draws (test_profile_variance.py has the coverage).
"""

from collections.abc import Sequence
from functools import reduce

import numpy as np
import pandas as pd

from .layer_profile import Profile
from .profile_agreement import FEWEST_LAYERS, align

LAYER = "layer"
DRAWS = 3000
AMPLITUDES = np.geomspace(0.1, 3.0, 24)
"""Standard deviation over layers of what is no noise, in units of that observed."""


def variance_shares(profiles: Sequence[Profile]) -> pd.DataFrame:
    """Estimate the shares of the profiles' variance over layers: a row per component.

    Models of different depth are compared by relative depth (`align_all`).

    Returns:
        component, share (median), low, high (95 %). No rows where noise is unknown, fewer than FEWEST_LAYERS layers are
        in common, or some profiles are of contributions and others of scores.
    """
    values, noise = align_all(profiles)
    columns = ["component", "share", "low", "high"]
    if (
        len({profile.is_contribution for profile in profiles}) > 1
        or values.shape[1] < FEWEST_LAYERS
        or not np.isfinite(noise).all()
    ):
        return pd.DataFrame(columns=columns)
    parts = components(profiles)
    centred = values - values.mean(axis=1, keepdims=True)
    if not centred.any():
        return pd.DataFrame(columns=columns)
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.ones(len(parts)), DRAWS)
    weight = _weights(centred, (noise**2).mean(axis=1), shares, np.stack(list(parts.values())))
    found = [_quantiles(shares[:, i], weight) for i in range(len(parts))]
    return pd.DataFrame(
        [(name, median, low, high) for name, (low, median, high) in zip(parts, found, strict=True)], columns=columns
    )


def components(profiles: Sequence[Profile]) -> dict[str, np.ndarray]:
    """Return by name which profiles share a component's values, 0 or 1 [profiles, profiles].

    The layer's is shared by all, that of a layer under a factor by profiles of one level. What each profile has for
    itself comes last; it is named after the factors that no two profiles share a level of.
    """
    count = len(profiles)
    found = {LAYER: np.ones((count, count))}
    alone = []
    for factor in dict.fromkeys(name for profile in profiles for name in profile.origin):
        levels = [profile.origin.get(factor) for profile in profiles]
        same = np.array([[float(a == b and a is not None) for b in levels] for a in levels])
        np.fill_diagonal(same, 1.0)
        if same.all() or any(np.array_equal(same, other) for other in found.values()):
            continue
        if np.array_equal(same, np.eye(count)):
            alone.append(factor)
        else:
            found[f"{LAYER} x {factor}"] = same
    return found | {f"{LAYER} x {' and '.join(alone) or 'sweep'}": np.eye(count)}


def align_all(profiles: Sequence[Profile]) -> tuple[np.ndarray, np.ndarray]:
    """Return contributions and noise of all profiles at the same relative depths, [profiles, depths] each.

    The depths are those of the profile with the fewest layers that lie within the range of every other.
    """
    fewest = min(profiles, key=lambda profile: len(profile.layers))
    pairs = [align(fewest, profile) for profile in profiles]
    common = reduce(np.intersect1d, (depth for depth, *_ in pairs))
    at = [np.isin(depth, common) for depth, *_ in pairs]
    values = np.stack([pair[2][kept] for pair, kept in zip(pairs, at, strict=True)])
    return values, np.stack([pair[4][kept] for pair, kept in zip(pairs, at, strict=True)])


def _weights(centred: np.ndarray, noise: np.ndarray, shares: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """Return the posterior weight of each draw of shares, the amplitude integrated out.

    Args:
        centred: [profiles, layers] contributions less their mean over layers.
        noise: [profiles] variance of the noise, the mean over layers.
        shares: [draws, components].
        parts: [components, profiles, profiles].
    """
    dof, products = centred.shape[1] - 1, centred @ centred.T
    scale = np.trace(products) / len(centred) / dof
    mixed = np.einsum("dc,cij->dij", shares, parts)
    log_weight = np.empty((len(AMPLITUDES), len(shares)))
    for index, amplitude in enumerate(AMPLITUDES):
        total = amplitude**2 * scale * mixed + np.diag(noise + 1e-9 * scale)
        _, determinant = np.linalg.slogdet(total)
        fit = np.trace(np.linalg.solve(total, np.broadcast_to(products, total.shape)), axis1=1, axis2=2)
        log_weight[index] = -0.5 * (dof * determinant + fit)
    weight = np.exp(log_weight - log_weight.max()).sum(axis=0)
    return weight / weight.sum()


def _quantiles(values: np.ndarray, weight: np.ndarray) -> np.ndarray:
    order = np.argsort(values)
    return np.interp([0.025, 0.5, 0.975], np.cumsum(weight[order]) - weight[order] / 2, values[order])


def shares_text(shares: pd.DataFrame, seeds: int) -> str:
    """Say in a sentence what the shares are of; empty without any.

    Args:
        seeds: the fewest training runs of a selection in any of the tables.
    """
    if not len(shares):
        return ""
    once = " With one training run each, what another seed would change is in the last share too." if seeds < 2 else ""
    return f"Shares of what profiles vary by over layers, noise of the evaluation apart.{once}"
