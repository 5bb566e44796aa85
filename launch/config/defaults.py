"""Values of a training recipe that follow from others: the learning rate from the model's size, the schedule from the
length of the run."""

from dataclasses import dataclass
from typing import Any

from gpt.errors import ConfigError
from gpt.model.config import ModelConfig
from gpt.model.gpt3_sizes import peak_learning_rate, warmup_tokens
from launch.config import lengths
from launch.config.recipe import MissingKeys, build, convert

RATE_RULE = "rule: the model's parameters"
WARMUP_RULE = "rule: 2% of the decay, at most 375M"
DECAY_RULE = "rule: train.total_tokens"


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
    optimizer["learning_rate"] = peak_learning_rate(model.parameters)
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
            lengths.as_given(
                f"schedule.warmup_tokens = {given} is invalid: must be less than train.total_tokens = {total}, where "
                f"the decay ends. Leave it out, or use a longer run",
                origins,
            )
        )
    if wants_decay:
        schedule["decay_tokens"] = total
        origins["schedule.decay_tokens"] = DECAY_RULE
    if "warmup_tokens" not in schedule:
        end = convert(int, schedule.get("decay_tokens", total), where="schedule.decay_tokens")
        schedule["warmup_tokens"] = max(0, min(warmup_tokens(end), end - 1))
        origins["schedule.warmup_tokens"] = WARMUP_RULE
