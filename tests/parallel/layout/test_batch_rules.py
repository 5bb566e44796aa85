"""Which batch sizes divide into micro-batches, and which error the others give."""

import pytest

from gpt.errors import ConfigError
from parallel.layout.batch_rules import micro_batches_per_step
from parallel.layout.config import BatchConfig, ParallelConfig


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"tokens": 5000},
            "batch.global_batch_tokens = 5000 is invalid: must be a multiple of data.seq_len = 2048. Use 4096 or 6144",
        ),
        (
            {"tokens": 100},
            "batch.global_batch_tokens = 100 is invalid: must be a multiple of data.seq_len = 2048. Use 2048$",
        ),
        (
            {"micro": 5},
            "is 40 sequences, which does not divide the global batch of 256 sequences.*Use .* = 4 or 8",
        ),
        ({"micro": 0}, "batch.micro_batch_size = 0 is invalid: must be at least 1"),
        ({"world_size": 6, "micro": 4, "pipeline": 1}, "Use batch.global_batch_tokens = 491520 or 540672"),
    ],
)
def test_errors_name_key_value_rule_and_nearest_values(resolve, keys, message):
    with pytest.raises(ConfigError, match=message):
        resolve(**keys)


def test_the_values_that_errors_suggest_are_valid(resolve):
    for micro in (4, 8):
        assert resolve(micro=micro).micro_batches == 256 // (8 * micro)


def test_every_size_of_a_batch_ramp_must_divide():
    """4 sequences at first, 8 at the end, on 2 data ranks."""
    keys = {"ramp_tokens": 2048, "ramp_initial_tokens": 256, "ramp_increment_tokens": 64}
    for micro, message in (
        (1, "is 2 sequences, which does not divide the global batch of 5 sequences \\(320 tokens\\)"),
        (3, "is 6 sequences, which does not divide the global batch of 4 sequences \\(256 tokens\\)"),
    ):
        with pytest.raises(ConfigError, match=message):
            micro_batches_per_step(ParallelConfig(data=2), BatchConfig(micro, 512, **keys), seq_len=64, data=2)
    even = BatchConfig(1, 512, ramp_tokens=2048, ramp_initial_tokens=256, ramp_increment_tokens=128)
    assert micro_batches_per_step(ParallelConfig(data=2), even, seq_len=64, data=2) == 4
