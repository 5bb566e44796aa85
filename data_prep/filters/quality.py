"""Apply the quality rule sets that the recipe names, in its order."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from data_prep.documents.counts import Tally
from data_prep.documents.shards import Document, read_shard, write_shard
from data_prep.documents.traces import write_trace
from data_prep.documents.words import TextView
from data_prep.execution.tasks import Stage, TaskResult
from data_prep.filters import c4
from data_prep.filters.c4 import C4Config
from data_prep.filters.fineweb import FineWebConfig, fineweb_reason
from data_prep.filters.gopher import (
    GopherQualityConfig,
    GopherRepetitionConfig,
    Reason,
    quality_reason,
    repetition_reason,
)
from gpt.errors import ConfigError

RuleSet = Literal["gopher_quality", "gopher_repetition", "c4", "fineweb"]


@dataclass(frozen=True)
class QualityConfig:
    """The [quality] section of a recipe. The rule sets were made for English web prose."""

    rules: tuple[RuleSet, ...] = ("gopher_repetition", "gopher_quality", "c4", "fineweb")
    """Rule sets to apply, in order. An empty list keeps every document."""
    gopher_quality: GopherQualityConfig = field(default_factory=GopherQualityConfig)
    gopher_repetition: GopherRepetitionConfig = field(default_factory=GopherRepetitionConfig)
    c4: C4Config = field(default_factory=C4Config)
    fineweb: FineWebConfig = field(default_factory=FineWebConfig)
    max_characters: int = 5_000_000
    """Texts of more characters are dropped as `too_large`, since measuring takes up to 80 bytes per character."""

    def __post_init__(self) -> None:
        if self.max_characters < 1:
            raise ConfigError(f"quality.max_characters = {self.max_characters} is invalid: must be at least 1")
        if len(set(self.rules)) != len(self.rules):
            raise ConfigError(f"quality.rules = {list(self.rules)} is invalid: a rule set is named twice")


def apply_rules(config: QualityConfig, inputs: tuple[Path, ...], outputs: tuple[Path, ...]) -> TaskResult:
    """Stage function: a shard to (shard, trace); one row of counts for each rule set."""
    with write_shard(outputs[0]) as write, write_trace(outputs[1]) as trace:
        tallies = {rule: Tally(rule, trace) for rule in config.rules}
        for document in read_shard(inputs[0]):
            text = filter_text(document, config, tallies)
            if text is not None:
                write(document if text is document.text else Document(document.id, text, document.metadata))
    return TaskResult([tally.counts() for tally in tallies.values()])


def filter_text(document: Document, config: QualityConfig, tallies: dict[RuleSet, Tally]) -> str | None:
    """Return the document's text after all rules (C4 removes lines), or None if one of them drops it."""
    view, n_bytes = TextView(document.text), document.n_bytes
    if len(document.text) > config.max_characters:
        tallies[config.rules[0]].drop("too_large", n_bytes, document.id, detail=f"{len(document.text)} characters")
        return None
    for rule in config.rules:
        before, n_bytes_before = view, n_bytes
        view, found = apply_rule_set(view, rule, config)
        if found is not None:
            reason, measured = found
            tallies[rule].drop(reason, n_bytes, document.id, detail=f"{measured:.4g}")
            return None
        if view is not before:
            n_bytes = len(view.text.encode())
        tallies[rule].keep(n_bytes_before, n_bytes)
    return view.text


def apply_rule_set(view: TextView, rule: RuleSet, config: QualityConfig) -> tuple[TextView, Reason | None]:
    """Return (the text after one rule set, the rule that drops it and the measured value, or None to keep it)."""
    if rule == "gopher_quality":
        return view, quality_reason(view, config.gopher_quality)
    if rule == "gopher_repetition":
        return view, repetition_reason(view, config.gopher_repetition)
    if rule == "fineweb":
        return view, fineweb_reason(view, config.fineweb)
    return c4.clean(view, config.c4)


QUALITY = Stage("quality", apply_rules)
