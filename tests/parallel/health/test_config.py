"""The [health] section of a recipe."""

import pytest

from gpt.errors import ConfigError
from parallel.health.config import HealthConfig


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"hang_timeout_s": 0.5}, "health.hang_timeout_s = 0.5 is invalid: must be at least 1 second"),
        (
            {"saving_timeout_s": 5},
            "health.saving_timeout_s = 5 is invalid: must be at least health.hang_timeout_s = 300",
        ),
        (
            {"first_step_timeout_s": 5},
            "health.first_step_timeout_s = 5 is invalid: must be at least health.hang_timeout_s = 300",
        ),
        (
            {"replica_check_every_steps": -1},
            "replica_check_every_steps = -1 is invalid: must be at least 1, or 0 for never",
        ),
    ],
)
def test_errors_name_key_value_and_rule(keys, message):
    with pytest.raises(ConfigError, match=message):
        HealthConfig(**keys)


def test_the_collective_timeout_must_be_above_the_hang_timeout():
    with pytest.raises(ConfigError, match=r"Use run.collective_timeout_s = 600, or health.watchdog = false"):
        HealthConfig().check_collective_timeout(300)
    HealthConfig().check_collective_timeout(600)
    HealthConfig(watchdog=False).check_collective_timeout(10)
