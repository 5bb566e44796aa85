"""Lengths of a training recipe in steps or epochs. They become tokens when the recipe is read, before anything else."""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from gpt.data.config import DataConfig
from gpt.errors import ConfigError
from gpt.training.schedule import BatchRamp
from launch.config.corpora import naming_the_maker
from launch.config.recipe import MissingKeys, build, convert
from launch.config.settings import Setting
from parallel.layout.config import BatchConfig

TOTAL, EPOCHS, EPOCHS_OF = "train.total_tokens", "train.epochs", "train.epochs_of"
_POINTS = (TOTAL, "schedule.warmup_tokens", "schedule.decay_tokens")  # counted from the start of training
_SPANS = (
    "schedule.cooldown_tokens",
    "train.evaluate_every_tokens",
    "train.sample_every_tokens",
    "train.few_shot_every_tokens",
    "checkpoint.every_tokens",
    "checkpoint.keep_every_tokens",
    "checkpoint.fast_every_tokens",
)
# Key in another unit -> key in tokens.
IN_TOKENS: Mapping[str, str] = MappingProxyType(
    {f"{key.removesuffix('_tokens')}_steps": key for key in (*_POINTS, *_SPANS)} | {EPOCHS: TOTAL}
)


def settings() -> list[Setting]:
    """The keys in steps and epochs, as `triaxial config --keys` lists them."""
    return [
        Setting(
            key,
            "a number" if key == EPOCHS else "a whole number",
            "",
            f"`{tokens}` in epochs: 1 is every sample of all corpora of `data.train` once."
            if key == EPOCHS
            else f"`{tokens}` in optimizer steps.",
        )
        for key, tokens in IN_TOKENS.items()
    ] + [
        Setting(
            EPOCHS_OF,
            "text",
            "",
            f"Name of a corpus of `data.train`: `{EPOCHS}` counts it alone, and others are read by their weights.",
        )
    ]


def without_replaced(table: dict[str, Any], newer: dict[str, Any]) -> dict[str, Any]:
    """The recipe's table without the lengths that `newer`, such as the command line, gives in another unit."""
    result = dict(table)
    for length in set(IN_TOKENS.values()):
        ways = _ways(length)
        if not any(_get(newer, way) is not None for way in ways):
            continue
        for section, _, name in (way.partition(".") for way in ways):
            if isinstance(result.get(section), dict):
                result[section] = {key: value for key, value in result[section].items() if key != name}
    return result


def to_tokens(table: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The recipe's table with all lengths in tokens, and the origin of those that were in another unit.

    An epoch needs the recipe's token files. A length that needs a key which is missing is left out. ConfigError: a
    length is invalid, or given in two units.
    """
    result = {name: dict(section) if isinstance(section, dict) else section for name, section in table.items()}
    origins = {}
    if _get(result, EPOCHS_OF) is not None:
        if _get(result, EPOCHS) is None:
            raise ConfigError(f"{EPOCHS_OF} needs {EPOCHS}: it names the corpus that {EPOCHS} counts")
        del result["train"][EPOCHS_OF.partition(".")[2]]
    for key, tokens_key in IN_TOKENS.items():
        value = _get(result, key)
        if value is None:
            continue
        ways = [way for way in _ways(tokens_key) if _get(table, way) is not None]
        if len(ways) > 1:
            raise ConfigError(f"{' and '.join(ways)} are invalid together: both say one length. Keep one of them")
        section, _, name = key.partition(".")
        del result[section][name]
        try:
            tokens = _epochs(table, value) if key == EPOCHS else _steps(table, key, value)
        except MissingKeys:  # reading the whole recipe names these keys with all others that are missing
            continue
        result[section][tokens_key.partition(".")[2]] = tokens
        origins[tokens_key] = f"{key} = {value}"
    return result, origins


def as_given(message: str, origins: Mapping[str, str]) -> str:
    """Add the recipe's own key and value to an error's lengths in tokens that the recipe has in steps or epochs."""
    for key, origin in origins.items():
        if origin.partition(" = ")[0] in IN_TOKENS:
            message = re.sub(rf"(?<![\w.]){re.escape(key)} = -?\d(?:[\d,]*\d)?", rf"\g<0> ({origin})", message, count=1)
    return message


def _ways(length: str) -> list[str]:
    """The keys that say one length."""
    return [length, *(key for key, tokens in IN_TOKENS.items() if tokens == length)]


def _get(table: dict[str, Any], key: str) -> Any:
    section, _, name = key.partition(".")
    values = table.get(section)
    return values.get(name) if isinstance(values, dict) else None


def _steps(table: dict[str, Any], key: str, value: Any) -> int:
    steps = convert(int, value, where=key)
    if steps < (0 if key == "schedule.warmup_steps" else 1):
        raise ConfigError(f"{key} = {steps} is invalid: must be at least {int(key != 'schedule.warmup_steps')}")
    config = build(BatchConfig, table.get("batch", {}), where="batch")
    tokens_key = IN_TOKENS[key]
    if config.ramp_tokens is not None and tokens_key in _SPANS:
        raise ConfigError(f"{key} = {steps} is invalid with batch.ramp_tokens: steps differ in size. Use {tokens_key}")
    batch: BatchRamp = config.ramp
    return batch.tokens_seen(steps)


def _epochs(table: dict[str, Any], value: Any) -> int:
    from gpt.data.sampling import CorpusFiles  # not needed by the recipes that count tokens
    from gpt.data.sampling_rules import sampling_of

    epochs: float = convert(float, value, where=EPOCHS)
    if not 0 < epochs < float("inf"):
        raise ConfigError(f"{EPOCHS} = {epochs:g} is invalid: must be a number above 0")
    data = build(DataConfig, table.get("data", {}), where="data")
    corpora, share = data.train, 1.0
    if (name := _get(table, EPOCHS_OF)) is not None:
        corpora = tuple(corpus for corpus in data.train if corpus.name == name)
        if not corpora:
            names = " or ".join(f"'{corpus.name}'" for corpus in data.train)
            raise ConfigError(f"{EPOCHS_OF} = {name!r} is invalid: data.train has no such corpus. Use {names}")
        share = corpora[0].weight / sum(corpus.weight for corpus in data.train)
    with naming_the_maker():
        samples = sum(CorpusFiles(corpus, sampling_of(data, corpus)).n_samples for corpus in corpora)
    return max(1, round(epochs * samples / share)) * data.seq_len
