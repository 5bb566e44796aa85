"""The batch ramp against a step-by-step count, at its corners and on GPT-3's own numbers."""

import pytest

from gpt.errors import ConfigError
from gpt.training.schedule import BatchRamp, constant_batch


def counted(ramp: BatchRamp, n_steps: int) -> list[tuple[int, int]]:
    """(tokens before, tokens of) each step, by the line itself."""
    rows, seen = [], 0
    grows = ramp.full_tokens - ramp.initial_tokens
    for _ in range(n_steps):
        size = ramp.full_tokens
        if seen < ramp.ramp_tokens:
            size = (
                ramp.initial_tokens + grows * seen // ramp.ramp_tokens // ramp.increment_tokens * ramp.increment_tokens
            )
        rows.append((seen, size))
        seen += size
    return rows


@pytest.mark.parametrize(
    "ramp",
    [
        BatchRamp(full_tokens=64, initial_tokens=8, increment_tokens=8, ramp_tokens=1000),
        BatchRamp(full_tokens=64, initial_tokens=8, increment_tokens=4, ramp_tokens=40),  # sizes are jumped over
        BatchRamp(full_tokens=64, initial_tokens=64, increment_tokens=64, ramp_tokens=500),
        BatchRamp(full_tokens=60, initial_tokens=20, increment_tokens=40, ramp_tokens=77),
        constant_batch(17),
    ],
)
def test_every_step_lies_on_the_line(ramp):
    rows = counted(ramp, 300)
    assert [(ramp.tokens_seen(step), ramp.step_tokens(step)) for step in range(300)] == rows
    ends = [0, *(seen + size for seen, size in rows)]
    for tokens in range(0, ends[250], 7):
        assert ramp.steps_to(tokens) == next(step for step, end in enumerate(ends) if end >= tokens)
    assert ramp.step_tokens(10**12) == ramp.full_tokens


def test_gpt3_175b():
    """32k to 3.2M tokens over the first 12 billion of 300 billion tokens."""
    ramp = BatchRamp(full_tokens=3_276_800, initial_tokens=32_768, increment_tokens=32_768, ramp_tokens=12 * 10**9)
    levels = list(ramp.levels())
    assert [level.step_tokens for level in levels] == [32_768 * k for k in range(1, 101)]
    assert 12 * 10**9 <= levels[-1].tokens_before < 12 * 10**9 + 3_276_800
    mean = levels[-1].tokens_before / levels[-1].first_step
    assert 600_000 < mean < 700_000  # of a line over tokens: (b - a) / ln(b / a)
    assert ramp.tokens_seen(ramp.steps_to(300 * 10**9)) - 300 * 10**9 < 3_276_800


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ((64, 0, 8, 10), "batch.ramp_initial_tokens = 0 is invalid: must be from 1 to batch.global_batch_tokens = 64"),
        ((64, 65, 1, 10), "batch.ramp_initial_tokens = 65"),
        (
            (64, 8, 9, 10),
            "ramp_increment_tokens = 9 is invalid: must divide the 56 tokens .* batch.global_batch_tokens = 62 would",
        ),
        ((64, 8, 0, 10), "batch.ramp_increment_tokens = 0"),
        ((64, 8, 8, 0), "batch.ramp_tokens = 0 is invalid: must be a positive"),
    ],
)
def test_mistakes_name_the_key(keys, message):
    with pytest.raises(ConfigError, match=message):
        BatchRamp(*keys)
