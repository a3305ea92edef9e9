"""GiGPO's advantages against hand-worked numbers."""

import numpy as np
import pytest

from layersweep.policies.algorithms.gigpo import GiGPO, returns_to_go, step_groups

# Design: A visits s0, s1 with rewards 0, 1; B visits s0, s2 with rewards 0, 0.
EXAMPLE = {
    "reward": np.array([0, 1, 0, 0], np.float32),
    "group": np.zeros(4, int),
    "trajectory": np.array([0, 0, 1, 1]),
    "step": np.array([0, 1, 0, 1]),
    "anchor": ["s0", "s1", "s0", "s2"],
}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"normalization": "mean"}, [0.975, 0.5, -0.975, -0.5]),
        ({"normalization": "mean_std"}, [1.4142, 0.7071, -1.4142, -0.7071]),
        ({"normalization": "mean_std", "episode_statistics": "step"}, [1.5731, 0.8660, -1.5731, -0.8660]),
    ],
)
def test_the_vectors_of_the_design(settings, expected):
    advantages = GiGPO(gamma=0.95, omega=1.0, **settings).advantages(**EXAMPLE)
    assert advantages.dtype == np.float32
    np.testing.assert_allclose(advantages, expected, atol=1e-4)


def test_omega_weighs_the_step_part_alone():
    # Episode part +-0.5; step part at s0 +-0.475.
    np.testing.assert_allclose(GiGPO(omega=0.0).advantages(**EXAMPLE), [0.5, 0.5, -0.5, -0.5], atol=1e-6)
    np.testing.assert_allclose(GiGPO(omega=2.0).advantages(**EXAMPLE), [1.45, 0.5, -1.45, -0.5], atol=1e-6)


def test_order_of_rows_does_not_matter():
    order = np.array([3, 0, 2, 1])
    shuffled = {name: np.asarray(value)[order] for name, value in EXAMPLE.items()}
    shuffled["anchor"] = list(shuffled["anchor"])
    np.testing.assert_allclose(GiGPO().advantages(**shuffled), [-0.5, 0.975, -0.975, 0.5], atol=1e-6)


def test_a_state_met_twice_by_one_trajectory_of_unequal_length():
    # A: s0 s0 s1 with rewards 0 0 1, gamma .5: R = .25 .5 1. B: s0 with reward 0: R = 0.
    # s0 holds .25, .5, 0: mean .25. s1 is alone. Episodes 1 and 0: +-.5.
    advantages = GiGPO(gamma=0.5).advantages(
        reward=np.array([0, 0, 1, 0], np.float32),
        group=np.zeros(4, int),
        trajectory=np.array([7, 7, 7, 9]),
        step=np.array([0, 1, 2, 0]),
        anchor=["s0", "s0", "s1", "s0"],
    )
    np.testing.assert_allclose(advantages, [0.5, 0.75, 0.5, -0.75], atol=1e-6)


def test_step_statistics_lean_towards_the_longer_episode():
    # Returns by row 1, 1, 1, 0: mean .75, whatever the anchors (all different).
    advantages = GiGPO(episode_statistics="step").advantages(
        reward=np.array([0, 0, 1, 0], np.float32),
        group=np.zeros(4, int),
        trajectory=np.array([0, 0, 0, 1]),
        step=np.array([0, 1, 2, 0]),
        anchor=["a", "b", "c", "d"],
    )
    np.testing.assert_allclose(advantages, [0.25, 0.25, 0.25, -0.75], atol=1e-6)


def test_the_penalty_of_an_invalid_action_reaches_the_steps_that_led_to_it():
    # A: s0 s1 s1 with rewards 0, -.1 (invalid), 1; gamma .5: R = .2, .4, 1; return .9.
    # B: s0 s1 with rewards 0, 1: R = .5, 1; return 1. Episodes: -.05 and +.05.
    # s0 holds .2, .5: mean .35. s1 holds .4, 1, 1: mean .8.
    advantages = GiGPO(gamma=0.5).advantages(
        reward=np.array([0, -0.1, 1, 0, 1], np.float32),
        group=np.zeros(5, int),
        trajectory=np.array([0, 0, 0, 1, 1]),
        step=np.array([0, 1, 2, 0, 1]),
        anchor=["s0", "s1", "s1", "s0", "s1"],
    )
    np.testing.assert_allclose(advantages, [-0.2, -0.45, 0.15, 0.2, 0.25], atol=1e-6)


@pytest.mark.parametrize("normalization", ["mean", "mean_std"])
@pytest.mark.parametrize("episode_statistics", ["trajectory", "step"])
def test_groups_of_one_and_equal_rewards_have_no_advantage(normalization, episode_statistics):
    algorithm = GiGPO(normalization=normalization, episode_statistics=episode_statistics)
    # Group 0 is one trajectory; group 1 two with rewards .1 each and states never shared.
    advantages = algorithm.advantages(
        reward=np.array([0, 1, 0.1, 0.1], np.float32),
        group=np.array([0, 0, 1, 1]),
        trajectory=np.array([0, 0, 1, 2]),
        step=np.array([0, 1, 0, 0]),
        anchor=["s0", "s1", "s0", "s1"],
    )
    assert advantages.tolist() == [0, 0, 0, 0]


def test_steps_are_compared_within_their_task_alone():
    assert step_groups(np.array([0, 0, 1, 1]), ["a", "a", "a", "b"]).tolist() == [0, 0, 2, 3]


def test_similar_anchors_share_a_step_group():
    # 20 characters of which 19 agree: ratio 2 * 19 / 40 = .95.
    first, near, far = "abcdefghijklmnopqrst", "abcdefghijklmnopqrsX", "0123456789ABCDEFGHIJ"
    group = np.zeros(4, int)
    assert step_groups(group, [first, near, far, near]).tolist() == [0, 1, 2, 1]
    assert step_groups(group, [first, near, far, near], similarity=0.95).tolist() == [0, 0, 2, 0]
    assert step_groups(group, [first, near, far, near], similarity=0.96).tolist() == [0, 1, 2, 1]
    # Similar to a similar one is not enough: each is compared with the first of a group.
    chain = ["aaaa", "aaab", "aabb"]
    assert step_groups(np.zeros(3, int), chain, similarity=0.75).tolist() == [0, 0, 2]


def test_returns_to_go():
    # gamma .9: 1; .9; .81 and, interleaved, 2 + .9 * 3 = 4.7; 3.
    to_go = returns_to_go(
        np.array([0, 2, 0, 3, 1], np.float32), np.array([0, 1, 0, 1, 0]), np.array([0, 0, 1, 1, 2]), 0.9
    )
    np.testing.assert_allclose(to_go, [0.81, 4.7, 0.9, 3, 1], rtol=1e-6)


def test_single_turn_tasks_are_refused():
    with pytest.raises(ValueError, match="grpo"):
        GiGPO().advantages(np.zeros(2, np.float32), np.zeros(2, int), np.arange(2), np.zeros(2, int), [])
