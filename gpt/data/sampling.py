"""Cut token files into samples by window or by document, and read samples. Needs no torch."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gpt.data.config import CorpusConfig, DataConfig
from gpt.errors import ConfigError
from gpt.losses.marks import PADDING
from gpt.token_files.checksums import DamagedTokens
from gpt.token_files.corpus import open_tokens
from gpt.token_files.files import TokenFile

Tokens = NDArray[np.int64]
Span = tuple[int, int]  # first token, and one past the last, as positions in a file


@dataclass(frozen=True)
class Samples:
    """n samples of up to seq_len + 1 tokens.

    `tokens` (n, seq_len + 1), 0 where a sample is shorter. `segment_ids`, of the same shape: the number of the document
    within the sample, PADDING behind its end; None if samples are full windows and documents are not kept apart.
    `streams`: the same part of each further token file, (n, seq_len + 1), and `stream_lengths`: how many of its tokens
    are real, (n,).
    """

    tokens: Tokens
    segment_ids: Tokens | None = None
    streams: Mapping[str, Tokens] = field(default_factory=dict)
    stream_lengths: Mapping[str, Tokens] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.tokens)


class DamagedSamples(DamagedTokens):
    """Samples that cannot be read: `rows` of the request, each with the reason."""

    def __init__(self, rows: Mapping[int, DamagedTokens]) -> None:
        first, *more = dict.fromkeys(map(str, rows.values()))
        super().__init__(f"{first}. Copy it again" + (f" ({len(more)} more blocks are damaged)" if more else ""))
        self.rows = rows
        self.exit_status = next(iter(rows.values())).exit_status


class SamplingRule(Protocol):
    """A rule that numbers the samples of a token file. The data order knows samples by number only."""

    @property
    def seq_len(self) -> int: ...

    def count(self, *, n_tokens: int, n_documents: int) -> int:
        """The samples in a stream of so many tokens and documents."""
        ...

    def span(self, file: TokenFile, sample: int) -> Span:
        """The tokens of a sample, at most seq_len + 1."""
        ...


@dataclass(frozen=True)
class Windows:
    """Sample i is window i of the token stream: seq_len + 1 tokens, of which neighbours share one.

    Windows do not stop at the ends of documents (GPT-3, appendix B: full sequences, documents packed).
    """

    seq_len: int

    def count(self, *, n_tokens: int, n_documents: int) -> int:
        """Whole windows. The last n_tokens - 1 - count * seq_len tokens are in none."""
        return max(0, (n_tokens - 1) // self.seq_len)

    def span(self, file: TokenFile, sample: int) -> Span:
        start = sample * self.seq_len
        return start, start + self.seq_len + 1


@dataclass(frozen=True)
class Documents:
    """Sample i is document i, cut after seq_len + 1 tokens."""

    seq_len: int

    def count(self, *, n_tokens: int, n_documents: int) -> int:
        return n_documents

    def span(self, file: TokenFile, sample: int) -> Span:
        start = file.document_start(sample)
        return start, min(start + self.seq_len + 1, file.document_start(sample + 1))


def sampling_of(config: DataConfig) -> SamplingRule:
    """The rule of `data.sampling`."""
    return Documents(config.seq_len) if config.sampling == "document" else Windows(config.seq_len)


def count_samples(sampling: SamplingRule, *, n_tokens: int, n_documents: int, called: str) -> int:
    """The samples of a corpus. ConfigError if there is none; `called` names the corpus in it."""
    n_samples = sampling.count(n_tokens=n_tokens, n_documents=n_documents)
    if n_samples == 0 and isinstance(sampling, Documents):
        raise ConfigError(
            f"{called} has no documents, but data.sampling = 'document' makes one sample of each; add documents to the "
            "corpus, leave it out, or use data.sampling = 'window'"
        )
    if n_samples == 0:
        raise ConfigError(
            f"{called} has {n_tokens:,} tokens, but one sample of seq_len = {sampling.seq_len:,} needs "
            f"{sampling.seq_len + 1:,}; add documents to the corpus, leave it out, or lower seq_len"
        )
    return n_samples


class CorpusFiles:
    """The token files of one corpus: its tokens and its streams, which must have the same documents.

    ConfigError: what TokenFile finds wrong, and streams that do not match. Windows also need documents of the same
    lengths in all streams, so that one span fits all; this is checked for each window that is read.
    """

    def __init__(self, corpus: CorpusConfig, sampling: SamplingRule) -> None:
        self.name = corpus.name
        self.sampling = sampling
        self.tokens = open_tokens(Path(corpus.path))
        self.streams = {name: TokenFile(Path(path)) for name, path in corpus.streams.items()}
        by_window = isinstance(sampling, Windows)
        for name, stream in self.streams.items():
            kinds = [("documents", stream.n_documents, self.tokens.n_documents)]
            if by_window:
                kinds.append(("tokens", stream.n_tokens, self.tokens.n_tokens))
            for kind, found, wanted in kinds:
                if found != wanted:
                    raise ConfigError(
                        f"corpus '{corpus.name}', stream '{name}': {stream.prefix}.idx has {found:,} {kind}, but "
                        f"{self.tokens.prefix}.idx has {wanted:,}; write both from the same documents"
                    )
        self.n_samples = count_samples(
            sampling,
            n_tokens=self.tokens.n_tokens,
            n_documents=self.tokens.n_documents,
            called=f"{self.tokens.prefix}.bin",
        )

    def span(self, sample: int) -> Span:
        return self.sampling.span(self.tokens, sample)

    def announce(self, sample: int) -> None:
        """Have the system fetch a sample in the background, for a later read, which reports damage in the index."""
        with suppress(DamagedTokens):
            self.tokens.announce(*self.span(sample))
            for stream in self.streams.values():
                stream.announce(*self.sampling.span(stream, sample))

    def read_streams(self, sample: int) -> dict[str, NDArray[Any]]:
        """The sample's part of each stream, ragged."""
        parts = {}
        for name, stream in self.streams.items():
            start, stop = self.sampling.span(stream, sample)
            if isinstance(self.sampling, Windows) and stream.borders(start, stop) != self.tokens.borders(start, stop):
                raise ConfigError(
                    f"corpus '{self.name}', stream '{name}': its documents begin elsewhere than those of "
                    f"{self.tokens.prefix}.bin in tokens {start:,} to {stop:,}; write both from the same documents"
                )
            parts[name] = stream.read(start, stop)
        return parts


