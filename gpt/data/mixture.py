"""What a mixture of corpora comes to before anything is read: tokens and epochs of each; it opens no file.

The figures are the data order's own counts, not estimates, so a run that reads as many samples reads these.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from gpt.data.config import check_names, check_seq_len, check_weight
from gpt.data.order import make_order
from gpt.data.sampling import SamplingRule, Windows, count_samples
from gpt.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class PlannedCorpus:
    """A corpus that need not exist yet, by its length and its share."""

    name: str
    n_tokens: int
    n_documents: int = 0  # needed where samples are documents
    weight: float = 1.0  # any positive scale, as in [data]
    stated_epochs: float | None = None  # what a source says, to be shown beside what comes out

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
            raise ConfigError(f"mixture.planned_tokens = {self.planned_tokens} must be at least 1")


@dataclass(frozen=True, kw_only=True)
class CorpusPlan:
    """One row of a plan."""

    name: str
    n_tokens: int
    share: float  # weight / sum of the weights
    planned_tokens: float  # share of what is planned
    samples: int  # sequences of this corpus that the run reads
    realised_tokens: int  # samples * seq_len
    error: float  # realised_tokens / planned_tokens - 1
    epochs: float  # samples / samples of the corpus; at 1.0 each has been read once
    stated_epochs: float | None


@dataclass(frozen=True, kw_only=True)
class MixturePlan:
    """A run's reading, in total and by corpus in the order given."""

    seq_len: int
    planned_tokens: int
    samples: int
    realised_tokens: int
    corpora: tuple[CorpusPlan, ...]

    @property
    def worst(self) -> CorpusPlan:
        """The corpus furthest from its plan."""
        return max(self.corpora, key=lambda row: abs(row.error))

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"largest_error": abs(self.worst.error)}


def plan_mixture(
    corpora: Sequence[PlannedCorpus],
    *,
    seq_len: int,
    planned_tokens: int,
    sampling: SamplingRule | None = None,
    samples: int | None = None,
) -> MixturePlan:
    """How a run of `planned_tokens` reads the corpora; of exactly `samples` sequences where a run has whole steps.

    The work is a few steps a corpus whatever the tokens. ConfigError: no corpus, two of one name, one shorter than a
    sequence.
    """
    if not corpora:
        raise ConfigError("there is no corpus in the mixture; give at least one")
    check_names([(corpus.name, corpus.name) for corpus in corpora], where="the mixture")
    samples = -(-planned_tokens // seq_len) if samples is None else samples
    in_order = sorted(corpora, key=lambda corpus: corpus.name)  # as TrainingData puts them
    sizes = {
        c.name: count_samples(
            sampling or Windows(seq_len), n_tokens=c.n_tokens, n_documents=c.n_documents, called=f"corpus '{c.name}'"
        )
        for c in in_order
    }
    order = make_order(
        [corpus.name for corpus in in_order],
        sizes=[sizes[corpus.name] for corpus in in_order],
        weights=[corpus.weight for corpus in in_order],
        seed=0,  # which samples come is its affair, how many is not
    )
    counts = {corpus.name: count for corpus, count in zip(in_order, order.counts(samples), strict=True)}
    total_weight = sum(corpus.weight for corpus in corpora)
    rows = []
    for corpus in corpora:
        planned, realised = planned_tokens * corpus.weight / total_weight, counts[corpus.name] * seq_len
        rows.append(
            CorpusPlan(
                name=corpus.name,
                n_tokens=corpus.n_tokens,
                share=corpus.weight / total_weight,
                planned_tokens=planned,
                samples=counts[corpus.name],
                realised_tokens=realised,
                error=realised / planned - 1,
                epochs=counts[corpus.name] / sizes[corpus.name],
                stated_epochs=corpus.stated_epochs,
            )
        )
    return MixturePlan(
        seq_len=seq_len,
        planned_tokens=planned_tokens,
        samples=samples,
        realised_tokens=samples * seq_len,
        corpora=tuple(rows),
    )
