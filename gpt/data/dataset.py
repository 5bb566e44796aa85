"""Token files as training samples in a reproducible order, and as validation windows in file order; it keeps no state.

Position n of a run names one sample of seq_len + 1 tokens (inputs and, one to the right, targets). The number of
samples consumed is all that a checkpoint needs to go on: gpt/data/order.py computes the rest. It never imports torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt.data.order import ORDER_VERSION, Ints, make_order
from gpt.data.skipped import SkippedData, check_skip
from gpt.errors import ConfigError
from gpt.token_files.checksums import DamagedTokens
from gpt.token_files.corpus import open_tokens
from gpt.token_files.files import TokenFile

Tokens = NDArray[np.int64]


class DamagedSamples(DamagedTokens):
    """Samples that cannot be read: `rows` of what was asked for, each with what is wrong."""

    def __init__(self, rows: Mapping[int, str]) -> None:
        first, *more = dict.fromkeys(rows.values())
        super().__init__(f"{first}. Copy it again" + (f" ({len(more)} more blocks are damaged)" if more else ""))
        self.rows = rows


@dataclass(frozen=True)
class CorpusConfig:
    """One pair of token files and its share of the samples."""

    path: str  # without .bin or .idx
    weight: float = 1.0  # any positive scale; the mixture uses weight / sum of weights
    name: str = ""  # "" = the last part of the path; it keys the order, so give one before moving files

    def __post_init__(self) -> None:
        if not self.path:
            raise ConfigError("the path of a corpus is empty; give the token file's path without .bin or .idx")
        if self.path.endswith((".bin", ".idx")):
            raise ConfigError(
                f"path = '{self.path}': leave out the ending; it stands for both files: '{self.path[:-4]}'"
            )
        if not self.name:
            object.__setattr__(self, "name", Path(self.path).name)
        check_weight(self.name, self.weight)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What a run reads: the [data] section of a recipe."""

    tokenizer: str
    train: tuple[CorpusConfig, ...]
    validation: tuple[CorpusConfig, ...] = ()
    seq_len: int
    skip: tuple[tuple[int, ...], ...] = ()  # positions of the data's order to leave out: [[first, stop], ...]

    def __post_init__(self) -> None:
        check_seq_len(self.seq_len)
        check_skip(self.skip)
        check_names([(corpus.name, corpus.path) for corpus in self.train], where="data.train")
        check_names([(corpus.name, corpus.path) for corpus in self.validation], where="data.validation")


