"""The batch ramp that the [batch] section describes."""

import pytest

from gpt.errors import ConfigError
from parallel.layout.config import BatchConfig


def test_without_a_ramp_all_steps_have_one_size():
    assert [level.step_tokens for level in BatchConfig(1, 512).ramp.levels()] == [512]


def test_the_ramp_grows_by_its_initial_size_unless_an_increment_is_given():
    ramped = BatchConfig(1, 512, ramp_tokens=2048, ramp_initial_tokens=128)
    assert [level.step_tokens for level in ramped.ramp.levels()] == [128, 256, 384, 512]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"ramp_initial_tokens": 256}, r"batch.ramp_initial_tokens = 256 without batch.ramp_tokens"),
        ({"ramp_increment_tokens": 64}, r"batch.ramp_increment_tokens = 64 without batch.ramp_tokens"),
        ({"ramp_tokens": 2048}, r"batch.ramp_tokens = 2048 is invalid: .*Set batch.ramp_initial_tokens"),
    ],
)
def test_keys_of_the_ramp_belong_together(keys, message):
    with pytest.raises(ConfigError, match=message):
        _ = BatchConfig(1, 512, **keys).ramp
