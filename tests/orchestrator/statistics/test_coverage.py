"""How often intervals of simulated sweeps hold the truth."""

import numpy as np
import pytest

from tests.simulations.coverage import World, coverage, simulate
from tests.simulations.profiles import published


@pytest.mark.parametrize("seeds", [1, 3])
def test_intervals_cover(seeds):
    """Some 80 simulated sweeps of 28 layers; layers of a sweep share noise, so this alone strays by about 0.01."""
    assert 0.92 <= coverage(simulate(World(published()), 80, seeds)) <= 0.98


def test_no_gain_gives_no_contribution():
    nothing = World(np.zeros(28), gain=0.0, seed_sd=0.0, full_seed_sd=0.0)
    assert np.mean([outcome.shown for outcome in simulate(nothing, 100, 1)]) < 0.03


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [1, 3, 5])
def test_intervals_cover_in_500_sweeps(seeds):
    assert 0.93 <= coverage(simulate(World(published()), 500, seeds)) <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize(("seeds", "seed_sd"), [(1, 0.0), (3, 0.1), (5, 0.1)])
def test_no_gain_gives_no_contribution_in_1000_sweeps(seeds, seed_sd):
    nothing = World(np.zeros(28), gain=0.0, seed_sd=seed_sd, full_seed_sd=seed_sd)
    assert np.mean([outcome.shown for outcome in simulate(nothing, 1000, seeds)]) < 0.02