def read_samples(
    wanted: Sequence[tuple[CorpusFiles, int] | None],
    *,
    corpora: Sequence[CorpusFiles],
    seq_len: int,
    vocab_size: int,
    segments: bool,
) -> Samples:
    """The samples (corpus, number), in order; None leaves a row blank. `corpora`: all that samples may come from.

    They have `segment_ids` if `segments` asks for them or if samples may be short.

    DamagedSamples: parts of the files are not what was written. ConfigError: a token id outside the vocabulary.
    """
    samples = blank_samples(len(wanted), corpora, seq_len=seq_len, segments=segments)
    tokens, segment_ids = samples.tokens, samples.segment_ids
    rows = [(row, *one) for row, one in enumerate(wanted) if one is not None]
    for _, corpus, sample in rows:
        corpus.announce(sample)  # all before the first is read: a disk serves many requests at once
    damaged: dict[int, DamagedTokens] = {}
    for row, corpus, sample in rows:
        try:
            start, stop = corpus.span(sample)
            tokens[row, : stop - start] = corpus.tokens.read(start, stop)
            if segment_ids is not None:
                marks = np.zeros(stop - start, dtype=np.int64)
                marks[[border - start for border in corpus.tokens.borders(start, stop)]] = 1
                segment_ids[row, : stop - start] = marks.cumsum()
            for name, values in corpus.read_streams(sample).items():
                samples.streams[name][row, : len(values)] = values
                samples.stream_lengths[name][row] = len(values)
        except DamagedTokens as error:
            damaged[row] = error
    if damaged:
        raise DamagedSamples(damaged)
    _check_ids(tokens, wanted, vocab_size)
    return samples


def blank_samples(n: int, corpora: Sequence[CorpusFiles], *, seq_len: int, segments: bool) -> Samples:
    """n samples of these corpora's shape with nothing in them; `segments` as for `read_samples`."""
    shape = (n, seq_len + 1)
    segments = segments or any(not isinstance(corpus.sampling, Windows) for corpus in corpora)
    names = dict.fromkeys(name for corpus in corpora for name in corpus.streams)
    return Samples(
        np.zeros(shape, dtype=np.int64),
        np.full(shape, PADDING, dtype=np.int64) if segments else None,
        {name: np.zeros(shape, dtype=np.int64) for name in names},
        {name: np.zeros(n, dtype=np.int64) for name in names},
    )


def made_up_samples(n: int, config: DataConfig) -> Samples:
    """n full samples of the shape of a recipe's data, for a dry run. Opens no file.

    All ids are 0, in the tokens and in every stream. Each sample is one document.
    """
    shape = (n, config.seq_len + 1)
    segments = config.document_mask or config.sampling == "document"
    names = dict.fromkeys(name for corpus in config.train for name in corpus.streams)
    return Samples(
        np.zeros(shape, dtype=np.int64),
        np.zeros(shape, dtype=np.int64) if segments else None,
        {name: np.zeros(shape, dtype=np.int64) for name in names},
        {name: np.full(n, config.seq_len + 1, dtype=np.int64) for name in names},
    )


def _check_ids(tokens: Tokens, wanted: Sequence[tuple[CorpusFiles, int] | None], vocab_size: int) -> None:
    """Refuse ids outside the vocabulary, which would index past the embedding."""
    if not tokens.size or tokens.view(np.uint64).max() < vocab_size:  # a negative id is large without its sign
        return
    row, column = (int(i) for i in np.argwhere((tokens >= vocab_size) | (tokens < 0))[0])
    one = wanted[row]
    assert one is not None, "blank rows hold id 0"
    corpus, sample = one
    position = corpus.span(sample)[0] + column
    raise ConfigError(
        f"{corpus.tokens.bin_path(position)}: token {position:,} of {corpus.tokens.n_tokens:,} is id "
        f"{tokens[row, column]}, but vocab_size = {vocab_size} has ids 0 to {vocab_size - 1}; use the tokenizer that "
        "made the file and its vocab_size, or prepare the file again with this tokenizer"
    )
