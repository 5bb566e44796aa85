"""Plan a mixture: how many tokens and epochs of each corpus a run will read. It opens no file.

The figures are the data order's own counts, so a run of as many samples reads exactly these.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from gpt.data.config import check_names, check_seq_len, check_weight
from gpt.data.order import make_order
from gpt.data.sampling_rules import Windows, too_few_tokens
from gpt.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class PlannedCorpus:
    """The length and the weight of a corpus, which need not exist yet."""

    name: str
    n_tokens: int
    weight: float = 1.0  # any positive scale, as in [data]
    stated_epochs: float | None = None  # as published, shown for comparison

    def __post_init__(self) -> None:
        if not self.name:
            raise ConfigError("a corpus of the mixture has no name; give each its own")
        check_weight(self.name, self.weight)


@dataclass(frozen=True, kw_only=True)
class MixtureConfig:
    """The [mixture] section of a planning recipe."""

    planned_tokens: int
    seq_len: int
    corpora: tuple[PlannedCorpus, ...]
    note: str = ""  # shown below the table

    def __post_init__(self) -> None:
        check_seq_len(self.seq_len)
        if self.planned_tokens < 1:
            raise ConfigError(f"mixture.planned_tokens = {self.planned_tokens} is invalid: must be at least 1")


@dataclass(frozen=True, kw_only=True)
class CorpusPlan:
    """One row of a plan."""

    name: str
    n_tokens: int
    share: float  # weight / sum of the weights
    planned_tokens: float  # share of the run's planned tokens
    samples: int  # sequences of this corpus that the run reads
    realised_tokens: int  # samples * seq_len
    error: float  # realised_tokens / planned_tokens - 1
    epochs: float  # samples / samples of the corpus; at 1.0 each has been read once
    stated_epochs: float | None


@dataclass(frozen=True, kw_only=True)
class MixturePlan:
    """Everything that a run reads, in total and by corpus in the order given."""

    seq_len: int
    planned_tokens: int
    samples: int
    realised_tokens: int
    corpora: tuple[CorpusPlan, ...]

    @property
    def worst(self) -> CorpusPlan:
        """The corpus with the largest relative error."""
        return max(self.corpora, key=lambda row: abs(row.error))

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"largest_error": abs(self.worst.error)}


def plan_mixture(
    corpora: Sequence[PlannedCorpus],
    *,
    seq_len: int,
    planned_tokens: int,
    sizes: Mapping[str, int] | None = None,
    samples: int | None = None,
) -> MixturePlan:
    """Plan how a run of `planned_tokens` reads the corpora.

    `samples`: the exact number of sequences, if the run has whole steps. `sizes`: the samples of each corpus by name;
    None: its windows. Time grows with the number of corpora, not of tokens. ConfigError: no corpus, two of one name, or
    one without a sample.
    """
    if not corpora:
        raise ConfigError("there is no corpus in the mixture; give at least one")
    check_names([(corpus.name, corpus.name) for corpus in corpora], where="the mixture")
    samples = -(-planned_tokens // seq_len) if samples is None else samples
    in_order = sorted(corpora, key=lambda corpus: corpus.name)  # as TrainingData sorts them
    n_samples = [_windows(corpus, seq_len) if sizes is None else sizes[corpus.name] for corpus in in_order]
    names, weights = [corpus.name for corpus in in_order], [corpus.weight for corpus in in_order]
    order = make_order(names, sizes=n_samples, weights=weights, seed=0)  # the counts do not depend on the seed
    counts = dict(zip(names, zip(order.counts(samples), n_samples, strict=True), strict=True))
    total_weight = sum(corpus.weight for corpus in corpora)
    return MixturePlan(
        seq_len=seq_len,
        planned_tokens=planned_tokens,
        samples=samples,
        realised_tokens=samples * seq_len,
        corpora=tuple(
            _row(
                corpus, *counts[corpus.name], total_weight=total_weight, seq_len=seq_len, planned_tokens=planned_tokens
            )
            for corpus in corpora
        ),
    )


def _windows(corpus: PlannedCorpus, seq_len: int) -> int:
    """The samples of a corpus by window. ConfigError if there is none."""
    found = Windows(seq_len).count_in(corpus.n_tokens)
    if found == 0:
        raise too_few_tokens(f"corpus '{corpus.name}'", n_tokens=corpus.n_tokens, seq_len=seq_len)
    return found


def _row(
    corpus: PlannedCorpus, read: int, size: int, *, total_weight: float, seq_len: int, planned_tokens: int
) -> CorpusPlan:
    """The plan of one corpus. `read`: samples that the run reads; `size`: samples of the corpus."""
    planned, realised = planned_tokens * corpus.weight / total_weight, read * seq_len
    return CorpusPlan(
        name=corpus.name,
        n_tokens=corpus.n_tokens,
        share=corpus.weight / total_weight,
        planned_tokens=planned,
        samples=read,
        realised_tokens=realised,
        error=realised / planned - 1,
        epochs=read / size,
        stated_epochs=corpus.stated_epochs,
    )