@dataclass(frozen=True)
class Windows:
    """Sample i of a file is window i of its token stream: seq_len + 1 tokens, neighbours share one, documents run on.

    The one rule of sampling so far (GPT-3, appendix B: full sequences, documents packed). Another rule, such as
    "sample i is document i", is another class with these two methods; the order knows samples by number only.
    """

    seq_len: int

    def count(self, n_tokens: int) -> int:
        """Whole windows in a stream of so many tokens; the last n_tokens - 1 - count * seq_len of them are in none."""
        return max(0, (n_tokens - 1) // self.seq_len)

    def span(self, sample: int) -> tuple[int, int]:
        """First token and one past the last token of a sample, as positions in the file."""
        start = sample * self.seq_len
        return start, start + self.seq_len + 1


@dataclass(frozen=True)
class DocumentSpan:
    """The part of one document that lies in a sample."""

    document: int  # its number in the token file, from 0
    offset_tokens: int  # where in the document the part begins
    n_tokens: int


@dataclass(frozen=True)
class Location:
    """Where a position of the run reads."""

    corpus: str
    prefix: Path
    epoch: int  # 0 for the first pass
    window: int
    first_token: int  # position in the file
    documents: tuple[DocumentSpan, ...]  # in the order read; their n_tokens add up to seq_len + 1


class TrainingData:
    """Mixed corpora in training order. Every answer depends on (arguments, position) alone, on every rank alike.

    Corpora are put in order of their names, so the order in a recipe changes nothing. Memory and start-up do not grow
    with the number of tokens. ConfigError: a corpus shorter than one window, and what TokenFile finds wrong.
    """

    def __init__(self, corpora: Sequence[CorpusConfig], *, seq_len: int, seed: int, vocab_size: int) -> None:
        check_seq_len(seq_len)
        check_names([(corpus.name, corpus.path) for corpus in corpora], where="train")
        if not corpora:
            raise ConfigError("there is no corpus to train on; give at least one in data.train")
        self.corpora = sorted(corpora, key=lambda corpus: corpus.name)
        self.seq_len = seq_len
        self.seed = seed
        self.vocab_size = vocab_size
        self.sampling = Windows(seq_len)
        self.files = [open_tokens(Path(corpus.path)) for corpus in self.corpora]
        self.n_windows = [
            count_samples(self.sampling, file.n_tokens, called=f"{file.prefix}.bin") for file in self.files
        ]
        self.order = make_order(
            [corpus.name for corpus in self.corpora],
            sizes=self.n_windows,
            weights=[corpus.weight for corpus in self.corpora],
            seed=seed,
        )

    def batch(self, positions: NDArray[Any]) -> Tokens:
        """The samples at the positions (n,) of the run, as token ids (n, seq_len + 1).

        DamagedSamples: parts of the files that are not what was written. ConfigError: an id that the vocabulary does
        not have.
        """
        return _read(self._spans(positions), seq_len=self.seq_len, vocab_size=self.vocab_size)

    def announce(self, positions: NDArray[Any]) -> None:
        """Have the system fetch the samples at the positions (n,) in the background, for a later `batch` of them."""
        for file, start, stop in self._spans(positions):
            file.announce(start, stop)

    def _spans(self, positions: NDArray[Any]) -> list[tuple[TokenFile, int, int]]:
        corpus, _, sample = self.order.lookup(positions)
        return [(self.files[k], *self.sampling.span(i)) for k, i in zip(corpus.tolist(), sample.tolist(), strict=True)]

    def corpus_of(self, position: int) -> str:
        """The name of the corpus that a position of the run reads; opens no index."""
        return self.corpora[int(self.order.lookup(np.array([position], dtype=np.int64))[0][0])].name

    def locate(self, position: int) -> Location:
        """The corpus, epoch, window and documents that a position of the run reads: a line of the data ledger."""
        corpus, epoch, sample = (int(column[0]) for column in self.order.lookup(np.array([position], dtype=np.int64)))
        file = self.files[corpus]
        start, stop = self.sampling.span(sample)
        return Location(
            corpus=self.corpora[corpus].name,
            prefix=file.prefix,
            epoch=epoch,
            window=sample,
            first_token=start,
            documents=_documents(file, start, stop),
        )

    def epochs(self, n_samples: int, skipped: SkippedData | None = None) -> dict[str, float]:
        """How many times each corpus, by name, has been read through after the first `n_samples` samples of the run,
        which leaves out what `skipped` says."""
        counts = [0] * len(self.corpora)
        for first, stop in (skipped or SkippedData()).spans_read(n_samples):
            up_to = zip(self.order.counts(stop), self.order.counts(first), strict=True)
            counts = [count + after - before for count, (after, before) in zip(counts, up_to, strict=True)]
        return {c.name: count / n for c, count, n in zip(self.corpora, counts, self.n_windows, strict=True)}

    def fingerprint(self) -> dict[str, Any]:
        """What the order depends on, as JSON for a checkpoint; `fingerprint_differences` compares two."""
        return {
            "order_version": ORDER_VERSION,
            "seed": self.seed,
            "seq_len": self.seq_len,
            "corpora": [
                {
                    "name": corpus.name,
                    "weight": corpus.weight,
                    "n_tokens": file.n_tokens,
                    "n_documents": file.n_documents,
                }
                for corpus, file in zip(self.corpora, self.files, strict=True)
            ],
        }


def share_of_step(first: int, *, n_samples: int, rank: int, ranks: int) -> Ints:
    """The positions (n_samples / ranks,) that a data rank reads for a step of `n_samples` samples, `first` the first.

    Each rank has a contiguous part, so all ranks together read the same samples whatever their number.
    """
    assert n_samples % ranks == 0, f"{n_samples} samples do not divide by {ranks} data ranks"
    mine = n_samples // ranks
    begin = first + rank * mine
    return np.arange(begin, begin + mine, dtype=np.int64)


class ValidationData:
    """One corpus, window by window in file order. ConfigError as for TrainingData."""

    def __init__(self, corpus: CorpusConfig, *, seq_len: int, vocab_size: int) -> None:
        check_seq_len(seq_len)
        self.corpus = corpus
        self.seq_len = seq_len
        self.vocab_size = vocab_size
        self.sampling = Windows(seq_len)
        self.file = open_tokens(Path(corpus.path))
        self.n_windows = count_samples(self.sampling, self.file.n_tokens, called=f"{self.file.prefix}.bin")

    def batch(self, start: int, stop: int) -> Tokens:
        """Windows start to stop - 1 as token ids (stop - start, seq_len + 1)."""
        assert 0 <= start <= stop <= self.n_windows, f"windows {start} to {stop} of {self.n_windows}"
        spans = [(self.file, *self.sampling.span(i)) for i in range(start, stop)]
        return _read(spans, seq_len=self.seq_len, vocab_size=self.vocab_size)


def fingerprint_differences(saved: dict[str, Any], current: dict[str, Any]) -> list[str]:
    """What differs between the data of a checkpoint and the data of this run, a phrase each; empty when nothing does.

    Any difference means that going on would read samples again or leave some out.
    """
    labels = {"order_version": "the version of the data order", "seed": "the seed", "seq_len": "seq_len"}
    found = [
        f"{label} was {saved.get(key)} and is now {current.get(key)}"
        for key, label in labels.items()
        if saved.get(key) != current.get(key)
    ]
    before = {corpus["name"]: corpus for corpus in saved.get("corpora", [])}
    after = {corpus["name"]: corpus for corpus in current.get("corpora", [])}
    found += [f"corpus '{name}' is gone" for name in before if name not in after]
    found += [f"corpus '{name}' is new" for name in after if name not in before]
    for name in (name for name in after if name in before):
        for key, label in {
            "weight": "weight",
            "n_tokens": "number of tokens",
            "n_documents": "number of documents",
        }.items():
            if before[name].get(key) != after[name].get(key):
                found.append(
                    f"the {label} of corpus '{name}' was {before[name].get(key)} and is now {after[name].get(key)}"
                )
    return found


def _read(spans: Sequence[tuple[TokenFile, int, int]], *, seq_len: int, vocab_size: int) -> Tokens:
    """One row of ids a span; refuses ids outside the vocabulary, which would index past the embedding."""
    batch = np.empty((len(spans), seq_len + 1), dtype=np.int64)
    for file, start, stop in spans:
        file.announce(start, stop)  # all before the first is read: a disk serves many at once
    damaged: dict[int, str] = {}
    for row, (file, start, stop) in enumerate(spans):
        try:
            batch[row] = file.read(start, stop)
        except DamagedTokens as error:
            damaged[row] = str(error)
    if damaged:
        raise DamagedSamples(damaged)
    if batch.size and batch.view(np.uint64).max() >= vocab_size:  # a negative id is a large one without its sign
        row, column = (int(i) for i in np.argwhere((batch >= vocab_size) | (batch < 0))[0])
        file, start, _ = spans[row]
        place = start + column
        raise ConfigError(
            f"{file.bin_path(place)}: token {place:,} of {file.n_tokens:,} is id {batch[row, column]}, but "
            f"vocab_size = {vocab_size} has ids 0 to {vocab_size - 1}; use the tokenizer that made the file and its "
            "vocab_size, or prepare the file again with this tokenizer"
        )
    return batch


def _documents(file: TokenFile, start: int, stop: int) -> tuple[DocumentSpan, ...]:
    """The documents under tokens start to stop - 1, found from the last one back."""
    spans = []
    while stop > start:
        document, offset_of_last = file.document_at(stop - 1)
        document_start = stop - 1 - offset_of_last
        begin = max(start, document_start)
        spans.append(DocumentSpan(document=document, offset_tokens=begin - document_start, n_tokens=stop - begin))
        stop = begin
    return tuple(reversed(spans))


def count_samples(sampling: Windows, n_tokens: int, *, called: str) -> int:
    """The samples in so many tokens; ConfigError when there is none, with the words that name the corpus."""
    n_samples = sampling.count(n_tokens)
    if n_samples == 0:
        raise ConfigError(
            f"{called} has {n_tokens:,} tokens, but one sample of seq_len = {sampling.seq_len:,} needs "
            f"{sampling.seq_len + 1:,}; add documents to the corpus, leave it out, or lower seq_len"
        )
    return n_samples


def check_seq_len(seq_len: int) -> None:
    if seq_len < 1:
        raise ConfigError(f"seq_len = {seq_len} tokens must be at least 1")


def check_weight(name: str, weight: float) -> None:
    if not 0.0 < weight < float("inf"):
        raise ConfigError(
            f"corpus '{name}': weight = {weight} must be a finite number > 0; "
            "leave the corpus out to read nothing of it"
        )
    if not 1e-100 < weight < 1e100:  # else sums and shares leave the range of floating-point numbers
        raise ConfigError(f"corpus '{name}': weight = {weight} must lie between 1e-100 and 1e100; scale all weights")


def check_names(corpora: Sequence[tuple[str, str]], *, where: str) -> None:
    """ConfigError when two of the (name, path) have one name."""
    seen: dict[str, str] = {}
    for name, path in corpora:
        if name in seen:
            raise ConfigError(
                f"{where}: '{seen[name]}' and '{path}' both have the name '{name}'; "
                "give one of them another with name = '...'"
            )
        seen[name] = path
