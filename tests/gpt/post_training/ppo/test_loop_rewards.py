"""The loop with rewards that are missing, fail, or are worse than that of a missing end."""

import errno
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from gpt.errors import ConfigError, MachineFault
from gpt.post_training.ppo.config import PPOConfig
from gpt.post_training.ppo.episodes import Episodes
from gpt.post_training.ppo.models import any_rank
from gpt.post_training.ppo.rewards import FunctionReward
from gpt.post_training.ppo.saving import PPOSaver

pytestmark = pytest.mark.usefixtures("one_rank")
CRITIC: dict[str, Any] = {"value_learning_rate": 2e-2, "value_clip": 10.0}


def test_episodes_without_a_reward_are_counted_and_left_out(bandit: Any, tmp_path: Path) -> None:
    run = bandit.make(
        tmp_path,
        PPOConfig(minibatch_episodes=8, ema=0.0, **CRITIC),
        iterations=1,
        episodes=16,
        learning_rate=1e-3,
        reward=bandit.Holes(4),
    )
    run.loop.train()
    assert isinstance(run.loop.saver, PPOSaver)
    assert run.loop.saver.newest == tmp_path / "checkpoints" / "step-000000001"
    assert (tmp_path / "value" / "checkpoints" / "step-000000001").is_dir()
    assert not any_rank(run.loop.models.policy, False)
    (line,) = run.metrics.lines
    assert line["ppo/nan_rewards"] == 4
    assert math.isfinite(line["ppo/reward"])
    assert run.loop.state.nan_rewards == 4
    assert any("4 of 16 episodes have a reward that is not finite" in text for text in run.metrics.events)


@dataclass(frozen=True)
class EveryResponse:
    """A reward that gives every episode the same."""

    score: float
    per_data_rank: ClassVar[bool] = False

    def scores(self, episodes: Episodes) -> torch.Tensor:
        return torch.full((len(episodes),), self.score, dtype=torch.float64)


@pytest.mark.parametrize(("given", "warned"), [(-4.0, 1), (0.5, 0)])
def test_a_missing_end_that_is_better_than_an_end_is_warned_of_once(
    bandit: Any, tmp_path: Path, given: float, warned: int
) -> None:
    """As with a reward model whose mean is not 0."""
    config = PPOConfig(minibatch_episodes=8, ema=0.0, missing_end_reward=-1.0, **CRITIC)
    run = bandit.make(
        tmp_path, config, iterations=2, episodes=16, learning_rate=1e-3, reward=EveryResponse(given), end_ids=(0, 1, 2)
    )
    run.loop.train()
    found = [text for text in run.metrics.events if "below objective.missing_end_reward = -1" in text]
    assert len(found) == warned
    assert all(line["ppo/ended_reward"] == given for line in run.metrics.lines)


def test_a_reward_function_that_fails_ends_the_run_with_one_line(bandit: Any, tmp_path: Path) -> None:
    def broken(prompts: list[str], responses: list[str]) -> list[float]:
        raise ValueError("no score today")

    run = bandit.make(
        tmp_path,
        PPOConfig(minibatch_episodes=8, ema=0.0, **CRITIC),
        iterations=1,
        episodes=16,
        learning_rate=1e-3,
        reward=FunctionReward("mine", broken, bandit.Digits()),
    )
    with pytest.raises(ConfigError, match=r"^the reward 'mine' raised ValueError: no score today \(.*:\d+\)$"):
        run.loop.train()


def test_a_reward_function_whose_machine_fails_can_be_restarted(bandit: Any, tmp_path: Path) -> None:
    def unreachable(prompts: list[str], responses: list[str]) -> list[float]:
        raise ConnectionResetError(errno.ECONNRESET, "the scorer is gone")

    config = PPOConfig(minibatch_episodes=8, ema=0.0, **CRITIC)
    reward = FunctionReward("mine", unreachable, bandit.Digits())
    run = bandit.make(tmp_path, config, iterations=1, episodes=16, learning_rate=1e-3, reward=reward)
    with pytest.raises(MachineFault, match=r"the reward .mine. raised ConnectionResetError: .*the scorer is gone"):
        run.loop.train()


def test_a_run_without_any_reward_ends_after_so_many_updates(bandit: Any, tmp_path: Path) -> None:
    run = bandit.make(
        tmp_path,
        PPOConfig(minibatch_episodes=8, ema=0.0, **CRITIC),
        iterations=9,
        episodes=16,
        learning_rate=1e-3,
        reward=bandit.Holes(1),
    )
    with pytest.raises(ConfigError, match=r"in 11 updates in a row \(faults.max_skipped_steps = 10\)"):
        run.loop.train()


def test_a_short_run_without_any_reward_ends_with_an_error(bandit: Any, tmp_path: Path) -> None:
    config = PPOConfig(minibatch_episodes=8, ema=0.0, **CRITIC)
    run = bandit.make(tmp_path, config, iterations=2, episodes=16, learning_rate=1e-3, reward=bandit.Holes(1))
    with pytest.raises(ConfigError, match=r"none of the run's 32 episodes has a finite reward"):
        run.loop.train()
