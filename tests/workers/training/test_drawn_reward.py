"""Rewards that know nothing of the responses."""

import numpy as np

from layersweep.workers.training.drawn_reward import DrawnReward
from tests.helpers.updates import experience


def test_draws_follow_from_seed_and_step_alone():
    """Of 2,000 responses half have a reward, within 4 standard errors (.045); other rewards change nothing."""
    one, other = experience(groups=500), experience(seed=1, groups=500)
    drawn = DrawnReward(0.5).instead(one, 0, 3)
    assert set(drawn.reward) == {0.0, 1.0} and abs(drawn.reward.mean() - 0.5) < 0.045
    assert drawn.reward.dtype == np.float32
    np.testing.assert_array_equal(DrawnReward(0.5).instead(other, 0, 3).reward, drawn.reward)
    assert drawn.tokens is one.tokens and drawn.group is one.group
    for seed, step in ((1, 3), (0, 4)):
        agree = (DrawnReward(0.5).instead(one, seed, step).reward == drawn.reward).mean()
        assert abs(agree - 0.5) < 0.045
    # No part of the task's reward is left in it: a correlation of 0 within 4 standard errors.
    assert abs(np.corrcoef(drawn.reward, one.reward)[0, 1]) < 0.09


def test_a_probability_of_one_is_a_constant():
    assert (DrawnReward(1.0).instead(experience(), 0, 0).reward == 1).all()


def test_an_episode_is_rewarded_at_its_last_turn():
    """Turns 0, 1, 2 of episode 5 and 0, 1 of episode 2, in no order."""
    turns = experience(groups=1, size=5)
    turns = turns.__class__(
        **vars(turns) | {"trajectory": np.array([5, 2, 5, 2, 5]), "step": np.array([2, 0, 0, 1, 1])}
    )
    assert DrawnReward(1.0).instead(turns, 0, 0).reward.tolist() == [1, 0, 0, 1, 0]
