"""RLOO's advantages by hand."""

import numpy as np
import pytest

from layersweep.policies.algorithms.rloo import RLOO


def advantages(reward, group, trajectory=None):
    rows = np.arange(len(reward))
    reward = np.array(reward, np.float32)
    return RLOO().advantages(reward, np.array(group), rows if trajectory is None else np.array(trajectory), rows, [])


def test_each_response_against_the_mean_of_the_others():
    """1 against the mean of 0, 0, 0; 0 against that of 1, 0, 0. In the second group .5 against (1 + 0) / 2, 1 against
    .25, 0 against .75."""
    found = advantages([1, 0, 0, 0, 0.5, 1, 0], [0, 0, 0, 0, 1, 1, 1])
    assert found.dtype == np.float32
    assert found.tolist() == pytest.approx([1, -1 / 3, -1 / 3, -1 / 3, 0, 0.75, -0.75])


def test_equal_rewards_and_a_group_of_one_give_nothing():
    assert advantages([0.1, 0.1, 0.1, 1.0], [0, 0, 0, 1]).tolist() == [0, 0, 0, 0]


def test_an_episodes_steps_share_its_returns_advantage():
    """Two episodes of one task, returns 0 + 1 and 0: 1 - 0 for both steps of the first, 0 - 1 for the second's."""
    assert advantages([0, 1, 0], [0, 0, 0], trajectory=[0, 0, 1]).tolist() == [1, 1, -1]
