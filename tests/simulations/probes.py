"""Does the interval of a probe's rank correlation hold the one that its layers were drawn with?

`python -m tests.simulations.probes`
"""

import numpy as np

from layersweep.orchestrator.statistics.probe_agreement import predictor_spearman

CASES = [
    (layers, rho, noise)
    for layers in (6, 12, 30)
    for rho, noise in ((0.0, 0.1), (0.5, 0.1), (0.8, 0.1), (0.95, 0.1), (0.8, 0.02), (-0.5, 0.1), (0.5, 0.25))
]
"""Layers of a sweep, Pearson's correlation of the values behind measure and C, and standard error of C, whose own
standard deviation over layers is 0.25."""


def interval(layers: int, rho: float, noise: float, sweep: int) -> tuple[float, float, float]:
    """Return median, low and high of one sweep: a skewed measure, C with noise that differs between layers."""
    rng = np.random.default_rng([layers, sweep])
    first, second = rng.standard_normal((2, layers))
    truth = 0.5 + 0.25 * (rho * first + np.sqrt(1 - rho**2) * second)
    sds = noise * rng.uniform(0.7, 1.3, layers)
    found = predictor_spearman(np.exp(first), truth + sds * rng.standard_normal(layers), sds)
    return found.median, found.low, found.high


def coverage(layers: int, rho: float, noise: float, sweeps: int) -> tuple[float, float]:
    """Return the share of sweeps whose interval holds the Spearman correlation, and the mean width."""
    true = 6 / np.pi * np.arcsin(rho / 2)
    found = np.array([interval(layers, rho, noise, sweep) for sweep in range(sweeps)])
    low, high = found[:, 1], found[:, 2]
    return float(((low <= true) & (true <= high)).mean()), float((high - low).mean())


def main() -> None:
    print("layers   rho  noise  coverage  width")
    for layers, rho, noise in CASES:
        held, width = coverage(layers, rho, noise, 2000)
        print(f"{layers:>6}{rho:>6}{noise:>7}{held:>10.3f}{width:>7.2f}", flush=True)


if __name__ == "__main__":
    main()
