"""The settings of PPO: each wrong value ends with one line that names a right one."""

from pathlib import Path
from typing import Any

import pytest

from gpt.errors import ConfigError
from gpt.post_training.ppo.config import PPOConfig, RewardSource
from gpt.post_training.ppo.state import PPOState


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"clip": 1.0}, "objective.clip = 1.0 is invalid"),
        ({"beta": -1.0}, "objective.beta = -1.0 is invalid"),
        ({"ema": 1.0}, "objective.ema = 1.0 is invalid"),
        ({"temperature": float("nan")}, "objective.temperature"),
        ({"minibatch_episodes": 0}, "objective.minibatch_episodes = 0 is invalid: must be at least 1"),
        ({"rollouts": "replay"}, "belong together"),
        ({"replay_from": Path("runs/a")}, "belong together"),
        ({"target_kl": 0.0}, "objective.target_kl"),
        ({"gae_lambda": 1.5}, "objective.gae_lambda"),
        ({"rewards": (RewardSource(run=Path("a/x")), RewardSource(run=Path("b/x")))}, "two have the name 'x'"),
    ],
)
def test_a_wrong_value_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PPOConfig(**values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "needs either `run` or `function`"),
        ({"run": Path("a"), "function": "a:b"}, "needs either `run` or `function`"),
        ({"function": "a"}, "must be 'module:name'"),
        ({"function": "a:b", "weight": float("inf")}, "must be a finite number"),
    ],
)
def test_a_reward_names_one_source(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RewardSource(**values)
    assert RewardSource(function="a:b").name == "b"
    assert RewardSource(run=Path("runs/rm")).name == "rm"


def test_beta_follows_the_kl() -> None:
    """arXiv 1909.08593, section 2.2: the relative error, clipped to 0.2, times the share of the horizon."""
    config = PPOConfig(target_kl=6.0, beta_horizon=1000)
    for kl, factor in ((6.0, 1.0), (6.6, 1.01), (60.0, 1.02), (-5.0, 0.98)):
        state = PPOState(loop=None, beta=0.1, models={})  # type: ignore[arg-type]
        state.adapt_beta(config, kl=kl, episodes=100)
        assert state.beta == pytest.approx(0.1 * factor)
    state.adapt_beta(PPOConfig(), kl=50.0, episodes=100)
    assert state.beta == pytest.approx(0.098), "fixed by default"
