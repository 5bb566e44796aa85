"""The learning rate by tokens against the formula, at its corners."""

import math

import pytest

from gpt.errors import ConfigError
from gpt.training.schedule import ScheduleConfig, learning_rate

GPT3 = ScheduleConfig(warmup_tokens=375_000_000, decay_tokens=260_000_000_000, final_fraction=0.1)


@pytest.mark.parametrize(
    ("tokens", "share"),
    [
        (0, 0.0),
        (187_500_000, 0.5),
        (375_000_000, 1.0),
        ((375_000_000 + 260_000_000_000) // 2, 0.55),
        (260_000_000_000, 0.1),
        (300_000_000_000, 0.1),
    ],
)
def test_gpt3_schedule(tokens, share):
    assert math.isclose(learning_rate(GPT3, 6e-5, tokens), 6e-5 * share, rel_tol=1e-9, abs_tol=1e-15)


def test_monotone_before_and_after_the_peak():
    rates = [learning_rate(GPT3, 1.0, tokens) for tokens in range(0, 300_000_000_000, 125_000_000)]
    peak = rates.index(max(rates))
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)


def test_no_warm_up():
    assert learning_rate(ScheduleConfig(warmup_tokens=0, decay_tokens=10), 2.0, 0) == 2.0


@pytest.mark.parametrize(
    ("keys", "shares"),
    [
        ({"shape": "constant"}, {50: 0.5, 100: 1, 10**9: 1}),
        ({"shape": "linear", "decay_tokens": 1100}, {100: 1, 350: 0.775, 600: 0.55, 1100: 0.1, 9999: 0.1}),
        (
            {"shape": "wsd", "decay_tokens": 1100, "cooldown_tokens": 200},
            {50: 0.5, 100: 1, 900: 1, 1000: 0.55, 1100: 0.1, 9999: 0.1},
        ),
        ({"shape": "wsd", "decay_tokens": 1100, "cooldown_tokens": 1000, "final_fraction": 0.0}, {350: 0.75, 1100: 0}),
    ],
)
def test_other_shapes(keys, shares):
    config = ScheduleConfig(warmup_tokens=100, **keys)
    for tokens, share in shares.items():
        assert math.isclose(learning_rate(config, 3e-4, tokens), 3e-4 * share, rel_tol=1e-12, abs_tol=1e-18), tokens


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"warmup_tokens": 5, "decay_tokens": 5}, "schedule.decay_tokens = 5"),
        ({"warmup_tokens": -1, "decay_tokens": 5}, "schedule.warmup_tokens = -1"),
        ({"warmup_tokens": 1, "decay_tokens": 5, "final_fraction": 2.0}, "schedule.final_fraction = 2.0"),
        ({"warmup_tokens": 1}, "schedule.decay_tokens is missing with schedule.shape = 'cosine'"),
        ({"warmup_tokens": 1, "shape": "constant", "decay_tokens": 5}, "schedule.decay_tokens is 5 .* remove it"),
        ({"warmup_tokens": 1, "decay_tokens": 5, "cooldown_tokens": 1}, "schedule.cooldown_tokens is 1 .* remove it"),
        ({"warmup_tokens": 1, "decay_tokens": 5, "shape": "wsd"}, "schedule.cooldown_tokens is missing"),
        (
            {"warmup_tokens": 1, "decay_tokens": 5, "shape": "wsd", "cooldown_tokens": 5},
            "schedule.cooldown_tokens = 5 is invalid: must be from 1 to 4",
        ),
    ],
)
def test_mistakes_name_the_key(keys, message):
    with pytest.raises(ConfigError, match=message):
        ScheduleConfig(**keys)
