import numpy as np
import pytest

from layersweep.orchestrator.statistics.halving_schedule import (
    FINAL_SAMPLES,
    RUNG_SAMPLES,
    HalvingSchedule,
    Rung,
    cost,
    survivors,
)
from tests.simulations.profiles import shapes
from tests.simulations.search_regret import regrets


def test_default_schedule_of_28_layers():
    """28 layers to 10 %, 14 to 20 %, 7 to 40 %, 3 to the end: 28*20 + 14*20 + 7*40 + 3*120 = 1480 of 5600 steps."""
    rungs = HalvingSchedule().rungs(28, 200)
    assert rungs == [Rung(20, 28, 14, 2), Rung(40, 14, 7, 2), Rung(80, 7, 3, 2), Rung(200, 3, 1, 4)]
    assert cost(rungs) == 1480
    assert (1480 + 200) / (29 * 200) < 0.3  # with the full run on both sides


@pytest.mark.parametrize("layers", [6, 8, 12, 28, 36, 48, 80])
@pytest.mark.parametrize(("budget", "goal"), [(0.3, "best"), (0.5, "best"), (0.5, "top 2"), (0.8, "top 3")])
@pytest.mark.parametrize("steps", [50, 1000])
def test_schedules_scale(layers, budget, goal, steps):
    schedule = HalvingSchedule(budget, goal)
    rungs = schedule.rungs(layers, steps)
    assert cost(rungs) <= budget * layers * steps
    assert rungs[0].layers == layers and rungs[-1].step == steps and rungs[-1].keep == schedule.wanted
    for before, after in zip(rungs, rungs[1:], strict=False):
        assert before.keep == after.layers < before.layers and before.step < after.step
    assert [rung.samples for rung in rungs] == [RUNG_SAMPLES] * (len(rungs) - 1) + [FINAL_SAMPLES]


def test_a_larger_goal_keeps_a_spare_finalist():
    assert HalvingSchedule(0.3, "top 3").rungs(28, 200)[-1] == Rung(200, 4, 3, FINAL_SAMPLES)


def test_the_whole_budget_prunes_nothing():
    assert HalvingSchedule(1, "top 5").rungs(28, 200) == [Rung(200, 28, 5, FINAL_SAMPLES)]
    assert HalvingSchedule(1).rungs(1, 200) == [Rung(200, 1, 1, FINAL_SAMPLES)]


def test_impossible_searches_are_refused():
    with pytest.raises(ValueError, match="too small for the best of 6 layers"):
        HalvingSchedule(0.15).rungs(6, 200)  # one layer alone takes 1/6
    with pytest.raises(ValueError, match="takes the whole budget"):
        HalvingSchedule(0.5, "top 6").rungs(6, 200)
    with pytest.raises(ValueError, match="budget"):
        HalvingSchedule(0)
    with pytest.raises(ValueError, match="budget"):
        HalvingSchedule(1.5)
    for goal in ("worst", "top", "top 0", "top three"):
        with pytest.raises(ValueError):
            HalvingSchedule(0.3, goal)
    with pytest.raises(ValueError):
        HalvingSchedule().rungs(0, 10)


def test_survivors_of_exact_scores_are_the_best():
    scores = np.array([0.1, 0.5, 0.2, 0.9, 0.3, 0.8])
    assert survivors([0, 4, 8, 12, 16, 20], scores, np.zeros((6, 6)), 3) == [4, 12, 20]
    assert survivors([5], np.array([0.1]), np.eye(1), 1) == [5]
    with pytest.raises(ValueError, match="cannot keep 7 of 6"):
        survivors(range(6), scores, np.zeros((6, 6)), 7)


def test_neighbours_rescue_an_unlucky_layer():
    """A smooth peak at layers 8 to 11, where 9 was scored low, and a lone lucky layer 22: smoothing prefers 9."""
    scores = np.exp(-(((np.arange(28) - 9.5) / 4.0) ** 2))
    scores[9] -= 0.35
    scores[22] += 0.7
    kept = survivors(range(28), scores, 0.2**2 * np.eye(28), 4)
    assert 9 in kept and 22 not in kept
    assert 22 in np.argsort(-scores)[:4] and 9 not in np.argsort(-scores)[:4]


def test_noise_shared_by_all_layers_changes_nothing():
    rng = np.random.default_rng(0)
    scores, noise = rng.standard_normal(28), 0.3 * np.eye(28)
    assert survivors(range(28), scores, noise, 5) == survivors(range(28), scores - 3, noise + 4.0, 5)


def test_search_finds_as_good_a_layer_as_a_scan():
    seen = regrets(shapes()["published"], [0.3], 60)
    assert seen[0.3] >= seen["scan"] - 0.03


@pytest.mark.slow
@pytest.mark.parametrize("shape", list(shapes()))
def test_search_finds_as_good_a_layer_as_a_scan_in_200_simulations(shape):
    seen = regrets(shapes()[shape], [0.3], 200)
    assert seen[0.3] >= seen["scan"] - 0.03
