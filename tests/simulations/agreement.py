"""Does the interval of the noise-corrected Spearman hold the rho of the true profiles?

`python -m tests.simulations.agreement`
"""

import time

import numpy as np
from scipy import stats

from layersweep.orchestrator.statistics.layer_profile import Profile
from layersweep.orchestrator.statistics.profile_agreement import compare_all, corrected_spearman
from tests.simulations.profiles import published


def normal_pair(rng, layers: int, rho: float) -> tuple[np.ndarray, np.ndarray]:
    """Independent layers, as the method assumes."""
    first, second = rng.standard_normal((2, layers))
    return 0.25 * first, 0.25 * (rho * first + np.sqrt(1 - rho**2) * second)


def smooth_pair(rng, layers: int, rho: float) -> tuple[np.ndarray, np.ndarray]:
    """Neighbouring layers alike, as in real profiles."""
    distance = np.sqrt(3) * np.abs(np.subtract.outer(np.arange(layers), np.arange(layers))) / (0.2 * layers)
    root = np.linalg.cholesky((1 + distance) * np.exp(-distance) + 0.1 * np.eye(layers))
    first, second = (root @ rng.standard_normal((layers, 2))).T
    return 0.25 * first, 0.25 * (rho * first + np.sqrt(1 - rho**2) * second)


def published_pair(rng, layers: int, rho: float) -> tuple[np.ndarray, np.ndarray]:
    """The published profile, which is skewed, and a perturbed copy of it."""
    first = np.interp(np.linspace(0, 27, layers), np.arange(28), published())
    centred = first - first.mean()
    return first, rho * centred + np.sqrt(1 - rho**2) * first.std() * rng.standard_normal(layers)


def trial(rng, pair, layers: int, rho: float, noise: float) -> tuple[float, float, float, float, float]:
    """True rho, observed rho, and the median, low and high of the corrected one; noise differs between layers."""
    truth = pair(rng, layers, rho)
    sds = noise * rng.uniform(0.7, 1.3, (2, layers))
    seen = np.array(truth) + sds * rng.standard_normal((2, layers))
    found = corrected_spearman(seen[0], seen[1], sds[0], sds[1], rng)
    spearman = [float(stats.spearmanr(*both).statistic) for both in (truth, seen)]
    return *spearman, found.median, found.low, found.high


def simulate(pair, layers: int, rho: float, noise: float, trials: int) -> np.ndarray:
    """[trials, 5]"""
    return np.array([trial(np.random.default_rng([layers, i]), pair, layers, rho, noise) for i in range(trials)])


def coverage(results: np.ndarray) -> float:
    return float(((results[:, 3] <= results[:, 0]) & (results[:, 0] <= results[:, 4])).mean())


def cpu_seconds_for(tables: int, layers: int) -> float:
    """Of one processor, to compare that many tables, each with each."""
    rng = np.random.default_rng(0)
    index = np.arange(layers)
    profiles = [
        Profile(f"t{i}", index, index / (layers - 1), rng.standard_normal(layers), np.full(layers, 0.5), layers, True)
        for i in range(tables)
    ]
    start = time.process_time()
    compare_all(profiles)
    return time.process_time() - start


def main() -> None:
    print("profiles         layers  noise   rho   true   seen  median  coverage  width")
    for pair in (normal_pair, smooth_pair, published_pair):
        for layers, rho, noise in [
            (28, 0.8, 0.13),
            (36, 0.8, 0.13),
            (28, 0.3, 0.13),
            (28, 0.0, 0.13),
            (28, -0.5, 0.13),
            (28, 0.99, 0.13),
            (28, 0.8, 0.05),
            (28, 0.99, 0.05),
            (28, 0.99, 0.01),
            (36, 0.95, 0.02),
            (28, 0.8, 0.25),
            (10, 0.8, 0.13),
        ]:
            seen = simulate(pair, layers, rho, noise, 300)
            true, observed, median, low, high = np.median(seen, axis=0)
            print(
                f"{pair.__name__:<16}{layers:>7}{noise:>7}{rho:>6}{true:>7.2f}{observed:>7.2f}{median:>8.2f}"
                f"{coverage(seen):>10.3f}{high - low:>7.2f}",
                flush=True,
            )
    print(f"50 tables of 36 layers: {cpu_seconds_for(50, 36):.1f} CPU s")


if __name__ == "__main__":
    main()
