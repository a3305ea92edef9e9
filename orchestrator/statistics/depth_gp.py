"""A Gaussian process along depth: neighbouring layers contribute alike, so each one's noisy score informs the next.

Model: value of layer k = mean + smooth(k) + own(k), seen with noise of a known covariance. `smooth` has a Matern-3/2
kernel in k, `own` is independent between layers (the nugget: a layer may truly stand out from its neighbours), and
the mean is flat. Amplitude, length and the share of `own` are integrated over a grid rather than fitted, because
about 30 noisy values do not determine them. The values returned include `own`: they are the layers' true values.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

AMPLITUDES = np.array([0.05, 0.15, 0.35, 0.7, 1.2, 2.0, 3.5])
"""Standard deviation of the true values over layers, in units of that observed."""
LENGTHS = np.array([0.05, 0.1, 0.2, 0.4, 0.8])
"""Length scale of the kernel, in units of the span of the layers observed."""
NUGGETS = np.array([0.03, 0.1, 0.25, 0.5, 0.9])
"""Share of the variance of the true values that is each layer's own."""


@dataclass(frozen=True)
class Posterior:
    """Posterior of the layers' true values: a mixture of normals, one per point of the grid."""

    weights: np.ndarray
    """[grid], summing to 1"""
    means: np.ndarray
    """[grid, layers]"""
    roots: np.ndarray
    """[grid, layers, layers]: a matrix square root of each covariance"""

    @property
    def mean(self) -> np.ndarray:
        """[layers]"""
        return self.weights @ self.means

    def draws(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """[count, layers] joint draws of the true values."""
        chosen = rng.choice(len(self.weights), size=count, p=self.weights)
        normal = rng.standard_normal((count, self.means.shape[1]))
        return self.means[chosen] + np.einsum("cij,cj->ci", self.roots[chosen], normal)


def posterior(layers: Sequence[int], values: np.ndarray, noise: np.ndarray) -> Posterior:
    """Return the true values of `layers` given the observed ones and the covariance [layers, layers] of their noise.

    A noise that all layers share (that of the base's score) moves the mean only and does no harm.
    """
    values, noise = np.asarray(values, dtype=float), np.asarray(noise, dtype=float)
    depth = np.asarray(layers, dtype=float)
    size = len(depth)
    if values.shape != (size,) or noise.shape != (size, size):
        raise ValueError(f"{size} layers need as many values and a square noise, not {values.shape}, {noise.shape}")
    if size == 0 or not (np.isfinite(values).all() and np.isfinite(noise).all()):
        raise ValueError("a posterior along depth needs at least one layer, and finite values and noise")
    scale = float(values.std()) or float(np.sqrt(np.trace(noise) / size))
    if scale == 0.0 or size == 1:  # nothing to smooth: the values are what they are
        return Posterior(np.ones(1), values[None], np.zeros((1, size, size)))
    distance = np.abs(depth[:, None] - depth[None, :]) / np.ptp(depth)
    scaled = np.sqrt(3.0) * distance / LENGTHS[:, None, None]
    smooth = (1 + scaled) * np.exp(-scaled)
    mixed = (1 - NUGGETS)[:, None, None, None] * smooth + NUGGETS[:, None, None, None] * np.eye(size)
    prior = ((AMPLITUDES * scale) ** 2)[:, None, None, None, None] * mixed
    prior = prior.reshape(-1, size, size)

    total = prior + noise
    inverse = np.linalg.inv(total)
    precision = inverse.sum(axis=(1, 2))  # 1' V^-1 1: what is known of the flat mean
    mean = (inverse @ values).sum(axis=1) / precision
    residual = values - mean[:, None]
    weighted = np.einsum("gij,gj->gi", inverse, residual)
    fit = np.einsum("gi,gi->g", residual, weighted)
    log_weight = -0.5 * (np.linalg.slogdet(total)[1] + np.log(precision) + fit)  # flat mean integrated out
    weights = np.exp(log_weight - log_weight.max())
    weights = np.where(weights > 1e-4, weights, 0.0)
    keep = weights > 0
    prior, inverse, precision = prior[keep], inverse[keep], precision[keep]

    gain = prior @ inverse
    leverage = 1.0 - gain.sum(axis=2)  # how far each layer leans on the mean rather than on what was seen
    covariance = prior - gain @ prior + leverage[:, :, None] * leverage[:, None, :] / precision[:, None, None]
    means = mean[keep, None] + np.einsum("gij,gj->gi", prior, weighted[keep])
    eigenvalues, vectors = np.linalg.eigh((covariance + covariance.transpose(0, 2, 1)) / 2)
    roots = vectors * np.sqrt(np.maximum(eigenvalues, 0.0))[:, None, :]
    return Posterior(weights[keep] / weights.sum(), means, roots)


def top_probabilities(draws: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
    """Count each layer's probability of being the best, and among the top `top`, from draws [count, layers].

    Layers that a draw leaves exactly equal share their places evenly.
    """
    count, layers = draws.shape
    if not 1 <= top:
        raise ValueError(f"top must be at least 1, not {top}")

    def chance(places: int) -> np.ndarray:
        if places >= layers:
            return np.ones(layers)
        threshold = np.partition(draws, layers - places, axis=1)[:, layers - places, None]
        above, level = draws > threshold, draws == threshold
        left = places - above.sum(axis=1, keepdims=True)
        return (above + level * (left / level.sum(axis=1, keepdims=True))).mean(axis=0)

    return chance(1), chance(top)
