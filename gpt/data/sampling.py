"""Open the token files of a corpus and read samples from them. Needs no torch."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt.data.config import CorpusConfig, DataConfig
from gpt.data.sampling_rules import SamplingRule, Span, count_samples
from gpt.errors import ConfigError
from gpt.losses.marks import PADDING
from gpt.token_files.checksums import DamagedTokens
from gpt.token_files.corpus import open_tokens
from gpt.token_files.files import TokenFile

Tokens = NDArray[np.int64]


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

    def stream(self, name: str, *, default: int) -> Tokens:
        """A stream (n, seq_len + 1), with `default` in the rows of corpora that do not have it."""
        if name not in self.streams:
            return np.full_like(self.tokens, default)
        return np.where(self.stream_lengths[name][:, None] > 0, self.streams[name], default)


class DamagedSamples(DamagedTokens):
    """Samples that cannot be read: `rows` of the request, each with the reason."""

    def __init__(self, rows: Mapping[int, DamagedTokens]) -> None:
        first, *more = dict.fromkeys(map(str, rows.values()))
        super().__init__(f"{first}. Copy it again" + (f" ({len(more)} more blocks are damaged)" if more else ""))
        self.rows = rows
        self.exit_status = next(iter(rows.values())).exit_status


class CorpusFiles:
    """The token files of one corpus: its tokens and its streams, which must have the same documents.

    ConfigError: what TokenFile finds wrong, and streams that do not match. Unless samples are single documents, streams
    also need documents of the same lengths, so that one span fits all; this is checked for each sample that is read.
    """

    def __init__(self, corpus: CorpusConfig, sampling: SamplingRule) -> None:
        self.name = corpus.name
        self.tokens = open_tokens(Path(corpus.path))
        self.streams = {name: TokenFile(Path(path)) for name, path in corpus.streams.items()}
        for name, stream in self.streams.items():
            kinds = [("documents", stream.n_documents, self.tokens.n_documents)]
            if sampling.one_span:
                kinds.append(("tokens", stream.n_tokens, self.tokens.n_tokens))
            for kind, found, wanted in kinds:
                if found != wanted:
                    raise ConfigError(
                        f"corpus '{corpus.name}', stream '{name}': {stream.prefix}.idx has {found:,} {kind}, but "
                        f"{self.tokens.prefix}.idx has {wanted:,}; write both from the same documents"
                    )
        self.sampling = sampling.of(self.tokens)
        self.n_samples = count_samples(self.sampling, self.tokens)

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
            if self.sampling.one_span and stream.borders(start, stop) != self.tokens.borders(start, stop):
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

    They have `segment_ids` if `segments` asks for them or if samples may be short. A full window has one segment unless
    `segments` asks for its documents.

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
                segment_ids[row, : stop - start] = _segment_ids(corpus, start, stop, apart=segments)
            for name, values in corpus.read_streams(sample).items():
                samples.streams[name][row, : len(values)] = values
                samples.stream_lengths[name][row] = len(values)
        except DamagedTokens as error:
            damaged[row] = error
    if damaged:
        raise DamagedSamples(damaged)
    _check_ids(tokens, wanted, vocab_size)
    return samples


def _segment_ids(corpus: CorpusFiles, start: int, stop: int, *, apart: bool) -> Tokens:
    """The number of each token's document within the sample; all 0 in a window whose documents are not kept apart."""
    marks = np.zeros(stop - start, dtype=np.int64)
    if apart or corpus.sampling.may_be_short:
        marks[[border - start for border in corpus.tokens.borders(start, stop)]] = 1
    return marks.cumsum()


def blank_samples(n: int, corpora: Sequence[CorpusFiles], *, seq_len: int, segments: bool) -> Samples:
    """n samples of these corpora's shape with nothing in them; `segments` as for `read_samples`."""
    shape = (n, seq_len + 1)
    segments = segments or any(corpus.sampling.may_be_short for corpus in corpora)
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
    segments = config.has_segments
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
