"""The shipped recipes of PPO have the settings of InstructGPT, and fit the layouts that they name."""

import pytest

from gpt.post_training.ppo.config import PPOConfig
from launch.config.run_config import layout_of, read_run_config
from launch.post_training.checks import check_batch, lay_out


@pytest.mark.parametrize(("name", "ranks", "value_rate"), [("ppo_1.3b", 8, 9e-6), ("ppo_175b", 64, 5e-6)])
def test_the_settings_are_the_papers(name: str, ranks: int, value_rate: float) -> None:
    config = read_run_config(name, [])
    objective = config.objective
    assert isinstance(objective, PPOConfig)
    layout = layout_of(config, ranks)
    assert check_batch(config, objective, data=layout.data) == 512
    iterations = config.train.steps(config.batch.ramp)
    assert iterations * 512 == 256_000
    assert config.schedule.warmup_tokens == 10 * 512 * 2048
    assert (objective.beta, objective.clip, objective.ema, objective.inner_epochs) == (0.02, 0.2, 0.992, 1)
    assert (objective.ptx_gamma, objective.ptx_per_episode, objective.minibatch_episodes) == (27.8, 8, 64)
    assert (objective.value_learning_rate, objective.temperature, objective.discount) == (value_rate, 1.0, 1.0)
    assert lay_out(config, config.model, ranks).split == layout.split


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_the_small_recipe_fits_a_few_ranks(ranks: int) -> None:
    config = read_run_config("ppo_smollm2", [])
    assert isinstance(config.objective, PPOConfig)
    assert check_batch(config, config.objective, data=layout_of(config, ranks).data) == 64
