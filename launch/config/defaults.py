"""Values of a training recipe that follow from others: the learning rate from the model's size, the schedule from the
length of the run."""

import math
from dataclasses import dataclass
from typing import Any

from gpt.errors import ConfigError
from gpt.model.config import ModelConfig
from launch.config import lengths
from launch.config.recipe import MissingKeys, build, convert

# Table 2.1 of arXiv 2005.14165: parameters and learning rate.
GPT3_RATES = (
    (125e6, 6.0e-4),
    (350e6, 3.0e-4),
    (760e6, 2.5e-4),
    (1.3e9, 2.0e-4),
    (2.7e9, 1.6e-4),
    (6.7e9, 1.2e-4),
    (13e9, 1.0e-4),
    (175e9, 0.6e-4),
)
SMALL_SLOPE = 1.395e-4  # arXiv 2001.08361, appendix D.6: the rate falls by this per unit of ln(parameters)
GPT3_WARMUP_TOKENS = 375_000_000
WARMUP_SHARE = 0.05  # of the run; at most GPT-3's tokens

RATE_RULE = "rule: the model's parameters"
WARMUP_RULE = "rule: 5% of the decay, at most 375M"
DECAY_RULE = "rule: train.total_tokens"


def learning_rate_for(parameters: int) -> float:
    """The peak learning rate of AdamW for a model that starts from random weights, to two digits.

    The eight sizes of GPT-3 have those of table 2.1 (arXiv 2005.14165). Between them ln(rate) is linear in
    ln(parameters). Below the smallest the rate rises as Kaplan et al. found it to (arXiv 2001.08361, appendix D.6);
    above the largest it stays.
    """
    (smallest, highest), (largest, lowest) = GPT3_RATES[0], GPT3_RATES[-1]
    if parameters >= largest:
        return lowest
    if parameters <= smallest:
        return _two_digits(highest + SMALL_SLOPE * math.log(smallest / parameters))
    below = max(i for i, (size, _) in enumerate(GPT3_RATES) if size <= parameters)
    (n, rate), (next_n, next_rate) = GPT3_RATES[below : below + 2]
    share = math.log(parameters / n) / math.log(next_n / n)
    return _two_digits(rate * (next_rate / rate) ** share)


def warmup_tokens_for(decay_tokens: int) -> int:
    """The tokens of the warm-up for a decay that ends at `decay_tokens`: 5% of it, at most GPT-3's 375 million."""
    return min(GPT3_WARMUP_TOKENS, round(WARMUP_SHARE * decay_tokens))


@dataclass(frozen=True)
class Resolved:
    """A training recipe's table with all lengths in tokens and the values of the rules.

    `origins`: dotted key -> the origin of a value that the recipe does not have in this form. `waiting`: keys whose
    rule needs a key that is missing.
    """

    table: dict[str, Any]
    origins: dict[str, str]
    waiting: frozenset[str]


def resolve(table: dict[str, Any]) -> Resolved:
    """Bring all lengths into tokens, then fill in the keys that have a rule. ConfigError: a value is invalid."""
    filled, origins = lengths.to_tokens(table)
    waiting = set[str]()
    for section in ("optimizer", "schedule"):
        filled.setdefault(section, {})
    if isinstance(filled["optimizer"], dict) and "learning_rate" not in filled["optimizer"]:
        _fill_rate(filled, origins, waiting)
    if isinstance(filled["schedule"], dict):
        _fill_schedule(filled, origins, waiting)
    return Resolved(filled, origins, frozenset(waiting))


def _fill_rate(table: dict[str, Any], origins: dict[str, str], waiting: set[str]) -> None:
    """The rule does not hold for weights that were trained before, nor for another optimizer than AdamW."""
    run, optimizer = table.get("run", {}), table["optimizer"]
    if (isinstance(run, dict) and "start_from" in run) or optimizer.get("kind", "adamw") != "adamw":
        return
    try:
        model = build(ModelConfig, table.get("model", {}), where="model")
    except MissingKeys:
        waiting.add("optimizer.learning_rate")
        return
    optimizer["learning_rate"] = learning_rate_for(model.parameters)
    origins["optimizer.learning_rate"] = RATE_RULE


def _fill_schedule(table: dict[str, Any], origins: dict[str, str], waiting: set[str]) -> None:
    schedule, train = table["schedule"], table.get("train", {})
    wants_decay = "decay_tokens" not in schedule and schedule.get("shape") != "constant"
    if "warmup_tokens" in schedule and not wants_decay:
        return
    if not isinstance(train, dict) or "total_tokens" not in train:
        schedule.pop("warmup_tokens", None)  # [schedule] cannot be checked before the total is there
        waiting.add("schedule.warmup_tokens")
        return
    total = convert(int, train["total_tokens"], where="train.total_tokens")
    if total < 1:
        raise ConfigError(f"train.total_tokens = {total} is invalid: must be at least 1")
    given = convert(int, schedule.get("warmup_tokens", 0), where="schedule.warmup_tokens")
    if wants_decay and given >= total:
        raise ConfigError(
            f"schedule.warmup_tokens = {given} is invalid: must be less than train.total_tokens = {total}, where the "
            f"decay ends. Use schedule.warmup_tokens = {warmup_tokens_for(total)}, or a longer run"
        )
    if wants_decay:
        schedule["decay_tokens"] = total
        origins["schedule.decay_tokens"] = DECAY_RULE
    if "warmup_tokens" not in schedule:
        end = convert(int, schedule.get("decay_tokens", total), where="schedule.decay_tokens")
        schedule["warmup_tokens"] = warmup_tokens_for(end)
        origins["schedule.warmup_tokens"] = WARMUP_RULE


def _two_digits(rate: float) -> float:
    return float(f"{rate:.1e}")
