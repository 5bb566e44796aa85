"""Apply the quality rule sets that the recipe names, in its order."""

from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Literal

from data_prep.documents.counts import Tally
from data_prep.documents.quarantine import Quarantine
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
    with (
        write_shard(outputs[0]) as write,
        write_trace(outputs[1]) as trace,
        Quarantine("quality", inputs, outputs) as quarantine,
    ):
        tallies = {rule: Tally(rule, trace) for rule in config.rules}
        first = tallies[config.rules[0]]
        judged = quarantine.each(read_shard(inputs[0]), lambda document: judge(document, config), first)
        for document, verdict in judged:
            text = verdict.count(tallies, document)
            if text is not None:
                write(document if text is document.text else Document(document.id, text, document.metadata))
    return TaskResult([tally.counts() for tally in tallies.values()])


@dataclass(frozen=True)
class Judgement:
    """The result of the rule sets for a text: its bytes before each and after the last, and its text at the end.

    `reason` and `detail`: those of the last of these sets, which drops it; None if it is kept.
    """

    n_bytes: tuple[int, ...]
    text: str
    reason: str | None = None
    detail: str = ""

    def count(self, tallies: dict[RuleSet, Tally], document: Document) -> str | None:
        """Count the document in every rule set; return its text, or None if it is dropped."""
        sizes = pairwise(self.n_bytes)
        for tally, (before, after) in zip(tallies.values(), sizes, strict=False):
            tally.keep(before, after)
        if self.reason is None:
            return self.text
        last = list(tallies.values())[len(self.n_bytes) - 1]
        last.drop(self.reason, self.n_bytes[-1], document.id, detail=self.detail)
        return None


def judge(document: Document, config: QualityConfig) -> Judgement:
    """Apply the rule sets to a text, until one drops it; C4 removes lines."""
    view, n_bytes = TextView(document.text), [document.n_bytes]
    if len(document.text) > config.max_characters:
        return Judgement(tuple(n_bytes), view.text, "too_large", f"{len(document.text)} characters")
    for rule in config.rules:
        before = view
        view, found = apply_rule_set(view, rule, config)
        if found is not None:
            reason, measured = found
            return Judgement(tuple(n_bytes), view.text, reason, f"{measured:.4g}")
        n_bytes.append(n_bytes[-1] if view is before else len(view.text.encode()))
    return Judgement(tuple(n_bytes), document.text if view.text == document.text else view.text)


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
