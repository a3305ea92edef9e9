"""The smooth curve over depth: its posterior against conditioning, and probabilities of ranks by counting."""

import numpy as np
import pytest

from layersweep.orchestrator.statistics import depth_gp


def test_depth_posterior_against_conditioning(monkeypatch):
    """One grid point: the mean is a normal of huge variance, and the joint normal is conditioned directly."""
    for name, value in (("AMPLITUDES", 0.8), ("LENGTHS", 0.3), ("NUGGETS", 0.2)):
        monkeypatch.setattr(depth_gp, name, np.array([value]))
    layers, values = [0, 2, 3, 7], np.array([0.1, 0.4, 0.35, 0.9])
    noise = np.diag([0.01, 0.02, 0.01, 0.03]) + 0.005
    prior = np.full((4, 4), 1e5)
    for i, a in enumerate(layers):
        for j, b in enumerate(layers):
            r = np.sqrt(3) * abs(a - b) / 7 / 0.3
            prior[i, j] += (0.8 * values.std()) ** 2 * (0.8 * (1 + r) * np.exp(-r) + 0.2 * (i == j))
    expected = prior @ np.linalg.solve(prior + noise, values)
    spread = prior - prior @ np.linalg.solve(prior + noise, prior)
    found = depth_gp.posterior(layers, values, noise)
    assert found.mean == pytest.approx(expected, abs=1e-4)
    draws = found.draws(200_000, np.random.default_rng(0))
    assert np.cov(draws.T) == pytest.approx(spread, abs=5e-4)


def test_depth_posterior_of_degenerate_values():
    exact = depth_gp.posterior([0, 1, 2], np.array([1.0, 2.0, 4.0]), np.zeros((3, 3)))
    assert exact.mean == pytest.approx([1, 2, 4])
    level = depth_gp.posterior([0, 1], np.ones(2), np.zeros((2, 2))).draws(5, np.random.default_rng(0))
    best, top = depth_gp.top_probabilities(level, 1)
    assert best.tolist() == [0.5, 0.5] and top.tolist() == [0.5, 0.5]
    assert depth_gp.posterior([4], np.array([0.3]), np.eye(1)).mean.tolist() == [0.3]
    with pytest.raises(ValueError, match="finite"):
        depth_gp.posterior([0, 1], np.array([1, np.nan]), np.eye(2))


def test_top_probabilities_by_counting():
    """Four draws of three layers: layer 0 best twice, 1 once, 2 once; in the top two 3, 3 and 2 times."""
    draws = np.array([[3, 2, 1], [3, 1, 2], [2, 3, 1], [1, 2, 3]])
    best, top = depth_gp.top_probabilities(draws, 2)
    assert best.tolist() == [0.5, 0.25, 0.25] and top.tolist() == [0.75, 0.75, 0.5]
