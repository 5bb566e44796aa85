"""Checkpoints are ranked on the answers that all have a reward of."""

import math

import pytest

from launch.evaluation.checkpoint_choice import ranked_checkpoints


def test_the_best_is_first_and_others_are_compared_by_prompt():
    found = ranked_checkpoints([10, 20, 30], [[0.0, 1.0, 5.0], [2.0, 3.0, math.nan], [1.0, 1.0, 9.0]])
    assert [one.step for one in found] == [20, 30, 10]
    assert [one.reward.estimate for one in found] == [2.5, 1.0, 0.5]
    assert [one.behind.estimate for one in found] == [0.0, -1.5, -2.0]
    assert [one.unscored for one in found] == [1, 0, 0]


def test_of_equal_rewards_the_earlier_step_is_first():
    assert [one.step for one in ranked_checkpoints([30, 10], [[1.0], [1.0]])] == [10, 30]


def test_without_a_common_reward_nothing_is_chosen():
    (best, _) = ranked_checkpoints([10, 20], [[math.nan], [1.0]])
    assert best.reward.estimate != best.reward.estimate
    assert best.reward.estimate != pytest.approx(0.0)
