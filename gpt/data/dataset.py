"""Token files as training samples in a reproducible order, and as validation samples in file order. Needs no torch.

Position n of a run names one sample. The number of samples consumed is all that a checkpoint needs to continue:
gpt/data/order.py computes the rest.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt.data.config import CorpusConfig, DataConfig
from gpt.data.order import Ints, make_order
from gpt.data.sampling import CorpusFiles, Samples, blank_samples, read_samples
from gpt.data.sampling_rules import Span, sampling_of
from gpt.data.skipped import SkippedData
from gpt.errors import ConfigError
from gpt.token_files.files import TokenFile


@dataclass(frozen=True)
class DocumentSpan:
    """The part of one document that lies in a sample."""

    document: int  # its number in the token file, from 0
    offset_tokens: int  # from the start of the document to the start of the part
    n_tokens: int


@dataclass(frozen=True)
class Location:
    """The sample at a position of the run."""

    corpus: str
    prefix: Path
    epoch: int  # 0 for the first pass
    window: int  # the sample's number in the corpus
    first_token: int  # position in the file
    documents: tuple[DocumentSpan, ...]  # in the order read; their n_tokens add up to the sample's


class TrainingData:
    """Mixed corpora in training order. Every answer depends on (arguments, position) alone and is equal on every rank.

    Corpora are sorted by name, so their order in a recipe does not matter. Memory and start-up time do not grow with
    the number of tokens. ConfigError: a corpus without a whole sample, and what TokenFile finds wrong.
    """

    def __init__(self, config: DataConfig, *, seed: int, vocab_size: int) -> None:
        if not config.train:
            raise ConfigError("there is no corpus to train on; give at least one in data.train")
        self.config, self.seed, self.vocab_size = config, seed, vocab_size
        self.seq_len = config.seq_len
        self.corpora = sorted(config.train, key=lambda corpus: corpus.name)
        self.files = [CorpusFiles(corpus, sampling_of(config, corpus)) for corpus in self.corpora]
        self.n_samples = [files.n_samples for files in self.files]
        self.order = make_order(
            [corpus.name for corpus in self.corpora],
            sizes=self.n_samples,
            weights=[corpus.weight for corpus in self.corpora],
            seed=seed,
        )

    def read(self, positions: NDArray[Any]) -> Samples:
        """The samples at the positions (n,) of the run. Errors: see `read_samples`."""
        return read_samples(
            self._wanted(positions),
            corpora=self.files,
            seq_len=self.seq_len,
            vocab_size=self.vocab_size,
            segments=self.config.document_mask,
        )

    def blank(self, n: int) -> Samples:
        """n samples of the usual shape with nothing in them."""
        return blank_samples(n, self.files, seq_len=self.seq_len, segments=self.config.document_mask)

    def announce(self, positions: NDArray[Any]) -> None:
        """Have the system fetch the samples at the positions (n,) in the background, for a later `read`."""
        for files, sample in self._wanted(positions):
            files.announce(sample)

    def _wanted(self, positions: NDArray[Any]) -> list[tuple[CorpusFiles, int]]:
        corpus, _, sample = self.order.lookup(positions)
        return [(self.files[k], i) for k, i in zip(corpus.tolist(), sample.tolist(), strict=True)]

    def corpus_of(self, position: int) -> str:
        """The name of the corpus that a position of the run reads; opens no index."""
        return self.corpora[int(self.order.lookup(np.array([position], dtype=np.int64))[0][0])].name

    def locate(self, position: int) -> Location:
        """The corpus, epoch, sample and documents that a position of the run reads: a line of the data ledger."""
        corpus, epoch, sample = (int(column[0]) for column in self.order.lookup(np.array([position], dtype=np.int64)))
        file, span = self.files[corpus].tokens, self.files[corpus].span(sample)
        return Location(
            corpus=self.corpora[corpus].name,
            prefix=file.prefix,
            epoch=epoch,
            window=sample,
            first_token=span[0],
            # Only a sample that is an empty document has an empty span; its number is that of the document.
            documents=_documents(file, span) or (DocumentSpan(document=sample, offset_tokens=0, n_tokens=0),),
        )

    def epochs(self, n_samples: int, skipped: SkippedData | None = None) -> dict[str, float]:
        """The epochs of each corpus, by name, after the first `n_samples` samples of the run without `skipped`."""
        counts = [0] * len(self.corpora)
        for first, stop in (skipped or SkippedData()).spans_read(n_samples):
            up_to = zip(self.order.counts(stop), self.order.counts(first), strict=True)
            counts = [count + after - before for count, (after, before) in zip(counts, up_to, strict=True)]
        return {c.name: count / n for c, count, n in zip(self.corpora, counts, self.n_samples, strict=True)}


class ValidationData:
    """One corpus, sample by sample in file order, cut as the training data are. ConfigError as for TrainingData."""

    def __init__(self, corpus: CorpusConfig, config: DataConfig, *, vocab_size: int) -> None:
        self.corpus, self.vocab_size = corpus, vocab_size
        self.seq_len, self.document_mask = config.seq_len, config.document_mask
        self.files = CorpusFiles(corpus, sampling_of(config, corpus))
        self.n_samples = self.files.n_samples

    def read(self, numbers: Sequence[int | None]) -> Samples:
        """The samples of these numbers, in order; None leaves a row blank."""
        asked = [number for number in numbers if number is not None]
        assert all(0 <= number < self.n_samples for number in asked), f"samples {asked} of {self.n_samples}"
        wanted = [None if number is None else (self.files, number) for number in numbers]
        return read_samples(
            wanted,
            corpora=[self.files],
            seq_len=self.seq_len,
            vocab_size=self.vocab_size,
            segments=self.document_mask,
        )


def share_of_step(first: int, *, n_samples: int, rank: int, ranks: int) -> Ints:
    """The positions (n_samples / ranks,) that a data-parallel rank reads for a step of samples from `first` on.

    Each rank has a contiguous part, so all ranks together read the same samples whatever their number.
    """
    assert n_samples % ranks == 0, f"{n_samples} samples do not divide by {ranks} data ranks"
    mine = n_samples // ranks
    begin = first + rank * mine
    return np.arange(begin, begin + mine, dtype=np.int64)


def _documents(file: TokenFile, span: Span) -> tuple[DocumentSpan, ...]:
    """The documents of a span of tokens, searched from the last one backwards."""
    start, stop = span
    spans = []
    while stop > start:
        document, offset_of_last = file.document_at(stop - 1)
        document_start = stop - 1 - offset_of_last
        begin = max(start, document_start)
        spans.append(DocumentSpan(document=document, offset_tokens=begin - document_start, n_tokens=stop - begin))
        stop = begin
    return tuple(reversed(spans))
